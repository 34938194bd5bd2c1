#include "support/adversary.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <jalapeno_driver/transport.hpp>
#include <mutex>
#include <random>
#include <thread>

namespace jalapeno::driver::adversary {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLate = std::chrono::microseconds(50);
constexpr size_t kKept = 4096, kKeptOfOne = 512;  // bytes of all, and of one store, that may stay behind

struct Piece {
  Kind kind;
  std::thread::id thread;
  std::byte* at;
  uint8_t bytes;
  std::byte data[8];
  Clock::time_point since;
};

class Adversary {
 public:
  static Adversary& get() {
    static auto* one = new Adversary;  // threads may end after main
    return *one;
  }

  void reseed(uint64_t seed) {
    std::lock_guard lock(mutex_);
    random_.seed(seed);
  }

  void hold(bool on) {
    std::lock_guard lock(mutex_);
    held_ = on;
  }

  void store(Kind kind, std::byte* at, const std::byte* data, size_t bytes) {
    std::lock_guard lock(mutex_);
    if (bytes > kKeptOfOne) {
      const size_t now = bytes - kKeptOfOne;
      send_overlapping(at, now);
      std::memcpy(at, data, now);
      at += now, data += now, bytes = kKeptOfOne;
    }
    const auto thread = std::this_thread::get_id();
    while (bytes > 0) {
      Piece p{kind, thread, at, 0, {}, Clock::now()};
      p.bytes = static_cast<uint8_t>(std::min<size_t>(bytes, 8 - reinterpret_cast<uintptr_t>(at) % 8));
      std::memcpy(p.data, data, p.bytes);
      pieces_.push_back(p);
      at += p.bytes, data += p.bytes, bytes -= p.bytes;
    }
    while (pieces_.size() > kKept / 8) send(0);
    // Buffers run full, caches evict: some of it goes out at once, whatever its order.
    const unsigned share = random_() % 4;
    if (kind == Kind::kPosted) {
      if (share == 0) send_posted();
    } else if (share < 2) {
      for (size_t k = pieces_.size(); k-- > 0;)
        if (pieces_[k].kind == kind && pieces_[k].thread == thread && random_() % 2 == 0) k = send(k);
    }
  }

  void fence(Kind kind) {
    std::lock_guard lock(mutex_);
    const auto thread = std::this_thread::get_id();
    for (size_t k = 0; k < pieces_.size();)
      if (pieces_[k].kind == kind && pieces_[k].thread == thread)
        send(k), k = 0;
      else
        ++k;
  }

  void arrive(const std::byte* at, size_t bytes) {
    std::lock_guard lock(mutex_);
    send_posted();
    send_overlapping(at, bytes);
  }

  void arrive_all_posted() {
    std::lock_guard lock(mutex_);
    send_posted();
  }

  void arrive_everything() {
    std::lock_guard lock(mutex_);
    while (!pieces_.empty()) send(0);
  }

 private:
  Adversary() {
    const char* seed = std::getenv("JAL_ADVERSARY_SEED");
    random_.seed(seed != nullptr ? std::strtoull(seed, nullptr, 10) : 1);
    std::thread([this] {
      for (;;) {
        std::this_thread::sleep_for(kLate / 2);
        std::lock_guard lock(mutex_);
        while (!held_ && !pieces_.empty() && Clock::now() - pieces_.front().since > kLate) send(0);
      }
    }).detach();
  }

  // Sends piece k, and before it what was stored earlier to the same place, or posted earlier. Returns the least index
  // of what was sent.
  size_t send(size_t k) {
    const Piece p = pieces_[k];
    size_t least = k;
    for (size_t i = 0; i < k; ++i)
      if (same_place(pieces_[i], p.at, p.bytes) || (p.kind == Kind::kPosted && pieces_[i].kind == Kind::kPosted)) {
        deliver(pieces_[i]);
        pieces_.erase(pieces_.begin() + static_cast<std::ptrdiff_t>(i));
        least = std::min(least, i);
        --i, --k;
      }
    deliver(p);
    pieces_.erase(pieces_.begin() + static_cast<std::ptrdiff_t>(k));
    return std::min(least, k);
  }
  void send_posted() {
    for (size_t k = pieces_.size(); k-- > 0;)
      if (pieces_[k].kind == Kind::kPosted) {
        send(k);  // and all before it
        return;
      }
  }
  void send_overlapping(const std::byte* at, size_t bytes) {
    for (size_t k = 0; k < pieces_.size();)
      if (same_place(pieces_[k], at, bytes))
        send(k), k = 0;
      else
        ++k;
  }
  static bool same_place(const Piece& p, const std::byte* at, size_t bytes) {
    return p.at < at + bytes && at < p.at + p.bytes;
  }
  static void deliver(const Piece& p) {
    if (p.bytes == 8) {
      uint64_t value;
      std::memcpy(&value, p.data, 8);
      std::atomic_ref(*reinterpret_cast<uint64_t*>(p.at)).store(value, std::memory_order_release);
    } else {
      std::memcpy(p.at, p.data, p.bytes);
    }
  }

  std::mutex mutex_;
  std::mt19937_64 random_;
  bool held_ = false;
  std::deque<Piece> pieces_;  // oldest first
};

class OrderedTransport : public Transport {
 public:
  explicit OrderedTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
  ~OrderedTransport() override { Adversary::get().arrive_everything(); }  // while there is memory to arrive in
  uint32_t read32(uint32_t offset) override { return now().read32(offset); }
  uint64_t read64(uint32_t offset) override { return now().read64(offset); }
  void write32(uint32_t offset, uint32_t value) override { now().write32(offset, value); }
  void write64(uint32_t offset, uint64_t value) override { now().write64(offset, value); }
  void post32(uint32_t offset, uint32_t value) noexcept override { now().post32(offset, value); }
  std::span<std::byte> map_bar(uint32_t bar) override { return inner_->map_bar(bar); }
  void map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) override {
    inner_->map_dma(memory, iova, device_writes);
  }
  void unmap_dma(hw::Iova iova, uint64_t bytes) noexcept override {
    Adversary::get().arrive_everything();
    inner_->unmap_dma(iova, bytes);
  }
  void set_interrupt(uint32_t vector, int eventfd) override { now().set_interrupt(vector, eventfd); }
  void reset() override { now().reset(); }
  int liveness_fd() const override { return inner_->liveness_fd(); }
  std::string gone() override { return inner_->gone(); }
  void revoke() noexcept override { now().revoke(); }
  std::string describe() const override { return inner_->describe(); }

 private:
  Transport& now() {
    Adversary::get().arrive_all_posted();
    return *inner_;
  }
  std::unique_ptr<Transport> inner_;
};

}  // namespace

void store(Kind kind, void* at, const void* data, size_t bytes) {
  Adversary::get().store(kind, static_cast<std::byte*>(at), static_cast<const std::byte*>(data), bytes);
}
void fence(Kind kind) { Adversary::get().fence(kind); }
void arrive(const void* at, size_t bytes) { Adversary::get().arrive(static_cast<const std::byte*>(at), bytes); }
void reseed(uint64_t seed) { Adversary::get().reseed(seed); }
void hold(bool on) { Adversary::get().hold(on); }
std::unique_ptr<Transport> ordered(std::unique_ptr<Transport> transport) {
  return std::make_unique<OrderedTransport>(std::move(transport));
}

}  // namespace jalapeno::driver::adversary
