#include "limits.hpp"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench.hpp"

namespace bench {
namespace {

// Pins the calling thread to the index-th processor that the process may use.
void pin(int index) {
  cpu_set_t allowed, one;
  CPU_ZERO(&one);
  static const cpu_set_t all = [] {
    cpu_set_t s;
    CPU_ZERO(&s);
    sched_getaffinity(0, sizeof s, &s);
    return s;
  }();
  allowed = all;
  const int wanted = index % std::max(1, CPU_COUNT(&allowed));
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && seen++ == wanted) CPU_SET(cpu, &one);
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

// Wall time of f(index) on pinned threads that begin together.
double parallel(int threads, const std::function<void(int)>& f) {
  std::atomic<int> ready{0};
  std::vector<Clock::time_point> begin(static_cast<size_t>(threads)), end(begin.size());
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      pin(t);
      ready.fetch_add(1);
      while (ready.load() < threads) _mm_pause();
      begin[static_cast<size_t>(t)] = Clock::now();
      f(t);
      end[static_cast<size_t>(t)] = Clock::now();
    });
  for (std::thread& t : pool) t.join();
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

struct alignas(128) Line {
  std::array<uint64_t, 8> words;
};
struct Shared {
  alignas(128) std::atomic<uint64_t> there{0};
  alignas(128) std::atomic<uint64_t> back{0};
  Line descriptor{};
};

void wait_for(const std::atomic<uint64_t>& word, uint64_t value) {
  while (word.load(std::memory_order_acquire) < value) _mm_pause();
}

// A loop of 24 independent instructions on 24 accumulators; the operands are numbers, not zeros.
#define BENCH_PEAK_LOOP(name, isa, instruction)                                                                       \
  __attribute__((target(isa), noinline)) void name(long n, uint32_t a, uint32_t b) {                                  \
    asm volatile(                                                                                                     \
        "vpbroadcastd %1, %%zmm30\nvpbroadcastd %2, %%zmm31\n"                                                        \
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\nvpxord %%zmm\\r, %%zmm\\r, "           \
        "%%zmm\\r\n.endr\n"                                                                                           \
        "1:\n.irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n" instruction                      \
        " %%zmm30, %%zmm31, %%zmm\\r\n.endr\n"                                                                        \
        "dec %0\njnz 1b\n"                                                                                            \
        : "+r"(n)                                                                                                     \
        : "r"(a), "r"(b)                                                                                              \
        : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",     \
          "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", \
          "xmm30", "xmm31");                                                                                          \
  }
BENCH_PEAK_LOOP(loop_fma512, "avx512f", "vfmadd231ps")
BENCH_PEAK_LOOP(loop_bf16, "avx512f,avx512bf16", "vdpbf16ps")
BENCH_PEAK_LOOP(loop_int8, "avx512f,avx512vnni", "vpdpbusd")
#undef BENCH_PEAK_LOOP

__attribute__((target("avx2,fma"), noinline)) void loop_fma256(long n, uint32_t a, uint32_t b) {
  asm volatile(
      "vmovd %1, %%xmm14\nvpbroadcastd %%xmm14, %%ymm14\nvmovd %2, %%xmm15\nvpbroadcastd %%xmm15, %%ymm15\n"
      ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\nvpxor %%ymm\\r, %%ymm\\r, %%ymm\\r\n.endr\n"
      "1:\n.rept 2\n.irp r,0,1,2,3,4,5,6,7,8,9,10,11\nvfmadd231ps %%ymm14, %%ymm15, %%ymm\\r\n.endr\n.endr\n"
      "dec %0\njnz 1b\nvzeroupper\n"
      : "+r"(n)
      : "r"(a), "r"(b)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14",
        "xmm15");
}

// Bytes without VPDPBUSD: products in pairs, pairs added, added to the sum.
void loop_bytes256(long n, uint32_t a, uint32_t b) {
  asm volatile(
      "vmovd %1, %%xmm14\nvpbroadcastd %%xmm14, %%ymm14\nvmovd %2, %%xmm15\nvpbroadcastd %%xmm15, %%ymm15\n"
      "vpcmpeqw %%ymm13, %%ymm13, %%ymm13\nvpabsw %%ymm13, %%ymm13\n"
      ".irp r,0,1,2,3,4,5,6,7\nvpxor %%ymm\\r, %%ymm\\r, %%ymm\\r\n.endr\n"
      "1:\n.rept 3\n.irp r,0,1,2,3,4,5,6,7\nvpmaddubsw %%ymm14, %%ymm15, %%ymm12\nvpmaddwd %%ymm12, %%ymm13, %%ymm12\n"
      "vpaddd %%ymm12, %%ymm\\r, %%ymm\\r\n.endr\n.endr\n"
      "dec %0\njnz 1b\nvzeroupper\n"
      : "+r"(n)
      : "r"(a), "r"(b)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm12", "xmm13", "xmm14", "xmm15");
}

constexpr size_t kStreams = 4, kReadBytes = 256 << 20;
volatile int sink;

using Vector = uint64_t __attribute__((vector_size(64)));

__attribute__((target_clones("avx512f", "avx2", "default"), noinline)) void read_streams(const char* p, size_t bytes) {
  const size_t part = bytes / kStreams / 256 * 256;
  Vector s0{}, s1{}, s2{}, s3{};
  for (size_t i = 0; i < part; i += 256)
    for (size_t s = 0; s < kStreams; ++s) {
      const auto* q = reinterpret_cast<const Vector*>(p + s * part + i);
      s0 ^= q[0], s1 ^= q[1], s2 ^= q[2], s3 ^= q[3];
    }
  s0 ^= s1 ^ s2 ^ s3;
  uint64_t all = 0;
  for (int i = 0; i < 8; ++i) all ^= s0[i];
  sink = static_cast<int>(all);
}

bool avx512() { return __builtin_cpu_supports("avx512f") != 0; }

}  // namespace

bool has_dot(Peak peak) {
  return avx512() &&
         (peak == Peak::kBf16 ? __builtin_cpu_supports("avx512bf16") != 0 : __builtin_cpu_supports("avx512vnni") != 0);
}

double ping_pong_ns() {
  constexpr uint64_t kRounds = 50000;
  const auto shared = std::make_unique<Shared>();
  const double wall = parallel(2, [&](int side) {
    for (uint64_t i = 1; i <= kRounds; ++i)
      if (side == 0) {
        for (uint64_t& w : shared->descriptor.words) __atomic_store_n(&w, i, __ATOMIC_RELAXED);
        shared->there.store(i, std::memory_order_release);
        wait_for(shared->back, i);
      } else {
        wait_for(shared->there, i);
        uint64_t sum = 0;
        for (const uint64_t& w : shared->descriptor.words) sum += __atomic_load_n(&w, __ATOMIC_RELAXED);
        if (sum != 8 * i) throw std::logic_error("the descriptor is torn");
        shared->back.store(i, std::memory_order_release);
      }
  });
  return wall * 1e9 / kRounds;
}

double ring_write_ns() {
  constexpr uint64_t kEntries = 1024, kWrites = 500000;
  struct Ring {
    alignas(128) std::atomic<uint64_t> written{0};
    alignas(128) std::atomic<uint64_t> read{0};
    alignas(128) uint64_t entries[kEntries][8]{};
  };
  const auto ring = std::make_unique<Ring>();
  const double wall = parallel(2, [&](int side) {
    if (side == 0) {
      uint64_t read = 0;
      for (uint64_t i = 0; i < kWrites; ++i) {
        while (i - read >= kEntries) read = ring->read.load(std::memory_order_acquire);
        for (uint64_t& w : ring->entries[i % kEntries]) __atomic_store_n(&w, i, __ATOMIC_RELAXED);
        ring->written.store(i + 1, std::memory_order_release);
      }
      wait_for(ring->read, kWrites);
      return;
    }
    uint64_t sum = 0;
    for (uint64_t i = 0; i < kWrites;) {
      const uint64_t written = ring->written.load(std::memory_order_acquire);
      for (; i < written; ++i)
        for (const uint64_t& w : ring->entries[i % kEntries]) sum += __atomic_load_n(&w, __ATOMIC_RELAXED);
      ring->read.store(i, std::memory_order_release);
    }
    sink = static_cast<int>(sum);
  });
  return wall * 1e9 / kWrites;
}

const char* peak_name(Peak peak) {
  switch (peak) {
    case Peak::kFma:
      return "FMA peak";
    case Peak::kBf16:
      return has_dot(peak) ? "VDPBF16PS peak" : "FMA peak";
    case Peak::kInt8:
      return has_dot(peak) ? "VPDPBUSD peak" : "VPMADDUBSW peak";
  }
  return "";
}

bool has_peak() { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0; }

double peak_gops(Peak peak, int threads) {
  constexpr long kRounds = 500000;
  const bool wide = avx512();
  const double wall = parallel(threads, [&](int) {
    if (peak == Peak::kBf16 && has_dot(peak))
      loop_bf16(kRounds, 0x3f7f3f7f, 0x3a803a80);
    else if (peak == Peak::kInt8)
      (has_dot(peak) ? loop_int8 : loop_bytes256)(kRounds, 0x03030303, 0x02020202);
    else
      (wide ? loop_fma512 : loop_fma256)(kRounds, 0x3f7fffff, 0x3a800000);
  });
  const double ops = peak == Peak::kInt8                    ? (has_dot(peak) ? 128 : 64)
                     : peak == Peak::kBf16 && has_dot(peak) ? 64
                     : wide                                 ? 32
                                                            : 16;
  return threads * 24.0 * kRounds * ops / wall * 1e-9;
}

Pages::Pages(size_t bytes) : size_(bytes) {
  constexpr size_t kHuge = 2 << 20;
  void* p = std::aligned_alloc(kHuge, (bytes + kHuge - 1) / kHuge * kHuge);
  if (p == nullptr) throw std::bad_alloc();
  (void)madvise(p, bytes, MADV_HUGEPAGE);
  data_ = static_cast<char*>(p);
  std::memset(data_, 1, bytes);
}
Pages::~Pages() { std::free(data_); }

double stream_read_gbs(int threads) {
  static const Pages pages(kReadBytes);
  const size_t share = kReadBytes / static_cast<size_t>(threads) / 4096 * 4096;
  return static_cast<double>(share) * threads * 1e-9 /
         parallel(threads, [&](int t) { read_streams(pages.data() + static_cast<size_t>(t) * share, share); });
}

double memcpy_gbs(const Pages& pages) {
  const size_t half = pages.size() / 2;
  return static_cast<double>(half) * 1e-9 / seconds([&] { std::memcpy(pages.data() + half, pages.data(), half); });
}

std::vector<Case> limit_cases(const Options& options) {
  std::vector<Case> out;
  auto add = [&](const std::string& id, const std::string& what, const char* unit, Measurement measure) {
    out.push_back({"limit/" + id, what, [id, what, unit, measure](const Options& o) {
                     return Row{"limit/" + id, what, *interleave(o, {measure}).front(), unit};
                   }});
  };
  add("ping_pong", "round trip of two threads over cache lines", "ns", ping_pong_ns);
  add("ring_write", "64-byte entry and index into a ring that is read", "ns", ring_write_ns);
  add("memcpy", "memcpy of 64 MiB", "GB/s", [pages = std::shared_ptr<Pages>()]() mutable {
    if (!pages) pages = std::make_shared<Pages>(128 << 20);
    return memcpy_gbs(*pages);
  });
  for (int t : options.threads)
    add("stream_read/t" + std::to_string(t), "streaming read of 256 MiB", "GB/s", [t] { return stream_read_gbs(t); });
  for (const auto& [peak, id] : {std::pair{Peak::kFma, "fma"}, {Peak::kBf16, "bf16"}, {Peak::kInt8, "int8"}})
    for (int t : options.threads)
      if (has_peak())
        add(std::string(id) + "/t" + std::to_string(t), peak_name(peak), "Gop/s",
            [p = peak, t] { return peak_gops(p, t); });
  return out;
}

}  // namespace bench
