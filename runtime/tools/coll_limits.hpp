// What this machine can do at best, for the benchmark of collectives: measured beside each figure.
#pragma once
#include <chrono>
#include <cstddef>

namespace jalapeno::tools {

using Clock = std::chrono::steady_clock;
inline double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

// Keeps this thread, and threads that it starts later, to one of the process's cores, the n-th in turn, as mpirun does
// with a rank. False: the kernel does not let it.
bool bind_to_core(int n);

// Below measure on all cores that the process had before that.

// Round trip of a cache line between two threads, in us: nothing that waits for a peer's word is faster than half of
// it.
double line_exchange_us();
// Bytes a nanosecond that all cores together add from two arrays of this size into a third, named once each.
double memory_rate(size_t bytes, unsigned threads, bool around_caches);

}  // namespace jalapeno::tools
