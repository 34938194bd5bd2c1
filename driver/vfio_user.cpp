#include "vfio_user.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <jalapeno_hw/registers.hpp>

#include "error.hpp"
#include "log.hpp"
#include "os.hpp"

namespace jalapeno::driver {

namespace vu = hw::vfio_user;

namespace {
// More than a program may run, and than an emulator takes to move its HBM when it is first exported.
constexpr int64_t kReplyTimeoutNs = 30'000'000'000;

template <class T>
T as(const std::vector<std::byte>& payload) {
  T t{};
  std::memcpy(&t, payload.data(), std::min(sizeof t, payload.size()));
  return t;
}
}  // namespace

std::unique_ptr<Transport> VfioUserTransport::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    throw Error(Code::kInvalidValue, "emulator socket " + path + ": longer than " +
                                         std::to_string(sizeof address.sun_path - 1) + " characters");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  int fd = os().socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) throw Error(Code::kOperatingSystem, "socket: " + error_text(errno));
  if (os().connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    os().close(fd);
    throw Error(Code::kNoDevice, "emulator socket " + path + ": " + error_text(error) +
                                     "; start one with jalapeno-emulator --socket " + path);
  }
  return std::make_unique<VfioUserTransport>(fd, "emu:" + path);
}

VfioUserTransport::VfioUserTransport(int socket, std::string name, std::shared_ptr<void> keep)
    : keep_(std::move(keep)), socket_(socket), name_(std::move(name)), bars_(vu::kRegions) {
  try {
    const std::string json = R"({"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}})";
    std::vector<std::byte> out(sizeof(vu::Version) + json.size() + 1);
    vu::Version v{0, 1};
    std::memcpy(out.data(), &v, sizeof v);
    std::memcpy(out.data() + sizeof v, json.c_str(), json.size() + 1);
    auto reply = as<vu::Version>(request(vu::kVersion, out.data(), out.size()));
    if (reply.major != 0)
      throw Error(Code::kVersionMismatch,
                  name_ + ": speaks vfio-user " + std::to_string(reply.major) + ", this driver speaks 0");
    vu::DeviceInfo info{sizeof info, 0, 0, 0};
    info = as<vu::DeviceInfo>(request(vu::kDeviceGetInfo, &info, sizeof info));
    if (info.regions <= hw::kBarHbm || info.irqs <= vu::kIrqMsix)
      throw Error(Code::kNoDevice, name_ + ": not a Jalapeno function: it has " + std::to_string(info.regions) +
                                       " regions and " + std::to_string(info.irqs) + " interrupt kinds");
    set_command();
    liveness_ = epoll_create1(EPOLL_CLOEXEC);
    epoll_event e{EPOLLRDHUP | EPOLLHUP, {.fd = socket_}};
    if (liveness_ < 0 || epoll_ctl(liveness_, EPOLL_CTL_ADD, socket_, &e) != 0)
      throw Error(Code::kOperatingSystem, name_ + ": epoll: " + error_text(errno));
  } catch (...) {
    if (liveness_ >= 0) os().close(liveness_);
    os().close(socket_);
    throw;
  }
}

VfioUserTransport::~VfioUserTransport() {
  for (auto& bar : bars_)
    if (!bar.empty()) os().munmap(bar.data(), bar.size());
  os().close(liveness_);
  os().close(socket_);
}

void VfioUserTransport::lost(const std::string& what) { throw Error(Code::kDeviceLost, name_ + ": " + what); }

