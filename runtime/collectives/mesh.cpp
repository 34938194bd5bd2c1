#include "mesh.hpp"

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <jalapeno_driver/os.hpp>
#include <utility>

#include "error.hpp"
#include "interfaces.hpp"

namespace jalapeno::runtime {

using driver::monotonic_ns;

namespace {

constexpr int64_t kMillisecond = 1'000'000, kHeartbeat = 100 * kMillisecond;
constexpr uint64_t kMostBytes = 1 << 20;
enum Type : uint32_t { kBlob = 1, kFailure, kLeft, kAlive, kQuestion, kAnswer };

}  // namespace

struct Mesh::Message {
  uint32_t type, bytes;
  uint64_t channel, word;  // word: the round of a blob, the code of a failure, calls made, a question's number
};

Mesh::Mesh(uint32_t rank, uint32_t grace_ms, std::vector<Member> members)
    : rank_(rank), grace_ms_(grace_ms), members_(std::move(members)) {
  for (size_t r = 0; r < members_.size(); ++r) peers_.push_back(std::make_unique<Peer>());
}

std::vector<std::shared_ptr<Mesh>> Mesh::in_process(uint32_t ranks, uint32_t grace_ms) {
  Member here{};
  here.host = host_identity(), here.pid = getpid();
  host_name().copy(here.name, sizeof here.name - 1);
  std::vector<std::shared_ptr<Mesh>> all;
  for (uint32_t r = 0; r < ranks; ++r)
    all.push_back(std::shared_ptr<Mesh>(new Mesh(r, grace_ms, std::vector<Member>(ranks, here))));
  for (uint32_t a = 0; a < ranks; ++a)
    for (uint32_t b = 0; b < a; ++b) {
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        fail(jalErrorOperatingSystem, "socketpair for " + std::to_string(ranks) + " ranks: " + std::strerror(errno));
      all[a]->peers_[b]->socket = Socket(pair[0]), all[b]->peers_[a]->socket = Socket(pair[1]);
    }
  for (auto& mesh : all) mesh->start();
  return all;
}

Mesh::Mesh(const UniqueId& id, uint32_t ranks, uint32_t rank, uint32_t timeout_ms, uint32_t grace_ms)
    : rank_(rank), grace_ms_(grace_ms) {
  uint16_t port = 0;
  const Socket listener(listen_anywhere(port));
  const int64_t deadline = monotonic_ns() + timeout_ms * kMillisecond;
  members_ = meet(id, ranks, rank, listener.fd, timeout_ms);
  for (uint32_t r = 0; r < ranks; ++r) peers_.push_back(std::make_unique<Peer>());
  const uint64_t hello[2] = {id.key, rank};
  for (uint32_t r = 0; r < rank; ++r) {
    Peer& p = *peers_[r];
    const Member& m = members_[r];
    p.socket = Socket(connect_to(m.addresses, m.address_count, m.port, m.host == members_[rank].host, deadline));
    if (p.socket.fd < 0 || !send_all(p.socket.fd, hello, sizeof hello, deadline))
      fail(jalErrorCollectiveTimeout, "rank " + std::to_string(rank) + " cannot connect to rank " + std::to_string(r) +
                                          " (pid " + std::to_string(m.pid) + " on " + m.name + ") at port " +
                                          std::to_string(m.port) + "; JAL_COLL_INTERFACE chooses the network");
  }
  for (uint32_t left = ranks - rank - 1; left > 0;) {
    pollfd p{listener.fd, POLLIN, 0};
    const int64_t wait = (deadline - monotonic_ns()) / kMillisecond;
    if (wait <= 0 || (poll(&p, 1, static_cast<int>(wait)) == 0 && monotonic_ns() > deadline))
      fail(jalErrorCollectiveTimeout, "rank " + std::to_string(rank) + ": " + std::to_string(left) +
                                          " ranks did not connect within " + std::to_string(timeout_ms) + " ms");
    if (!(p.revents & POLLIN)) continue;  // interrupted
    Socket socket(accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.fd < 0) continue;
    uint64_t from[2];
    if (!receive_all(socket.fd, from, sizeof from, std::min(deadline, monotonic_ns() + 1000 * kMillisecond)) ||
        from[0] != id.key || from[1] >= ranks || peers_[from[1]]->socket.fd >= 0)
      continue;
    peers_[from[1]]->socket = std::move(socket), --left;
  }
  start();
}

void Mesh::start() {
  wake_event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_event_ < 0) fail(jalErrorOperatingSystem, std::string("eventfd: ") + std::strerror(errno));
  for (uint32_t r = 0; r < peers_.size(); ++r)
    peers_[r]->local = members_[r].host == members_[rank_].host, peers_[r]->heard_ns = monotonic_ns();
  thread_ = std::thread([this] { serve(); });
}

