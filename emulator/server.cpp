#include "server.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <jalapeno_hw/vfio_user.hpp>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace jalapeno::emu {

namespace vu = hw::vfio_user;

struct Server::Message {
  vu::Header header{};
  std::vector<std::byte> payload;
  std::vector<int> fds;
  ~Message() {
    for (int fd : fds)
      if (fd >= 0) close(fd);
  }
  int take(size_t k) {
    int fd = k < fds.size() ? fds[k] : -1;
    if (fd >= 0) fds[k] = -1;
    return fd;
  }
  template <class T>
  bool get(T& out) const {
    if (payload.size() < sizeof out) return false;
    std::memcpy(&out, payload.data(), sizeof out);
    return true;
  }
};

namespace {

// Reads exactly `bytes`; descriptors ride on the first of them. False: the peer left, or one of the events to end it.
template <class Knock>
bool receive(int socket, int stop, int away, int listener, Knock knock, void* out, size_t bytes,
             std::vector<int>* fds) {
  auto* at = static_cast<std::byte*>(out);
  while (bytes > 0) {
    pollfd p[4] = {{socket, POLLIN | POLLRDHUP, 0}, {stop, POLLIN, 0}, {listener, POLLIN, 0}, {away, POLLIN, 0}};
    if (poll(p, 4, -1) < 0 && errno != EINTR) return false;
    if (p[1].revents != 0 || p[3].revents != 0) return false;
    // A client that has left makes room: the next one waits for its turn. Polled after the listener was ready, so
    // that who closes one connection and opens another is never refused.
    if ((p[2].revents & POLLIN) && poll(p, 1, 0) >= 0 && !(p[0].revents & (POLLRDHUP | POLLHUP))) knock();
    if (p[0].revents == 0) continue;
    // Room for all a message can carry, so that the kernel installs none that we cannot see and close.
    alignas(cmsghdr) char control[CMSG_SPACE(253 * sizeof(int))];
    iovec iov{at, bytes};
    msghdr m{};
    m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    ssize_t n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return false;
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t k = 0; k < count; ++k) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + k * sizeof(int), sizeof fd);
        if (fds != nullptr && fds->size() < vu::kMaxDescriptors)
          fds->push_back(fd);
        else
          close(fd);
      }
    }
    at += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

// Header and payload in one sendmsg: QEMU takes a short header for a broken peer.
bool send_reply(int socket, const vu::Header& request, uint32_t error, const void* payload, size_t bytes, int fd = -1) {
  vu::Header h{request.id, request.command, static_cast<uint32_t>(sizeof h + bytes),
               vu::kTypeReply | (error != 0 ? vu::kError : 0), error};
  iovec iov[2] = {{&h, sizeof h}, {const_cast<void*>(payload), bytes}};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = iov, m.msg_iovlen = bytes > 0 ? 2 : 1;
  if (fd >= 0) {
    m.msg_control = control, m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  size_t left = sizeof h + bytes;
  while (left > 0) {
    ssize_t n = sendmsg(socket, &m, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    left -= static_cast<size_t>(n);
    m.msg_control = nullptr, m.msg_controllen = 0;
    for (iovec& v : iov) {
      size_t used = std::min(static_cast<size_t>(n), v.iov_len);
      v.iov_base = static_cast<std::byte*>(v.iov_base) + used, v.iov_len -= used, n -= static_cast<ssize_t>(used);
    }
  }
  return true;
}

}  // namespace

Server::Server(Chip& chip)
    : chip_(chip),
      stop_event_(eventfd(0, EFD_CLOEXEC)),
      away_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      config_({hw::kBar0Bytes, chip.doorbell_bytes(), chip.hbm_bar_bytes()}, kVectors, chip.serial(), chip.function(),
              chip.functions()) {
  if (stop_event_ < 0 || away_event_ < 0) throw std::runtime_error(std::string("eventfd: ") + std::strerror(errno));
}

Server::~Server() { close(stop_event_), close(away_event_); }

void Server::stop() {
  const uint64_t one = 1;
  (void)!write(stop_event_, &one, sizeof one);
}

void Server::send_away() {
  const uint64_t one = 1;
  (void)!write(away_event_, &one, sizeof one);
}

void Server::reset_function() {
  config_.reset();
  chip_.set_bus_master(config_.bus_master());
  chip_.reset_function();
  for (Server* f : virtual_functions_) f->send_away();
}

// The reply to the version request that a second client sends, whatever it says in it.
void Server::refuse(int client) {
  if (client < 0) return;
  pollfd p{client, POLLIN, 0};
  char request[1024];
  if (poll(&p, 1, 200) == 1) (void)!recv(client, request, sizeof request, MSG_DONTWAIT);
  send_reply(client, vu::Header{1, vu::kVersion, 0, 0, 0}, EBUSY, nullptr, 0);
  close(client);
}

void Server::serve_listener(int listener) {
  listener_ = listener;
  for (;;) {
    pollfd p[2] = {{listener, POLLIN, 0}, {stop_event_, POLLIN, 0}};
    if (poll(p, 2, -1) < 0 && errno != EINTR) break;
    if (p[1].revents != 0) break;
    if (!(p[0].revents & POLLIN)) continue;
    int client = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    ucred peer{};
    socklen_t size = sizeof peer;
    if (getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || (peer.uid != geteuid() && peer.uid != 0)) {
      close(client);  // the socket's folder is private; this is the second lock
      continue;
    }
    serve(client);
    chip_.scrub();  // the next client must not read this one's memory
  }
  close(listener);
}

void Server::serve(int socket) {
  uint64_t none;
  (void)!read(away_event_, &none, sizeof none);  // was meant for the one before
  for (;;) {
    Message m;
    auto get = [&](void* out, size_t bytes) {
      return receive(
          socket, stop_event_, away_event_, listener_,
          [&] { refuse(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)); }, out, bytes, &m.fds);
    };
    if (!get(&m.header, sizeof m.header)) break;
    if (m.header.size < sizeof m.header || m.header.size > vu::kMaxMessage ||
        (m.header.flags & vu::kTypeMask) != vu::kTypeCommand)
      break;
    m.payload.resize(m.header.size - sizeof m.header);
    if (!m.payload.empty() && !get(m.payload.data(), m.payload.size())) break;
    if (!handle(socket, m)) break;
  }
  close(socket);
  config_.reset();
  chip_.set_bus_master(config_.bus_master());
  chip_.reset_function();
  chip_.unplug();
}

