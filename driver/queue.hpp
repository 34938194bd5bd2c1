// A hardware queue: a single-producer ring of packets, its own timeline and fault record. One thread at a time.
#pragma once
#include <jalapeno_hw/packets.hpp>
#include <memory>

#include "device.hpp"
#include "mmio.hpp"

namespace jalapeno::driver {

// How `value` of a timeline was reached: kOk, or the status of the failure it is part of.
inline hw::Status failure(const hw::Timeline& t, uint64_t value) {
  auto load = [](const auto& field) {
    return std::atomic_ref(const_cast<std::remove_cvref_t<decltype(field)>&>(field)).load(std::memory_order_acquire);
  };
  const auto status = static_cast<hw::Status>(load(t.status));
  if (status == hw::Status::kOk || load(t.failed_value) > value) return hw::Status::kOk;
  const uint64_t resume = load(t.resume_value);
  return resume != 0 && value >= resume ? hw::Status::kOk : status;
}

class Queue {
 public:
  // 2^ring_log2 packets; `extra_bytes` of host memory come in the same mapping, for the owner. Throws Error.
  Queue(Device& device, uint32_t context, uint32_t priority, uint32_t ring_log2, uint64_t extra_bytes);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Where the next packet goes; its completion raises timeline() to this index + 1.
  uint64_t next() const { return tail_; }
  uint64_t completed() const {
    return std::atomic_ref(const_cast<uint64_t&>(timeline_->value)).load(std::memory_order_acquire);
  }
  uint64_t capacity() const { return entries_; }
  bool full() const { return tail_ - completed() >= entries_; }

  // Fills the slot; false when the ring is full. The device sees it with the next ring().
  template <hw::PacketType P>
  bool push(const P& packet) {
    if (full()) return false;
    hw::Packet& slot = ring_[tail_ & (entries_ - 1)];
    P numbered = packet;
    numbered.header.sequence = static_cast<uint32_t>(tail_);
    store_for_device(&slot, &numbered, sizeof numbered);
    ++tail_;
    return true;
  }
  // The doorbell: publish the index, then wake the device if it sleeps. No syscall while it is awake.
  void ring();

  const hw::Timeline& timeline() const { return *timeline_; }
  hw::DeviceAddr timeline_address() const { return timeline_address_; }
  // kOk unless the queue has failed since it was created or reset.
  hw::Status status() const { return failure(*timeline_, UINT64_MAX); }
  hw::FaultRecord fault() const;
  std::byte* extra() const { return memory_.data() + extra_offset_; }
  hw::DeviceAddr extra_address() const { return memory_.device_address(extra_offset_); }
  uint32_t number() const { return number_; }
  Device& device() const { return device_; }
  WaitResult wait(uint64_t value, int64_t timeout_ns) const {
    const WaitResult r = device_.wait(*timeline_, value, timeout_ns, number_);
    if (Trace* t = device_.trace(); t != nullptr && r == WaitResult::kReached)
      t->done(number_, value, static_cast<uint32_t>(failure(*timeline_, value)));
    return r;
  }

  // Packets that are not done, oldest first. While the device still runs, some may end meanwhile.
  template <class F>
  void each_pending(F f) const {
    for (uint64_t k = completed(); k < tail_; ++k) f(ring_[k & (entries_ - 1)]);
  }
  // Stops the queue, drops what it has not run and starts it again, empty and without error. Returns how many packets
  // were dropped. The timeline's values go on; those of dropped packets count as failed.
  uint64_t reset();

 private:
  void enable();

  Device& device_;
  uint32_t context_, priority_, ring_log2_;
  uint64_t entries_, extra_offset_;
  DmaMemory memory_;
  uint32_t number_;
  hw::Packet* ring_;
  hw::Timeline* timeline_;
  hw::FaultRecord* fault_;
  hw::DeviceAddr timeline_address_;
  uint64_t tail_ = 0, traced_ = 0;
};

}  // namespace jalapeno::driver
