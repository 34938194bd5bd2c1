#include "os.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>

namespace jalapeno::driver {

Os& os() {
  static Os table = {
      [](const char* name, unsigned flags) { return ::memfd_create(name, flags); },
      ::ftruncate,
      ::posix_fallocate,
      [](int fd, int seals) { return ::fcntl(fd, F_ADD_SEALS, seals); },
      ::mmap,
      ::munmap,
      [](unsigned value, int flags) { return ::eventfd(value, flags); },
      ::socket,
      ::connect,
      ::sendmsg,
      ::recvmsg,
      ::poll,
      ::read,
      ::write,
      [](const char* path, int flags) { return ::open(path, flags); },
      [](int fd, unsigned long request, void* argument) { return ::ioctl(fd, request, argument); },
      ::pread,
      ::pwrite,
      ::close,
      [](uint32_t* word, uint32_t expected, int64_t timeout_ns) {
        timespec t{static_cast<time_t>(timeout_ns / 1'000'000'000), static_cast<long>(timeout_ns % 1'000'000'000)};
        return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &t, nullptr, 0) == 0 ? 0 : errno;
      },
      [](uint32_t* word) {
        return static_cast<int>(syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0));
      },
      "",
  };
  return table;
}

int64_t monotonic_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

int64_t unix_ns() {
  timespec t{};
  clock_gettime(CLOCK_REALTIME, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

std::string error_text(int error) {
  char buffer[128];
  return strerror_r(error, buffer, sizeof buffer);
}

}  // namespace jalapeno::driver