void VfioUserTransport::transmit(const vu::Header& header, const void* payload, size_t bytes, int fd,
                                 int64_t deadline) {
  iovec iov[2] = {{const_cast<vu::Header*>(&header), sizeof header}, {const_cast<void*>(payload), bytes}};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = iov, m.msg_iovlen = 2;
  if (fd >= 0) {
    m.msg_control = control, m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  for (size_t left = sizeof header + bytes; left > 0;) {
    ssize_t n = os().sendmsg(socket_, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      const int64_t wait = deadline - monotonic_ns();
      pollfd p{socket_, POLLOUT, 0};
      if (wait <= 0) {
        broken_ = true;
        throw Error(Code::kTimeout, name_ + ": the device does not take requests");
      }
      os().poll(&p, 1, static_cast<int>(wait / 1'000'000 + 1));
      continue;
    }
    if (n <= 0) lost("the device's process is gone (" + error_text(errno) + ")");
    left -= static_cast<size_t>(n);
    m.msg_control = nullptr, m.msg_controllen = 0;
    for (iovec& v : iov) {
      const size_t used = std::min(static_cast<size_t>(n), v.iov_len);
      v.iov_base = static_cast<std::byte*>(v.iov_base) + used, v.iov_len -= used, n -= static_cast<ssize_t>(used);
    }
  }
}

void VfioUserTransport::receive(void* out, size_t bytes, int* fd, int64_t deadline) {
  auto* at = static_cast<std::byte*>(out);
  while (bytes > 0) {
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))];
    iovec iov{at, bytes};
    msghdr m{};
    m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    const ssize_t n = os().recvmsg(socket_, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      const int64_t wait = deadline - monotonic_ns();
      if (wait <= 0) {
        broken_ = true;
        throw Error(Code::kTimeout, name_ + ": no reply from the device within 30 s; is its process stopped?");
      }
      pollfd p{socket_, POLLIN, 0};
      os().poll(&p, 1, static_cast<int>(wait / 1'000'000 + 1));
      continue;
    }
    if (n <= 0) lost("the device's process is gone" + (n < 0 ? " (" + error_text(errno) + ")" : std::string()));
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      for (size_t k = 0; k < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++k) {
        int got;
        std::memcpy(&got, CMSG_DATA(c) + k * sizeof(int), sizeof got);
        if (fd != nullptr && *fd < 0)
          *fd = got;
        else
          os().close(got);
      }
    }
    at += n, bytes -= static_cast<size_t>(n);
  }
}

std::vector<std::byte> VfioUserTransport::request(vu::Command command, const void* payload, size_t bytes, int fd,
                                                  int* reply_fd, uint32_t flags) {
  std::lock_guard lock(mutex_);
  if (broken_) lost("a reply timed out before; close the device and open it again");
  const int64_t deadline = monotonic_ns() + kReplyTimeoutNs;
  const vu::Header h{next_id_++, command, static_cast<uint32_t>(sizeof h + bytes), vu::kTypeCommand | flags, 0};
  transmit(h, payload, bytes, fd, deadline);
  if (flags & vu::kNoReply) return {};
  vu::Header r{};
  receive(&r, sizeof r, reply_fd, deadline);
  if (r.id != h.id || (r.flags & vu::kTypeMask) != vu::kTypeReply || r.size < sizeof r || r.size > vu::kMaxMessage) {
    broken_ = true;
    lost("the device broke the protocol: reply " + std::to_string(r.id) + " of " + std::to_string(r.size) +
         " bytes to request " + std::to_string(h.id));
  }
  std::vector<std::byte> out(r.size - sizeof r);
  if (!out.empty()) receive(out.data(), out.size(), reply_fd, deadline);
  if (r.flags & vu::kError) {
    if (r.error == EBUSY) throw Error(Code::kBusy, name_ + ": another client is using the device");
    throw Error(r.error == EPROTONOSUPPORT ? Code::kVersionMismatch : Code::kInvalidValue,
                name_ + ": the device refused request " + std::to_string(command) + ": " +
                    error_text(static_cast<int>(r.error)));
  }
  return out;
}

void VfioUserTransport::region_access(bool write, uint32_t region, uint32_t offset, void* data, uint32_t bytes) {
  std::byte buffer[sizeof(vu::RegionAccess) + 8];
  const vu::RegionAccess a{offset, region, bytes};
  std::memcpy(buffer, &a, sizeof a);
  std::memcpy(buffer + sizeof a, data, bytes);
  auto reply = request(write ? vu::kRegionWrite : vu::kRegionRead, buffer, sizeof a + (write ? bytes : 0));
  if (write) return;
  if (reply.size() < sizeof a + bytes) lost("a register read came back short");
  std::memcpy(data, reply.data() + sizeof a, bytes);
}

