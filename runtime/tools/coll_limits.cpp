#include "coll_limits.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace jalapeno::tools {
namespace {

// z = x + y, as this processor does it best; around its caches: z is not read first.
#if defined(__x86_64__)
__attribute__((target("avx2"))) void add_avx2(const float* x, const float* y, float* z, size_t n, bool around_caches) {
  size_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(z + i) % 32 != 0; ++i) z[i] = x[i] + y[i];
  if (around_caches)
    for (; i + 8 <= n; i += 8) _mm256_stream_ps(z + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  else
    for (; i + 8 <= n; i += 8) _mm256_store_ps(z + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  for (; i < n; ++i) z[i] = x[i] + y[i];
}
#endif
void add(const float* x, const float* y, float* z, size_t n, [[maybe_unused]] bool around_caches) {
#if defined(__x86_64__)
  static const bool wide = __builtin_cpu_supports("avx2");
  if (wide) return add_avx2(x, y, z, n, around_caches);
#endif
  for (size_t i = 0; i < n; ++i) z[i] = x[i] + y[i];
}

}  // namespace

double line_exchange_us() {
  alignas(64) static std::atomic<uint32_t> ping{0};
  alignas(64) static std::atomic<uint32_t> pong{0};
  constexpr uint32_t kTurns = 20000, kEnd = UINT32_MAX;
  constexpr double kEnoughUs = 20e3;  // on cores that others use too, each turn can take a time slice
  ping = pong = 0;
  auto until = [](const std::atomic<uint32_t>& word, uint32_t value) {
    uint32_t seen;
    for (int spins = 0; (seen = word.load(std::memory_order_acquire)) != value && seen != kEnd;)
      if (++spins > 10000) std::this_thread::yield();
    return seen == value;
  };
  std::thread other([&] {
    for (uint32_t k = 1; until(ping, k); ++k) pong.store(k, std::memory_order_release);
  });
  const auto begin = Clock::now();
  uint32_t turns = 0;
  while (turns < kTurns && (turns % 64 != 0 || us_since(begin) < kEnoughUs)) {
    ping.store(++turns, std::memory_order_release);
    (void)until(pong, turns);
  }
  const double us = us_since(begin) / turns;
  ping.store(kEnd, std::memory_order_release);
  other.join();
  return us;
}

double memory_rate(size_t bytes, unsigned threads, bool around_caches) {
  const size_t n = std::max<size_t>(bytes / 4 / threads, 1024),
               turns = std::max<size_t>(1, (size_t{64} << 20) / (n * 4 * threads));
  std::vector<std::vector<float>> a(threads, std::vector<float>(n, 1)), b(a), c(a);
  std::atomic<unsigned> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> all;
  for (unsigned t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      ++ready;
      while (!go) std::this_thread::yield();
      for (size_t k = 0; k < turns; ++k) {
        float* z = c[t].data();
        add(a[t].data(), b[t].data(), z, n, around_caches);
        asm volatile("" : : "r"(z) : "memory");
      }
    });
  while (ready != threads) std::this_thread::yield();
  const auto begin = Clock::now();
  go = true;
  for (auto& t : all) t.join();
  return 3.0 * static_cast<double>(n * 4 * threads * turns) / (us_since(begin) * 1e3);
}

}  // namespace jalapeno::tools
