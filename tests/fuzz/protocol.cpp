// A client of the emulator that sends these bytes: whatever they are, the server ends the connection and is ready for
// the next client.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <jalapeno_hw/vfio_user.hpp>
#include <thread>

#include "fuzz.hpp"
#include "server.hpp"
#include "support/raw_queue.hpp"

namespace {

using namespace jalapeno;
namespace vu = hw::vfio_user;

emu::Chip& chip() { return test::small_chip(); }

// Does the next client get what it asks for?
bool answers() {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return false;
  emu::Server server(chip());
  std::thread thread([&] { server.serve(pair[1]); });
  struct {
    vu::Header header;
    vu::RegionAccess access;
  } request{{7, vu::kRegionRead, sizeof request, 0, 0}, {hw::reg::kQueueState, hw::kBarRegisters, 4}};
  std::array<std::byte, sizeof(vu::Header) + sizeof(vu::RegionAccess) + 4> reply{};
  bool good = send(pair[0], &request, sizeof request, MSG_NOSIGNAL) == sizeof request &&
              recv(pair[0], reply.data(), reply.size(), MSG_WAITALL) == static_cast<ssize_t>(reply.size());
  vu::Header header;
  uint32_t state;
  std::memcpy(&header, reply.data(), sizeof header);
  std::memcpy(&state, reply.data() + reply.size() - 4, 4);
  good = good && header.error == 0 && state == hw::kQueueStateOff;
  close(pair[0]);
  thread.join();
  return good;
}

}  // namespace

// The first byte says how many pieces the rest comes in; each piece brings a descriptor along.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  int pair[2];
  if (size == 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return 0;
  emu::Server server(chip());
  std::thread thread([&] { server.serve(pair[1]); });
  const size_t pieces = 1 + data[0] % 4;
  ++data, --size;
  for (size_t k = 0; k < pieces; ++k) {
    const size_t begin = size * k / pieces, end = size * (k + 1) / pieces;
    if (begin == end) continue;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (k % 2 == 0 && ftruncate(fd, 1 << 20) == 0) (void)fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    iovec iov{const_cast<uint8_t*>(data) + begin, end - begin};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    msghdr m{};
    m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
    (void)!sendmsg(pair[0], &m, MSG_NOSIGNAL);
    close(fd);
  }
  shutdown(pair[0], SHUT_WR);
  char sink[4096];
  while (recv(pair[0], sink, sizeof sink, 0) > 0) {
  }
  close(pair[0]);
  thread.join();
  if (!answers()) std::abort();
  return 0;
}

std::vector<std::vector<uint8_t>> fuzz_seeds() {
  std::vector<std::vector<uint8_t>> all;
  auto begin = [&] { all.emplace_back(1, uint8_t{0}); };
  auto message = [&](uint16_t command, const auto& payload, const std::vector<uint8_t>& more = {}) {
    const vu::Header h{1, command, static_cast<uint32_t>(sizeof h + sizeof payload + more.size()), 0, 0};
    fuzz::append(all.back(), h);
    fuzz::append(all.back(), payload);
    all.back().insert(all.back().end(), more.begin(), more.end());
  };
  auto set = [&](uint64_t at, uint32_t value) {
    std::vector<uint8_t> bytes;
    fuzz::append(bytes, value);
    message(vu::kRegionWrite, vu::RegionAccess{at, hw::kBarRegisters, 4}, bytes);
  };
  begin();
  message(vu::kVersion, vu::Version{0, 0}, {'{', '}', 0});
  message(vu::kDeviceGetInfo, vu::DeviceInfo{sizeof(vu::DeviceInfo), 0, 0, 0});
  for (uint32_t r = 0; r < vu::kRegions; ++r)
    message(vu::kDeviceGetRegionInfo, vu::RegionInfo{sizeof(vu::RegionInfo), 0, r, 0, 0, 0});
  begin();
  message(vu::kDmaMap, vu::DmaMap{sizeof(vu::DmaMap), 3, 0, 0x10000, 0x10000});
  message(vu::kDmaUnmap, vu::DmaUnmap{sizeof(vu::DmaUnmap), 0, 0x10000, 0x10000});
  message(vu::kDmaMap, vu::DmaMap{sizeof(vu::DmaMap), 3, 0, 0x10000, 0x10000});
  message(vu::kDmaUnmap, vu::DmaUnmap{sizeof(vu::DmaUnmap), vu::kUnmapAll, 0, 0});
  begin();
  set(hw::reg::kContextSelect, 0), set(hw::reg::kContextCommand, hw::kContextEnable);
  set(hw::reg::kQueueSelect, 3), set(hw::reg::kQueueRingLog2, 4), set(hw::reg::kQueueCommand, hw::kQueueEnable);
  set(hw::reg::kWake, 1), set(hw::reg::kQueueCommand, hw::kQueueDisable);
  message(vu::kDeviceReset, uint32_t{0});
  begin();
  message(vu::kRegionRead, vu::RegionAccess{0, vu::kConfigRegion, 64});
  message(vu::kRegionWrite, vu::RegionAccess{hw::pci::kCommand, vu::kConfigRegion, 2}, {6, 0});
  message(vu::kDeviceSetIrqs,
          vu::IrqSet{sizeof(vu::IrqSet), vu::kIrqDataEventfd | vu::kIrqTrigger, vu::kIrqMsix, 0, 1});
  message(vu::kDmaRead, vu::DmaAccess{0x10000, 64});
  const vu::Header answer{1, vu::kDmaRead, sizeof answer + sizeof(vu::DmaAccess), vu::kTypeReply, 0};  // to no question
  fuzz::append(all.back(), answer);
  fuzz::append(all.back(), vu::DmaAccess{0x10000, 64});
  return all;
}
