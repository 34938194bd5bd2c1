// Other people's programs for the same work. They are a library of their own that is loaded when a row asks for them,
// so that the program under test starts without them.
#pragma once
#include <cstdint>
#include <memory>

namespace bench {

enum class Type { kF32, kBf16, kInt8 };

// c[m, n] = a[m, k] * w[n, k], on memory of its own.
class PeerMultiply {
 public:
  virtual ~PeerMultiply() = default;
  virtual void run() = 0;  // returns when done
};

class Peers {
 public:
  virtual ~Peers() = default;
  // Null kernels through OpenCL; negative where there is none. Nanoseconds per launch.
  virtual double round_trip_ns(int launches) = 0;
  virtual double in_a_row_ns(int launches) = 0;
  // oneDNN, or OpenBLAS for f32; nullptr where there is none.
  virtual std::unique_ptr<PeerMultiply> multiply(Type type, uint32_t m, uint32_t n, uint32_t k, int threads) = 0;
};

// nullptr when the program was built without JALAPENO_BENCH_PEERS.
Peers* peers();

}  // namespace bench
