#include "hbm.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "placement.hpp"

namespace jalapeno::emu {
namespace {

// Which of this process's pages may hold anything, as the kernel tells. Where it does not, all of them may.
class PageMap {
 public:
  PageMap() : fd_(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  ~PageMap() {
    if (fd_ >= 0) close(fd_);
  }
  PageMap(const PageMap&) = delete;
  PageMap& operator=(const PageMap&) = delete;
  bool maybe(const std::byte* device_page) const {
    constexpr uint64_t kInMemory = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62;
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    uint64_t words[hw::kPageBytes / 4096];
    const size_t bytes = hw::kPageBytes / page * 8;
    const auto at = static_cast<off_t>(reinterpret_cast<uintptr_t>(device_page) / page * 8);
    return pread(fd_, words, bytes, at) != static_cast<ssize_t>(bytes) ||
           std::any_of(words, words + bytes / 8, [](uint64_t w) { return (w & (kInMemory | kSwapped)) != 0; });
  }

 private:
  int fd_;
};

bool all_zero(const std::byte* page) {
  uint64_t first = 0;
  std::memcpy(&first, page, sizeof first);
  return first == 0 && std::memcmp(page, page + sizeof first, hw::kPageBytes - sizeof first) == 0;
}

}  // namespace

std::vector<std::byte*> Populated::take(const Mapping& hbm, std::byte* at, uint64_t bytes) {
  constexpr uint64_t kAhead = 4;  // pages of a group: enough to share out among threads
  std::vector<std::byte*> missing;
  if (at < hbm.data() || at >= hbm.data() + hbm.bytes()) return missing;
  const auto offset = static_cast<uint64_t>(at - hbm.data());
  const uint64_t first = offset / hw::kPageBytes, last = (offset + bytes - 1) / hw::kPageBytes;
  bool any = false;
  for (uint64_t page = first; page <= last; ++page) any = any || !pages_[page];
  if (!any) return missing;
  const uint64_t end = std::min(last / kAhead * kAhead + kAhead, pages_.size());
  for (uint64_t page = first; page < end; ++page) {
    if (pages_[page]) continue;
    pages_[page] = true;
    missing.push_back(hbm.data() + page * hw::kPageBytes);
  }
  return missing;
}

void Populated::bring_in(std::byte* page) {
#if defined(MADV_POPULATE_WRITE)
  // An older kernel does not know how: then the faults come one by one.
  (void)madvise(page, hw::kPageBytes, MADV_POPULATE_WRITE);
#else
  (void)page;
#endif
}

Hbm::Hbm(uint64_t bytes, uint64_t aperture_bytes)
    : aperture_bytes_(aperture_bytes),
      shared_bytes_(bytes),
      fd_(memfd_create("jalapeno-hbm", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
  if (fd_ < 0) fail_by_errno("memfd for HBM");
  try {
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) fail_by_errno("HBM of " + std::to_string(bytes) + " bytes");
    // The client maps it too: it must not be able to shrink it under us.
    if (fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail_by_errno("sealing HBM");
    mapping_ = std::make_shared<Mapping>(fd_, 0, bytes, true);
    Placement::host().spread(mapping_->data(), bytes);
    (void)madvise(mapping_->data(), bytes, MADV_HUGEPAGE);  // where the system lets shared memory have them
    if (aperture_bytes < bytes) take_own();
  } catch (...) {
    close(fd_);
    throw;
  }
  populated_ = Populated(*mapping_);
}

// What lies behind the aperture.
void Hbm::take_own() {
  const uint64_t rest = bytes() - aperture_bytes_;
  std::byte* place = mapping_->data() + aperture_bytes_;
  // Elsewhere first: where a system counts what is reserved it may be refused, and then all stays shared.
  void* own = mmap(nullptr, rest, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (own == MAP_FAILED) return;
  if (mremap(own, rest, rest, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED)
    fail_by_errno("moving " + std::to_string(rest) + " bytes of HBM into their place");
  shared_bytes_ = aperture_bytes_;
  Placement::host().spread(place, rest);
  (void)madvise(place, rest, MADV_HUGEPAGE);
  (void)madvise(place, rest, MADV_DONTFORK);  // or every page would be copied at its next write
}

Hbm::~Hbm() { close(fd_); }

// A page to where it is in the file, `to` in memory. False: there is none left for it.
bool Hbm::move_page(const std::byte* from, std::byte* to) const {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(to, hw::kPageBytes, MADV_POPULATE_WRITE) == 0) {
    std::memcpy(to, from, hw::kPageBytes);
    return true;
  }
  if (errno != EINVAL) return false;
#endif
  const auto offset = from - mapping_->data();
  for (uint64_t done = 0; done < hw::kPageBytes;) {
    const ssize_t n = pwrite(fd_, from + done, hw::kPageBytes - done, offset + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<uint64_t>(n);
  }
  return true;
}

bool Hbm::share(const Parallel& parallel) {
  if (std::exchange(tried_, true)) return shared_bytes_ == bytes();  // chips of this process may write there by now
  const PageMap pages;
  while (shared_bytes_ < bytes()) {
    constexpr uint64_t kMost = 64 * hw::kPageBytes;
    const uint64_t run = std::min(kMost, bytes() - shared_bytes_);
    std::byte* place = mapping_->data() + shared_bytes_;
    // Filled elsewhere and put in its place as a whole, so that no failure leaves a hole.
    void* p =
        mmap(nullptr, run, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, static_cast<off_t>(shared_bytes_));
    if (p == MAP_FAILED) return false;
    (void)madvise(p, run, MADV_HUGEPAGE);
    std::atomic<bool> moved{true};
    parallel(static_cast<uint32_t>(run / hw::kPageBytes), [&](uint32_t k) {
      const std::byte* from = place + k * hw::kPageBytes;
      if (pages.maybe(from) && !all_zero(from) && !move_page(from, static_cast<std::byte*>(p) + k * hw::kPageBytes))
        moved.store(false);
    });
    if (!moved.load() || mremap(p, run, run, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
      munmap(p, run);
      return false;
    }
    shared_bytes_ += run;
  }
  populated_ = Populated(*mapping_);
  return true;
}

void Hbm::scrub() {
  // Locked memory is not given back: then it is written over.
  std::byte* own = mapping_->data() + shared_bytes_;
  const uint64_t own_bytes = bytes() - shared_bytes_;
  if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes())) != 0)
    std::memset(mapping_->data(), 0, shared_bytes_);
  if (own_bytes > 0 && madvise(own, own_bytes, MADV_DONTNEED) != 0) std::memset(own, 0, own_bytes);
  populated_ = Populated(*mapping_);
}

}  // namespace jalapeno::emu