Mesh::~Mesh() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  if (!thread_.joinable()) return;
  wake();
  thread_.join();
  close(wake_event_);
}

void Mesh::wake() {
  const uint64_t one = 1;
  (void)!write(wake_event_, &one, sizeof one);
}

std::string Mesh::local_address(uint32_t rank) const {
  sockaddr_in a{};
  socklen_t size = sizeof a;
  if (getsockname(peers_[rank]->socket.fd, reinterpret_cast<sockaddr*>(&a), &size) != 0)
    fail(jalErrorOperatingSystem, std::string("getsockname: ") + std::strerror(errno));
  return text_of(a.sin_addr.s_addr);
}

std::set<uint32_t> Mesh::lost_ranks() const {
  std::lock_guard lock(mutex_);
  std::set<uint32_t> out;
  for (uint32_t r = 0; r < peers_.size(); ++r)
    if (peers_[r]->lost) out.insert(r);
  return out;
}

void Mesh::listen(uint64_t channel, Listener listener) {
  std::lock_guard calls(calls_);
  auto shared = std::make_shared<Listener>(std::move(listener));
  std::vector<Early> told;
  std::vector<std::pair<uint32_t, std::string>> gone;
  {
    std::lock_guard lock(mutex_);
    listeners_[channel] = shared;
    const auto [begin, end] = early_.equal_range(channel);
    for (auto it = begin; it != end; ++it) told.push_back(it->second);
    early_.erase(begin, end);
    for (uint32_t r = 0; r < peers_.size(); ++r)
      if (peers_[r]->lost) gone.emplace_back(r, peers_[r]->evidence);
  }
  for (const auto& [rank, evidence] : gone) shared->lost(rank, evidence);
  for (const Early& e : told) e.left ? shared->left(e.rank, e.calls) : shared->failed(e.culprit, e.code, e.evidence);
}

void Mesh::leave(uint64_t channel) {
  std::lock_guard calls(calls_);
  std::lock_guard lock(mutex_);
  listeners_.erase(channel);
}

void Mesh::say_goodbye(uint64_t channel, const std::vector<uint32_t>& ranks, uint64_t calls) {
  for (uint32_t r : ranks)
    if (r != rank_) send(r, kLeft, channel, calls, {});
}

void Mesh::tell_failure(uint64_t channel, const std::vector<uint32_t>& ranks, uint32_t culprit, jalError_t code,
                        const std::string& evidence) {
  const Blob body = blob(evidence);
  for (uint32_t r : ranks)
    if (r != rank_) send(r, kFailure, channel, uint64_t{culprit} << 32 | static_cast<uint32_t>(code), body);
}

void Mesh::send(uint32_t rank, uint32_t type, uint64_t channel, uint64_t word, const Blob& body) {
  Peer& p = *peers_[rank];
  {
    std::lock_guard lock(mutex_);
    if (p.lost) return;
  }
  std::lock_guard lock(p.send_mutex);
  const Message m{type, static_cast<uint32_t>(body.size()), channel, word};
  std::vector<std::byte> all(sizeof m);
  std::memcpy(all.data(), &m, sizeof m);
  all.insert(all.end(), body.begin(), body.end());
  // A stopped process does not read; its buffer takes the few messages there are. A peer that is gone shows on its
  // socket, on the mesh's thread.
  (void)send_all(p.socket.fd, all.data(), all.size(), monotonic_ns() + 100 * kMillisecond);
}

