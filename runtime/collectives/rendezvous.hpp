// How ranks find each other: the process that made an id listens, every rank says who and where it is, and gets the
// list of all once it is complete. Over in one round; nothing is kept.
#pragma once
#include <jalapeno/jalapeno.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace jalapeno::runtime {

inline constexpr uint32_t kMostAddresses = 4;

// The contents of jalUniqueId.
struct UniqueId {
  char magic[8];
  uint64_t key;
  uint64_t host;  // host_identity() of the root
  uint16_t port, address_count;
  uint32_t addresses[kMostAddresses];  // IPv4, network order
  char pad[128 - 44];
};
static_assert(sizeof(UniqueId) == sizeof(jalUniqueId));

struct Member {
  uint64_t host;  // host_identity()
  int32_t pid;
  uint16_t port, address_count;
  uint32_t addresses[kMostAddresses];
  char name[64];  // of the host
};

// Two processes with the same one can share memory and reach each other by loopback: the machine's boot and the network
// namespace, or what JAL_COLL_HOST says.
uint64_t host_identity();
std::string host_name();

UniqueId make_unique_id();  // and serves it, on a thread of its own, until all ranks have come
UniqueId unique_id_at(uint32_t address, uint16_t port, uint64_t key);  // of a root that somebody else serves
void serve_unique_id(int listener, uint64_t key);                      // takes the socket

// This rank's listening socket (taken), and all members. Throws Error.
std::vector<Member> meet(const UniqueId& id, uint32_t ranks, uint32_t rank, int listener, uint32_t timeout_ms);

struct Socket {
  int fd = -1;
  Socket() = default;
  explicit Socket(int f) : fd(f) {}
  Socket(Socket&& o) noexcept : fd(std::exchange(o.fd, -1)) {}
  Socket& operator=(Socket&& o) noexcept {
    std::swap(fd, o.fd);
    return *this;
  }
  ~Socket();  // closes it
};
// Throw Error(jalErrorOperatingSystem). Deadlines are of driver::monotonic_ns().
int listen_anywhere(uint16_t& port);
// -1 when none of the addresses answers.
int connect_to(const uint32_t* addresses, uint32_t count, uint16_t port, bool same_host, int64_t deadline_ns);
// False: closed, or too late.
bool send_all(int socket, const void* data, size_t bytes, int64_t deadline_ns);
bool receive_all(int socket, void* data, size_t bytes, int64_t deadline_ns);

}  // namespace jalapeno::runtime
