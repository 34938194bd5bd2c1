#include <atomic>

#include "kernels/kernels.hpp"
#include "words.hpp"

namespace jalapeno::emu {
namespace {

struct Times {
  std::atomic<uint64_t> count{0}, ns{0};
};
Times launches, calls;

struct Timer {
  Times& times = calls;
  uint64_t begin = host_now_ns();
  ~Timer() {
    times.count.fetch_add(1, std::memory_order_relaxed);
    times.ns.fetch_add(host_now_ns() - begin, std::memory_order_relaxed);
  }
};

// What a timer costs beside what it counts.
double timer_ns() {
  constexpr int kTimes = 10000;
  Times nothing;
  const uint64_t begin = host_now_ns();
  for (int i = 0; i < kTimes; ++i) const Timer timer{nothing};
  return static_cast<double>(host_now_ns() - begin - nothing.ns.load()) / kTimes;
}

template <const HostKernels& kKernels, auto kMember>
struct Timed;
template <const HostKernels& kKernels, class R, class... A, R (*HostKernels::*kMember)(A...)>
struct Timed<kKernels, kMember> {
  static R call(A... arguments) {
    const Timer timer;
    return (kKernels.*kMember)(arguments...);
  }
};

template <const HostKernels& kKernels>
const HostKernels& table() {
  using K = HostKernels;
  static const HostKernels all = {kKernels.name,
                                  Timed<kKernels, &K::load>::call,
                                  Timed<kKernels, &K::store>::call,
                                  Timed<kKernels, &K::multiply>::call,
                                  Timed<kKernels, &K::unary>::call,
                                  Timed<kKernels, &K::binary>::call,
                                  Timed<kKernels, &K::binary_scalar>::call,
                                  Timed<kKernels, &K::reduce>::call,
                                  Timed<kKernels, &K::exp_shifted>::call,
                                  Timed<kKernels, &K::scale_by_row>::call,
                                  Timed<kKernels, &K::combine>::call,
                                  Timed<kKernels, &K::copy_around_caches>::call};
  return all;
}

}  // namespace

const HostKernels& kernels_for(bool precise, bool timed) {
  const HostKernels& kernels = precise ? kPortableKernels : host_kernels();
  if (!timed) return kernels;
#if defined(__x86_64__)
  if (&kernels == &kAvx512Kernels) return table<kAvx512Kernels>();
  if (&kernels == &kAvx2Kernels) return table<kAvx2Kernels>();
#endif
  return table<kPortableKernels>();
}

HostTime host_time() {
  return {launches.count.load(), launches.ns.load(), calls.count.load(), calls.ns.load(), timer_ns()};
}

void count_launch(uint64_t ns) {
  launches.count.fetch_add(1, std::memory_order_relaxed);
  launches.ns.fetch_add(ns, std::memory_order_relaxed);
}

}  // namespace jalapeno::emu
