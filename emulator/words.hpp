// Small conversions that several engines need: f32 in 64-bit words, and the host's clock.
#pragma once
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

inline uint64_t host_now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

// Between two looks at memory another thread will write.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace jalapeno::emu
