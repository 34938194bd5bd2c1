// Small things that several engines need: f32 in 64-bit words, counters, the host's clock, and its fences.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>

namespace jalapeno::emu {

inline float as_float(uint64_t bits) {  // of the low half
  float f;
  const uint32_t low = static_cast<uint32_t>(bits);
  std::memcpy(&f, &low, 4);
  return f;
}

inline int64_t float_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline uint64_t clock_ns(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}
inline uint64_t host_now_ns() { return clock_ns(CLOCK_MONOTONIC); }
inline uint64_t thread_now_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

// Counters have one writer; a plain store is enough.
inline void add(std::atomic<double>& counter, double v) {
  counter.store(counter.load(std::memory_order_relaxed) + v, std::memory_order_relaxed);
}
inline void add(std::atomic<uint64_t>& counter, uint64_t v) {
  counter.store(counter.load(std::memory_order_relaxed) + v, std::memory_order_relaxed);
}

// Pairs with the other side's fence between arming (or publishing) and its second look: both store, fence, load.
inline void store_load_fence() {
#if defined(__SANITIZE_THREAD__)
  static std::atomic<int> word;  // TSan does not model fences; an RMW orders for it too
  word.fetch_add(0, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// Between two looks at memory another thread will write.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace jalapeno::emu
