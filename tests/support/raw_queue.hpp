// For tests that send what no driver would: an emulated chip in this process, and a queue of it that is set up past the
// driver, with ring, timeline and fault record in a file that the chip maps at kRing, and one page of HBM at kPage.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <stdexcept>

#include "chip.hpp"

namespace jalapeno::test {

// One for the whole process: that it survives is the point of most tests of it.
inline emu::Chip& small_chip(uint32_t watchdog_ms = emu::EmulatorOptions{}.watchdog_ms) {
  static auto* chip = [&] {
    emu::EmulatorOptions o;
    o.hbm_bytes = 64 << 20, o.threads = 1, o.watchdog_ms = watchdog_ms;
    return new emu::Chip(o);
  }();
  return *chip;
}

class RawQueue {
 public:
  static constexpr uint64_t kRing = 0x10000, kBytes = 1 << 16, kPage = 0x200000, kPageInHbm = 0x400000;

  explicit RawQueue(emu::Chip& chip, uint64_t permissions = hw::pte::kRead | hw::pte::kWrite) : chip_(chip) {
    fd_ = memfd_create("host", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd_ < 0 || ftruncate(fd_, kBytes) != 0 || fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
      throw std::runtime_error("memfd");
    host_ = map(fd_, kBytes), hbm_ = map(chip.hbm_fd(), chip.hbm_bar_bytes());
    doorbells_ = reinterpret_cast<hw::DoorbellPage*>(map(chip.doorbell_fd(), chip.doorbell_bytes()));
    chip.set_bus_master(true);
    chip.map_host(fd_, 0, kRing, kBytes, true, true);
    auto* table = reinterpret_cast<uint64_t*>(hbm_);  // at the begin of HBM
    std::memset(table, 0, 3 * 4096);
    table[0] = 0x1000 | hw::pte::kValid, table[512] = 0x2000 | hw::pte::kValid;
    table[1024 + 1] = kPageInHbm | hw::pte::kValid | permissions;
    set32(hw::reg::kContextSelect, 0), set64(hw::reg::kContextPageTable, 0);
    set32(hw::reg::kContextCommand, hw::kContextEnable);
    enable();
  }
  ~RawQueue() {
    munmap(host_, kBytes), munmap(hbm_, chip_.hbm_bar_bytes()), munmap(doorbells_, chip_.doorbell_bytes());
    close(fd_);
  }
  RawQueue(const RawQueue&) = delete;
  RawQueue& operator=(const RawQueue&) = delete;

  std::byte* page() const { return hbm_ + kPageInHbm; }
  // The packet gets its number and is run.
  template <class P>
  void push(const P& packet) {
    std::byte* slot = host_ + tail_ % 16 * sizeof packet;
    std::memcpy(slot, &packet, sizeof packet);
    reinterpret_cast<hw::Packet*>(slot)->header.sequence = static_cast<uint32_t>(tail_++);
    std::atomic_ref(doorbells_[0].tail).store(tail_, std::memory_order_release);
    set32(hw::reg::kWake, 1);
  }
  bool done() const {
    return std::atomic_ref(reinterpret_cast<hw::Timeline*>(host_ + 0x1000)->value).load(std::memory_order_acquire) >=
           tail_;
  }
  const hw::FaultRecord& fault() const { return *reinterpret_cast<const hw::FaultRecord*>(host_ + 0x2000); }
  // Empty and without error.
  void reset() {
    set32(hw::reg::kQueueSelect, 0), set32(hw::reg::kQueueCommand, hw::kQueueDisable);
    set32(hw::reg::kContextSelect, 0), set32(hw::reg::kContextCommand, hw::kContextInvalidate);
    std::memset(host_, 0, kBytes);
    tail_ = 0;
    enable();
  }

 private:
  static std::byte* map(int fd, uint64_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) throw std::runtime_error("mmap");
    return static_cast<std::byte*>(p);
  }
  void set32(uint32_t at, uint32_t value) { chip_.write_register(at, 4, value); }
  void set64(uint32_t at, uint64_t value) { chip_.write_register(at, 8, value); }
  void enable() {
    set32(hw::reg::kQueueSelect, 0), set32(hw::reg::kQueueContext, 0), set32(hw::reg::kQueuePriority, 0);
    set64(hw::reg::kQueueRing, kRing), set32(hw::reg::kQueueRingLog2, 4), set64(hw::reg::kQueueStart, 0);
    set64(hw::reg::kQueueTimeline, kRing + 0x1000), set64(hw::reg::kQueueFault, kRing + 0x2000);
    set32(hw::reg::kQueueCommand, hw::kQueueEnable);
  }

  emu::Chip& chip_;
  int fd_ = -1;
  std::byte *host_ = nullptr, *hbm_ = nullptr;
  hw::DoorbellPage* doorbells_ = nullptr;
  uint64_t tail_ = 0;
};

}  // namespace jalapeno::test