std::vector<std::optional<Mesh::Blob>> Mesh::exchange(uint64_t channel, const std::vector<uint32_t>& ranks,
                                                      const Blob& mine, uint32_t timeout_ms, bool survivors) {
  uint64_t round;
  {
    std::lock_guard lock(mutex_);
    round = rounds_[channel]++;
  }
  for (uint32_t r : ranks)
    if (r != rank_) send(r, kBlob, channel, round, mine);
  const int64_t deadline = monotonic_ns() + timeout_ms * kMillisecond;
  std::unique_lock lock(mutex_);
  std::vector<std::optional<Blob>> out(ranks.size());
  for (;;) {
    std::string missing, lost;
    for (size_t k = 0; k < ranks.size(); ++k) {
      if (out[k].has_value()) continue;
      if (ranks[k] == rank_) {
        out[k] = mine;
        continue;
      }
      if (auto it = blobs_.find({channel, round, ranks[k]}); it != blobs_.end()) {
        out[k] = std::move(it->second);
        blobs_.erase(it);
        continue;
      }
      const Peer& p = *peers_[ranks[k]];
      std::string& list = p.lost ? lost : missing;
      list += (list.empty() ? "" : ", ") + std::to_string(ranks[k]) + (p.lost ? " (" + p.evidence + ")" : "");
    }
    if (!lost.empty() && !survivors) fail(jalErrorPeerLost, "rank " + lost + " was lost");
    if (missing.empty()) return out;
    const int64_t left = deadline - monotonic_ns();
    if (left <= 0)
      fail(jalErrorCollectiveTimeout,
           "no word from rank " + missing + " of the world for " + std::to_string(timeout_ms) + " ms");
    changed_.wait_for(lock, std::chrono::nanoseconds(std::min<int64_t>(left, 50 * kMillisecond)));
  }
}

std::optional<Mesh::Blob> Mesh::ask(uint64_t channel, uint32_t rank, uint32_t timeout_ms,
                                    const std::atomic<bool>& ended) {
  std::unique_lock lock(mutex_);
  const uint64_t number = ++asked_;
  const auto question = questions_.emplace(number, std::nullopt).first;
  lock.unlock();
  send(rank, kQuestion, channel, number, {});
  const int64_t deadline = monotonic_ns() + timeout_ms * kMillisecond;
  lock.lock();
  while (!question->second && !ended && !peers_[rank]->lost && monotonic_ns() < deadline)
    changed_.wait_for(lock, std::chrono::milliseconds(10));
  std::optional<Blob> answer = std::move(question->second);
  questions_.erase(question);
  return answer;
}

void Mesh::declare_lost(uint32_t rank, const std::string& evidence) {
  std::lock_guard calls(calls_);
  std::vector<std::shared_ptr<Listener>> all;
  {
    std::lock_guard lock(mutex_);
    Peer& p = *peers_[rank];
    if (p.lost) return;
    p.lost = true, p.evidence = evidence;
    for (auto& [channel, listener] : listeners_) all.push_back(listener);
    changed_.notify_all();
  }
  for (auto& l : all) l->lost(rank, evidence);
}

std::shared_ptr<Mesh::Listener> Mesh::listener_of(uint64_t channel) const {
  const auto it = listeners_.find(channel);
  return it != listeners_.end() ? it->second : nullptr;
}

void Mesh::handle(uint32_t rank, const Message& m, Blob body) {
  if (m.type == kBlob) {
    std::lock_guard lock(mutex_);
    blobs_[{m.channel, m.word, rank}] = std::move(body);
    news_ = true;
  } else if (m.type == kQuestion) {
    std::lock_guard calls(calls_);
    std::shared_ptr<Listener> listener;
    {
      std::lock_guard lock(mutex_);
      listener = listener_of(m.channel);
    }
    send(rank, kAnswer, m.channel, m.word, listener != nullptr ? listener->asked() : Blob{});
  } else if (m.type == kAnswer) {
    std::lock_guard lock(mutex_);
    if (auto it = questions_.find(m.word); it != questions_.end()) it->second = std::move(body), news_ = true;
  } else if (m.type == kFailure || m.type == kLeft) {
    std::lock_guard calls(calls_);
    const uint64_t code = m.word & 0xFFFFFFFF;
    Early e{rank,
            static_cast<uint32_t>(m.word >> 32),
            m.type == kFailure && is_error(code) ? static_cast<jalError_t>(code) : jalErrorPeerLost,
            std::string(reinterpret_cast<const char*>(body.data()), body.size()),
            m.type == kLeft,
            m.word};
    std::shared_ptr<Listener> listener;
    {
      std::lock_guard lock(mutex_);
      listener = listener_of(m.channel);
      if (listener == nullptr && early_.size() < 65536) early_.emplace(m.channel, e);
    }
    if (listener == nullptr) return;
    e.left ? listener->left(e.rank, e.calls) : listener->failed(e.culprit, e.code, e.evidence);
  }
}

