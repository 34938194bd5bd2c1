#include "monitor.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "log.hpp"
#include "os.hpp"

namespace jalapeno::driver {
namespace {

namespace fs = std::filesystem;
constexpr const char* kPrefix = "jalapeno/";

// The abstract namespace: a zero byte, then the name, without an end.
socklen_t fill(sockaddr_un& address, const std::string& name) {
  address.sun_family = AF_UNIX;
  const size_t n = std::min(name.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path + 1, name.data(), n);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + n);
}

// Who is at the other end of a socket; uid -1: nobody knows.
ucred peer_of(int socket) {
  ucred peer{0, static_cast<uid_t>(-1), static_cast<gid_t>(-1)};
  socklen_t size = sizeof peer;
  (void)getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size);
  return peer;
}
bool may_look(int socket) {
  const uid_t uid = peer_of(socket).uid;
  return uid == geteuid() || uid == 0;
}

// Text from another process, on its way to a terminal.
template <size_t N>
void clean(char (&text)[N]) {
  text[N - 1] = 0;
  for (char* c = text; *c != 0; ++c)
    if (static_cast<unsigned char>(*c) < ' ' || *c == 127) *c = '?';
}

bool receive(int socket, void* out, size_t bytes) {
  auto* at = static_cast<char*>(out);
  while (bytes > 0) {
    pollfd p{socket, POLLIN, 0};
    if (poll(&p, 1, 1000) <= 0) return false;
    const ssize_t n = recv(socket, at, bytes, 0);
    if (n <= 0) return false;
    at += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

std::optional<Snapshot> ask(const std::string& name) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return std::nullopt;
  sockaddr_un address{};
  const socklen_t size = fill(address, name);
  Snapshot s;
  // The names are anyone's to take: other users' processes are believed by root only.
  const bool good = connect(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0 &&
                    (may_look(fd) || geteuid() == 0) && receive(fd, &s, 2 * sizeof(uint32_t)) &&
                    s.version == Snapshot::kVersion && s.bytes == sizeof s &&
                    receive(fd, reinterpret_cast<char*>(&s) + 2 * sizeof(uint32_t), sizeof s - 2 * sizeof(uint32_t));
  s.pid = peer_of(fd).pid;  // as this process sees it; the other one may live in a container
  close(fd);
  clean(s.uri), clean(s.config_name), clean(s.lost);
  return good ? std::optional(s) : std::nullopt;
}

}  // namespace

Monitor::Monitor() {
  static std::atomic<int> next{0};
  fd_ = os().socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd_ < 0) return;
  sockaddr_un address{};
  const socklen_t size = fill(address, kPrefix + std::to_string(getpid()) + "/" + std::to_string(next++));
  if (bind(fd_, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(fd_, 8) != 0) {
    driver_log().debug("no monitor socket: {}", error_text(errno));
    os().close(fd_);
    fd_ = -1;
  }
}

Monitor::~Monitor() {
  if (fd_ >= 0) os().close(fd_);
}

int Monitor::accept_caller() {
  const int caller = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (caller >= 0 && !may_look(caller)) {
    close(caller);
    return -1;
  }
  return caller;
}

// A fresh socket's buffer holds more than a snapshot: a caller that does not read costs nothing.
void Monitor::send_and_close(int caller, const Snapshot& snapshot) {
  (void)send(caller, &snapshot, sizeof snapshot, MSG_NOSIGNAL | MSG_DONTWAIT);
  close(caller);
}

std::vector<Snapshot> held_devices() {
  std::vector<std::string> names;
  std::ifstream in("/proc/net/unix");
  for (std::string line; std::getline(in, line);)
    if (const size_t at = line.rfind(std::string(" @") + kPrefix); at != std::string::npos)
      names.push_back(line.substr(at + 2));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());  // connections bear the name too
  std::vector<Snapshot> out;
  for (const std::string& name : names)
    if (auto s = ask(name)) out.push_back(*s);
  return out;
}

std::optional<Process> process(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid);
  Process p{pid, "", 0};
  std::ifstream comm(folder + "/comm");
  if (!std::getline(comm, p.name)) return std::nullopt;
  // Field 22 of stat, in clock ticks since boot; the name before it may hold anything but the last parenthesis.
  std::ifstream stat(folder + "/stat");
  std::string text;
  std::getline(stat, text);
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string field;
  for (int k = 3; k <= 22 && fields >> field; ++k) {
  }
  timespec boot{}, now{};
  clock_gettime(CLOCK_BOOTTIME, &boot);
  clock_gettime(CLOCK_REALTIME, &now);
  const auto ns = [](const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; };
  p.started_unix_ns = ns(now) - ns(boot) + std::atoll(field.c_str()) * (1'000'000'000 / sysconf(_SC_CLK_TCK));
  return p;
}

std::vector<Process> processes_with(const std::string& file) {
  std::vector<Process> out;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/proc", none)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    for (const auto& fd : fs::directory_iterator(entry.path() / "fd", none))
      if (fs::read_symlink(fd.path(), none) == file) {
        if (auto p = process(std::atoi(name.c_str()))) out.push_back(*p);
        break;
      }
  }
  return out;
}

}  // namespace jalapeno::driver
