#include "relay.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <jalapeno_driver/fences.hpp>
#include <jalapeno_hw/packets.hpp>
#include <stdexcept>
#include <string>

namespace jalapeno::runtime {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kStriped = 128 << 10;                 // bytes from which on a message is cut to the rails
constexpr uint32_t kPartsShift = 28;                     // in a word: how many parts there are, less one
constexpr auto kEager = std::chrono::microseconds(200);  // after the last message another one often follows at once

}  // namespace

Relay::Relay(driver::Device& device, std::byte* memory, uint64_t control, std::vector<std::unique_ptr<Network>> rails,
             std::vector<Route> routes, Failed failed)
    : device_(device),
      memory_(memory),
      control_(*reinterpret_cast<hw::FabricControl*>(memory + control)),
      rails_(std::move(rails)),
      routes_(std::move(routes)),
      failed_(std::move(failed)),
      came_(2 * routes_.size()) {
  threads_.emplace_back([this] { send(); });
  threads_.emplace_back([this] { receive(); });
  for (size_t k = 1; k < rails_.size(); ++k) threads_.emplace_back([this, k] { receive_only(*rails_[k]); });
}

Relay::~Relay() {
  stop_ = true;
  device_.notify();
  for (std::thread& t : threads_) t.join();
}

// Until the relay ends. A peer that is lost takes nothing with it but its routes.
void Relay::repeat(const std::function<void()>& turn) {
  while (!stop_ && !broken_) try {
      turn();
    } catch (const Network::Lost& lost) {
      lose(lost.peer, lost.what());
    } catch (const std::exception& e) {
      if (!broken_.exchange(true) && !stop_) failed_(-1, e.what());
    }
}

void Relay::lose(uint32_t peer, const std::string& text) {
  bool known = true;
  {
    std::lock_guard lock(send_mutex_);
    for (Route& r : routes_)
      if (r.peer == peer && r.slot_bytes != 0) r.slot_bytes = 0, known = false;
  }
  if (!known && !stop_) failed_(peer, text);
}

bool Relay::send_due(Clock::time_point end) {
  std::unique_lock lock(send_mutex_, std::defer_lock);
  if (end == Clock::time_point::max())
    lock.lock();
  else if (!lock.try_lock_until(end))
    return true;
  bool any = false;
  for (Route& r : routes_) {
    if (r.slot_bytes == 0) continue;  // of a rank that the fabric reaches, or nobody any more
    const uint64_t next = r.sent + 1;
    auto& line = *reinterpret_cast<hw::FabricLine*>(memory_ + r.lines + (next & 1) * sizeof(hw::FabricLine));
    if (std::atomic_ref(line.sequence).load(std::memory_order_acquire) != next) continue;
    std::byte* message = memory_ + r.out[next & 1];
    std::memcpy(message, &line, sizeof line);
    // The copy counts: peers of the fabric can write the line too.
    const uint64_t bytes = sizeof line + reinterpret_cast<const hw::FabricLine*>(message)->bytes;
    if (bytes > r.slot_bytes)
      throw std::runtime_error("a message of " + std::to_string(bytes) + " bytes in a slot of " +
                               std::to_string(r.slot_bytes));
    const auto parity = static_cast<uint32_t>(next & 1);
    const size_t first = static_cast<size_t>(&r - routes_.data());  // small ones are shared out by their routes
    const uint64_t share = bytes < kStriped ? bytes : (bytes / rails_.size() + 63) / 64 * 64;
    const auto parts = static_cast<uint32_t>((bytes + share - 1) / share);
    for (; r.parts_out < parts; ++r.parts_out) {
      const uint64_t at = r.parts_out * share;
      Network& rail = *rails_[(first + r.parts_out) % rails_.size()];
      while (!rail.write(r.peer, message + at, std::min(share, bytes - at), r.remote[parity] + at,
                         r.word | parity | (parts - 1) << kPartsShift)) {
        if (stop_ || broken_) return false;
        if (Clock::now() > end) return true;
        (void)rail.progress(0, [this](uint32_t word) { arrived(word); });
        sched_yield();
      }
    }
    r.parts_out = 0;
    r.sent = next;
    any = true;
  }
  return any;
}

bool Relay::drain(uint32_t timeout_ms) {
  const auto end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;; std::this_thread::sleep_for(std::chrono::microseconds(100))) {
    try {
      if (broken_ || (!send_due(end) && in_flight() == 0)) return true;
    } catch (const Network::Lost& lost) {
      lose(lost.peer, lost.what());
    } catch (const std::exception& e) {
      if (!broken_.exchange(true)) failed_(-1, e.what());
      return false;
    }
    if (Clock::now() > end) return false;
  }
}

void Relay::send() {
  repeat([this] {
    // The device raises an interrupt after every post; it may be the one that this look would miss.
    const uint32_t seen = device_.event_count();
    if (!send_due()) device_.wait_event(seen, 50'000'000);
  });
}

uint64_t Relay::in_flight() const {
  uint64_t all = 0;
  for (const auto& rail : rails_) all += rail->in_flight();
  return all;
}

void Relay::arrived(uint32_t word) {
  const uint32_t parts = (word >> kPartsShift) + 1;
  word &= (1u << kPartsShift) - 1;
  if (word / 2 >= routes_.size()) return;
  if (parts > 1) {
    if (came_[word].fetch_add(1, std::memory_order_acq_rel) + 1 != parts) return;
    came_[word].store(0, std::memory_order_relaxed);  // the next one of this parity comes after this one was answered
  }
  const Route& r = routes_[word / 2];
  hw::FabricLine line;
  std::memcpy(&line, memory_ + r.in[word & 1], sizeof line);
  auto& to = *reinterpret_cast<hw::FabricLine*>(memory_ + r.inbox + (word & 1) * sizeof line);
  std::memcpy(&to.signature, &line.signature, sizeof line - offsetof(hw::FabricLine, signature));
  std::atomic_ref(to.sequence).store(line.sequence, std::memory_order_release);
}

// On: the device raises no interrupt for what it posts. Whoever turns it off has to look once more.
void Relay::watch(bool on) {
  std::atomic_ref(control_.watched).store(on ? 1 : 0, std::memory_order_relaxed);
  driver::before_second_look();
}

void Relay::receive() {
  auto last = Clock::now();
  bool watching = false;
  repeat([&] {
    const bool eager = Clock::now() - last < kEager;
    if (eager != watching) watch(watching = eager);
    const bool sent = send_due();
    const bool came = rails_[0]->progress(eager || sent ? 0 : 20, [this](uint32_t word) { arrived(word); }) > 0;
    if (came) device_.wake();
    if (came || sent)
      last = Clock::now();
    else if (eager)
      sched_yield();
  });
  watch(false);
}

void Relay::receive_only(Network& rail) {
  auto last = Clock::now();
  repeat([&] {
    const bool eager = Clock::now() - last < kEager;
    if (rail.progress(eager ? 0 : 20, [this](uint32_t word) { arrived(word); }) > 0)
      device_.wake(), last = Clock::now();
    else if (eager)
      sched_yield();
  });
}

}  // namespace jalapeno::runtime
