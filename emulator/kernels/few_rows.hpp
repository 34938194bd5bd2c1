// A few rows of A by B as [k, n], f32, bf16, f16 or q8_0, where it lies: columns of C in vectors that stay in registers
// over all of k. The second half of an attention step. Every sum adds up in the order of k and begins with what C
// holds; where both are bf16, on AVX-512, in the order of pairs of k, and C comes last. Rows of a cache are far from
// each other, so that no prefetcher follows: the rows that come are asked for. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"
#include "kernels/packed.hpp"

namespace jalapeno::emu {
namespace {

// kFloats numbers as floats. By hand, because GCC 12 converts vectors of small integers by way of the stack.
inline Floats floats_of_bytes(const std::byte* p) {
#if defined(__AVX512F__)
  return static_cast<Floats>(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif defined(__AVX2__)
  return static_cast<Floats>(
      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
  Floats v;
  for (uint32_t i = 0; i < kFloats; ++i) v[i] = static_cast<float>(static_cast<int8_t>(p[i]));
  return v;
#endif
}
inline Floats floats_of_bf16(const std::byte* p) {
#if defined(__AVX512F__)
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return static_cast<Floats>(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
#elif defined(__AVX2__)
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return static_cast<Floats>(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)));
#else
  Floats v;
  for (uint32_t i = 0; i < kFloats; ++i) v[i] = from_bf16(read16(p + size_t{i} * 2));
  return v;
#endif
}
inline Floats floats_of_f16(const std::byte* p) {
#if defined(__AVX512F__)
  return static_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return static_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Floats v;
  for (uint32_t i = 0; i < kFloats; ++i) v[i] = half_at(p + size_t{i} * 2);
  return v;
#endif
}

// kFloats columns of a row of B from n on; of q8_0 they lie in one block.
template <DType kType>
inline Floats weights_at(const std::byte* row, uint32_t n) {
  if constexpr (kType == DType::kF32) {
    return floats_at(reinterpret_cast<const float*>(row) + n);
  } else if constexpr (kType == DType::kBF16) {
    return floats_of_bf16(row + size_t{n} * 2);
  } else if constexpr (kType == DType::kF16) {
    return floats_of_f16(row + size_t{n} * 2);
  } else {
    const std::byte* block = row + size_t{n} / 32 * 34;
    return floats_of_bytes(block + 2 + n % 32) * half_at(block);
  }
}
template <DType kType>
inline float weight_at(const std::byte* row, uint32_t n) {
  static_assert(kType != DType::kQ8_0 || 32 % kFloats == 0);  // whole blocks are whole vectors: none is left over
  if (kType == DType::kBF16) return from_bf16(read16(row + size_t{n} * 2));
  if (kType == DType::kF16) return half_at(row + size_t{n} * 2);
  return reinterpret_cast<const float*>(row)[n];
}

// Asks for columns n.. of a row of B that is read later.
template <DType kType>
inline void rows_ahead(const std::byte* b, size_t pitch, uint32_t n, uint32_t columns) {
  const size_t at = hw::row_bytes(kType, n / 32 * 32), bytes = hw::row_bytes(kType, columns);
  for (size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(b + kRowsAhead * pitch + at + byte, 0, 0);
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
    rows_ahead<kType>(b, x.b_pitch, n, kVectors * kFloats);
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

#if defined(__AVX512BF16__)
// The same in bf16, two rows of B at a time: products of both are one step. Columns n.. of C, so many times 32.
template <int kM, int kVectors>
inline void few_columns_by_pairs(const MultiplyArgs& x, uint32_t m, uint32_t n) {
  const auto word_at = [](const std::byte* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(static_cast<int>(word));
  };
  __m512 sum[kM][kVectors][2] = {};  // of each eight columns the first four, the last four
  const auto pair = [&](const std::byte* b, auto second, auto words) __attribute__((always_inline)) {
    __m512i low[kVectors], high[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512i one = _mm512_loadu_si512(b + size_t{n} * 2 + v * 64), other = second(b, v);
      low[v] = _mm512_unpacklo_epi16(one, other), high[v] = _mm512_unpackhi_epi16(one, other);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i) {
      const __m512i a = words(x.a + x.a_pitch * (m + static_cast<uint32_t>(i)));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[i][v][0] = Bf16Words::step(sum[i][v][0], a, low[v]);
        sum[i][v][1] = Bf16Words::step(sum[i][v][1], a, high[v]);
      }
    }
  };
  const std::byte* b = x.b;
  uint32_t k = 0;
  for (; k + 2 <= x.k; k += 2, b += 2 * x.b_pitch) {
    rows_ahead<DType::kBF16>(b, x.b_pitch, n, kVectors * 32);
    rows_ahead<DType::kBF16>(b + x.b_pitch, x.b_pitch, n, kVectors * 32);
    pair(
        b, [&](const std::byte* p, int v) { return _mm512_loadu_si512(p + x.b_pitch + size_t{n} * 2 + v * 64); },
        [&](const std::byte* a) { return word_at(a + size_t{k} * 2); });
  }
  if (k < x.k)
    pair(
        b, [](const std::byte*, int) { return _mm512_setzero_si512(); },
        [&](const std::byte* a) { return _mm512_set1_epi32(read16(a + size_t{k} * 2)); });
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23),
                last = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 2
      for (uint32_t h = 0; h < 2; ++h)
        put_vector(x, m + static_cast<uint32_t>(i), n + static_cast<uint32_t>(v) * 32 + h * 16,
                   _mm512_permutex2var_ps(sum[i][v][0], h == 0 ? first : last, sum[i][v][1]), 16, x.accumulate);
}
#endif

constexpr int kFewRows = kFloats == 16 ? 4 : 3;  // at a time: as many sums as there are registers for

template <DType kType>
void multiply_few_rows(const MultiplyArgs& x) {
  static thread_local Scratch memory;
#if defined(__AVX512BF16__)
  const bool by_pairs = kType == DType::kBF16 && x.a_type == kType;
#else
  const bool by_pairs = false;
#endif
  const float* a = nullptr;  // where all columns go by pairs
  if (!by_pairs || x.n % 32 != 0) a = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, memory);
  row_blocks<kFewRows>(x.m, [&](auto rows, uint32_t m) {
    uint32_t n = 0;
#if defined(__AVX512BF16__)
    if constexpr (kType == DType::kBF16)
      if (by_pairs) {
        for (; n + 64 <= x.n; n += 64) few_columns_by_pairs<rows, 2>(x, m, n);
        for (; n + 32 <= x.n; n += 32) few_columns_by_pairs<rows, 1>(x, m, n);
      }
#endif
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
