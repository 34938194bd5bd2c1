#include "connection.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "words.hpp"

namespace jalapeno::emu {

namespace vu = hw::vfio_user;

// Less than QEMU waits for a register: the host's answer may be behind one that waits for the engine that asked.
constexpr uint64_t kPatienceNs = 2'000'000'000;

Message::~Message() {
  for (int fd : fds)
    if (fd >= 0) close(fd);
}

int Message::take(size_t k) { return k < fds.size() ? std::exchange(fds[k], -1) : -1; }

Connection::Connection(int socket, std::vector<int> ends, int knocker, std::function<void()> knock)
    : socket_(socket), ends_(std::move(ends)), knocker_(knocker), knock_(std::move(knock)) {}

Connection::~Connection() { close(socket_); }

void Connection::end() {
  ended_.store(true);
  shutdown(socket_, SHUT_RDWR);  // maps that engines use keep this object for a while
  std::lock_guard lock(state_mutex_);
  answered_.notify_all();
}

bool Connection::await(short events, int timeout_ms, bool knocks) {
  std::vector<pollfd> p{{socket_, static_cast<short>(events | POLLRDHUP), 0}, {knocks ? knocker_ : -1, POLLIN, 0}};
  for (int fd : ends_) p.push_back({fd, POLLIN, 0});
  for (;;) {
    const int n = poll(p.data(), p.size(), timeout_ms);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    if (std::any_of(p.begin() + 2, p.end(), [](const pollfd& e) { return e.revents != 0; })) {
      ended_.store(true);
      return false;
    }
    // A client that has left makes room: the next one waits for its turn. Polled after the listener was ready, so
    // that who closes one connection and opens another is never refused.
    if ((p[1].revents & POLLIN) && poll(p.data(), 1, 0) >= 0 && !(p[0].revents & (POLLRDHUP | POLLHUP))) knock_();
    if (p[0].revents != 0) return true;
  }
}

// Reads exactly `bytes`; descriptors ride on the first of them.
bool Connection::receive_all(void* out, size_t bytes, std::vector<int>* fds, uint64_t deadline_ns) {
  auto* at = static_cast<std::byte*>(out);
  while (bytes > 0) {
    // Room for all a message can carry, so that the kernel installs none that we cannot see and close.
    alignas(cmsghdr) char control[CMSG_SPACE(253 * sizeof(int))];
    iovec iov{at, bytes};
    msghdr m{};
    m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(socket_, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      const uint64_t now = host_now_ns();
      if (deadline_ns != 0 && now >= deadline_ns) return false;
      if (!await(POLLIN, deadline_ns == 0 ? -1 : static_cast<int>((deadline_ns - now) / 1'000'000 + 1), false))
        return false;
      continue;
    }
    if (n <= 0) return false;
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t k = 0; k < count; ++k) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + k * sizeof(int), sizeof fd);
        if (fds->size() < vu::kMaxDescriptors)
          fds->push_back(fd);
        else
          close(fd);
      }
    }
    at += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

Connection::Got Connection::receive(Message& m, int timeout_ms, uint64_t deadline_ns) {
  if (!await(POLLIN, timeout_ms, deadline_ns == 0)) return ended_ ? Got::kEnd : Got::kNothing;
  if (!receive_all(&m.header, sizeof m.header, &m.fds, deadline_ns)) return Got::kEnd;
  if (m.header.size < sizeof m.header || m.header.size > vu::kMaxMessage || (m.header.flags & vu::kTypeMask) > 1)
    return Got::kEnd;
  m.payload.resize(m.header.size - sizeof m.header);
  return m.payload.empty() || receive_all(m.payload.data(), m.payload.size(), &m.fds, deadline_ns) ? Got::kMessage
                                                                                                   : Got::kEnd;
}

std::optional<Message> Connection::next() {
  for (;;) {
    serving_waits_.store(true);
    std::lock_guard reading(reading_);
    serving_waits_.store(false);
    {
      std::lock_guard lock(state_mutex_);
      if (!commands_.empty()) {
        Message m = std::move(commands_.front());
        commands_.pop_front();
        return m;
      }
    }
    Message m;
    if (ended_ || receive(m, -1, 0) != Got::kMessage) {
      end();
      return std::nullopt;
    }
    if ((m.header.flags & vu::kTypeMask) == vu::kTypeCommand) return m;
    answer(m);
  }
}

