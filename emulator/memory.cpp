#include "memory.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace jalapeno::emu {

std::byte* Memory::search(uint64_t address, uint64_t bytes, hw::Access access) {
  const auto& extents = map_->extents();
  auto it = std::upper_bound(extents.begin(), extents.end(), address,
                             [](uint64_t a, const Extent& e) { return a < e.begin; });
  if (it == extents.begin()) return nullptr;
  --it;
  if (!it->holds(address, bytes) || !it->permits(access)) return nullptr;
  last_[slot_of(address)] = static_cast<uint32_t>(it - extents.begin());
  return it->host + (address - it->begin);
}

const Extent& Memory::find(uint64_t at, uint64_t address, uint64_t bytes, hw::Access access) {
  const auto& extents = map_->extents();
  auto it =
      std::upper_bound(extents.begin(), extents.end(), at, [](uint64_t a, const Extent& e) { return a < e.begin; });
  const bool mapped = it != extents.begin() && at - std::prev(it)->begin < std::prev(it)->bytes;
  if (!mapped || !std::prev(it)->permits(access)) {
    static const char* const kVerb[] = {"access", "read", "write", "fetch"};
    throw Fault(address & hw::kHostWindow ? hw::Status::kDmaFault : hw::Status::kAddressFault,
                "%s of %llu bytes at 0x%llx: 0x%llx %s", kVerb[access], static_cast<unsigned long long>(bytes),
                static_cast<unsigned long long>(address), static_cast<unsigned long long>(at),
                mapped ? "does not permit it" : "is not mapped")
        .at(at, bytes, access);
  }
  return *std::prev(it);
}

uint64_t Memory::asked(uint64_t address, uint64_t bytes, hw::Access access) const {
  constexpr uint64_t kPiece = 32 << 10;  // fits into a message
  if (!(address & hw::kHostWindow)) return 0;
  const uint64_t iova = address & ~hw::kHostWindow;
  for (const AskedRange& r : map_->asked())
    if (iova >= r.iova && iova - r.iova < r.bytes && (access == hw::kAccessWrite ? r.write : r.read) &&
        access != hw::kAccessExecute)
      return std::min({bytes, r.bytes - (iova - r.iova), kPiece});
  return 0;
}

void Memory::ask(uint64_t address, std::vector<std::byte>& bytes, hw::Access access) {
  const uint64_t iova = address & ~hw::kHostWindow;
  const bool write = access == hw::kAccessWrite;
  if (write ? map_->link().write(iova, bytes.data(), bytes.size())
            : map_->link().read(iova, bytes.data(), bytes.size()))
    return;
  throw Fault(hw::Status::kDmaFault, "%s of %zu bytes at iova 0x%llx by message: the host refused or did not answer",
              write ? "write" : "read", bytes.size(), static_cast<unsigned long long>(iova))
      .at(address, bytes.size(), access);
}

void Memory::require(uint64_t address, uint64_t bytes, hw::Access access) {
  for (uint64_t done = 0; done < bytes;) {
    if (asked(address + done, bytes - done, access) > 0)
      throw Fault(hw::Status::kDmaFault,
                  "%llu bytes at 0x%llx are host memory without a file, which only copies and fills can reach",
                  static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(address))
          .at(address, bytes, access);
    const Extent& e = find(address + done, address, bytes, access);
    done += std::min(bytes - done, e.bytes - (address + done - e.begin));
  }
}

std::byte* Memory::word(uint64_t address, uint64_t bytes, hw::Access access) {
  if (address % bytes != 0)
    throw Fault(hw::Status::kBadPacket, "address 0x%llx is not aligned to %llu bytes",
                static_cast<unsigned long long>(address), static_cast<unsigned long long>(bytes))
        .at(address, bytes, access);
  std::byte* p = span(address, bytes, access);
  if (p == nullptr) require(address, bytes, access);
  return p;
}

void MemorySystem::map_host(int fd, uint64_t offset, uint64_t iova, uint64_t bytes, bool read, bool write) {
  struct stat st {};
  if (fstat(fd, &st) != 0) fail_by_errno("fstat of a DMA file");
  auto refuse = [&](const std::string& why) {
    throw std::runtime_error("DMA map of " + std::to_string(bytes) + " bytes at iova " + std::to_string(iova) + ": " +
                             why);
  };
  if (bytes == 0 || iova & hw::kHostWindow || iova + bytes < iova) refuse("impossible range");
  if (offset % 4096 != 0 || bytes % 4096 != 0 || iova % 4096 != 0) refuse("not page aligned");
  if (!S_ISREG(st.st_mode) || offset + bytes < offset || offset + bytes > static_cast<uint64_t>(st.st_size))
    refuse("the file is too small");
  if (int seals = fcntl(fd, F_GET_SEALS); seals < 0 || !(seals & F_SEAL_SHRINK))
    refuse("the file can shrink; seal it with F_SEAL_SHRINK");
  std::lock_guard lock(mutex_);
  auto file = mapping_of(fd, st, write);
  if (overlaps(iova, bytes)) refuse("already mapped");
  auto at =
      std::lower_bound(host_.begin(), host_.end(), iova, [](const HostRange& r, uint64_t v) { return r.iova < v; });
  std::byte* data = file->data() + offset;
  host_.insert(at, HostRange{iova, bytes, read, write, std::move(file), data});
}

bool MemorySystem::overlaps(uint64_t iova, uint64_t bytes) const {
  auto at =
      std::lower_bound(host_.begin(), host_.end(), iova, [](const HostRange& r, uint64_t v) { return r.iova < v; });
  return (at != host_.end() && at->iova < iova + bytes) ||
         (at != host_.begin() && std::prev(at)->iova + std::prev(at)->bytes > iova) ||
         std::any_of(asked_.begin(), asked_.end(),
                     [&](const AskedRange& r) { return r.iova < iova + bytes && iova < r.iova + r.bytes; });
}

