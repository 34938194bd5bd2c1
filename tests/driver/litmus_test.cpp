// Litmus tests of the driver's fences on the host that runs them: two threads, a few words, very often.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <jalapeno_driver/fences.hpp>
#include <jalapeno_driver/mmio.hpp>
#include <thread>

namespace jalapeno::driver {
namespace {

constexpr int kRounds = 200'000;

// Both run their part of a round at the same time, as far as a host allows; `check` runs between rounds.
template <class A, class B, class Check>
void race(A a, B b, Check check) {
  std::atomic<int> started{0}, finished{0};
  std::thread other([&] {
    for (int k = 1; k <= kRounds; ++k) {
      while (started.load(std::memory_order_acquire) < k) std::this_thread::yield();
      b();
      finished.store(k, std::memory_order_release);
    }
  });
  for (int k = 1; k <= kRounds; ++k) {
    started.store(k, std::memory_order_release);
    for (int spin = k % 16; spin > 0; --spin) spin_pause();  // they do not always meet in the same place
    a();
    while (finished.load(std::memory_order_acquire) < k) std::this_thread::yield();
    check();
  }
  other.join();
}

struct alignas(64) Word {
  uint64_t value = 0;
  uint64_t load() { return std::atomic_ref(value).load(std::memory_order_relaxed); }
  void store(uint64_t v) { std::atomic_ref(value).store(v, std::memory_order_relaxed); }
};

// Doorbell and `asleep`, arm word and timeline: each side stores its own and looks at the other's. Both missing the
// other is a lost wake-up.
template <class Fence>
int lost_wakeups(Fence fence) {
  Word tail, asleep;
  uint64_t seen_asleep = 0, seen_tail = 0;
  int lost = 0;
  race([&] { tail.store(1), fence(), seen_asleep = asleep.load(); },
       [&] { asleep.store(1), fence(), seen_tail = tail.load(); },
       [&] {
         lost += seen_asleep == 0 && seen_tail == 0;
         tail.store(0), asleep.store(0);
       });
  return lost;
}

TEST(Litmus, NoWakeUpIsLostBehindTheSecondLook) {
  EXPECT_EQ(lost_wakeups([] { before_second_look(); }), 0);
  // Whether a host shows what the fence prevents depends on its cores; most do.
  const int without = lost_wakeups([] { std::atomic_signal_fence(std::memory_order_seq_cst); });
  RecordProperty("lost_without_the_fence", without);
  std::printf("without the fence %d of %d are lost on this host\n", without, kRounds);
}

TEST(Litmus, APacketIsThereWhenItsIndexIs) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a device that reads while the host writes is a race to ThreadSanitizer, and is meant to be one";
#endif
  struct {
    alignas(64) uint64_t packet[8];
  } slot{};
  Word tail;
  uint64_t index = 0;
  int torn = 0;
  race(
      [&] {
        ++index;
        uint64_t packet[8];
        for (uint64_t& w : packet) w = index;
        store_for_device(slot.packet, packet, sizeof packet);
        before_doorbell();
        post_word(tail.value, index);
      },
      [&] {
        const uint64_t at = std::atomic_ref(tail.value).load(std::memory_order_acquire);
        for (uint64_t& w : slot.packet) torn += std::atomic_ref(w).load(std::memory_order_relaxed) < at;
      },
      [] {});
  EXPECT_EQ(torn, 0);
}

}  // namespace
}  // namespace jalapeno::driver
