// Host memory a device can reach: a sealed, fully allocated memfd, mapped here and in the device's IOVA space.
#pragma once
#include <cstddef>
#include <jalapeno_hw/types.hpp>
#include <map>
#include <mutex>

#include "transport.hpp"

namespace jalapeno::driver {

// Hands out IOVA ranges of one device, with a hole of a page between neighbours.
class IovaSpace {
 public:
  hw::Iova take(uint64_t bytes);
  void give(hw::Iova iova);

 private:
  std::mutex mutex_;
  std::map<uint64_t, uint64_t> used_;  // begin -> bytes
};

class DmaMemory {
 public:
  // Rounds up to whole pages, zeroed; hugepages when `bytes` fills some and the host has them; placed on
  // NUMA node `node` (-1: wherever). Throws Error naming the size and what ran out.
  DmaMemory(Transport& transport, IovaSpace& space, uint64_t bytes, int node = -1);
  DmaMemory(Transport& transport, hw::Iova at, uint64_t bytes);  // at an address that the caller has chosen
  ~DmaMemory();
  DmaMemory(const DmaMemory&) = delete;
  DmaMemory& operator=(const DmaMemory&) = delete;

  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  hw::Iova iova() const { return iova_; }
  hw::DeviceAddr device_address(uint64_t offset = 0) const { return hw::host_address(iova_ + offset); }
  bool huge() const { return huge_; }

 private:
  Transport& transport_;
  void make(uint64_t bytes, int node);
  IovaSpace* space_;  // nullptr: the address is the caller's
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  hw::Iova iova_{};
  bool huge_ = false;
};

}  // namespace jalapeno::driver
