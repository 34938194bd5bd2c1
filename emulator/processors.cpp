#include "processors.hpp"

#include <sched.h>

#include <algorithm>
#include <cfenv>
#include <chrono>

#include "fabric.hpp"
#include "words.hpp"

namespace jalapeno::emu {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kEager = std::chrono::microseconds(2), kSpin = std::chrono::microseconds(100);
constexpr auto kTaken = std::chrono::microseconds(3);               // a yield that comes back later ran others
constexpr auto kHeldUp = std::chrono::milliseconds(1);              // a round without end: another thread is needed
constexpr auto kIdleLook = std::chrono::milliseconds(20);           // at threads that sleep
constexpr uint64_t kSleepBlocked = 1'000'000, kSleep = 50'000'000;  // ns

}  // namespace

Processors& Processors::of_process() {
  static auto* const p = new Processors;  // chips may end with the program
  return *p;
}

Processors::Processors() : wanted_(std::max(1u, std::thread::hardware_concurrency() / 4)) {}

void Processors::add(Processor& processor, std::shared_ptr<uint32_t> asleep) {
  std::lock_guard member(membership_);
  std::lock_guard lock(mutex_);
  seats_.push_back(std::make_shared<Seat>(processor, std::move(asleep)));
  version_.fetch_add(1, std::memory_order_release);
  if (threads_.size() < seats_.size())
    threads_.emplace_back([this] {
      std::fesetenv(FE_DFL_ENV);  // whatever the program has set for its own arithmetic
      while (stand_by()) run();
    });
  changed_.notify_all();
  FabricProcess::get().wake();
}

void Processors::remove(Processor& processor) {
  std::lock_guard member(membership_);
  std::shared_ptr<Seat> seat;
  bool last;
  {
    std::lock_guard lock(mutex_);
    const auto at = std::find_if(seats_.begin(), seats_.end(), [&](auto& s) { return &s->processor == &processor; });
    if (at == seats_.end()) return;
    seat = *at;
    seats_.erase(at);
    last = seats_.empty();
    version_.fetch_add(1, std::memory_order_release);
    changed_.notify_all();
  }
  // Taken for good: a thread that still has the seat in its list passes it by.
  while (seat->busy.exchange(true, std::memory_order_acquire))
    std::this_thread::sleep_for(std::chrono::microseconds(10));
  FabricProcess::get().wake();
  if (!last) return;
  for (std::thread& t : threads_) t.join();
  threads_.clear();
}

bool Processors::stand_by() {
  std::unique_lock lock(mutex_);
  while (!seats_.empty() && running_.load(std::memory_order_relaxed) >= wanted_) {
    if (watched_ || seats_.size() <= running_.load(std::memory_order_relaxed)) {
      changed_.wait(lock);
      continue;
    }
    watched_ = true;
    const uint64_t before = rounds_.load(std::memory_order_relaxed);
    changed_.wait_for(lock, FabricProcess::get().asleep() ? std::chrono::milliseconds(kIdleLook) : kHeldUp);
    watched_ = false;
    if (rounds_.load(std::memory_order_relaxed) == before && !FabricProcess::get().asleep() &&
        seats_.size() > running_.load(std::memory_order_relaxed))
      break;
  }
  if (seats_.empty()) return false;
  running_.fetch_add(1, std::memory_order_relaxed);
  changed_.notify_all();  // another one watches now
  return true;
}

void Processors::run() {
  FabricProcess& process = FabricProcess::get();
  std::vector<std::shared_ptr<Seat>> seats;
  uint64_t version = 0;
  auto last_work = Clock::now();
  uint32_t seen = 0;
  bool armed = false;
  bool crowded = false;  // somebody else wants this core: the last time it was given away, it was taken
  auto arm = [&](bool on) {
    armed = on;
    process.announce_sleep(on);
    for (auto& s : seats) std::atomic_ref(*s->asleep).store(on ? 1 : 0, std::memory_order_relaxed);
  };
  for (bool one_too_many = false; !one_too_many;) {
    if (version_.load(std::memory_order_acquire) != version) {
      std::lock_guard lock(mutex_);
      if (armed) arm(false);
      seats = seats_, version = version_.load(std::memory_order_relaxed);
      if (seats.empty()) break;
    }
    const uint64_t before = rounds_.load(std::memory_order_relaxed);
    Processor::Turn round;
    for (auto& s : seats) {
      if (s->busy.exchange(true, std::memory_order_acquire)) continue;
      const Processor::Turn turn = s->processor.turn();
      s->busy.store(false, std::memory_order_release);
      round.progress |= turn.progress, round.blocked |= turn.blocked;
    }
    if (seats.size() > 1)  // others went on while this thread was held up: they are enough
      one_too_many = rounds_.fetch_add(1, std::memory_order_relaxed) > before + 1 &&
                     running_.load(std::memory_order_relaxed) > wanted_;
    if (round.progress) {
      last_work = Clock::now();
      if (armed) arm(false);
      continue;
    }
    if (!armed) {
      if (const auto idle = Clock::now() - last_work; idle < kSpin) {
        // Whoever has just been answered often asks again at once; later the host's threads may need this core.
        if (idle < kEager && !crowded) {
          relax();
        } else {
          const auto given = Clock::now();
          sched_yield();
          crowded = Clock::now() - given > kTaken;
        }
        continue;
      }
      // Armed wake-up: say that we sleep, fence, look once more. Driver and peers publish, fence, read the flag.
      seen = process.wakes();
      arm(true);
      store_load_fence();
      continue;
    }
    // A queue blocked on a timeline that another device signals is not woken by anyone: look again soon.
    process.sleep(seen, round.blocked ? kSleepBlocked : kSleep);
    arm(false);
    if (!round.blocked) last_work = Clock::now();
  }
  running_.fetch_sub(1, std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  process.wake();  // one that sleeps may have been told that this one is awake
}

}  // namespace jalapeno::emu