bool Connection::reply(const vu::Header& request, uint32_t error, const void* payload, size_t bytes, int fd) {
  return send({request.id, request.command, 0, vu::kTypeReply | (error != 0 ? vu::kError : 0), error}, payload, bytes,
              nullptr, 0, fd);
}

// Everything in one sendmsg: QEMU takes a short header for a broken peer.
bool Connection::send(vu::Header h, const void* first, size_t first_bytes, const void* second, size_t second_bytes,
                      int fd) {
  size_t left = sizeof h + first_bytes + second_bytes;
  h.size = static_cast<uint32_t>(left);
  iovec iov[3] = {{&h, sizeof h}, {const_cast<void*>(first), first_bytes}, {const_cast<void*>(second), second_bytes}};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = iov, m.msg_iovlen = second_bytes > 0 ? 3 : first_bytes > 0 ? 2 : 1;
  if (fd >= 0) {
    m.msg_control = control, m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  // A client that sends and does not read must not keep the server from being ended.
  const uint64_t deadline = host_now_ns() + kPatienceNs;
  std::lock_guard lock(sending_);
  while (left > 0) {
    ssize_t n = sendmsg(socket_, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      if (host_now_ns() > deadline || ended_) return false;
      (void)await(POLLOUT, 100, false);
      continue;
    }
    if (n <= 0) return false;
    left -= static_cast<size_t>(n);
    m.msg_control = nullptr, m.msg_controllen = 0;
    for (iovec& v : iov) {
      const size_t used = std::min(static_cast<size_t>(n), v.iov_len);
      v.iov_base = static_cast<std::byte*>(v.iov_base) + used, v.iov_len -= used, n -= static_cast<ssize_t>(used);
    }
  }
  return true;
}

bool Connection::read(uint64_t iova, std::byte* out, uint64_t bytes) {
  return ask(vu::kDmaRead, iova, out, nullptr, bytes);
}
bool Connection::write(uint64_t iova, const std::byte* data, uint64_t bytes) {
  return ask(vu::kDmaWrite, iova, nullptr, data, bytes);
}

bool Connection::ask(uint16_t command, uint64_t iova, std::byte* out, const std::byte* data, uint64_t bytes) {
  Question q{out, bytes};
  uint16_t id;
  {
    std::lock_guard lock(state_mutex_);
    while (pending_.count(next_id_) != 0) ++next_id_;
    id = next_id_++;
    pending_[id] = &q;
  }
  const vu::DmaAccess access{iova, bytes};
  bool lost =
      !send({id, command, 0, vu::kTypeCommand, 0}, &access, sizeof access, data, data != nullptr ? bytes : 0, -1);
  const uint64_t deadline = host_now_ns() + kPatienceNs;
  std::unique_lock state(state_mutex_);
  while (!q.answered && !lost && !ended_ && host_now_ns() < deadline) {
    if (serving_waits_ || !reading_.try_lock()) {  // somebody else reads
      answered_.wait_for(state, std::chrono::milliseconds(1));
      continue;
    }
    state.unlock();
    Message m;
    const Got got = receive(m, 10, deadline);
    lost = got == Got::kEnd;
    const bool mine = got == Got::kMessage && (m.header.flags & vu::kTypeMask) == vu::kTypeReply;
    if (mine) answer(m);
    state.lock();
    if (got == Got::kMessage && !mine) commands_.push_back(std::move(m));
    reading_.unlock();
  }
  pending_.erase(id);
  if (lost) ended_.store(true);
  return q.answered && q.good;
}

void Connection::answer(const Message& m) {
  std::lock_guard lock(state_mutex_);
  const auto found = pending_.find(m.header.id);
  if (found == pending_.end()) return;  // too late: nobody waits any more
  Question& q = *found->second;
  constexpr size_t kData = sizeof(vu::DmaAccess);
  q.good = (m.header.flags & vu::kError) == 0 && (q.out == nullptr || m.payload.size() >= kData + q.bytes);
  if (q.good && q.out != nullptr) std::memcpy(q.out, m.payload.data() + kData, q.bytes);
  q.answered = true;
  answered_.notify_all();
}

}  // namespace jalapeno::emu
