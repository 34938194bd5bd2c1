#include "mapping.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace jalapeno::emu {
namespace {

constexpr uint64_t kHugePage = 2 << 20;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

}  // namespace

Mapping::Mapping(int fd, uint64_t offset, uint64_t bytes, bool writable) : bytes_(bytes) {
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
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
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data_) + bytes + page - 1) / page * page,
                  reserved_end = (reinterpret_cast<uintptr_t>(begin) + bytes + more + page - 1) / page * page;
  if (end < reserved_end) munmap(reinterpret_cast<void*>(end), reserved_end - end);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

}  // namespace jalapeno::emu
