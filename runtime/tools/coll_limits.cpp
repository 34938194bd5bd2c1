#include "coll_limits.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace jalapeno::tools {
namespace {

cpu_set_t own_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof cores, &cores);
  return cores;
}
cpu_set_t all_cores = own_cores();

bool keep_thread_on(int n) {
  n %= std::max(CPU_COUNT(&all_cores), 1);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &all_cores) || n-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    return sched_setaffinity(0, sizeof one, &one) == 0;
  }
  return false;
}

class Unbound {  // this thread, and those it starts
 public:
  Unbound() { sched_setaffinity(0, sizeof all_cores, &all_cores); }
  ~Unbound() { sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_ = own_cores();
};

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

bool bind_to_core(int n) {
  all_cores = own_cores();
  return keep_thread_on(n);
}

double line_exchange_us() {
  const Unbound all;
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
    (void)keep_thread_on(1);
    for (uint32_t k = 1; until(ping, k); ++k) pong.store(k, std::memory_order_release);
  });
  (void)keep_thread_on(0);
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
  const Unbound all;
  const size_t n = std::max<size_t>(bytes / 4 / threads, 1024),
               turns = std::max<size_t>(1, (size_t{64} << 20) / (n * 4 * threads));
  std::vector<std::vector<float>> a(threads, std::vector<float>(n, 1)), b(a), c(a);
  std::atomic<unsigned> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> adders;
  for (unsigned t = 0; t < threads; ++t)
    adders.emplace_back([&, t] {
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
  for (auto& t : adders) t.join();
  return 3.0 * static_cast<double>(n * 4 * threads * turns) / (us_since(begin) * 1e3);
}

}  // namespace jalapeno::tools
