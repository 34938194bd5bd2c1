// A few rows of A by B as [k, n], f32 or bf16, where it lies: columns of C in vectors that stay in registers over all
// of k. The second half of an attention step. Every sum adds up in the order of k. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

namespace jalapeno::emu {
namespace {

#if defined(__AVX512F__)
constexpr uint32_t kFloats = 16;
#elif defined(__AVX2__)
constexpr uint32_t kFloats = 8;
#else
constexpr uint32_t kFloats = 4;
#endif
typedef float Floats __attribute__((vector_size(kFloats * 4)));
typedef uint32_t Words32 __attribute__((vector_size(kFloats * 4)));
typedef uint16_t Words16 __attribute__((vector_size(kFloats * 2)));

inline Floats floats_at(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <bool kHalf>
inline Floats weights_at(const std::byte* p) {
  if constexpr (!kHalf) return floats_at(reinterpret_cast<const float*>(p));
  Words16 h;
  std::memcpy(&h, p, sizeof h);
  return same_bits<Floats>(__builtin_convertvector(h, Words32) << 16);
}

// Columns n.. of C: kM rows of so many vectors. They start from what C holds, or from nothing.
template <bool kHalf, int kM, int kVectors>
inline void few_columns(const MultiplyArgs& x, const float* a, uint32_t m, uint32_t n) {
  constexpr size_t kBytes = kHalf ? 2 : 4;
  Floats sum[kM][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] =
          x.accumulate
              ? floats_at(row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + n + static_cast<uint32_t>(v) * kFloats)
              : Floats{};
  const std::byte* b = x.b + n * kBytes;
  for (uint32_t k = 0; k < x.k; ++k, b += x.b_pitch) {
    Floats weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = weights_at<kHalf>(b + static_cast<size_t>(v) * kFloats * kBytes);
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i) {
      const float factor = a[size_t{m + static_cast<uint32_t>(i)} * x.k + k];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] += factor * weights[v];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      std::memcpy(row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + n + static_cast<uint32_t>(v) * kFloats,
                  &sum[i][v], sizeof(Floats));
}

template <bool kHalf>
void multiply_few_rows(const MultiplyArgs& x) {
  static thread_local Scratch memory;
  const float* a = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, memory);
  row_blocks<3>(x.m, [&](auto rows, uint32_t m) {
    uint32_t n = 0;
    for (; n + 4 * kFloats <= x.n; n += 4 * kFloats) few_columns<kHalf, rows, 4>(x, a, m, n);
    for (; n + kFloats <= x.n; n += kFloats) few_columns<kHalf, rows, 1>(x, a, m, n);
    for (; n < x.n; ++n)
      for (uint32_t i = m; i < m + rows; ++i) {
        float& c = row(x.c, x.c_pitch, i)[n];
        float sum = x.accumulate ? c : 0;
        for (uint32_t k = 0; k < x.k; ++k) {
          const std::byte* p = x.b + x.b_pitch * k;
          sum += a[size_t{i} * x.k + k] *
                 (kHalf ? from_bf16(read16(p + size_t{n} * 2)) : reinterpret_cast<const float*>(p)[n]);
        }
        c = sum;
      }
  });
}

}  // namespace
}  // namespace jalapeno::emu
