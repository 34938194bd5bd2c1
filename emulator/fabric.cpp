#include "fabric.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace jalapeno::emu {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint32_t kMagic = 0x4A464231;  // of request and answer; the last digit is the version
constexpr timeval kPatience{1, 0};

struct Request {
  uint32_t magic, reserved;
  uint64_t address, key;
};
struct Answer {
  uint32_t magic, state, context, reserved;
  uint64_t root, token, hbm_bytes;
};

// The chips of this process, by address.
struct Local {
  std::mutex mutex;
  std::unordered_map<uint64_t, const FabricPort*> ports;
};
Local& local() {
  static Local* l = new Local;  // never destroyed: chips may end with the program
  return *l;
}

struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

std::pair<sockaddr_un, socklen_t> socket_name(uint64_t address) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const int n = std::snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "jalapeno/fabric/%016llx",
                              static_cast<unsigned long long>(address));
  return {name, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<size_t>(n))};
}

// Memory goes to processes of the same user, and is taken from them.
bool same_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

long futex(uint32_t* word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, word, operation, value, timeout, nullptr, 0);
}

void wake_page(FabricPage& page) {
  std::atomic_ref(page.wake).fetch_add(1, std::memory_order_release);
  futex(&page.wake, FUTEX_WAKE, INT32_MAX, nullptr);
}

}  // namespace

RemoteContext::RemoteContext(std::shared_ptr<Mapping> hbm, std::shared_ptr<Mapping> page, uint64_t root,
                             uint32_t context, uint64_t token)
    : hbm_(std::move(hbm)), page_(std::move(page)), root_(root), context_(context), token_(token), populated_(*hbm_) {}

void RemoteContext::wake() {
  if (std::atomic_ref(page().asleep).load(std::memory_order_relaxed) != 0) wake_page(page());
}

