// Timelines of the application's: a cache line that device and host signal and wait for.
#include <memory>

#include "context.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {

class Timeline {
 public:
  static constexpr uint8_t kHandleTag = 0x54;
  static constexpr const char* kHandleName = "timeline";

  Timeline(std::shared_ptr<Context> context, uint64_t initial)
      : context_(std::move(context)), line_(context_->take_line()) {
    context_->device().signal(*line_.host, initial);
  }
  ~Timeline() { context_->give_line(line_); }

  Context& context() const { return *context_; }
  const void* owner() const { return context_.get(); }
  hw::DeviceAddr address() const { return line_.device; }
  uint64_t value() const { return std::atomic_ref(line_.host->value).load(std::memory_order_acquire); }
  void signal(uint64_t value) {
    context_->device().signal(*line_.host, value);
    context_->device().notify();
  }
  void wait(uint64_t value, uint64_t timeout_ns) {
    if (context_->device().wait(*line_.host, value, driver_timeout(timeout_ns), driver::Device::kNoQueue) ==
        driver::WaitResult::kTimeout)
      fail(jalErrorWaitTimeout, "timeline: " + std::to_string(this->value()) + " after " +
                                    std::to_string(timeout_ns / 1'000'000) + " ms, waiting for " +
                                    std::to_string(value));
    if (const hw::Status status = driver::failure(*line_.host, value); status != hw::Status::kOk)
      fail(jalErrorDependencyFailed,
           "timeline: " + std::to_string(value) + " was reached because the work that would have signalled it failed");
  }

 private:
  std::shared_ptr<Context> context_;
  Context::Line line_;
};

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

namespace {
Timeline& timeline_of(jalTimeline_t timeline) { return HandleTable<Timeline>::get(timeline); }
void same_device(const Timeline& t, const Stream& s) {
  if (&t.context() != &s.context()) fail(jalErrorInvalidDevice, "timeline and stream belong to different devices");
}
}  // namespace

jalError_t jalTimelineCreate(jalDevice_t device, uint64_t initial, jalTimeline_t* timeline) {
  return guard([&] {
    Context& c = context_of(device);
    required(timeline, "timeline");
    *timeline = static_cast<jalTimeline_t>(
        HandleTable<Timeline>::add(std::make_shared<Timeline>(c.shared_from_this(), initial)));
  });
}
jalError_t jalTimelineDestroy(jalTimeline_t timeline) {
  return guard([&] { HandleTable<Timeline>::remove(timeline); });
}
jalError_t jalTimelineGetValue(jalTimeline_t timeline, uint64_t* value) {
  return guard([&] { required(value, "value") = timeline_of(timeline).value(); });
}
jalError_t jalTimelineSignal(jalTimeline_t timeline, uint64_t value) {
  return guard([&] { timeline_of(timeline).signal(value); });
}
jalError_t jalTimelineWait(jalTimeline_t timeline, uint64_t value, uint64_t timeout_ns) {
  return guard([&] { timeline_of(timeline).wait(value, timeout_ns); });
}
jalError_t jalStreamWaitTimeline(jalStream_t stream, jalTimeline_t timeline, uint64_t value) {
  return guard([&] {
    Stream& s = stream_of(stream);
    Timeline& t = timeline_of(timeline);
    same_device(t, s);
    s.wait_for(t.address(), value);
  });
}
jalError_t jalStreamSignalTimeline(jalStream_t stream, jalTimeline_t timeline, uint64_t value) {
  return guard([&] {
    Stream& s = stream_of(stream);
    Timeline& t = timeline_of(timeline);
    same_device(t, s);
    s.signal(t.address(), value);
  });
}
