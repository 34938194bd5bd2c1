#include "queue.hpp"

#include <cstring>
#include <new>

#include "error.hpp"
#include "fences.hpp"
#include "log.hpp"

namespace jalapeno::driver {

namespace {
// Behind the ring: the timeline, the fault record, then the owner's bytes.
constexpr uint64_t kTimelineOffset = 0, kFaultOffset = 256, kOwnerOffset = 512;

// Before memory is mapped for a device that is gone: the first cause is what to tell.
Device& still_there(Device& device) {
  device.throw_if_lost();
  return device;
}
}  // namespace

Queue::Queue(Device& device, uint32_t context, uint32_t priority, uint32_t ring_log2, uint64_t extra_bytes)
    : device_(still_there(device)),
      context_(context),
      priority_(priority),
      ring_log2_(ring_log2),
      entries_(uint64_t{1} << ring_log2),
      extra_offset_(entries_ * sizeof(hw::Packet) + kOwnerOffset),
      memory_(device.transport(), device.iova_space(), extra_offset_ + extra_bytes),
      number_(device.take_queue()) {
  const uint64_t control = entries_ * sizeof(hw::Packet);
  ring_ = reinterpret_cast<hw::Packet*>(memory_.data());
  timeline_ = new (memory_.data() + control + kTimelineOffset) hw::Timeline{};
  fault_ = new (memory_.data() + control + kFaultOffset) hw::FaultRecord{};
  timeline_address_ = memory_.device_address(control + kTimelineOffset);
  std::memset(static_cast<void*>(ring_), 0xFF, control);  // no opcode: a fetch too early is a bad packet, not a launch
  try {
    enable();
  } catch (...) {
    device_.give_queue(number_);
    throw;
  }
}

Queue::~Queue() {
  try {
    device_.disable_queue(number_);
  } catch (const Error& e) {
    driver_log().debug("disabling queue {}: {}", number_, e.what());
  }
  device_.give_queue(number_);
}

void Queue::enable() {
  const uint64_t control = entries_ * sizeof(hw::Packet);
  device_.enable_queue(number_,
                       {context_, ring_log2_, priority_, memory_.iova(), memory_.iova() + (control + kTimelineOffset),
                        memory_.iova() + (control + kFaultOffset), tail_});
}

void Queue::ring() {
  if (Trace* t = device_.trace()) {
    t->packets(number_, ring_, entries_, traced_, tail_, completed());
    traced_ = tail_;
  }
  before_doorbell();
  post_word(device_.doorbell(number_).tail, tail_);
  device_.wake();
}

hw::FaultRecord Queue::fault() const {
  hw::FaultRecord copy{};
  if (std::atomic_ref(fault_->status).load(std::memory_order_acquire) != 0) std::memcpy(&copy, fault_, sizeof copy);
  copy.detail[sizeof copy.detail - 1] = 0;
  return copy;
}

uint64_t Queue::reset() {
  device_.disable_queue(number_);
  // After a failure the device itself has walked over what stood behind it.
  const bool failed = status() != hw::Status::kOk;
  const uint64_t done = failed ? std::atomic_ref(timeline_->failed_value).load() : completed();
  const uint64_t dropped = tail_ - std::min(tail_, done);
  std::atomic_ref status_word(timeline_->status);
  if (dropped > 0 && !failed) {
    std::atomic_ref(timeline_->failed_value).store(done + 1, std::memory_order_relaxed);
    status_word.store(static_cast<uint32_t>(hw::Status::kDiscarded), std::memory_order_release);
  }
  if (status_word.load(std::memory_order_relaxed) != 0)
    std::atomic_ref(timeline_->resume_value).store(tail_ + 1, std::memory_order_release);
  std::atomic_ref(timeline_->value).store(tail_, std::memory_order_release);
  *fault_ = {};
  if (Trace* t = device_.trace()) t->queue_reset(number_, *timeline_);
  enable();
  device_.wake();  // who waited for a dropped packet can go on now
  return dropped;
}

}  // namespace jalapeno::driver
