// A context on the device: its page table in HBM, the pages it owns, and where they appear. Owns HBM pages.
#pragma once
#include <cstdint>
#include <jalapeno_hw/registers.hpp>
#include <jalapeno_hw/types.hpp>
#include <map>
#include <mutex>
#include <span>
#include <vector>

namespace jalapeno::driver {

class Device;

// Runs of free numbers, first fit. Used for HBM pages and for address ranges.
class RangeAllocator {
 public:
  void add(uint64_t begin, uint64_t count);  // makes a range available
  // The first of `count` adjacent numbers, none below `from`, all below `to`; or kNone.
  uint64_t take(uint64_t count, uint64_t from = 0, uint64_t to = kNone);
  uint64_t take_last(uint64_t count);  // as far behind as there is room
  void give(uint64_t begin, uint64_t count) { add(begin, count); }
  uint64_t available() const { return available_; }
  uint64_t largest(uint64_t to = kNone) const;  // run, of numbers below `to`
  static constexpr uint64_t kNone = ~uint64_t{0};

 private:
  std::map<uint64_t, uint64_t> free_;
  uint64_t available_ = 0;
};

// Who gets at a block's bytes. The aperture may be smaller than HBM; the rest of it is the device's alone.
enum class Reach { kDevice, kHost };

struct HbmBlock {
  hw::DeviceAddr address{};
  uint64_t bytes = 0;     // whole pages, unless it is a part of what allocate() gave
  uint64_t physical = 0;  // of the first byte; the pages of a block are adjacent
};

class AddressSpace {
 public:
  explicit AddressSpace(Device& device);  // throws Error
  ~AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  uint32_t context() const { return context_; }
  // Opens the context to other chips of the fabric, once; see Window.
  uint64_t fabric_key();
  // Whole pages, at least `bytes`, unmapped pages on both sides. Contents are undefined. Thread-safe.
  // Throws Error(kOutOfDeviceMemory) naming the size, what is free and the largest free run.
  HbmBlock allocate(uint64_t bytes, uint64_t permissions = hw::pte::kRead | hw::pte::kWrite,
                    Reach reach = Reach::kDevice);
  // The device must be done with the block.
  void free(const HbmBlock& block);
  // The begin of the block, allocated for Reach::kHost, through the HBM aperture: for what must be there before the
  // device runs, such as code.
  void write(const HbmBlock& block, std::span<const std::byte> data);
  // The block's bytes as they are, to look at. Throws Error(kInvalidValue) when they are outside of the aperture.
  std::span<std::byte> aperture(const HbmBlock& block) const;
  // Drops what the device caches of this context: translations and decoded programs.
  void invalidate();
  uint64_t free_bytes() const;

 private:
  void map_page(uint64_t va, uint64_t entry);
  uint64_t new_table();

  Device& device_;
  uint32_t context_;
  mutable std::mutex mutex_;
  RangeAllocator addresses_;
  std::vector<uint64_t> table_pages_;  // HBM pages that hold tables
  uint64_t next_table_ = 0, tables_end_ = 0;
  uint64_t root_;
  uint64_t fabric_key_ = 0;  // 0: nobody may open a window to it
};

}  // namespace jalapeno::driver
