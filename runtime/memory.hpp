// Memory the application holds: which pointer belongs to what. One registry for all devices, one pool for each.
#pragma once
#include <cstdint>
#include <jalapeno_driver/address_space.hpp>
#include <jalapeno_driver/dma_memory.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace jalapeno::runtime {

class Context;
class Stream;

// A device pointer: bit 62, the context's ordinal, 48 bits of device address. Not canonical, so no host pointer equals
// it.
inline constexpr uint64_t kDevicePointerBit = uint64_t{1} << 62;
inline bool is_device_pointer(const void* p) { return (reinterpret_cast<uint64_t>(p) >> 62) == 1; }
inline void* device_pointer(uint32_t ordinal, hw::DeviceAddr a) {
  return reinterpret_cast<void*>(kDevicePointerBit | uint64_t{ordinal} << 48 | hw::raw(a));
}
inline hw::DeviceAddr device_address(const void* p) {
  return hw::DeviceAddr{reinterpret_cast<uint64_t>(p) & ((uint64_t{1} << 48) - 1)};
}

std::string pointer_text(const void* p);  // for messages

enum class MemoryKind { kDevice, kPinned, kRegistered };

struct Region {
  uint64_t base = 0, bytes = 0;  // as the application sees them
  MemoryKind kind = MemoryKind::kDevice;
  Context* context = nullptr;
  hw::DeviceAddr address{};  // of base, as the device sees it; not for kRegistered
  bool contains(const void* p, uint64_t n) const {
    const uint64_t at = reinterpret_cast<uint64_t>(p);
    return at >= base && at - base <= bytes && n <= bytes - (at - base);
  }
  void require(const void* p, uint64_t n, const std::string& what) const;  // throws unless it contains them
  hw::DeviceAddr at(const void* p) const { return address + (reinterpret_cast<uint64_t>(p) - base); }
};

class Registry {
 public:
  static Registry& get();
  void add(const Region& region);
  std::optional<Region> find(const void* p) const;                                // the region that holds p
  std::optional<Region> nearest(uint64_t address, const Context* context) const;  // device regions only
  std::optional<Region> remove(const void* base, std::optional<MemoryKind> kind);
  void remove_all(const Context* context);

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, Region> regions_;
};

// Where a stream was when memory was given back.
struct Fence {
  std::weak_ptr<Stream> stream;
  uint64_t value = 0;
  bool passed() const;
  bool seen() const;  // the same, and a trace is told: what the host writes from now on comes after it
};
// Of each stream only the last one; streams that are gone are forgotten.
void keep_last(std::vector<Fence>& fences, Fence fence);

// Device memory of one context: pages for large blocks, 256-byte units of shared pages for small ones.
class Pool {
 public:
  explicit Pool(Context& context) : context_(context) {}
  // stream: memory that this stream freed earlier may be reused at once.
  Region allocate(uint64_t bytes, const Stream* stream);
  // Returned to the pool once every fence has passed.
  void free(const Region& region, std::vector<Fence> fences);
  // Memory that the host writes too, code and the like: small blocks share pages. For free_for_host. Throws
  // driver::Error.
  driver::HbmBlock allocate_for_host(uint64_t bytes, uint64_t permissions);
  // Returned to the pool once all work enqueued so far, on any stream, is done. Takes no lock of the pool's: whoever
  // holds the last of some code may end while the pool looks at streams.
  void free_for_host(const driver::HbmBlock& block);
  // The same in pages of its own, which may be told to others. The caller's, who frees them.
  driver::HbmBlock pages_for_host(uint64_t bytes, uint64_t permissions);
  void trim(uint64_t keep_bytes);
  uint64_t cached_bytes();

 private:
  struct Pending {
    Region region;
    uint64_t capacity;
    std::vector<Fence> fences;
  };
  struct Returned {
    driver::HbmBlock block;
    std::vector<Fence> fences;
  };
  struct Slab {
    driver::HbmBlock block;
    uint64_t permissions;
    driver::Reach reach;
    driver::RangeAllocator units;
    bool empty() const;
  };
  void reap();
  void recycle(const Region& region, uint64_t capacity);
  driver::HbmBlock from_slabs(uint64_t bytes, uint64_t permissions, driver::Reach reach);
  bool give_to_slab(uint64_t address, uint64_t bytes);  // false: it is of none
  // Whole pages, in place of what is kept for later where need be.
  driver::HbmBlock pages(uint64_t bytes, uint64_t permissions, driver::Reach reach);
  void trim_locked(uint64_t keep_bytes);

  Context& context_;
  std::mutex mutex_;
  std::vector<Pending> pending_;
  std::mutex returned_mutex_;
  std::vector<Returned> returned_;                    // by free_for_host
  std::multimap<uint64_t, driver::HbmBlock> cached_;  // by size
  std::map<uint64_t, driver::HbmBlock> large_;        // in use, by address
  std::map<uint64_t, std::unique_ptr<Slab>> slabs_;   // by address
};

// Device memory goes back to its pool once all work enqueued so far, on any stream, is done.
void give_back(const Region& region);

}  // namespace jalapeno::runtime
