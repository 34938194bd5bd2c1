// What a context can reach: HBM through its page table and host memory through the IOVA map, flattened
// into extents. A map is immutable once built, so engines read it without locks while the owner builds the next.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <jalapeno_hw/packets.hpp>
#include <jalapeno_hw/registers.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "fault.hpp"
#include "hbm.hpp"

struct stat;

namespace jalapeno::emu {

struct Extent {
  uint64_t begin, bytes;  // device address, as in hw::DeviceAddr
  std::byte* host;
  bool read, write, execute;
  bool holds(uint64_t address, uint64_t count) const {
    return address >= begin && address - begin <= bytes && count <= bytes - (address - begin);
  }
  bool permits(hw::Access access) const {
    switch (access) {
      case hw::kAccessRead:
        return read;
      case hw::kAccessWrite:
        return write;
      case hw::kAccessExecute:
        return execute;
      case hw::kAccessNone:
        return true;
    }
    return false;
  }
};

// Host memory that has no file to map: its owner is asked for the bytes. Slow, and no place for what two sides share
// word by word. Thread-safe.
class HostLink {
 public:
  virtual ~HostLink() = default;
  // False: refused, or nobody answered in time.
  virtual bool read(uint64_t iova, std::byte* out, uint64_t bytes) = 0;
  virtual bool write(uint64_t iova, const std::byte* data, uint64_t bytes) = 0;
};
struct AskedRange {
  uint64_t iova, bytes;
  bool read, write;
};

class AddressMap {
 public:
  struct Parts {
    std::vector<Extent> extents;  // sorted
    std::vector<std::shared_ptr<Mapping>> keep;
    std::vector<AskedRange> asked;
    std::shared_ptr<HostLink> link;  // there when something is asked for
  };
  explicit AddressMap(Parts parts) : parts_(std::move(parts)) {}
  const std::vector<Extent>& extents() const { return parts_.extents; }
  const std::vector<AskedRange>& asked() const { return parts_.asked; }
  HostLink& link() const { return *parts_.link; }

 private:
  Parts parts_;
};

// One engine's view: remembers the extents it hit last. Not shared between threads.
class Memory {
 public:
  // The map stays its owner's.
  Memory() = default;
  explicit Memory(const AddressMap* map) : map_(map) {}

  // The bytes at `address` when they lie in one extent with the permission, otherwise nullptr.
  std::byte* span(uint64_t address, uint64_t bytes, hw::Access access) {
    const auto& extents = map_->extents();
    if (const uint32_t last = last_[slot_of(address)]; last < extents.size())
      if (const Extent& e = extents[last]; e.holds(address, bytes) && e.permits(access))
        return e.host + (address - e.begin);
    return search(address, bytes, access);
  }
  // Any range, extent by extent; throws Fault where it is not mapped. `f(pointer, bytes, offset)` fills all it is given
  // to write; its pointer may be to a copy, of memory that is asked for.
  template <class F>
  void each(uint64_t address, uint64_t bytes, hw::Access access, F f) {
    if (std::byte* whole = span(address, bytes, access)) return f(whole, bytes, uint64_t{0});
    for (uint64_t done = 0; done < bytes;) {
      if (const uint64_t n = asked(address + done, bytes - done, access); n > 0) {
        std::vector<std::byte> copy(n);
        if (access != hw::kAccessWrite) ask(address + done, copy, access);
        f(copy.data(), n, done);
        if (access == hw::kAccessWrite) ask(address + done, copy, access);
        done += n;
        continue;
      }
      const Extent& e = find(address + done, address, bytes, access);
      uint64_t inside = address + done - e.begin;
      uint64_t n = std::min(bytes - done, e.bytes - inside);
      f(e.host + inside, n, done);
      done += n;
    }
  }
  void read(uint64_t address, void* out, uint64_t bytes, hw::Access access = hw::kAccessRead) {
    each(address, bytes, access,
         [&](std::byte* p, uint64_t n, uint64_t at) { std::memcpy(static_cast<std::byte*>(out) + at, p, n); });
  }
  void write(uint64_t address, const void* data, uint64_t bytes) {
    each(address, bytes, hw::kAccessWrite,
         [&](std::byte* p, uint64_t n, uint64_t at) { std::memcpy(p, static_cast<const std::byte*>(data) + at, n); });
  }
  // Throws Fault unless the whole range is mapped.
  void require(uint64_t address, uint64_t bytes, hw::Access access);
  // A naturally aligned word another agent reads or writes concurrently; throws Fault.
  std::byte* word(uint64_t address, uint64_t bytes, hw::Access access);