bool Server::access(const vu::RegionAccess& at, std::byte* data, bool write) {
  if (at.region == vu::kConfigRegion) {
    if (at.offset >= PciConfig::kBytes || at.count > PciConfig::kBytes - at.offset) return false;
    const auto offset = static_cast<uint32_t>(at.offset);
    if (!write) {
      config_.read(offset, {data, at.count});
    } else if (config_.write(offset, {data, at.count})) {
      reset_function();
    } else {
      chip_.set_bus_master(config_.bus_master());
    }
    return true;
  }
  if (at.region != hw::kBarRegisters) return false;
  if (at.offset >= hw::kMsixTableOffset) {
    // Whoever routes the interrupts keeps the table; vectors are eventfds here, and nothing is ever pending.
    if (!write) std::memset(data, 0, at.count);
    return at.offset < hw::kBar0Bytes && at.count <= hw::kBar0Bytes - at.offset;
  }
  if (at.count != 4 && at.count != 8) return false;
  uint64_t value = 0;
  if (write) std::memcpy(&value, data, at.count);
  const bool good =
      write ? chip_.write_register(at.offset, at.count, value) : chip_.read_register(at.offset, at.count, value);
  if (!write && good) std::memcpy(data, &value, at.count);
  return good;
}

bool Server::handle(int socket, Message& m) {
  const bool quiet = m.header.flags & vu::kNoReply;
  auto reply = [&](const void* data, size_t bytes, int fd = -1) {
    return quiet || send_reply(socket, m.header, 0, data, bytes, fd);
  };
  auto refuse = [&](int error) {
    return quiet || send_reply(socket, m.header, static_cast<uint32_t>(error), nullptr, 0);
  };

  switch (m.header.command) {
    case vu::kVersion: {
      vu::Version v{};
      if (!m.get(v)) return false;
      if (v.major != 0) return refuse(EPROTONOSUPPORT);
      const std::string json = R"({"capabilities":{"max_msg_fds":16}})";
      std::vector<std::byte> out(sizeof v + json.size() + 1);
      v.minor = 0;
      std::memcpy(out.data(), &v, sizeof v);
      std::memcpy(out.data() + sizeof v, json.c_str(), json.size() + 1);
      return reply(out.data(), out.size());
    }
    case vu::kDmaMap: {
      vu::DmaMap d{};
      if (!m.get(d)) return refuse(EINVAL);
      const int fd = m.take(0);
      if (fd < 0)
        return reply(nullptr, 0);  // memory without a file: reachable by messages only, which engines do not use yet
      int error = 0;
      try {
        chip_.map_host(fd, d.offset, d.address, d.size, d.flags & vu::kMapReadable, d.flags & vu::kMapWritable);
      } catch (const std::exception&) {
        error = EINVAL;
      }
      close(fd);
      return error != 0 ? refuse(error) : reply(nullptr, 0);
    }
    case vu::kDmaUnmap: {
      vu::DmaUnmap d{};
      if (!m.get(d)) return refuse(EINVAL);
      if (d.flags & vu::kUnmapAll)
        chip_.unmap_host(0, UINT64_MAX);
      else
        chip_.unmap_host(d.address, d.size);
      return reply(&d, sizeof d);
    }
    case vu::kDeviceGetInfo: {
      vu::DeviceInfo d{sizeof d, vu::kDeviceResets | vu::kDevicePci, vu::kRegions, vu::kIrqs};
      return reply(&d, sizeof d);
    }
    case vu::kDeviceGetRegionInfo: {
      vu::RegionInfo r{};
      if (!m.get(r)) return refuse(EINVAL);
      const uint32_t index = r.index;
      r = vu::RegionInfo{sizeof r, 0, index, 0, 0, 0};
      int fd = -1;
      if (index == hw::kBarRegisters) r.size = hw::kBar0Bytes, r.flags = vu::kRegionReadable | vu::kRegionWritable;
      if (index == vu::kConfigRegion) r.size = PciConfig::kBytes, r.flags = vu::kRegionReadable | vu::kRegionWritable;
      if (index == hw::kBarDoorbells) r.size = chip_.doorbell_bytes(), fd = chip_.doorbell_fd();
      if (index == hw::kBarHbm) r.size = chip_.hbm_bar_bytes(), fd = chip_.hbm_fd();
      if (index >= vu::kRegions) return refuse(EINVAL);
      if (fd >= 0) r.flags = vu::kRegionReadable | vu::kRegionWritable | vu::kRegionMappable;
      return reply(&r, sizeof r, fd);
    }
    case vu::kDeviceGetIrqInfo: {
      vu::IrqInfo q{};
      if (!m.get(q)) return refuse(EINVAL);
      q = vu::IrqInfo{sizeof q, vu::kIrqEventfd, q.index,
                      q.index == vu::kIrqMsix    ? kVectors
                      : q.index == vu::kIrqError ? 1
                                                 : 0};
      return reply(&q, sizeof q);
    }
    case vu::kDeviceSetIrqs: {
      vu::IrqSet s{};
      if (!m.get(s) || s.index >= vu::kIrqs) return refuse(EINVAL);
      if (s.index != vu::kIrqMsix) return reply(nullptr, 0);
      if (s.flags == (vu::kIrqDataNone | vu::kIrqTrigger) && s.count == 0) {
        for (uint32_t v = 0; v < kVectors; ++v) chip_.set_interrupt(v, -1);
        return reply(nullptr, 0);
      }
      if (s.flags != (vu::kIrqDataEventfd | vu::kIrqTrigger) || s.start > kVectors || s.count > kVectors - s.start)
        return refuse(EINVAL);
      for (uint32_t k = 0; k < s.count; ++k) {
        const int fd = m.take(k);
        if (fd >= 0) fcntl(fd, F_SETFL, O_NONBLOCK);  // a full counter must not stop the processor
        chip_.set_interrupt(s.start + k, fd);
      }
      return reply(nullptr, 0);
    }
    case vu::kRegionRead:
    case vu::kRegionWrite: {
      const bool is_write = m.header.command == vu::kRegionWrite;
      vu::RegionAccess a{};
      if (!m.get(a) || a.count == 0 || a.count > 4096 || (is_write && m.payload.size() < sizeof a + a.count))
        return refuse(EINVAL);
      std::vector<std::byte> out(sizeof a + (is_write ? 0 : a.count));
      std::memcpy(out.data(), &a, sizeof a);
      std::byte* data = is_write ? m.payload.data() + sizeof a : out.data() + sizeof a;
      return access(a, data, is_write) ? reply(out.data(), out.size()) : refuse(EINVAL);
    }
    case vu::kDeviceReset:
      reset_function();
      return reply(nullptr, 0);
    default:
      return refuse(EOPNOTSUPP);
  }
}

}  // namespace jalapeno::emu
