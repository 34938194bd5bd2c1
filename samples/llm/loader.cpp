#include "loader.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <stdexcept>

namespace llm {
namespace {

constexpr uint64_t kChunk = 2 << 20;
constexpr unsigned kDepth = 4;

struct File {
  int fd;
  explicit File(const std::string& path) : fd(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
  }
  ~File() { close(fd); }
};

struct Ring {
  io_uring ring{};
  bool usable;
  Ring() : usable(io_uring_queue_init(kDepth, &ring, 0) == 0) {}
  ~Ring() {
    if (usable) io_uring_queue_exit(&ring);
  }
};

struct Request {
  uint64_t offset = 0, bytes = 0, done = 0;
  char* destination = nullptr;
  bool finished = true;
};

}  // namespace

void load_weights(const jalapeno::Device& device, const jalapeno::Stream& stream, const std::string& path,
                  const std::vector<Piece>& pieces, const std::function<void(uint64_t, uint64_t)>& progress) {
  const File file(path);
  Ring ring;  // where the kernel refuses io_uring, plain reads do
  jalapeno::HostBuffer<char> pinned(device, kDepth * kChunk);
  std::vector<Request> slots(kDepth);
  std::vector<jalapeno::Event> copied;
  for (unsigned k = 0; k < kDepth; ++k) copied.emplace_back(device);
  uint64_t all = 0, done = 0;
  for (const Piece& p : pieces) all += p.bytes;

  auto fail = [&](const Request& r, int error) {
    throw std::runtime_error(path + ": " + (error != 0 ? std::strerror(error) : "ends") + " at byte " +
                             std::to_string(r.offset + r.done) +
                             (error != 0 ? "" : "; was it truncated while it was read?"));
  };
  auto submit = [&](unsigned k) {
    Request& r = slots[k];
    char* to = pinned.data() + k * kChunk + r.done;
    if (!ring.usable) {
      while (r.done < r.bytes) {
        const ssize_t n = pread(file.fd, pinned.data() + k * kChunk + r.done, r.bytes - r.done,
                                static_cast<off_t>(r.offset + r.done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail(r, n < 0 ? errno : 0);
        r.done += static_cast<uint64_t>(n);
      }
      r.finished = true;
      return;
    }
    io_uring_sqe* e = io_uring_get_sqe(&ring.ring);
    io_uring_prep_read(e, file.fd, to, static_cast<unsigned>(r.bytes - r.done), r.offset + r.done);
    io_uring_sqe_set_data64(e, k);
    io_uring_submit(&ring.ring);
  };
  auto complete = [&](unsigned k) {  // until slot k has its bytes
    while (!slots[k].finished) {
      io_uring_cqe* c = nullptr;
      const int error = io_uring_wait_cqe(&ring.ring, &c);
      if (error == -EINTR) continue;
      if (error != 0) throw std::runtime_error(path + ": io_uring: " + std::strerror(-error));
      const auto which = static_cast<unsigned>(io_uring_cqe_get_data64(c));
      const int n = c->res;
      io_uring_cqe_seen(&ring.ring, c);
      Request& r = slots[which];
      if (n == -EINTR || n == -EAGAIN)
        submit(which);
      else if (n <= 0)
        fail(r, -n);
      else if ((r.done += static_cast<uint64_t>(n)) < r.bytes)
        submit(which);
      else
        r.finished = true;
    }
  };

  std::deque<unsigned> reading;
  auto hand_over = [&] {
    const unsigned k = reading.front();
    reading.pop_front();
    complete(k);
    stream.copy(slots[k].destination, pinned.data() + k * kChunk, slots[k].bytes);
    copied[k].record(stream);
    done += slots[k].bytes;
    progress(done, all);
  };
  unsigned next = 0;
  for (const Piece& p : pieces)
    for (uint64_t at = 0; at < p.bytes; at += kChunk) {
      if (reading.size() == kDepth) hand_over();
      copied[next].synchronize();
      slots[next] = {p.offset + at, std::min(kChunk, p.bytes - at), 0, static_cast<char*>(p.destination) + at, false};
      submit(next);
      reading.push_back(next);
      next = (next + 1) % kDepth;
    }
  while (!reading.empty()) hand_over();
  stream.synchronize();
}

}  // namespace llm
