#include "hbm.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

#include "placement.hpp"

namespace jalapeno::emu {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
const auto kPage = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

// Which pages of this process hold anything, as the kernel tells. Where it does not, all of them.
class PageMap {
 public:
  PageMap() : fd_(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  ~PageMap() {
    if (fd_ >= 0) close(fd_);
  }
  PageMap(const PageMap&) = delete;
  PageMap& operator=(const PageMap&) = delete;
  bool any(const std::byte* begin, uint64_t bytes) const {
    constexpr uint64_t kInMemory = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62;
    std::vector<uint64_t> words(bytes / kPage);
    const auto size = static_cast<ssize_t>(words.size() * 8);
    if (pread(fd_, words.data(), words.size() * 8,
              static_cast<off_t>(reinterpret_cast<uintptr_t>(begin) / kPage * 8)) != size)
      return true;
    return std::any_of(words.begin(), words.end(), [](uint64_t w) { return (w & (kInMemory | kSwapped)) != 0; });
  }

 private:
  int fd_;
};

}  // namespace

Mapping::Mapping(int fd, uint64_t offset, uint64_t bytes, bool writable) : bytes_(bytes) {
  const std::string what = "mapping " + std::to_string(bytes) + " bytes";
  // At a huge page's begin: address space for one more is taken, and what is around goes back.
  const uint64_t more = bytes >= kHugePage ? kHugePage : 0;
  void* reserved = mmap(nullptr, bytes + more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) fail(what);
  auto* begin = static_cast<std::byte*>(reserved);
  const uint64_t before = more == 0 ? 0 : (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (mmap(begin + before, bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd,
           static_cast<off_t>(offset)) == MAP_FAILED) {
    const int error = errno;
    munmap(begin, bytes + more);
    errno = error;
    fail(what);
  }
  data_ = begin + before;
  if (before > 0) munmap(begin, before);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data_) + bytes + kPage - 1) / kPage * kPage,
                  reserved_end = (reinterpret_cast<uintptr_t>(begin) + bytes + more + kPage - 1) / kPage * kPage;
  if (end < reserved_end) munmap(reinterpret_cast<void*>(end), reserved_end - end);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

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
  if (fd_ < 0) fail("memfd for HBM");
  try {
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) fail("HBM of " + std::to_string(bytes) + " bytes");
    // The client maps it too: it must not be able to shrink it under us.
    if (fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail("sealing HBM");
    mapping_ = std::make_shared<Mapping>(fd_, 0, bytes, true);
  } catch (...) {
    close(fd_);
    throw;
  }
  Placement::host().spread(mapping_->data(), bytes);
  (void)madvise(mapping_->data(), bytes, MADV_HUGEPAGE);  // where the system lets shared memory have them
  std::byte* own = mapping_->data() + aperture_bytes;
  const uint64_t rest = bytes - aperture_bytes;
  // Not at all, where a system counts what is reserved: then it stays shared.
  if (rest > 0 && mmap(own, rest, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
                       0) != MAP_FAILED) {
    shared_bytes_ = aperture_bytes;
    Placement::host().spread(own, rest);
    (void)madvise(own, rest, MADV_HUGEPAGE);
    (void)madvise(own, rest, MADV_DONTFORK);  // or every page would be copied at its next write
  }
  populated_ = Populated(*mapping_);
}

Hbm::~Hbm() { close(fd_); }

bool Hbm::share() {
  const PageMap pages;
  while (shared_bytes_ < bytes()) {
    std::byte* at = mapping_->data() + shared_bytes_;
    // One page with something in it, or all that follow each other without.
    uint64_t run = hw::kPageBytes;
    if (pages.any(at, run)) {
      for (uint64_t done = 0; done < run;) {
        const ssize_t n = pwrite(fd_, at + done, run - done, static_cast<off_t>(shared_bytes_ + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += static_cast<uint64_t>(n);
      }
    } else {
      while (shared_bytes_ + run < bytes() && !pages.any(at + run, hw::kPageBytes)) run += hw::kPageBytes;
    }
    if (mmap(at, run, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd_,
             static_cast<off_t>(shared_bytes_)) == MAP_FAILED)
      return false;
    shared_bytes_ += run;
  }
  return true;
}

void Hbm::scrub() {
  fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes()));
  if (shared_bytes_ < bytes()) (void)madvise(mapping_->data() + shared_bytes_, bytes() - shared_bytes_, MADV_DONTNEED);
  populated_ = Populated(*mapping_);
}

}  // namespace jalapeno::emu
