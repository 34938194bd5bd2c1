// Every call the driver makes to the operating system, behind one table, so that a test can make each fail.
#pragma once
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <cstdint>
#include <string>

namespace jalapeno::driver {

struct Os {
  int (*memfd_create)(const char* name, unsigned flags);
  int (*ftruncate)(int fd, off_t bytes);
  int (*fallocate)(int fd, off_t offset, off_t bytes);  // returns an errno, as posix_fallocate
  int (*seal)(int fd, int seals);
  void* (*mmap)(void* hint, size_t bytes, int protection, int flags, int fd, off_t offset);
  int (*munmap)(void* address, size_t bytes);
  int (*eventfd)(unsigned value, int flags);
  int (*socket)(int domain, int type, int protocol);
  int (*connect)(int fd, const sockaddr* address, socklen_t bytes);
  ssize_t (*sendmsg)(int fd, const msghdr* message, int flags);
  ssize_t (*recvmsg)(int fd, msghdr* message, int flags);
  int (*poll)(pollfd* fds, nfds_t count, int timeout_ms);
  ssize_t (*read)(int fd, void* out, size_t bytes);
  ssize_t (*write)(int fd, const void* data, size_t bytes);
  int (*open)(const char* path, int flags);
  int (*ioctl)(int fd, unsigned long request, void* argument);
  ssize_t (*pread)(int fd, void* out, size_t bytes, off_t offset);
  ssize_t (*pwrite)(int fd, const void* data, size_t bytes, off_t offset);
  int (*close)(int fd);
  // Waits while *word == expected, at most timeout_ns. Returns 0 or an errno.
  int (*futex_wait)(uint32_t* word, uint32_t expected, int64_t timeout_ns);
  int (*futex_wake_all)(uint32_t* word);
  const char* root;  // "": where /sys and /dev are
};

// The table in use. Tests replace entries while no device is open.
Os& os();

int64_t monotonic_ns();
int64_t unix_ns();  // wall clock
std::string error_text(int error);

}  // namespace jalapeno::driver
