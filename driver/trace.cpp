#include "trace.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>

#include "error.hpp"
#include "log.hpp"
#include "os.hpp"

namespace jalapeno::driver {

using namespace trace_file;

namespace {

constexpr size_t kBufferBytes = 1 << 20;

template <class T>
std::span<const std::byte> bytes_of(const T& t) {
  return std::as_bytes(std::span(&t, 1));
}
template <class P>
P as(const hw::Packet& packet) {
  P p;
  std::memcpy(&p, &packet, sizeof p);
  return p;
}

}  // namespace

// Eight bytes at a time, mixed by a multiplication; a short tail counts as zero padded, the length is mixed in.
uint64_t trace_file::hash(std::span<const std::byte> bytes) {
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;
  uint64_t h = bytes.size() * kFactor;
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    uint64_t w;
    std::memcpy(&w, bytes.data() + at, 8);
    h = (h ^ w) * kFactor;
    h ^= h >> 29;
  }
  uint64_t tail = 0;
  std::memcpy(&tail, bytes.data() + at, bytes.size() - at);
  h = (h ^ tail) * kFactor;
  return h ^ h >> 32;
}

std::unique_ptr<Trace> Trace::from_environment(const std::string& uri) {
  const char* file = std::getenv("JAL_TRACE");
  if (file == nullptr || *file == 0) return nullptr;
  static std::atomic<int> next{0};
  const int n = next++;
  return std::make_unique<Trace>(n == 0 ? file : file + ("." + std::to_string(n)), uri);
}

Trace::Trace(const std::string& file, const std::string& uri) : file_(file), begin_ns_(monotonic_ns()) {
  fd_ = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
             0600);  // it holds what went to the device: weights, texts
  if (fd_ < 0) throw Error(Code::kOperatingSystem, "JAL_TRACE: " + file + ": " + error_text(errno));
  header_.started_unix_ns = unix_ns();
  uri.copy(header_.uri, sizeof header_.uri - 1);
  std::ifstream in("/proc/self/cmdline");
  std::string command;
  std::getline(in, command);
  for (char& c : command)
    if (c == 0) c = ' ';
  command.copy(header_.command, sizeof header_.command - 1);
  buffer_.reserve(kBufferBytes + 65536);
  const auto h = bytes_of(header_);
  buffer_.assign(h.begin(), h.end());
  driver_log().info("{}: recording into {}", uri, file);
}

Trace::~Trace() {
  const uint64_t records = records_;
  put(Kind::kEnd, {bytes_of(records)});
  flush();
  close(fd_);
}

void Trace::flush() {
  for (size_t at = 0; at < buffer_.size() && !full_;) {
    const ssize_t n = os().write(fd_, buffer_.data() + at, buffer_.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      full_ = true;
      driver_log().error("trace {}: {}; it ends here", file_, error_text(errno));
      break;
    }
    at += static_cast<size_t>(n);
  }
  buffer_.clear();
}

// The caller holds the mutex, or is alone.
void Trace::put(Kind kind, std::initializer_list<std::span<const std::byte>> parts) {
  if (full_) return;
  size_t bytes = 0;
  for (const auto& p : parts) bytes += p.size();
  const Head head{kind, static_cast<uint32_t>(bytes), static_cast<uint64_t>(monotonic_ns() - begin_ns_)};
  auto append = [&](std::span<const std::byte> p) { buffer_.insert(buffer_.end(), p.begin(), p.end()); };
  append(bytes_of(head));
  for (const auto& p : parts) append(p);
  buffer_.resize((buffer_.size() + 7) & ~size_t{7});
  ++records_;
  if (buffer_.size() >= kBufferBytes) flush();
}

void Trace::versions(uint32_t interface, uint32_t isa) {
  std::lock_guard lock(mutex_);
  header_.interface_version = interface, header_.isa_version = isa;
  // The header is still the begin of the buffer or of the file.
  flush();
  if (pwrite(fd_, &header_, sizeof header_, 0) != sizeof header_) full_ = true;
}

void Trace::access(bool write, uint32_t offset, uint32_t bytes, uint64_t value) {
  std::lock_guard lock(mutex_);
  put(write ? Kind::kWrite : Kind::kRead, {bytes_of(Register{offset, bytes, value})});
}

void Trace::map(const Transport::HostMemory& memory, hw::Iova iova) {
  std::lock_guard lock(mutex_);
  maps_[hw::raw(iova)] = memory;
  put(Kind::kMap, {bytes_of(Range{hw::raw(iova), memory.bytes})});
}

void Trace::unmap(hw::Iova iova, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  maps_.erase(hw::raw(iova));
  std::erase_if(written_, [&](const auto& w) {
    const uint64_t at = w.first.first & ~hw::kHostWindow;
    return at >= hw::raw(iova) && at < hw::raw(iova) + bytes;
  });
  put(Kind::kUnmap, {bytes_of(Range{hw::raw(iova), bytes})});
}

