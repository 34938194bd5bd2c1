// The emulator's inner loops, compiled once per host instruction set and chosen at run time.
// Owns arithmetic on rows and blocks; knows no tiles, no instructions, no time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <jalapeno_hw/isa.hpp>
#include <jalapeno_hw/packets.hpp>

namespace jalapeno::emu {

struct MultiplyArgs {
  const std::byte *a, *b;            // A is [m, k]; B is [n, k], or [k, n] when rows_are_k
  float* c;                          // [m, n], int32 when both types are i8
  size_t a_pitch, b_pitch, c_pitch;  // bytes
  uint32_t m, n, k;                  // each at least 1
  hw::DType a_type, b_type;
  bool rows_are_k, accumulate;  // up to three rows, B as [n, k]: added to C once, when their sums are complete
};

// out[i] = op over the ranks' element i, to every destination; a destination may be a source.
struct CombineArgs {
  const std::byte* const* sources;  // by rank
  uint32_t ranks;
  std::byte* const* destinations;
  uint32_t destination_count;
  size_t count;
  hw::FabricType type,
      result;  // of the sources and of the destinations; one of them is the other's wide type, or both are equal
  hw::FabricOp op;
  uint32_t divisor;  // 1: none
  bool around_caches;
};

struct HostKernels {
  const char* name;
  void (*load)(hw::DType, const std::byte* source, uint32_t n, float* out);
  void (*store)(hw::DType, const float* source, uint32_t n, std::byte* out);
  void (*multiply)(const MultiplyArgs&);
  void (*unary)(hw::UnaryOp, const float* a, float* out, uint32_t n);
  void (*binary)(hw::BinaryOp, const float* a, const float* b, float* out, uint32_t n);
  void (*binary_scalar)(hw::BinaryOp, const float* a, float b, bool reverse, float* out, uint32_t n);
  float (*reduce)(hw::ReduceOp, const float* a, uint32_t n);  // not kArgMax
  // out = exp(a * scale - peak), returns the sum
  float (*exp_shifted)(const float* a, float scale, float peak, float* out, uint32_t n);
  void (*scale_by_row)(const float* a, float factor, const float* weight, float* out, uint32_t n);
  void (*combine)(const CombineArgs&);
  // Of what is not read again soon. They do not overlap.
  void (*copy_around_caches)(const std::byte* from, size_t bytes, std::byte* to);
};

// The best table for this host, or the one JAL_EMU_ISA names (portable, avx2, avx512); throws on an unknown name.
const HostKernels& host_kernels();
const HostKernels* host_kernels_named(const char* name);  // nullptr: unknown, or not for this host

extern const HostKernels kPortableKernels;
extern const HostKernels kAvx2Kernels;
extern const HostKernels kAvx512Kernels;

// Those of a chip. timed: with the host's time in them counted, in all threads together.
const HostKernels& kernels_for(bool precise, bool timed);
struct HostTime {
  uint64_t launches, launches_ns, calls, calls_ns;
  double timer_ns;  // what counting one call costs beside what it counts
};
HostTime host_time();
void count_launch(uint64_t ns);

}  // namespace jalapeno::emu
