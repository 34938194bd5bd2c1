// A few rows of A by B as [k, n], f32, bf16 or q8_0, where it lies: columns of C in vectors that stay in registers over
// all of k. The second half of an attention step. Every sum adds up in the order of k. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

namespace jalapeno::emu {
namespace {

typedef uint32_t Words32 __attribute__((vector_size(kFloats * 4)));
typedef uint16_t Words16 __attribute__((vector_size(kFloats * 2)));
typedef int8_t Bytes __attribute__((vector_size(kFloats)));

// kFloats columns of a row of B from n on; of q8_0 they lie in one block.
template <DType kType>
inline Floats weights_at(const std::byte* row, uint32_t n) {
  if constexpr (kType == DType::kF32) {
    return floats_at(reinterpret_cast<const float*>(row) + n);
  } else if constexpr (kType == DType::kBF16) {
    Words16 h;
    std::memcpy(&h, row + size_t{n} * 2, sizeof h);
    return same_bits<Floats>(__builtin_convertvector(h, Words32) << 16);
  } else {
    const std::byte* block = row + size_t{n} / 32 * 34;
    Bytes q;
    std::memcpy(&q, block + 2 + n % 32, sizeof q);
    return __builtin_convertvector(q, Floats) * half_at(block);
  }
}
template <DType kType>
inline float weight_at(const std::byte* row, uint32_t n) {
  static_assert(kType != DType::kQ8_0 || 32 % kFloats == 0);  // whole blocks are whole vectors: none is left over
  return kType == DType::kBF16 ? from_bf16(read16(row + size_t{n} * 2)) : reinterpret_cast<const float*>(row)[n];
}

// Columns n.. of C: kM rows of so many vectors. They start from what C holds, or from nothing.
template <DType kType, int kM, int kVectors>
inline void few_columns(const MultiplyArgs& x, const float* a, uint32_t m, uint32_t n) {
  Floats sum[kM][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] =
          x.accumulate
              ? floats_at(row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + n + static_cast<uint32_t>(v) * kFloats)
              : Floats{};
  const std::byte* b = x.b;
  for (uint32_t k = 0; k < x.k; ++k, b += x.b_pitch) {
    Floats weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = weights_at<kType>(b, n + static_cast<uint32_t>(v) * kFloats);
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

template <DType kType>
void multiply_few_rows(const MultiplyArgs& x) {
  static thread_local Scratch memory;
  const float* a = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, memory);
  row_blocks<3>(x.m, [&](auto rows, uint32_t m) {
    uint32_t n = 0;
    for (; n + 4 * kFloats <= x.n; n += 4 * kFloats) few_columns<kType, rows, 4>(x, a, m, n);
    for (; n + kFloats <= x.n; n += kFloats) few_columns<kType, rows, 1>(x, a, m, n);
    for (; n < x.n; ++n)
      for (uint32_t i = m; i < m + rows; ++i) {
        float& c = row(x.c, x.c_pitch, i)[n];
        float sum = x.accumulate ? c : 0;
        for (uint32_t k = 0; k < x.k; ++k) sum += a[size_t{i} * x.k + k] * weight_at<kType>(x.b + x.b_pitch * k, n);
        c = sum;
      }
  });
}

}  // namespace
}  // namespace jalapeno::emu
