#include "address_space.hpp"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "device.hpp"
#include "error.hpp"
#include "fences.hpp"
#include "mmio.hpp"
#include "os.hpp"

namespace jalapeno::driver {

namespace {
constexpr uint64_t kTableBytes = hw::kTableEntries * 8;
constexpr uint64_t kGuardPages = 1;
}  // namespace

void RangeAllocator::add(uint64_t begin, uint64_t count) {
  available_ += count;
  auto next = free_.lower_bound(begin);
  if (next != free_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == begin) begin = before->first, count += before->second, free_.erase(before);
  }
  if (next != free_.end() && begin + count == next->first) count += next->second, free_.erase(next);
  free_[begin] = count;
}

uint64_t RangeAllocator::take(uint64_t count, uint64_t from, uint64_t to) {
  for (auto it = free_.begin(); it != free_.end() && it->first < to; ++it) {
    const uint64_t first = it->first, end = first + it->second, begin = std::max(first, from),
                   limit = std::min(end, to);
    if (begin >= limit || limit - begin < count) continue;
    free_.erase(it);
    if (begin > first) free_[first] = begin - first;
    if (begin + count < end) free_[begin + count] = end - begin - count;
    available_ -= count;
    return begin;
  }
  return kNone;
}

uint64_t RangeAllocator::take_last(uint64_t count) {
  for (auto it = free_.rbegin(); it != free_.rend(); ++it)
    if (it->second >= count) return take(count, it->first + it->second - count);
  return kNone;
}

uint64_t RangeAllocator::largest(uint64_t to) const {
  uint64_t most = 0;
  for (const auto& [begin, count] : free_)
    if (begin < to) most = std::max(most, std::min(count, to - begin));
  return most;
}

AddressSpace::AddressSpace(Device& device) : device_(device), context_(device.take_context()) {
  addresses_.add(1, (uint64_t{1} << hw::kVaBits) / hw::kPageBytes / 2 - 1);  // page 0 stays unmapped
  root_ = new_table();
  device_.enable_context(context_, root_);
}

AddressSpace::~AddressSpace() {
  device_.give_context(context_);
  for (uint64_t page : table_pages_) device_.give_hbm(page, 1);
}

uint64_t AddressSpace::new_table() {
  if (next_table_ == tables_end_) {
    const uint64_t page = device_.take_hbm(1, Reach::kHost);
    table_pages_.push_back(page);
    next_table_ = page * hw::kPageBytes, tables_end_ = next_table_ + hw::kPageBytes;
    static constexpr std::byte kZeros[4096]{};
    for (uint64_t at = 0; at < hw::kPageBytes; at += sizeof kZeros)
      store_aperture(device_.hbm().data() + next_table_ + at, kZeros, sizeof kZeros);
    if (Trace* t = device_.trace()) t->hbm(next_table_, device_.hbm().subspan(next_table_, hw::kPageBytes));
  }
  next_table_ += kTableBytes;
  return next_table_ - kTableBytes;
}

void AddressSpace::map_page(uint64_t va, uint64_t entry) {
  uint64_t table = root_;
  for (int level = 0;; ++level) {
    auto& word = reinterpret_cast<uint64_t*>(device_.hbm().data() + table)[hw::table_index(va, level)];
    auto store = [&](uint64_t value) {
      store_aperture(word, value);
      if (Trace* t = device_.trace())
        t->hbm(table + 8 * hw::table_index(va, level), std::as_bytes(std::span(&value, 1)));
    };
    if (level == 2) return store(entry);
    uint64_t next = load_word(word);
    if (!(next & hw::pte::kValid)) {
      next = new_table() | hw::pte::kValid;
      store(next);
    }
    table = next & hw::pte::kAddressMask;
  }
}

HbmBlock AddressSpace::allocate(uint64_t bytes, uint64_t permissions, Reach reach) {
  const uint64_t pages = (bytes + hw::kPageBytes - 1) / hw::kPageBytes;
  if (bytes == 0 || pages > uint64_t{1} << 24)
    throw Error(Code::kInvalidValue, "device memory of " + std::to_string(bytes) + " bytes");
  std::lock_guard lock(mutex_);
  const uint64_t physical = device_.take_hbm(pages, reach);
  uint64_t va = addresses_.take(pages + kGuardPages);
  HbmBlock block{hw::DeviceAddr{va * hw::kPageBytes}, pages * hw::kPageBytes, physical * hw::kPageBytes};
  try {
    for (uint64_t k = 0; k < pages; ++k)
      map_page(hw::raw(block.address) + k * hw::kPageBytes,
               (block.physical + k * hw::kPageBytes) | permissions | hw::pte::kValid);
    flush_write_combining();
    device_.invalidate_context(context_);
  } catch (...) {
    device_.give_hbm(physical, pages);
    addresses_.give(va, pages + kGuardPages);
    throw;
  }
  return block;
}

void AddressSpace::free(const HbmBlock& block) {
  std::lock_guard lock(mutex_);
  const uint64_t pages = block.bytes / hw::kPageBytes;
  for (uint64_t k = 0; k < pages; ++k) map_page(hw::raw(block.address) + k * hw::kPageBytes, 0);
  flush_write_combining();
  if (!device_.lost()) device_.invalidate_context(context_);
  device_.give_hbm(block.physical / hw::kPageBytes, pages);
  addresses_.give(hw::raw(block.address) / hw::kPageBytes, pages + kGuardPages);
}

uint64_t AddressSpace::fabric_key() {
  std::lock_guard lock(mutex_);
  if (fabric_key_ == 0) {
    uint64_t key = 0;
    while (key == 0)
      if (getrandom(&key, sizeof key, 0) != sizeof key)
        throw Error(Code::kOperatingSystem, "getrandom: " + error_text(errno));
    device_.export_context(context_, key);
    fabric_key_ = key;
  }
  return fabric_key_;
}

void AddressSpace::write(const HbmBlock& block, std::span<const std::byte> data) {
  std::byte* at = aperture(block).data();
  if (Trace* t = device_.trace()) t->hbm(block.physical, data);
  store_aperture(at, data.data(), data.size());
  flush_write_combining();
}

std::span<std::byte> AddressSpace::aperture(const HbmBlock& block) const {
  const std::span<std::byte> all = device_.hbm();
  if (block.physical > all.size() || block.bytes > all.size() - block.physical)
    throw Error(Code::kInvalidValue, device_.uri() + ": " + std::to_string(block.bytes) + " bytes at HBM address " +
                                         std::to_string(block.physical) + " are outside of the aperture of " +
                                         std::to_string(all.size()));
  return all.subspan(block.physical, block.bytes);
}

void AddressSpace::invalidate() {
  flush_write_combining();
  device_.invalidate_context(context_);
}

uint64_t AddressSpace::free_bytes() const { return device_.free_hbm() * hw::kPageBytes; }

}  // namespace jalapeno::driver
