#include "relay.hpp"

#include <sched.h>

#include <chrono>
#include <cstring>
#include <jalapeno_driver/fences.hpp>
#include <jalapeno_hw/packets.hpp>
#include <stdexcept>
#include <string>

namespace jalapeno::runtime {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kEager = std::chrono::microseconds(200);  // after the last message another one often follows at once

}  // namespace

Relay::Relay(driver::Device& device, std::byte* memory, uint64_t control, std::unique_ptr<Network> network,
             std::vector<Route> routes, Failed failed)
    : device_(device),
      memory_(memory),
      control_(*reinterpret_cast<hw::FabricControl*>(memory + control)),
      network_(std::move(network)),
      routes_(std::move(routes)),
      failed_(std::move(failed)) {
  sender_ = std::thread([this] { send(); });
  receiver_ = std::thread([this] { receive(); });
}

Relay::~Relay() {
  stop_ = true;
  device_.notify();
  sender_.join();
  receiver_.join();
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
    while (!network_->write(r.peer, message, bytes, r.remote[parity], r.word | parity)) {
      if (stop_ || broken_) return false;
      if (Clock::now() > end) return true;
      (void)network_->progress(0, [this](uint32_t word) { arrived(word); });
      sched_yield();
    }
    r.sent = next;
    any = true;
  }
  return any;
}

bool Relay::drain(uint32_t timeout_ms) {
  const auto end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;; std::this_thread::sleep_for(std::chrono::microseconds(100))) {
    try {
      if (broken_ || (!send_due(end) && network_->in_flight() == 0)) return true;
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

void Relay::arrived(uint32_t word) {
  if (word / 2 >= routes_.size()) return;
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
    const bool came = network_->progress(eager || sent ? 0 : 20, [this](uint32_t word) { arrived(word); }) > 0;
    if (came) device_.wake();
    if (came || sent)
      last = Clock::now();
    else if (eager)
      sched_yield();
  });
  watch(false);
}

}  // namespace jalapeno::runtime