void Mesh::receive(uint32_t rank) {
  Peer& p = *peers_[rank];
  std::byte buffer[16384];
  const ssize_t n = recv(p.socket.fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    const Member& m = members_[rank];
    return declare_lost(rank, "its control connection ended" + (n < 0 ? std::string(": ") + std::strerror(errno) : "") +
                                  "; pid " + std::to_string(m.pid) + " on " + m.name + " is gone or has closed it");
  }
  p.heard_ns = monotonic_ns();
  p.input.insert(p.input.end(), buffer, buffer + n);
  size_t at = 0;
  while (p.input.size() - at >= sizeof(Message)) {
    Message m;
    std::memcpy(&m, p.input.data() + at, sizeof m);
    if (m.bytes > kMostBytes) return declare_lost(rank, "it sent a message of " + std::to_string(m.bytes) + " bytes");
    if (p.input.size() - at < sizeof m + m.bytes) break;
    const auto* body = p.input.data() + at + sizeof m;
    at += sizeof m + m.bytes;
    handle(rank, m, Blob(body, body + m.bytes));
  }
  p.input.erase(p.input.begin(), p.input.begin() + static_cast<std::ptrdiff_t>(at));
}

void Mesh::serve() {
  const bool remote = std::any_of(peers_.begin(), peers_.end(), [](const auto& p) { return !p->local; });
  int64_t next_beat = monotonic_ns();
  std::optional<LinkWatch> links;
  if (remote) links.emplace();
  std::vector<pollfd> fds;
  std::vector<uint32_t> who;
  for (;;) {
    fds = {{wake_event_, POLLIN, 0}, {links ? links->fd() : -1, POLLIN, 0}};
    who = {rank_, rank_};
    {
      std::lock_guard lock(mutex_);
      if (stop_) return;
      for (uint32_t r = 0; r < peers_.size(); ++r)
        if (r != rank_ && !peers_[r]->lost) fds.push_back({peers_[r]->socket.fd, POLLIN, 0}), who.push_back(r);
    }
    // Between hosts silence means something, so nobody is silent; inside a host the kernel tells at once.
    const int timeout = remote ? static_cast<int>(kHeartbeat / kMillisecond) : -1;
    if (poll(fds.data(), fds.size(), timeout) < 0 && errno != EINTR) return;
    if (fds[0].revents != 0) {
      uint64_t count;
      (void)!read(wake_event_, &count, sizeof count);
    }
    if (fds[1].revents != 0) links->update();
    for (size_t k = 2; k < fds.size(); ++k)
      if (fds[k].revents != 0) receive(who[k]);
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(news_, false)) changed_.notify_all();
    }
    if (!remote || monotonic_ns() < next_beat) continue;
    next_beat = monotonic_ns() + kHeartbeat;
    for (size_t k = 2; k < who.size(); ++k) {
      Peer& p = *peers_[who[k]];
      if (p.local) continue;
      send(who[k], kAlive, 0, 0, {});
      const int64_t silent = monotonic_ns() - p.heard_ns;
      if (silent <= grace_ms_ * kMillisecond) continue;
      const std::string cuts = links->cuts();
      declare_lost(who[k], "nothing was heard from host " + std::string(members_[who[k]].name) + " for " +
                               std::to_string(silent / kMillisecond) + " ms" +
                               (cuts.empty() ? "" : "; on host " + std::string(members_[rank_].name) + " " + cuts));
    }
  }
}

}  // namespace jalapeno::runtime
