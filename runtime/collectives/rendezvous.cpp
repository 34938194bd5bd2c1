#include "rendezvous.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <jalapeno_driver/os.hpp>
#include <thread>

#include "error.hpp"
#include "interfaces.hpp"

namespace jalapeno::runtime {

using driver::monotonic_ns;

namespace {

constexpr char kMagic[8] = {'J', 'A', 'L', 'C', 'O', 'L', 'L', 0};
constexpr uint32_t kWireVersion = 2;  // of everything that ranks send each other
constexpr uint32_t kMostRanks = 1024;

struct Hello {
  char magic[8];
  uint32_t version, reserved0;
  uint64_t key;
  uint32_t ranks, rank, timeout_ms, reserved;
  Member member;
};
struct Reply {
  uint32_t error, text_bytes, members, reserved;  // then the text, then the members
};

[[noreturn]] void system_error(const std::string& what) {
  fail(jalErrorOperatingSystem, what + ": " + std::strerror(errno));
}

int poll_until(int fd, short events, int64_t deadline_ns) {
  for (;;) {
    const int64_t left = deadline_ns - monotonic_ns();
    if (left <= 0) return 0;
    pollfd p{fd, events, 0};
    const int n = poll(&p, 1, static_cast<int>(std::min<int64_t>(left / 1'000'000 + 1, 1'000'000)));
    if (n < 0 && errno == EINTR) continue;
    return n;
  }
}

void no_delay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// Interfaces that are up, JAL_COLL_INTERFACE first or alone; loopback only when there is nothing else.
uint32_t own_addresses(uint32_t* out) {
  const char* wanted = std::getenv("JAL_COLL_INTERFACE");
  uint32_t n = 0, loopback = 0;
  for (const Interface& i : interfaces()) {
    if (wanted != nullptr && *wanted != 0 && i.name != wanted) continue;
    if (i.loopback)
      loopback = i.address;
    else if (n < kMostAddresses)
      out[n++] = i.address;
  }
  if (n == 0 && loopback != 0) out[n++] = loopback;
  if (n == 0)
    fail(jalErrorOperatingSystem,
         wanted != nullptr && *wanted != 0
             ? "JAL_COLL_INTERFACE=" + std::string(wanted) + ": no such interface with IPv4 is up"
             : "no network interface with IPv4 is up, not even loopback");
  return n;
}

void answer(int fd, const std::string& error, const std::vector<Member>& members) {
  const Reply r{error.empty() ? 0u : 1u, static_cast<uint32_t>(error.size()), static_cast<uint32_t>(members.size()), 0};
  const int64_t deadline = monotonic_ns() + 2'000'000'000;
  if (send_all(fd, &r, sizeof r, deadline) && send_all(fd, error.data(), error.size(), deadline))
    (void)send_all(fd, members.data(), members.size() * sizeof(Member), deadline);
}

// One meeting, on its own thread.
void serve(int listener_fd, uint64_t key) {
  Socket listener(listener_fd);
  std::vector<Socket> sockets;
  std::vector<Member> members;
  std::vector<bool> here;
  uint32_t ranks = 0, arrived = 0;
  int64_t deadline = monotonic_ns() + int64_t{600} * 1'000'000'000;  // nobody may ever come
  auto refuse_all = [&](const std::string& why) {
    for (Socket& s : sockets)
      if (s.fd >= 0) answer(s.fd, why, {});
  };
  while (ranks == 0 || arrived < ranks) {
    if (poll_until(listener.fd, POLLIN, deadline) <= 0) {
      std::string missing;
      for (uint32_t r = 0; r < ranks; ++r)
        if (!here[r]) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
      return refuse_all("of " + std::to_string(ranks) + " ranks these did not come in time: " + missing);
    }
    Socket client(accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC));
    if (client.fd < 0) continue;
    no_delay(client.fd);
    Hello h{};
    // Whoever connects and says nothing keeps the others waiting for a second, not for ever.
    if (!receive_all(client.fd, &h, sizeof h, std::min(deadline, monotonic_ns() + 1'000'000'000))) continue;
    if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0 || h.key != key) continue;
    if (h.version != kWireVersion) {
      const std::string why = "rank " + std::to_string(h.rank) + " speaks version " + std::to_string(h.version) +
                              " of the ranks' protocol, the root " + std::to_string(kWireVersion) +
                              ": use one library version on all ranks";
      answer(client.fd, why, {});
      return refuse_all(why);
    }
    if (h.ranks == 0 || h.ranks > kMostRanks || h.rank >= h.ranks) continue;  // no rank of ours says that
    h.member.name[sizeof h.member.name - 1] = 0;
    if (ranks == 0) {
      ranks = h.ranks;
      members.resize(ranks), here.resize(ranks);
      sockets.resize(ranks);
      deadline = monotonic_ns() + int64_t{h.timeout_ms} * 1'000'000;
    }
    std::string why;
    if (h.ranks != ranks)  // its rank may be out of range here
      why = "rank " + std::to_string(h.rank) + " expects " + std::to_string(h.ranks) + " ranks, another one " +
            std::to_string(ranks);
    else if (here[h.rank])
      why = "two processes came as rank " + std::to_string(h.rank) + " of " + std::to_string(ranks) + ": pid " +
            std::to_string(members[h.rank].pid) + " on " + members[h.rank].name + " and pid " +
            std::to_string(h.member.pid) + " on " + h.member.name;
    if (!why.empty()) {
      answer(client.fd, why, {});
      return refuse_all(why);
    }
    here[h.rank] = true, members[h.rank] = h.member, ++arrived;
    sockets[h.rank] = std::move(client);
  }
  for (Socket& s : sockets) answer(s.fd, "", members);
}

}  // namespace

Socket::~Socket() {
  if (fd >= 0) close(fd);
}

std::string host_name() {
  char name[64] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

uint64_t host_identity() {
  if (const char* text = std::getenv("JAL_COLL_HOST"); text != nullptr && *text != 0)
    return std::hash<std::string>{}(text);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat net {};
  stat("/proc/self/ns/net", &net);
  return std::hash<std::string>{}(boot + "/" + std::to_string(net.st_ino));
}

int listen_anywhere(uint16_t& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) system_error("socket");
  sockaddr_in a{};
  a.sin_family = AF_INET, a.sin_port = htons(port);
  const int on = 1;
  if (port != 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  socklen_t size = sizeof a;
  if (bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0 || listen(fd, static_cast<int>(kMostRanks)) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size) != 0) {
    const int error = errno;
    close(fd);
    errno = error;
    system_error("listening on TCP port " + std::to_string(port));
  }
  port = ntohs(a.sin_port);
  return fd;
}

int connect_to(const uint32_t* addresses, uint32_t count, uint16_t port, bool same_host, int64_t deadline_ns) {
  std::vector<uint32_t> all;
  if (same_host) all.push_back(htonl(INADDR_LOOPBACK));
  all.insert(all.end(), addresses, addresses + count);
  for (uint32_t address : all) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) system_error("socket");
    sockaddr_in a{};
    a.sin_family = AF_INET, a.sin_port = htons(port), a.sin_addr.s_addr = address;
    int error = 0;
    if (connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) {
      error = errno;
      socklen_t size = sizeof error;
      // An address that does not answer must not use up the time of the others.
      if (error == EINPROGRESS &&
          (poll_until(fd, POLLOUT, std::min(deadline_ns, monotonic_ns() + 3'000'000'000)) <= 0 ||
           getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0))
        error = ETIMEDOUT;
    }
    if (error == 0) {
      fcntl(fd, F_SETFL, 0);
      no_delay(fd);
      return fd;
    }
    close(fd);
  }
  return -1;
}

bool send_all(int fd, const void* data, size_t bytes, int64_t deadline_ns) {
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      if (poll_until(fd, POLLOUT, deadline_ns) <= 0) return false;
      continue;
    }
    if (n <= 0) return false;
    p += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool receive_all(int fd, void* data, size_t bytes, int64_t deadline_ns) {
  auto* p = static_cast<char*>(data);
  while (bytes > 0) {
    if (poll_until(fd, POLLIN, deadline_ns) <= 0) return false;
    const ssize_t n = recv(fd, p, bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return false;
    p += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

void serve_unique_id(int listener, uint64_t key) { std::thread(serve, listener, key).detach(); }

UniqueId unique_id_at(uint32_t address, uint16_t port, uint64_t key) {
  UniqueId id{};
  std::memcpy(id.magic, kMagic, sizeof kMagic);
  id.key = key, id.port = port, id.address_count = 1, id.addresses[0] = address;
  return id;
}

UniqueId make_unique_id() {
  UniqueId id{};
  std::memcpy(id.magic, kMagic, sizeof kMagic);
  if (getrandom(&id.key, sizeof id.key, 0) != sizeof id.key) system_error("getrandom");
  id.host = host_identity();
  id.address_count = static_cast<uint16_t>(own_addresses(id.addresses));
  serve_unique_id(listen_anywhere(id.port), id.key);
  return id;
}

std::vector<Member> meet(const UniqueId& id, uint32_t ranks, uint32_t rank, int listener, uint32_t timeout_ms) {
  if (std::memcmp(id.magic, kMagic, sizeof kMagic) != 0)
    invalid("the unique id does not come from jalGetUniqueId (or of another version of the library)");
  if (ranks == 0 || ranks > kMostRanks) invalid(std::to_string(ranks) + " ranks, expected 1 to 1024");
  if (rank >= ranks) invalid("rank " + std::to_string(rank) + " of " + std::to_string(ranks));
  Hello h{};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.version = kWireVersion, h.key = id.key;
  h.ranks = ranks, h.rank = rank, h.timeout_ms = timeout_ms;
  h.member.host = host_identity(), h.member.pid = getpid();
  host_name().copy(h.member.name, sizeof h.member.name - 1);
  h.member.address_count = static_cast<uint16_t>(own_addresses(h.member.addresses));
  sockaddr_in own{};
  socklen_t size = sizeof own;
  if (getsockname(listener, reinterpret_cast<sockaddr*>(&own), &size) != 0) system_error("getsockname");
  h.member.port = ntohs(own.sin_port);

  const int64_t deadline = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
  Socket root;
  const std::string where = text_of(id.addresses[0]);
  // The root may not listen yet, when a launcher has only told where it will.
  while ((root.fd = connect_to(id.addresses, id.address_count, id.port, id.host == h.member.host, deadline)) < 0) {
    if (monotonic_ns() > deadline)
      fail(jalErrorCollectiveTimeout, "rank " + std::to_string(rank) + ": nobody answers at " + where + ":" +
                                          std::to_string(id.port) + " (" + std::to_string(timeout_ms) +
                                          " ms); has the process that made the id ended?");
    usleep(20'000);
  }
  Reply r{};
  std::string text;
  std::vector<Member> members;
  bool good = send_all(root.fd, &h, sizeof h, deadline) &&
              receive_all(root.fd, &r, sizeof r, deadline + 2'000'000'000) && r.text_bytes <= 4096 &&
              r.members <= kMostRanks;
  if (good) {
    text.resize(r.text_bytes), members.resize(r.members);
    good = receive_all(root.fd, text.data(), text.size(), deadline + 2'000'000'000) &&
           receive_all(root.fd, members.data(), members.size() * sizeof(Member), deadline + 2'000'000'000);
  }
  if (!good)
    fail(jalErrorCollectiveTimeout, "rank " + std::to_string(rank) + " of " + std::to_string(ranks) + ": the root at " +
                                        where + ":" + std::to_string(id.port) +
                                        " closed the connection or did not answer; an id serves one communicator");
  if (r.error != 0) {
    const bool late = text.find("did not come") != std::string::npos;
    fail(late ? jalErrorCollectiveTimeout : jalErrorInvalidValue,
         "joining as rank " + std::to_string(rank) + ": " + text);
  }
  for (Member& m : members)
    m.name[sizeof m.name - 1] = 0, m.address_count = std::min<uint16_t>(m.address_count, kMostAddresses);
  return members;
}

}  // namespace jalapeno::runtime