void MemorySystem::map_host(const AskedRange& range) {
  std::lock_guard lock(mutex_);
  // Looked through one by one: there are few. A page of a virtual machine each would come with a file.
  constexpr size_t kMost = 4096;
  if (range.bytes == 0 || range.iova & hw::kHostWindow || range.iova + range.bytes < range.iova ||
      overlaps(range.iova, range.bytes) || asked_.size() >= kMost)
    throw std::runtime_error("DMA map without a file of " + std::to_string(range.bytes) + " bytes at iova " +
                             std::to_string(range.iova) + ": impossible, already mapped, or one of too many");
  asked_.push_back(range);
}

void MemorySystem::set_host_link(std::shared_ptr<HostLink> link) {
  std::lock_guard lock(mutex_);
  link_ = std::move(link);
}

std::shared_ptr<Mapping> MemorySystem::mapping_of(int fd, const struct stat& st, bool writable) {
  std::weak_ptr<Mapping>& known = files_[{st.st_dev, st.st_ino, writable}];
  auto found = known.lock();
  if (!found) {
    found = std::make_shared<Mapping>(fd, 0, static_cast<uint64_t>(st.st_size), writable);
    std::erase_if(files_, [&](const auto& f) { return &f.second != &known && f.second.expired(); });
    known = found;
  }
  return found;
}

bool MemorySystem::set_host_reachable(bool reachable) {
  std::lock_guard lock(mutex_);
  return std::exchange(host_reachable_, reachable) != reachable;
}

void MemorySystem::unmap_host(uint64_t iova, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  auto inside = [&](const auto& r) {
    return r.iova >= iova && r.iova - iova < bytes && r.bytes <= bytes - (r.iova - iova);
  };
  std::erase_if(host_, inside);
  std::erase_if(asked_, inside);
}

void MemorySystem::unmap_all_host() {
  std::lock_guard lock(mutex_);
  host_.clear(), asked_.clear();
  link_ = nullptr;
}

void MemorySystem::append_host(AddressMap::Parts& parts) const {
  std::lock_guard lock(mutex_);
  if (!host_reachable_) return;
  auto& [extents, keep, asked, link] = parts;
  if (link_ != nullptr) asked = asked_, link = link_;
  const size_t first = extents.size();
  for (const HostRange& r : host_) {
    const uint64_t begin = r.iova | hw::kHostWindow;
    if (std::find(keep.begin(), keep.end(), r.file) == keep.end()) keep.push_back(r.file);
    if (extents.size() > first) {
      Extent& last = extents.back();
      if (last.begin + last.bytes == begin && last.host + last.bytes == r.data && last.read == r.read &&
          last.write == r.write) {
        last.bytes += r.bytes;
        continue;
      }
    }
    extents.push_back({begin, r.bytes, r.data, r.read, r.write, false});
  }
}

std::shared_ptr<const AddressMap> MemorySystem::host_map() const {
  AddressMap::Parts parts;
  append_host(parts);
  return std::make_shared<AddressMap>(std::move(parts));
}

namespace {

// What the page table at `root` of this HBM maps, from device address `base` on.
void append_table(std::vector<Extent>& extents, const Mapping& hbm, uint64_t root, uint64_t base) {
  constexpr uint64_t kTableBytes = hw::kTableEntries * 8;
  auto walk = [&](auto&& self, uint64_t table, uint64_t va, int level) -> void {
    // A table outside HBM maps nothing.
    if (table % kTableBytes != 0 || table > hbm.bytes() || kTableBytes > hbm.bytes() - table) return;
    for (uint32_t i = 0; i < hw::kTableEntries; ++i) {
      // The client may write tables while we walk: load each entry once.
      uint64_t entry =
          std::atomic_ref(reinterpret_cast<uint64_t*>(hbm.data() + table)[i]).load(std::memory_order_relaxed);
      if (!(entry & hw::pte::kValid)) continue;
      uint64_t address = entry & hw::pte::kAddressMask, at = va | uint64_t{i} << (39 - 9 * level);
      if (level < 2) {
        self(self, address, at, level + 1);
        continue;
      }
      if (address % hw::kPageBytes != 0 || address > hbm.bytes() || hw::kPageBytes > hbm.bytes() - address) continue;
      Extent e{base + at,
               hw::kPageBytes,
               hbm.data() + address,
               (entry & hw::pte::kRead) != 0,
               (entry & hw::pte::kWrite) != 0,
               base == 0 && (entry & hw::pte::kExecute) != 0};  // code is a chip's own
      Extent* last = extents.empty() ? nullptr : &extents.back();
      if (last != nullptr && last->begin + last->bytes == e.begin && last->host + last->bytes == e.host &&
          last->read == e.read && last->write == e.write && last->execute == e.execute)
        last->bytes += e.bytes;
      else
        extents.push_back(e);
    }
  };
  walk(walk, root, 0, 0);
}

}  // namespace

std::shared_ptr<const AddressMap> MemorySystem::build(uint64_t root, const std::vector<Window>& windows) const {
  AddressMap::Parts parts;
  parts.keep.push_back(hbm_.mapping());
  append_table(parts.extents, *hbm_.mapping(), root, 0);
  for (const Window& w : windows) {
    append_table(parts.extents, *w.hbm, w.root, w.base);
    parts.keep.push_back(w.hbm);
  }
  append_host(parts);
  return std::make_shared<AddressMap>(std::move(parts));
}

}  // namespace jalapeno::emu
