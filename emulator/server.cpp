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

Server::Server(Chip& chip)
    : chip_(chip),
      stop_event_(eventfd(0, EFD_CLOEXEC)),
      away_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      config_({hw::kBar0Bytes, chip.doorbell_bytes(), chip.hbm_bar_bytes()}, kVectors, chip.serial(), chip.function(),
              chip.functions()) {
  if (stop_event_ < 0 || away_event_ < 0) throw std::runtime_error(std::string("eventfd: ") + std::strerror(errno));
}

Server::~Server() { close(stop_event_), close(away_event_); }

void Server::stop() { eventfd_write(stop_event_, 1); }

void Server::reset_function() {
  config_.reset();
  chip_.set_bus_master(config_.bus_master());
  chip_.reset_function();
}

void Server::send_away_others() {
  for (const Server* f : virtual_functions_) eventfd_write(f->away_event_, 1);
}

// The reply to the version request that a second client sends, whatever it says in it.
void Server::refuse(int client) {
  if (client < 0) return;
  pollfd p{client, POLLIN, 0};
  char request[1024];
  if (poll(&p, 1, 200) == 1) (void)!recv(client, request, sizeof request, MSG_DONTWAIT);
  Connection(client, {}, -1, {}).reply(vu::Header{1, vu::kVersion, 0, 0, 0}, EBUSY, nullptr, 0);
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
  auto connection = std::make_shared<Connection>(socket, std::vector{stop_event_, away_event_}, listener_, [this] {
    refuse(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC));
  });
  chip_.set_host_link(connection);
  while (auto m = connection->next())
    if (!handle(*connection, *m)) break;
  connection->end();
  chip_.unplug();
  reset_function();
}

bool Server::access(const vu::RegionAccess& at, std::byte* data, bool write) {
  if (at.region == vu::kConfigRegion) {
    if (at.offset >= PciConfig::kBytes || at.count > PciConfig::kBytes - at.offset) return false;
    const auto offset = static_cast<uint32_t>(at.offset);
    if (!write) {
      config_.read(offset, {data, at.count});
    } else if (config_.write(offset, {data, at.count})) {
      reset_function(), send_away_others();
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
  if (write && at.offset == hw::reg::kControl && (value & hw::kControlReset)) send_away_others();
  if (!write && good) std::memcpy(data, &value, at.count);
  return good;
}

bool Server::handle(Connection& connection, Message& m) {
  const bool quiet = m.header.flags & vu::kNoReply;
  auto reply = [&](const void* data, size_t bytes, int fd = -1) {
    return quiet || connection.reply(m.header, 0, data, bytes, fd);
  };
  auto refuse = [&](int error) {
    return quiet || connection.reply(m.header, static_cast<uint32_t>(error), nullptr, 0);
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
      const bool may_read = d.flags & vu::kMapReadable, may_write = d.flags & vu::kMapWritable;
      int error = 0;
      try {
        if (fd < 0)
          chip_.map_host({d.address, d.size, may_read, may_write});
        else
          chip_.map_host(fd, d.offset, d.address, d.size, may_read, may_write);
      } catch (const std::exception&) {
        error = EINVAL;
      }
      if (fd >= 0) close(fd);
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
      reset_function(), send_away_others();
      return reply(nullptr, 0);
    default:
      return refuse(EOPNOTSUPP);
  }
}

}  // namespace jalapeno::emu