void Trace::interrupt_attached(uint32_t vector) {
  std::lock_guard lock(mutex_);
  put(Kind::kInterrupts, {bytes_of(vector)});
}
void Trace::interrupt(uint32_t vector) {
  std::lock_guard lock(mutex_);
  put(Kind::kRaised, {bytes_of(vector)});
}
void Trace::reset() {
  std::lock_guard lock(mutex_);
  put(Kind::kReset, {});
}

void Trace::hbm(uint64_t physical, std::span<const std::byte> data) {
  std::lock_guard lock(mutex_);
  put(Kind::kHbm, {bytes_of(Range{physical, data.size()}), data});
}

void Trace::signal(const hw::Timeline& timeline, uint64_t value) {
  std::lock_guard lock(mutex_);
  if (const uint64_t iova = iova_of(&timeline)) put(Kind::kSignal, {bytes_of(Range{iova, value})});
}

void Trace::host_written(const void* data, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (const uint64_t iova = iova_of(data)) capture(iova | hw::kHostWindow, bytes, false);
}

void Trace::queue_reset(uint32_t queue, const hw::Timeline& timeline) {
  {
    std::lock_guard lock(mutex_);
    pending_[queue].clear();
  }
  host_written(&timeline, sizeof timeline);
}

uint64_t Trace::iova_of(const void* data) const {
  const auto* at = static_cast<const std::byte*>(data);
  for (const auto& [iova, memory] : maps_)
    if (at >= memory.data && at < memory.data + memory.bytes) return iova + static_cast<uint64_t>(at - memory.data);
  return 0;
}

const std::byte* Trace::host(uint64_t iova, uint64_t bytes) const {
  auto it = maps_.upper_bound(iova);
  if (it == maps_.begin()) return nullptr;
  --it;
  const uint64_t inside = iova - it->first;
  return inside <= it->second.bytes && bytes <= it->second.bytes - inside ? it->second.data + inside : nullptr;
}

// Host memory the device will read. `once`: only when it is not what was written for this place before; for memory that
// the device itself never writes.
void Trace::capture(uint64_t address, uint64_t bytes, bool once) {
  if (!(address & hw::kHostWindow) || bytes == 0) return;
  const uint64_t iova = address & ~hw::kHostWindow;
  const std::byte* data = host(iova, bytes);
  if (data == nullptr) return;  // the device will fault; so will the replay
  if (once) {
    const uint64_t h = hash({data, bytes});
    auto [known, fresh] = written_.try_emplace({address, bytes}, h);
    if (!fresh && known->second == h) return;
    known->second = h;
  }
  for (uint64_t at = 0; at < bytes; at += uint64_t{1} << 30) {
    const uint64_t n = std::min(bytes - at, uint64_t{1} << 30);
    put(Kind::kHost, {bytes_of(Range{iova + at, n}), {data + at, n}});
  }
}

void Trace::box(uint64_t address, uint64_t width, uint64_t height, uint64_t pitch, std::vector<Range>* written) {
  if (!(address & hw::kHostWindow)) return;
  if (pitch == width || height <= 1) width *= std::max<uint64_t>(height, 1), height = 1;
  for (uint64_t row = 0; row < height; ++row) {
    if (written != nullptr)
      written->push_back({(address + row * pitch) & ~hw::kHostWindow, width});
    else
      capture(address + row * pitch, width, false);
  }
}

void Trace::operands(const hw::Packet& packet, std::vector<Range>& written, int depth) {
  switch (packet.header.op) {
    case hw::PacketOp::kLaunch: {
      const auto p = as<hw::LaunchPacket>(packet);
      capture(hw::raw(p.arguments), p.argument_bytes, depth > 0);
      break;
    }
    case hw::PacketOp::kCopy: {
      const auto p = as<hw::CopyPacket>(packet);
      box(hw::raw(p.source), p.width_bytes, p.height, p.source_pitch, nullptr);
      box(hw::raw(p.destination), p.width_bytes, p.height, p.destination_pitch, &written);
      break;
    }
    case hw::PacketOp::kCopyBatch: {
      const auto p = as<hw::CopyBatchPacket>(packet);
      capture(hw::raw(p.list), p.count * sizeof(hw::CopyDescriptor), false);
      if (!hw::is_host(p.list)) break;
      const std::byte* list = host(hw::raw(hw::iova_of(p.list)), p.count * sizeof(hw::CopyDescriptor));
      for (uint64_t k = 0; list != nullptr && k < p.count; ++k) {
        hw::CopyDescriptor d;
        std::memcpy(&d, list + k * sizeof d, sizeof d);
        box(hw::raw(d.source), d.bytes, 1, 0, nullptr);
        box(hw::raw(d.destination), d.bytes, 1, 0, &written);
      }
      break;
    }
    case hw::PacketOp::kFill: {
      const auto p = as<hw::FillPacket>(packet);
      box(hw::raw(p.destination), p.bytes, 1, 0, &written);
      break;
    }
    case hw::PacketOp::kCall: {
      const auto p = as<hw::CallPacket>(packet);
      if (depth > 0) break;
      if (!hw::is_host(p.block)) {
        if (auto known = blocks_.find(hw::raw(p.block)); known != blocks_.end())
          for (const hw::Packet& inner : known->second) operands(inner, written, depth + 1);
        break;
      }
      capture(hw::raw(p.block), p.count * sizeof(hw::Packet), true);
      const std::byte* block = host(hw::raw(hw::iova_of(p.block)), p.count * sizeof(hw::Packet));
      for (uint64_t k = 0; block != nullptr && k < p.count; ++k) {
        hw::Packet inner;
        std::memcpy(&inner, block + k * sizeof inner, sizeof inner);
        operands(inner, written, depth + 1);
      }
      break;
    }
    default:
      break;  // timelines: what the host writes there is a kSignal
  }
}