FabricPort::FabricPort(uint64_t address, const MemorySystem& memory, Lookup lookup)
    : address_(address), memory_(memory), lookup_(std::move(lookup)) {
  page_fd_ = memfd_create("jalapeno-fabric", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (page_fd_ < 0 || ftruncate(page_fd_, kPageBytes) != 0 ||
      fcntl(page_fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    throw std::runtime_error(std::string("fabric page: ") + std::strerror(errno));
  page_ = std::make_shared<Mapping>(page_fd_, 0, kPageBytes, true);
  std::lock_guard lock(local().mutex);
  local().ports[address_] = this;
}

FabricPort::~FabricPort() {
  {
    std::lock_guard lock(local().mutex);
    local().ports.erase(address_);
  }
  if (thread_.joinable()) {
    const uint64_t one = 1;
    (void)!write(stop_event_, &one, sizeof one);
    thread_.join();
  }
  for (int fd : {page_fd_, listener_, stop_event_})
    if (fd >= 0) close(fd);
}

void FabricPort::wake() { wake_page(page()); }

void FabricPort::sleep(uint32_t seen, uint64_t timeout_ns) {
  const timespec t{static_cast<time_t>(timeout_ns / 1'000'000'000), static_cast<long>(timeout_ns % 1'000'000'000)};
  futex(&page().wake, FUTEX_WAIT, seen, &t);
}

void FabricPort::listen() {
  if (thread_.joinable()) return;
  const auto [name, size] = socket_name(address_);
  listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  stop_event_ = eventfd(0, EFD_CLOEXEC);
  if (listener_ < 0 || stop_event_ < 0 || bind(listener_, reinterpret_cast<const sockaddr*>(&name), size) != 0 ||
      ::listen(listener_, 64) != 0)
    return;  // only chips of this process reach it, and whoever else tries is told "unreachable"
  thread_ = std::thread([this] { serve(); });
}

void FabricPort::serve() {
  for (;;) {
    pollfd p[2] = {{listener_, POLLIN, 0}, {stop_event_, POLLIN, 0}};
    if (poll(p, 2, -1) < 0 && errno != EINTR) return;
    if (p[1].revents != 0) return;
    if (p[0].revents == 0) continue;
    Descriptor client{accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)};
    if (client.fd >= 0 && same_user(client.fd)) answer(client.fd);
  }
}

void FabricPort::answer(int client) {
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  Request request{};
  if (recv(client, &request, sizeof request, 0) != sizeof request || request.magic != kMagic) return;
  Answer a{kMagic, hw::kWindowRefused, 0, 0, 0, 0, memory_.hbm_bytes()};
  const auto found = request.address == address_ ? lookup_(request.key) : std::nullopt;
  if (found) a.state = hw::kWindowUp, a.context = found->context, a.root = found->root, a.token = found->token;
  const int fds[2] = {memory_.hbm_fd(), page_fd_};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  iovec iov{&a, sizeof a};
  msghdr m{};
  m.msg_iov = &iov, m.msg_iovlen = 1;
  if (found) {
    m.msg_control = control, m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fds);
    std::memcpy(CMSG_DATA(c), fds, sizeof fds);
  }
  (void)sendmsg(client, &m, MSG_NOSIGNAL);
}

FabricPort::Reached FabricPort::reach(uint64_t address, uint64_t key) {
  {
    std::lock_guard lock(local().mutex);
    if (auto it = local().ports.find(address); it != local().ports.end()) {
      const FabricPort& port = *it->second;
      const auto found = port.lookup_(key);
      if (!found) return {hw::kWindowRefused, nullptr};
      return {hw::kWindowUp, std::make_shared<RemoteContext>(port.memory_.hbm(), port.page_, found->root,
                                                             found->context, found->token)};
    }
  }
  const auto [name, size] = socket_name(address);
  Descriptor s{socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
  setsockopt(s.fd, SOL_SOCKET, SO_SNDTIMEO, &kPatience,
             sizeof kPatience);  // bounds connect too, when its queue is full
  if (s.fd < 0 || connect(s.fd, reinterpret_cast<const sockaddr*>(&name), size) != 0 || !same_user(s.fd))
    return {hw::kWindowUnreachable, nullptr};
  setsockopt(s.fd, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  const Request request{kMagic, 0, address, key};
  Answer a{};
  Descriptor hbm, page;
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))];
  iovec iov{&a, sizeof a};
  msghdr m{};
  m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
  if (send(s.fd, &request, sizeof request, MSG_NOSIGNAL) != sizeof request ||
      recvmsg(s.fd, &m, MSG_CMSG_CLOEXEC) != sizeof a || a.magic != kMagic)
    return {hw::kWindowUnreachable, nullptr};
  if (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr && c->cmsg_type == SCM_RIGHTS) {
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    if (count > 0) std::memcpy(&hbm.fd, CMSG_DATA(c), sizeof(int));
    if (count > 1) std::memcpy(&page.fd, CMSG_DATA(c) + sizeof(int), sizeof(int));
  }
  if (a.state != hw::kWindowUp) return {a.state, nullptr};
  if (hbm.fd < 0 || page.fd < 0 || a.context >= kFabricContexts) return {hw::kWindowUnreachable, nullptr};
  try {  // the files are sealed, or they could be cut off under this process
    for (int fd : {hbm.fd, page.fd})
      if (const int seals = fcntl(fd, F_GET_SEALS); seals < 0 || !(seals & F_SEAL_SHRINK))
        return {hw::kWindowUnreachable, nullptr};
    if (lseek(hbm.fd, 0, SEEK_END) < static_cast<off_t>(a.hbm_bytes) ||
        lseek(page.fd, 0, SEEK_END) < static_cast<off_t>(kPageBytes))
      return {hw::kWindowUnreachable, nullptr};
    return {hw::kWindowUp, std::make_shared<RemoteContext>(std::make_shared<Mapping>(hbm.fd, 0, a.hbm_bytes, true),
                                                           std::make_shared<Mapping>(page.fd, 0, kPageBytes, true),
                                                           a.root, a.context, a.token)};
  } catch (const std::runtime_error&) {
    return {hw::kWindowUnreachable, nullptr};
  }
}

}  // namespace jalapeno::emu
