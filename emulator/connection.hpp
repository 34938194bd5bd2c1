// One vfio-user connection: messages whole or not at all, with their descriptors; and the way back, on which the chip's
// engines ask for host memory that has no file. Trusts nothing it reads. Knows no registers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <jalapeno_hw/vfio_user.hpp>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "memory.hpp"

namespace jalapeno::emu {

struct Message {
  hw::vfio_user::Header header{};
  std::vector<std::byte> payload;
  std::vector<int> fds;

  Message() = default;
  Message(Message&& o) noexcept
      : header(o.header), payload(std::move(o.payload)), fds(std::exchange(o.fds, std::vector<int>())) {}
  Message& operator=(Message&& o) noexcept {
    header = o.header, payload.swap(o.payload), fds.swap(o.fds);
    return *this;
  }
  ~Message();  // closes what nobody took
  int take(size_t k);
  template <class T>
  bool get(T& out) const {
    if (payload.size() < sizeof out) return false;
    __builtin_memcpy(&out, payload.data(), sizeof out);
    return true;
  }
};

class Connection : public HostLink {
 public:
  // Takes the socket. `ends`: descriptors that end the connection when they are readable; `knocker` (-1: none) is
  // looked at while the peer is there, and `knock` called when it is readable.
  Connection(int socket, std::vector<int> ends, int knocker, std::function<void()> knock);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // The next command. Nothing: the peer has left, sent nonsense, or one of the ends. Of one thread.
  std::optional<Message> next();
  // False: the peer has left.
  bool reply(const hw::vfio_user::Header& request, uint32_t error, const void* payload, size_t bytes, int fd = -1);
  void end();  // whoever waits for an answer gets none

  bool read(uint64_t iova, std::byte* out, uint64_t bytes) override;
  bool write(uint64_t iova, const std::byte* data, uint64_t bytes) override;

 private:
  enum class Got { kNothing, kMessage, kEnd };
  struct Question {
    std::byte* out;  // nullptr: a write
    uint64_t bytes;
    bool answered = false, good = false;
  };
  // By the holder of reading_. A message that has begun must be there by the deadline (0: whenever).
  Got receive(Message& message, int timeout_ms, uint64_t deadline_ns);
  bool receive_all(void* out, size_t bytes, std::vector<int>* fds, uint64_t deadline_ns);
  bool await(short events, int timeout_ms, bool knocks);  // false: not ready in time, or the end
  bool send(hw::vfio_user::Header header, const void* first, size_t first_bytes, const void* second,
            size_t second_bytes, int fd);
  bool ask(uint16_t command, uint64_t iova, std::byte* out, const std::byte* data, uint64_t bytes);
  void answer(const Message& m);

  int socket_;
  std::vector<int> ends_;
  int knocker_;
  std::function<void()> knock_;
  // Who reads next: the serving thread, or an engine that waits for its answer while the serving thread waits for it.
  std::mutex reading_;
  std::atomic<bool> serving_waits_{false};  // for reading_: it goes first
  std::mutex sending_;
  std::mutex state_mutex_;
  std::condition_variable answered_;
  std::deque<Message> commands_;           // read by an engine, for the serving thread
  std::map<uint16_t, Question*> pending_;  // by id
  uint16_t next_id_ = 1;
  std::atomic<bool> ended_{false};
};

}  // namespace jalapeno::emu
