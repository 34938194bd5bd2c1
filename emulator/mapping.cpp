#include "mapping.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace jalapeno::emu {

void fail_by_errno(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

std::byte* at_huge_page(uint64_t bytes, int protection) {
  // One huge page more than is needed, so that there is an aligned beginning; the rest goes back.
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t size = (bytes + page - 1) / page * page;
  void* p = mmap(nullptr, size + kHugePage, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(p), aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned != begin) munmap(p, aligned - begin);
  if (begin + kHugePage != aligned) munmap(reinterpret_cast<void*>(aligned + size), begin + kHugePage - aligned);
  return reinterpret_cast<std::byte*>(aligned);
}

Mapping::Mapping(int fd, uint64_t offset, uint64_t bytes, bool writable) : bytes_(bytes) {
  std::byte* place = bytes >= kHugePage ? at_huge_page(bytes, PROT_NONE) : nullptr;
  void* p = mmap(place, bytes, PROT_READ | (writable ? PROT_WRITE : 0),
                 MAP_SHARED | MAP_NORESERVE | (place != nullptr ? MAP_FIXED : 0), fd, static_cast<off_t>(offset));
  if (p == MAP_FAILED) {
    const int error = errno;
    if (place != nullptr) munmap(place, bytes);
    errno = error;
    fail_by_errno("mapping " + std::to_string(bytes) + " bytes");
  }
  data_ = static_cast<std::byte*>(p);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

}  // namespace jalapeno::emu
