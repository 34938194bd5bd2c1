#include "replay.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <jalapeno_driver/dma_memory.hpp>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/fences.hpp>
#include <jalapeno_driver/os.hpp>
#include <jalapeno_driver/queue.hpp>
#include <map>
#include <memory>
#include <vector>

#include "names.hpp"

namespace jalapeno::tools {

using namespace driver::trace_file;
using driver::Code;
using driver::Error;

TraceReader::TraceReader(const std::string& file) : file_(file) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat st {};
  if (fd < 0 || fstat(fd, &st) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    throw Error(Code::kInvalidValue, file + ": " + driver::error_text(error));
  }
  const auto bytes = static_cast<size_t>(st.st_size);
  void* p = bytes > 0 ? mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  close(fd);
  if (p == MAP_FAILED) throw Error(Code::kInvalidValue, file + ": " + driver::error_text(errno));
  data_ = {static_cast<const std::byte*>(p), bytes};
  try {
    if (bytes < sizeof header_) fail(0, fmt::format("{} bytes, a trace begins with {}", bytes, sizeof header_));
    std::memcpy(&header_, p, sizeof header_);
    if (header_.magic != kMagic)
      fail(0, fmt::format("begins with 0x{:016x}, a trace with 0x{:016x}", header_.magic, kMagic));
    header_.uri[sizeof header_.uri - 1] = header_.command[sizeof header_.command - 1] = 0;
  } catch (...) {
    if (!data_.empty()) munmap(p, bytes);
    throw;
  }
  at_ = sizeof header_;
}

TraceReader::~TraceReader() { munmap(const_cast<std::byte*>(data_.data()), data_.size()); }

void TraceReader::fail(uint64_t offset, const std::string& what) const {
  throw Error(Code::kInvalidValue, fmt::format("{}: at byte {}: {}", file_, offset, what));
}

bool TraceReader::next(Record& record) {
  Head h;
  if (complete_ || data_.size() - at_ < sizeof h) return false;
  std::memcpy(&h, data_.data() + at_, sizeof h);
  if (data_.size() - at_ - sizeof h < h.bytes) return false;
  const auto body = data_.subspan(at_ + sizeof h, h.bytes);
  auto expect = [&](size_t least, size_t unit) {
    if (body.size() < least || (unit != 0 ? (body.size() - least) % unit != 0 : body.size() != least))
      fail(at_, fmt::format("a record of kind {} with {} bytes, expected {}{}", static_cast<uint32_t>(h.kind),
                            body.size(), least, unit == 0 ? "" : fmt::format(" and a multiple of {}", unit)));
  };
  auto word = [&](size_t offset) {
    uint32_t v;
    std::memcpy(&v, body.data() + offset, sizeof v);
    return v;
  };
  switch (h.kind) {
    case Kind::kRead:
    case Kind::kWrite:
      expect(sizeof(Register), 0);
      if (word(4) != 4 && word(4) != 8)
        fail(at_, fmt::format("a register access of {} bytes, expected 4 or 8", word(4)));
      break;
    case Kind::kMap:
    case Kind::kUnmap:
    case Kind::kSignal:
    case Kind::kSeen:
      expect(sizeof(Range), 0);
      break;
    case Kind::kInterrupts:
    case Kind::kRaised:
      expect(4, 0);
      break;
    case Kind::kReset:
      expect(0, 0);
      break;
    case Kind::kHbm:
    case Kind::kHost: {
      expect(sizeof(Range), 1);
      Range r;
      std::memcpy(&r, body.data(), sizeof r);
      if (r.bytes != body.size() - sizeof r)
        fail(at_, fmt::format("memory of {} bytes with {}", r.bytes, body.size() - sizeof r));
      break;
    }
    case Kind::kPackets:
      expect(sizeof(Doorbell), sizeof(hw::Packet));
      if (word(4) != (body.size() - sizeof(Doorbell)) / sizeof(hw::Packet))
        fail(at_, fmt::format("{} packets announced, {} there", word(4),
                              (body.size() - sizeof(Doorbell)) / sizeof(hw::Packet)));
      break;
    case Kind::kDone:
      expect(sizeof(Done), sizeof(Result));
      if (word(8) != (body.size() - sizeof(Done)) / sizeof(Result))
        fail(at_,
             fmt::format("{} results announced, {} there", word(8), (body.size() - sizeof(Done)) / sizeof(Result)));
      break;
    case Kind::kEnd: {
      expect(8, 0);
      uint64_t records;
      std::memcpy(&records, body.data(), sizeof records);
      if (records != records_) fail(at_, fmt::format("the end after {} records says there were {}", records_, records));
      complete_ = true;
      break;
    }
    default:
      fail(at_, fmt::format("a record of the unknown kind {}", static_cast<uint32_t>(h.kind)));
  }
  record = {h.kind, h.ns, at_, body};
  at_ += (sizeof h + h.bytes + 7) & ~uint64_t{7};
  at_ = std::min<uint64_t>(at_, data_.size());
  ++records_;
  return true;
}