void Trace::block(hw::DeviceAddr address, std::span<const hw::Packet> packets) {
  std::lock_guard lock(mutex_);
  if (packets.empty())
    blocks_.erase(hw::raw(address));
  else
    blocks_[hw::raw(address)] = {packets.begin(), packets.end()};
}

void Trace::packets(uint32_t queue, const hw::Packet* ring, uint64_t entries, uint64_t first, uint64_t end,
                    uint64_t completed) {
  std::lock_guard lock(mutex_);
  if (uint64_t& seen = seen_[queue]; completed != seen) {
    seen = completed;
    put(Kind::kSeen, {bytes_of(Range{queue, completed})});
  }
  std::vector<hw::Packet> list;
  for (uint64_t k = first; k < end; ++k) {
    list.push_back(ring[k & (entries - 1)]);
    Pending p{k, {}};
    operands(list.back(), p.written, 0);
    if (!p.written.empty()) pending_[queue].push_back(std::move(p));
  }
  const Doorbell d{queue, static_cast<uint32_t>(list.size()), first};
  put(Kind::kPackets, {bytes_of(d), std::as_bytes(std::span(list))});
}

void Trace::done(uint32_t queue, uint64_t value, uint32_t status) {
  std::lock_guard lock(mutex_);
  std::vector<Result> results;
  auto& waiting = pending_[queue];
  std::erase_if(waiting, [&](const Pending& p) {
    if (p.index >= value) return false;
    // Memory of packets that failed is left as it happens to be.
    for (const Range& r : p.written)
      if (const std::byte* data = status == 0 ? host(r.address, r.bytes) : nullptr)
        results.push_back({r.address, r.bytes, hash({data, r.bytes})});
    return true;
  });
  const Done d{queue, status, static_cast<uint32_t>(results.size()), 0, value};
  put(Kind::kDone, {bytes_of(d), std::as_bytes(std::span(results))});
}

namespace {

class TracedTransport final : public Transport {
 public:
  TracedTransport(std::unique_ptr<Transport> inner, Trace& trace) : inner_(std::move(inner)), trace_(trace) {}

  uint32_t read32(uint32_t offset) override {
    const uint32_t v = inner_->read32(offset);
    trace_.access(false, offset, 4, v);
    return v;
  }
  uint64_t read64(uint32_t offset) override {
    const uint64_t v = inner_->read64(offset);
    trace_.access(false, offset, 8, v);
    return v;
  }
  void write32(uint32_t offset, uint32_t value) override {
    trace_.access(true, offset, 4, value);
    inner_->write32(offset, value);
  }
  void write64(uint32_t offset, uint64_t value) override {
    trace_.access(true, offset, 8, value);
    inner_->write64(offset, value);
  }
  void post32(uint32_t offset, uint32_t value) noexcept override {
    try {
      trace_.access(true, offset, 4, value);
    } catch (...) {  // no memory for the trace is no reason not to wake the device
    }
    inner_->post32(offset, value);
  }
  std::span<std::byte> map_bar(uint32_t bar) override { return inner_->map_bar(bar); }
  void map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) override {
    inner_->map_dma(memory, iova, device_writes);
    trace_.map(memory, iova);
  }
  void unmap_dma(hw::Iova iova, uint64_t bytes) noexcept override {
    try {
      trace_.unmap(iova, bytes);
    } catch (...) {
    }
    inner_->unmap_dma(iova, bytes);
  }
  void set_interrupt(uint32_t vector, int eventfd) override {
    trace_.interrupt_attached(vector);
    inner_->set_interrupt(vector, eventfd);
  }
  void reset() override {
    trace_.reset();
    inner_->reset();
  }
  int liveness_fd() const override { return inner_->liveness_fd(); }
  std::string gone() override { return inner_->gone(); }
  void revoke() noexcept override { inner_->revoke(); }
  std::string describe() const override { return inner_->describe(); }

 private:
  std::unique_ptr<Transport> inner_;
  Trace& trace_;
};

}  // namespace

std::unique_ptr<Transport> traced(std::unique_ptr<Transport> transport, Trace& trace) {
  return std::make_unique<TracedTransport>(std::move(transport), trace);
}

}  // namespace jalapeno::driver