uint32_t VfioUserTransport::read32(uint32_t offset) {
  uint32_t v = 0;
  region_access(false, hw::kBarRegisters, offset, &v, sizeof v);
  return v;
}
uint64_t VfioUserTransport::read64(uint32_t offset) {
  uint64_t v = 0;
  region_access(false, hw::kBarRegisters, offset, &v, sizeof v);
  return v;
}
void VfioUserTransport::write32(uint32_t offset, uint32_t value) {
  region_access(true, hw::kBarRegisters, offset, &value, sizeof value);
}
void VfioUserTransport::write64(uint32_t offset, uint64_t value) {
  region_access(true, hw::kBarRegisters, offset, &value, sizeof value);
}

void VfioUserTransport::post32(uint32_t offset, uint32_t value) noexcept {
  struct {
    vu::RegionAccess access;
    uint32_t value;
  } __attribute__((packed)) body{{offset, hw::kBarRegisters, 4}, value};
  try {
    request(vu::kRegionWrite, &body, sizeof body, -1, nullptr, vu::kNoReply);
  } catch (const std::exception& e) {
    driver_log().debug("posted write lost: {}", e.what());  // the waits find out
  }
}

std::span<std::byte> VfioUserTransport::map_bar(uint32_t bar) {
  if (!bars_.at(bar).empty()) return bars_[bar];
  vu::RegionInfo r{sizeof r, 0, bar, 0, 0, 0};
  int fd = -1;
  r = as<vu::RegionInfo>(request(vu::kDeviceGetRegionInfo, &r, sizeof r, -1, &fd));
  struct stat st {};
  // A file shorter than the BAR would be a SIGBUS later.
  if (fd < 0 || !(r.flags & vu::kRegionMappable) || fstat(fd, &st) != 0 ||
      static_cast<uint64_t>(st.st_size) < r.offset + r.size) {
    if (fd >= 0) os().close(fd);
    throw Error(Code::kNoDevice,
                name_ + ": BAR " + std::to_string(bar) + " of " + std::to_string(r.size) + " bytes cannot be mapped");
  }
  void* p =
      os().mmap(nullptr, r.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(r.offset));
  os().close(fd);
  if (p == MAP_FAILED)
    throw Error(Code::kOutOfHostMemory, name_ + ": mapping BAR " + std::to_string(bar) + ": " + error_text(errno));
  return bars_[bar] = {static_cast<std::byte*>(p), r.size};
}

void VfioUserTransport::set_command() {
  uint16_t v = 0;
  region_access(false, vu::kConfigRegion, hw::pci::kCommand, &v, sizeof v);
  v |= hw::pci::kCommandMemory | hw::pci::kCommandBusMaster;
  region_access(true, vu::kConfigRegion, hw::pci::kCommand, &v, sizeof v);
}

void VfioUserTransport::map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) {
  vu::DmaMap d{sizeof d, vu::kMapReadable | (device_writes ? vu::kMapWritable : 0), 0, hw::raw(iova), memory.bytes};
  request(vu::kDmaMap, &d, sizeof d, memory.fd);
}

void VfioUserTransport::unmap_dma(hw::Iova iova, uint64_t bytes) noexcept {
  vu::DmaUnmap d{sizeof d, 0, hw::raw(iova), bytes};
  try {
    request(vu::kDmaUnmap, &d, sizeof d);
  } catch (const std::exception& e) {
    driver_log().debug("unmap: {}", e.what());  // a device that is gone maps nothing
  }
}

void VfioUserTransport::set_interrupt(uint32_t vector, int eventfd) {
  vu::IrqSet s{sizeof s, vu::kIrqDataEventfd | vu::kIrqTrigger, vu::kIrqMsix, vector, 1};
  request(vu::kDeviceSetIrqs, &s, sizeof s, eventfd);
}

void VfioUserTransport::reset() {
  request(vu::kDeviceReset, nullptr, 0);
  set_command();
}

std::string VfioUserTransport::gone() {
  pollfd p{socket_, POLLRDHUP, 0};
  const bool left = os().poll(&p, 1, 0) != 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
  return left ? "the device's process is gone" : "";
}

}  // namespace jalapeno::driver