namespace {

constexpr int64_t kPatienceNs = 30'000'000'000;

template <class T>
T take(const TraceReader::Record& r, size_t at = 0) {
  T t;
  std::memcpy(&t, r.bytes.data() + at, sizeof t);
  return t;
}

class Player {
 public:
  Player(const std::string& file, const std::string& uri) : reader_(file), transport_(driver::open_transport(uri)) {
    doorbells_ = transport_->map_bar(hw::kBarDoorbells);
    hbm_ = transport_->map_bar(hw::kBarHbm);
    queues_ = transport_->read32(hw::reg::kQueues);
    if (doorbells_.size() < (size_t{queues_} + 1) * sizeof(hw::DoorbellPage))
      throw Error(Code::kNoDevice, uri + ": the doorbell BAR is too small");
  }
  ~Player() {
    memory_.clear();
    transport_.reset();
    for (int fd : events_) close(fd);
  }

  Replay run() {
    const int64_t begin = driver::monotonic_ns();
    TraceReader::Record r;
    while (reader_.next(r)) {
      ++out_.records;
      at_ = r.offset;
      play(r);
    }
    out_.complete = reader_.complete();
    out_.seconds = static_cast<double>(driver::monotonic_ns() - begin) * 1e-9;
    return out_;
  }

 private:
  struct Queue {
    uint64_t ring = 0, timeline = 0;
    uint32_t log2 = 0;
  };

  [[noreturn]] void damaged(const std::string& what) {
    throw Error(Code::kInvalidValue, fmt::format("trace, at byte {}: {}", at_, what));
  }
  void difference(const std::string& what) {
    if (out_.differences++ == 0) out_.first_difference = fmt::format("at byte {}: {}", at_, what);
  }

  std::byte* host(uint64_t iova, uint64_t bytes) {
    auto it = memory_.upper_bound(iova);
    if (it != memory_.begin()) {
      --it;
      const uint64_t inside = iova - it->first;
      if (inside <= it->second->bytes() && bytes <= it->second->bytes() - inside) return it->second->data() + inside;
    }
    damaged(fmt::format("{} bytes of host memory at iova 0x{:x} are not mapped", bytes, iova));
  }
  Queue& queue(uint32_t number) {
    auto it = running_.find(number);
    if (it == running_.end()) damaged(fmt::format("queue {} was never started", number));
    return it->second;
  }
  hw::Timeline& timeline(const Queue& q) {
    return *reinterpret_cast<hw::Timeline*>(host(q.timeline, sizeof(hw::Timeline)));
  }

  // False: not within the time, which is a difference.
  bool reach(uint32_t number, uint64_t value) {
    hw::Timeline& t = timeline(queue(number));
    const int64_t deadline = driver::monotonic_ns() + kPatienceNs;
    for (int k = 0; std::atomic_ref(t.value).load(std::memory_order_acquire) < value; ++k) {
      if (k > 1000) usleep(50);
      if (driver::monotonic_ns() > deadline) {
        difference(fmt::format("queue {} reached {} within 30 s, expected {}", number, std::atomic_ref(t.value).load(),
                               value));
        return false;
      }
      driver::spin_pause();
    }
    return true;
  }
  void wake() {
    auto& page = *reinterpret_cast<hw::DevicePage*>(doorbells_.data() + size_t{queues_} * sizeof(hw::DoorbellPage));
    driver::before_second_look();
    if (std::atomic_ref(page.asleep).load(std::memory_order_relaxed) != 0) transport_->post32(hw::reg::kWake, 1);
  }

  void write(const Register& r) {
    namespace reg = hw::reg;
    if (r.offset == reg::kQueueSelect) selected_ = static_cast<uint32_t>(r.value);
    if (r.offset == reg::kQueueRing) staged_.ring = r.value;
    if (r.offset == reg::kQueueRingLog2) staged_.log2 = static_cast<uint32_t>(r.value);
    if (r.offset == reg::kQueueTimeline) staged_.timeline = r.value;
    if (r.offset == reg::kQueueCommand && r.value == hw::kQueueEnable) {
      if (selected_ >= queues_ || staged_.log2 > hw::kMaxRingLog2)
        damaged(fmt::format("queue {} with a ring of 2^{} packets", selected_, staged_.log2));
      host(staged_.ring, sizeof(hw::Packet) << staged_.log2);
      running_[selected_] = staged_;
    }
    r.bytes == 4 ? transport_->write32(r.offset, static_cast<uint32_t>(r.value))
                 : transport_->write64(r.offset, r.value);
  }
  void read(const Register& r) {
    namespace reg = hw::reg;
    const uint64_t now = r.bytes == 4 ? transport_->read32(r.offset) : transport_->read64(r.offset);
    // What makes it the same chip, and what a queue answers to its start; counters and clocks differ.
    const bool fixed = (r.offset < reg::kHbmBytes && r.offset != reg::kCapabilities) || r.offset == reg::kQueueState;
    if (fixed && now != r.value)
      difference(fmt::format("register {} reads 0x{:x}, recorded was 0x{:x}", register_name(r.offset), now, r.value));
  }

