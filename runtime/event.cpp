#include "event.hpp"

#include <cstring>

#include "stream.hpp"

namespace jalapeno::runtime {

Event::Event(std::shared_ptr<Context> context, bool timing) : context_(std::move(context)), timing_(timing) {
  if (timing_) line_ = context_->take_line();
}

Event::~Event() {
  if (timing_) context_->give_line(line_);
}

Event::Mark Event::mark() {
  std::lock_guard lock(mutex_);
  return mark_;
}

void Event::record(Stream& stream) {
  if (&stream.context() != context_.get())
    fail(jalErrorInvalidDevice, "jalEventRecord: event and stream belong to different devices");
  if (timing_)
    stream.timestamp(line_.device);
  else if (stream.failed())
    stream.throw_failure();
  std::lock_guard lock(mutex_);
  mark_ = {stream.shared_from_this(), stream.submitted(), stream.capturing()};
}

void Event::make_wait(Stream& stream) {
  const Mark m = mark();
  if (m.stream == nullptr) return;
  if (&stream.context() != context_.get())
    fail(jalErrorNotSupported,
         "jalStreamWaitEvent: event and stream belong to different devices; use a host function or a timeline of the "
         "stream's device");
  if (m.stream.get() == &stream) return;  // a stream is in order already
  if (stream.capturing() || m.captured) {
    if (m.captured && !stream.capturing())
      fail(jalErrorIllegalState, "jalStreamWaitEvent: the event was recorded in a capture");
    stream.refuse_capture("jalStreamWaitEvent on an event of another stream");
  }
  stream.wait_for(m.stream->queue().timeline_address(), m.value);
}

void Event::check(const Mark& m) {
  m.stream->see_finished_calls();
  const hw::Status status = driver::failure(m.stream->queue().timeline(), m.value);
  if (status == hw::Status::kOk) return;
  if (m.stream->failed()) m.stream->throw_failure();
  fail(code_of(status), "the work before the event failed or was discarded by jalStreamReset");
}

void Event::query() {
  // On the mark itself: a copy would count the stream's owners up and down.
  std::lock_guard lock(mutex_);
  if (mark_.stream == nullptr) return;
  if (mark_.stream->completed() < mark_.value) {
    context_->device().throw_if_lost();
    throw Error(jalErrorNotReady, "");
  }
  check(mark_);
}

void Event::synchronize(uint64_t timeout_ns) {
  const Mark m = mark();
  if (m.stream == nullptr) return;
  if (m.stream->queue().wait(m.value, driver_timeout(timeout_ns)) == driver::WaitResult::kTimeout)
    fail(jalErrorWaitTimeout, "event: not reached after " + std::to_string(timeout_ns / 1'000'000) + " ms");
  check(m);
}

hw::Timestamp Event::time(const char* which) {
  if (!timing_) fail(jalErrorIllegalState, std::string(which) + ": created without JAL_EVENT_TIMING");
  if (mark().stream == nullptr) fail(jalErrorIllegalState, std::string(which) + ": never recorded");
  query();
  hw::Timestamp t;
  std::memcpy(&t, line_.host, sizeof t);
  return t;
}

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

namespace {
Event& event_of(jalEvent_t event) { return HandleTable<Event>::get(event); }
}  // namespace

jalError_t jalEventCreate(jalDevice_t device, unsigned flags, jalEvent_t* event) {
  return guard([&] {
    Context& c = context_of(device);
    required(event, "event");
    if (flags & ~JAL_EVENT_TIMING) invalid("event flags " + std::to_string(flags) + ", expected 0 or JAL_EVENT_TIMING");
    *event = static_cast<jalEvent_t>(
        HandleTable<Event>::add(std::make_shared<Event>(c.shared_from_this(), flags & JAL_EVENT_TIMING)));
  });
}
jalError_t jalEventDestroy(jalEvent_t event) {
  return guard([&] { HandleTable<Event>::remove(event); });
}
jalError_t jalEventRecord(jalEvent_t event, jalStream_t stream) {
  return guard([&] { event_of(event).record(stream_of(stream)); });
}
jalError_t jalEventQuery(jalEvent_t event) {
  return guard([&] { event_of(event).query(); });
}
jalError_t jalEventSynchronize(jalEvent_t event) {
  return guard([&] { event_of(event).synchronize(default_timeout_ns()); });
}
jalError_t jalEventSynchronizeUntil(jalEvent_t event, uint64_t timeout_ns) {
  return guard([&] { event_of(event).synchronize(timeout_ns); });
}
jalError_t jalStreamWaitEvent(jalStream_t stream, jalEvent_t event) {
  return guard([&] { event_of(event).make_wait(stream_of(stream)); });
}
jalError_t jalEventElapsed(jalElapsed* elapsed, jalEvent_t begin, jalEvent_t end) {
  return guard([&] {
    check_struct(required(elapsed, "elapsed"), "jalElapsed");
    const auto a = event_of(begin).time("begin event"), b = event_of(end).time("end event");
    elapsed->device_ns = static_cast<double>(static_cast<int64_t>(b.device_ns - a.device_ns));
    elapsed->host_ns = static_cast<double>(static_cast<int64_t>(b.host_ns - a.host_ns));
  });
}
jalError_t jalEventElapsedTime(float* ms, jalEvent_t begin, jalEvent_t end) {
  return guard([&] {
    required(ms, "ms");
    const auto a = event_of(begin).time("begin event"), b = event_of(end).time("end event");
    const bool host = a.host_ns != 0 && b.host_ns != 0;
    *ms = static_cast<float>(
        static_cast<double>(static_cast<int64_t>(host ? b.host_ns - a.host_ns : b.device_ns - a.device_ns)) * 1e-6);
  });
}
