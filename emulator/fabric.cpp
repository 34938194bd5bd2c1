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

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

namespace jalapeno::emu {
namespace {

constexpr uint64_t kPagesBytes = (sizeof(FabricPages) + 4095) & ~uint64_t{4095};
constexpr uint32_t kMagic = 0x4A464232;  // of request and answer; the last digit is the version
constexpr timeval kPatience{1, 0};

struct Request {
  uint32_t magic, reserved;
  uint64_t address, key;
};
struct Answer {
  uint32_t magic, state, context, place;
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

void wake_process(FabricPages& pages) {
  std::atomic_ref(pages.wake).fetch_add(1, std::memory_order_release);
  futex(&pages.wake, FUTEX_WAKE, INT32_MAX, nullptr);
}

}  // namespace

FabricProcess& FabricProcess::get() {
  static auto* const p = new FabricProcess;  // chips may end with the program
  return *p;
}

uint32_t FabricProcess::take() {
  std::lock_guard lock(mutex_);
  if (pages_ == nullptr) {
    Descriptor file{memfd_create("jalapeno-fabric", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (file.fd < 0 || ftruncate(file.fd, static_cast<off_t>(kPagesBytes)) != 0 ||
        fcntl(file.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
      throw std::runtime_error(std::string("fabric pages: ") + std::strerror(errno));
    pages_ = std::make_shared<Mapping>(file.fd, 0, kPagesBytes, true);
    fd_ = std::exchange(file.fd, -1);
  }
  const auto free = std::find(taken_.begin(), taken_.end(), false);
  if (free == taken_.end() && taken_.size() == kMostChips)
    throw std::runtime_error("this process has " + std::to_string(kMostChips) + " emulated chips, the most there are");
  const auto place = static_cast<uint32_t>(free - taken_.begin());
  if (free == taken_.end())
    taken_.push_back(true);
  else
    *free = true;
  return place;
}

void FabricProcess::give_back(uint32_t place) {
  for (uint64_t& token : pages().chips[place].exported) std::atomic_ref(token).store(0, std::memory_order_release);
  std::atomic_ref(pages().chips[place].generation).fetch_add(1, std::memory_order_release);
  std::lock_guard lock(mutex_);
  taken_[place] = false;
  if (std::find(taken_.begin(), taken_.end(), true) != taken_.end()) return;
  close(std::exchange(fd_, -1));
  pages_.reset();
}

void FabricProcess::wake() { wake_process(pages()); }

void FabricProcess::sleep(uint32_t seen, uint64_t timeout_ns) {
  const timespec t{static_cast<time_t>(timeout_ns / 1'000'000'000), static_cast<long>(timeout_ns % 1'000'000'000)};
  futex(&pages().wake, FUTEX_WAIT, seen, &t);
}

RemoteContext::RemoteContext(std::shared_ptr<Mapping> hbm, std::shared_ptr<Mapping> pages, uint32_t place,
                             uint64_t root, uint32_t context, uint64_t token)
    : hbm_(std::move(hbm)),
      pages_(std::move(pages)),
      place_(place),
      root_(root),
      context_(context),
      token_(token),
      populated_(*hbm_) {}

void RemoteContext::wake() {
  if (std::atomic_ref(pages().asleep).load(std::memory_order_relaxed) != 0) wake_process(pages());
}

FabricPort::FabricPort(uint64_t address, const Hbm& hbm, Lookup lookup)
    : address_(address), hbm_(hbm), lookup_(std::move(lookup)), place_(FabricProcess::get().take()) {
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
  for (int fd : {listener_, stop_event_})
    if (fd >= 0) close(fd);
  FabricProcess::get().give_back(place_);
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
  Answer a{kMagic, hw::kWindowRefused, 0, place_, 0, 0, hbm_.bytes()};
  const auto found = request.address == address_ ? lookup_(request.key) : std::nullopt;
  if (found) a.state = hw::kWindowUp, a.context = found->context, a.root = found->root, a.token = found->token;
  const int fds[2] = {hbm_.fd(), FabricProcess::get().fd()};
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
      return {hw::kWindowUp, std::make_shared<RemoteContext>(port.hbm_.mapping(), FabricProcess::get().mapping(),
                                                             port.place_, found->root, found->context, found->token)};
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
  Descriptor hbm, pages;
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))];
  iovec iov{&a, sizeof a};
  msghdr m{};
  m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
  if (send(s.fd, &request, sizeof request, MSG_NOSIGNAL) != sizeof request) return {hw::kWindowUnreachable, nullptr};
  const ssize_t received = recvmsg(s.fd, &m, MSG_CMSG_CLOEXEC);
  if (received < 0) return {hw::kWindowUnreachable, nullptr};
  if (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr && c->cmsg_type == SCM_RIGHTS) {
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    if (count > 0) std::memcpy(&hbm.fd, CMSG_DATA(c), sizeof(int));
    if (count > 1) std::memcpy(&pages.fd, CMSG_DATA(c) + sizeof(int), sizeof(int));
  }
  if (received != sizeof a || a.magic != kMagic) return {hw::kWindowUnreachable, nullptr};
  if (a.state != hw::kWindowUp) return {a.state, nullptr};
  if (hbm.fd < 0 || pages.fd < 0 || a.context >= kFabricContexts || a.place >= kMostChips)
    return {hw::kWindowUnreachable, nullptr};
  try {  // the files are sealed, or they could be cut off under this process
    for (int fd : {hbm.fd, pages.fd})
      if (const int seals = fcntl(fd, F_GET_SEALS); seals < 0 || !(seals & F_SEAL_SHRINK))
        return {hw::kWindowUnreachable, nullptr};
    if (lseek(hbm.fd, 0, SEEK_END) < static_cast<off_t>(a.hbm_bytes) ||
        lseek(pages.fd, 0, SEEK_END) < static_cast<off_t>(kPagesBytes))
      return {hw::kWindowUnreachable, nullptr};
    return {hw::kWindowUp, std::make_shared<RemoteContext>(std::make_shared<Mapping>(hbm.fd, 0, a.hbm_bytes, true),
                                                           std::make_shared<Mapping>(pages.fd, 0, kPagesBytes, true),
                                                           a.place, a.root, a.context, a.token)};
  } catch (const std::runtime_error&) {
    return {hw::kWindowUnreachable, nullptr};
  }
}

}  // namespace jalapeno::emu