 private:
  std::byte* search(uint64_t address, uint64_t bytes, hw::Access access);
  // Bytes from there on, at most so many, that have to be asked for; 0: none.
  uint64_t asked(uint64_t address, uint64_t bytes, hw::Access access) const;
  void ask(uint64_t address, std::vector<std::byte>& bytes, hw::Access access);  // throws Fault
  const Extent& find(uint64_t at, uint64_t address, uint64_t bytes, hw::Access access);
  // Which of the remembered extents an address may lie in: neighbours, windows and the host have different ones.
  static size_t slot_of(uint64_t address) {
    return (address >> 21 ^ address >> 48 ^ address >> 61) & (kRemembered - 1);
  }
  static constexpr size_t kRemembered = 8;
  const AddressMap* map_ = nullptr;
  uint32_t last_[kRemembered]{};
};

// The memory behind every map of one chip: HBM, and what the host mapped for DMA.
class MemorySystem {
 public:
  MemorySystem(uint64_t hbm_bytes, uint64_t aperture_bytes) : hbm_(hbm_bytes, aperture_bytes) {}
  MemorySystem(const MemorySystem&) = delete;
  MemorySystem& operator=(const MemorySystem&) = delete;

  Hbm& hbm() { return hbm_; }
  const Hbm& hbm() const { return hbm_; }

  // fd stays the caller's. Throws std::runtime_error when the file is smaller than the range or can shrink.
  void map_host(int fd, uint64_t offset, uint64_t iova, uint64_t bytes, bool read, bool write);
  // The same for memory that is asked for over the link. Throws std::runtime_error.
  void map_host(const AskedRange& range);
  void set_host_link(std::shared_ptr<HostLink> link);
  void unmap_host(uint64_t iova, uint64_t bytes);  // every mapping inside the range
  void unmap_all_host();
  // While it is not, host mappings are kept but in no map. True: that changed.
  bool set_host_reachable(bool reachable);
  // A context of another chip, and where it begins in this one.
  struct Window {
    uint64_t base;
    const std::shared_ptr<Mapping>& hbm;
    uint64_t root;
  };
  // Walks the page table at `root` and joins it with the windows, in order, and the host's mappings. An invalid table
  // maps nothing.
  std::shared_ptr<const AddressMap> build(uint64_t root, const std::vector<Window>& windows) const;
  // Only the host's mappings.
  std::shared_ptr<const AddressMap> host_map() const;

 private:
  struct HostRange {
    uint64_t iova, bytes;
    bool read, write;
    std::shared_ptr<Mapping> file;
    std::byte* data;  // in the file's mapping
  };
  void append_host(AddressMap::Parts& parts) const;
  bool overlaps(uint64_t iova, uint64_t bytes) const;  // with what is mapped already

  Hbm hbm_;
  mutable std::mutex mutex_;
  std::vector<HostRange> host_;  // sorted by iova, disjoint
  std::vector<AskedRange> asked_;
  std::shared_ptr<HostLink> link_;
  bool host_reachable_ = false;
  // A virtual machine maps its memory in pages of 4 KiB, thousands of them, all from one file: mapped once.
  using FileKey = std::tuple<uint64_t, uint64_t, bool>;  // device, inode, writable
  std::map<FileKey, std::weak_ptr<Mapping>> files_;
  std::shared_ptr<Mapping> mapping_of(int fd, const struct stat& st, bool writable);
};

}  // namespace jalapeno::emu
