// An event: a position on a stream's timeline, and a timestamp if it was asked for.
#pragma once
#include <memory>
#include <mutex>

#include "context.hpp"

namespace jalapeno::runtime {

class Event {
 public:
  static constexpr uint8_t kHandleTag = 0x53;
  static constexpr const char* kHandleName = "event";

  Event(std::shared_ptr<Context> context, bool timing);
  ~Event();

  void record(Stream& stream);
  void make_wait(Stream& stream);
  void query();  // throws Error(jalErrorNotReady) or the failure
  void synchronize(uint64_t timeout_ns);
  hw::Timestamp time(const char* which);  // throws unless recorded, done and timed
  const void* owner() const { return context_.get(); }

 private:
  struct Mark {
    std::shared_ptr<Stream> stream;
    uint64_t value = 0;
    bool captured = false;
  };
  Mark mark();
  void check(const Mark& mark);

  std::shared_ptr<Context> context_;
  bool timing_;
  Context::Line line_{};  // holds the timestamp
  std::mutex mutex_;
  Mark mark_;
};

}  // namespace jalapeno::runtime
