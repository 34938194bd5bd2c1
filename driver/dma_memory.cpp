#include "dma_memory.hpp"

#include <fcntl.h>
#include <numa.h>
#include <sys/mman.h>

#include <cerrno>

#include "error.hpp"
#include "log.hpp"
#include "os.hpp"

namespace jalapeno::driver {
namespace {

constexpr uint64_t kPage = 4096, kHuge = uint64_t{2} << 20;
constexpr uint64_t kFirst = uint64_t{1} << 32;  // keeps 0 and small numbers invalid

struct File {
  int fd = -1;
  ~File() {
    if (fd >= 0) os().close(fd);
  }
};

// A sealed file with every page there: no SIGBUS and no ENOSPC later. 0 or an errno.
int make_file(File& file, uint64_t bytes, unsigned extra) {
  file.fd = os().memfd_create("jalapeno-dma", MFD_CLOEXEC | MFD_ALLOW_SEALING | extra);
  if (file.fd < 0) return errno;
  int error = 0;
  if (os().ftruncate(file.fd, static_cast<off_t>(bytes)) != 0) error = errno;
  if (error == 0) error = os().fallocate(file.fd, 0, static_cast<off_t>(bytes));
  if (error == 0 && os().seal(file.fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) error = errno;
  if (error != 0) os().close(file.fd), file.fd = -1;
  return error;
}

}  // namespace

hw::Iova IovaSpace::take(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  uint64_t at = kFirst;
  for (const auto& [begin, length] : used_) {
    if (begin - at >= bytes + kPage) break;
    at = (begin + length + kPage + kHuge - 1) & ~(kHuge - 1);
  }
  used_[at] = bytes;
  return hw::Iova{at};
}

void IovaSpace::give(hw::Iova iova) {
  std::lock_guard lock(mutex_);
  used_.erase(hw::raw(iova));
}

DmaMemory::DmaMemory(Transport& transport, IovaSpace& space, uint64_t bytes, int node)
    : transport_(transport), space_(&space) {
  make(bytes, node);
}
DmaMemory::DmaMemory(Transport& transport, hw::Iova at, uint64_t bytes)
    : transport_(transport), space_(nullptr), iova_(at) {
  make(bytes, -1);
}

void DmaMemory::make(uint64_t bytes, int node) {
  if (bytes == 0 || bytes > uint64_t{1} << 46)
    throw Error(Code::kInvalidValue, "DMA memory of " + std::to_string(bytes) + " bytes");
  bytes_ = (bytes + kPage - 1) & ~(kPage - 1);
  File file;
  int error = ENOMEM;
  if (bytes_ >= kHuge) {
    const uint64_t rounded = (bytes_ + kHuge - 1) & ~(kHuge - 1);
    error = make_file(file, rounded, MFD_HUGETLB);
    if (error == 0) bytes_ = rounded, huge_ = true;
  }
  if (!huge_) error = make_file(file, bytes_, 0);
  if (error != 0)
    throw Error(Code::kOutOfHostMemory, "DMA memory of " + std::to_string(bytes_) + " bytes: " + error_text(error));
  void* p = os().mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.fd, 0);
  if (p == MAP_FAILED)
    throw Error(Code::kOutOfHostMemory,
                "mapping DMA memory of " + std::to_string(bytes_) + " bytes: " + error_text(errno));
  data_ = static_cast<std::byte*>(p);
  if (node >= 0 && numa_available() >= 0) numa_tonode_memory(data_, bytes_, node);
  if (space_ != nullptr) iova_ = space_->take(bytes_);
  try {
    transport_.map_dma({data_, file.fd, bytes_}, iova_, true);
  } catch (...) {
    if (space_ != nullptr) space_->give(iova_);
    os().munmap(data_, bytes_);
    throw;
  }
}

DmaMemory::~DmaMemory() {
  transport_.unmap_dma(iova_, bytes_);
  if (space_ != nullptr) space_->give(iova_);
  os().munmap(data_, bytes_);
}

}  // namespace jalapeno::driver
