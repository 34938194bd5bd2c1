// The flight recorder: a communicator's last operations on this rank, in a file in shared memory that outlives the
// process. Written by one thread at a time; one cache line an operation.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "plan.hpp"

namespace jalapeno::runtime {

class Flight {
 public:
  static constexpr uint64_t kEntries = 1024;
  struct Entry {
    uint64_t sequence;  // counted from 1; 0: empty. Written last.
    uint64_t signature, bytes;
    uint64_t enqueued_ns, done_ns;  // CLOCK_MONOTONIC; done: when it was first seen to be
    uint32_t queue;
    uint32_t captured;  // 1: into a graph, so that it runs at times the recorder does not see
    uint64_t position;  // of its last packet in the queue
    uint64_t reserved;
  };
  // `name` tells the files apart; files of processes that are gone are removed on the way.
  Flight(const std::string& name, uint32_t rank, uint32_t ranks);
  ~Flight();  // removes the file
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;

  void add(uint64_t signature, uint64_t bytes, uint32_t queue, uint64_t position, bool captured);
  // From any thread: how many there were, and what the last one was.
  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  uint64_t last_signature() const { return last_signature_.load(std::memory_order_relaxed); }
  // The last entries, oldest first.
  template <class F>
  void each(F f) {
    const uint64_t n = count();
    for (uint64_t k = n > kEntries ? n - kEntries : 0; k < n; ++k) f(entries_[k % kEntries]);
  }
  const std::string& path() const { return path_; }

 private:
  struct Header {
    char magic[8];
    uint32_t version, pid, rank, ranks;
    uint64_t reserved[5];
  };
  std::string path_;
  Header* header_ = nullptr;
  Entry* entries_ = nullptr;
  std::atomic<uint64_t> count_{0}, last_signature_{0};
};

}  // namespace jalapeno::runtime