  void play(const TraceReader::Record& r) {
    switch (r.kind) {
      case Kind::kRead:
        return read(take<Register>(r));
      case Kind::kWrite:
        return write(take<Register>(r));
      case Kind::kMap: {
        const auto m = take<Range>(r);
        if (m.bytes == 0 || m.bytes > uint64_t{1} << 40 || memory_.contains(m.address))
          damaged(fmt::format("a map of {} bytes at iova 0x{:x}", m.bytes, m.address));
        memory_[m.address] = std::make_unique<driver::DmaMemory>(*transport_, hw::Iova{m.address}, m.bytes);
        return;
      }
      case Kind::kUnmap:
        memory_.erase(take<Range>(r).address);
        return;
      case Kind::kInterrupts:
        events_.push_back(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        transport_->set_interrupt(take<uint32_t>(r), events_.back());
        return;
      case Kind::kReset:
        transport_->reset();
        running_.clear();
        return;
      case Kind::kHbm: {
        const auto m = take<Range>(r);
        if (m.address > hbm_.size() || m.bytes > hbm_.size() - m.address)
          damaged(fmt::format("{} bytes at HBM address 0x{:x}, this device has {}", m.bytes, m.address, hbm_.size()));
        std::memcpy(hbm_.data() + m.address, r.bytes.data() + sizeof m, m.bytes);
        driver::flush_write_combining();
        return;
      }
      case Kind::kHost: {
        const auto m = take<Range>(r);
        std::memcpy(host(m.address, m.bytes), r.bytes.data() + sizeof m, m.bytes);
        return;
      }
      case Kind::kSignal: {
        const auto s = take<Range>(r);
        auto& t = *reinterpret_cast<hw::Timeline*>(host(s.address, sizeof(hw::Timeline)));
        std::atomic_ref word(t.value);
        uint64_t old = word.load(std::memory_order_relaxed);
        while (old < s.bytes && !word.compare_exchange_weak(old, s.bytes, std::memory_order_release)) {
        }
        return wake();
      }
      case Kind::kSeen: {
        const auto s = take<Range>(r);
        reach(static_cast<uint32_t>(s.address), s.bytes);
        return;
      }
      case Kind::kPackets: {
        const auto d = take<Doorbell>(r);
        Queue& q = queue(d.queue);
        const uint64_t entries = uint64_t{1} << q.log2;
        if (d.count > entries) damaged(fmt::format("{} packets at once in a ring of {}", d.count, entries));
        auto* ring = reinterpret_cast<hw::Packet*>(host(q.ring, sizeof(hw::Packet) << q.log2));
        for (uint32_t k = 0; k < d.count; ++k)
          ring[(d.first + k) & (entries - 1)] = take<hw::Packet>(r, sizeof d + k * sizeof(hw::Packet));
        out_.packets += d.count;
        auto& page = reinterpret_cast<hw::DoorbellPage*>(doorbells_.data())[d.queue];
        driver::before_doorbell();
        std::atomic_ref(page.tail).store(d.first + d.count, std::memory_order_release);
        return wake();
      }
      case Kind::kDone: {
        const auto d = take<Done>(r);
        if (!reach(d.queue, d.value)) return;
        const auto status = static_cast<uint32_t>(driver::failure(timeline(queue(d.queue)), d.value));
        if (status != d.status)
          difference(fmt::format("queue {} ended with status {}, recorded was {}", d.queue, status, d.status));
        for (uint32_t k = 0; k < d.results; ++k) {
          const auto expected = take<Result>(r, sizeof d + k * sizeof(Result));
          const uint64_t got = hash({host(expected.iova, expected.bytes), expected.bytes});
          ++out_.results;
          if (got != expected.hash)
            difference(fmt::format("{} bytes that queue {} wrote to iova 0x{:x} differ from the recorded ones",
                                   expected.bytes, d.queue, expected.iova));
        }
        return;
      }
      case Kind::kRaised:
      case Kind::kEnd:
        return;
    }
  }

  TraceReader reader_;
  std::unique_ptr<driver::Transport> transport_;
  std::span<std::byte> doorbells_, hbm_;
  uint32_t queues_ = 0, selected_ = 0;
  Queue staged_;
  std::map<uint32_t, Queue> running_;
  std::map<uint64_t, std::unique_ptr<driver::DmaMemory>> memory_;  // by IOVA
  std::vector<int> events_;
  Replay out_;
  uint64_t at_ = 0;
};

}  // namespace

Replay replay(const std::string& file, const std::string& uri) {
  std::string on = uri;
  if (on.empty()) {
    TraceReader reader(file);
    TraceReader::Record r;
    uint64_t hbm = 0;
    while (hbm == 0 && reader.next(r))
      if (r.kind == Kind::kRead && take<Register>(r).offset == hw::reg::kHbmBytes) hbm = take<Register>(r).value;
    if (hbm == 0)
      throw Error(Code::kInvalidValue, file + ": says nothing of the device's HBM; name a device to replay on");
    on = fmt::format("emu:?hbm={0}M&aperture={0}M", hbm >> 20);  // whatever the recorded one's was
  }
  return Player(file, on).run();
}

}  // namespace jalapeno::tools
