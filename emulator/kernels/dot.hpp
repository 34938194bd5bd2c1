// A few rows of A by rows of B, [n, k], as inner products on AVX-512: no rearrangement, so that B may come straight
// from memory. Included by multiply.cpp only.
#pragma once
#include "kernels/fp8.hpp"
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"
#include "kernels/packed.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__)

namespace jalapeno::emu {
namespace {

// Of four vectors: what each quarter of them adds up to, quarter by quarter.
inline __m512 quarters(const __m512 (&v)[4]) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
}
// Sums of four vectors at once.
inline __m128 horizontal(const __m512 (&v)[4]) {
  const __m512 s = quarters(v);
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}
// Of sixteen, in the same order, from their quarters.
inline __m512 horizontal_of_quarters(const __m512 (&q)[4]) {
  const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x44), _mm512_shuffle_f32x4(q[0], q[1], 0xEE));
  const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x44), _mm512_shuffle_f32x4(q[2], q[3], 0xEE));
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

// The sums of columns n, n + apart, .. of a row of C: kN of one or of four.
template <int kN>
inline void put_columns(const MultiplyArgs& x, uint32_t m, uint32_t n, uint32_t apart, const __m512 (&sum)[kN]) {
  static_assert(kN == 1 || kN == 4);
  float* c = row(x.c, x.c_pitch, m) + n;
  if constexpr (kN == 4) {
    alignas(16) float four[4];
    _mm_store_ps(four, horizontal(sum));
    for (size_t j = 0; j < kN; ++j) c[j * apart] = x.accumulate ? c[j * apart] + four[j] : four[j];
  } else {
    const float s = _mm512_reduce_add_ps(sum[0]);
    *c = x.accumulate ? *c + s : s;
  }
}

template <class Words>
inline __m512 step_of(__m512 sum, __m512i a, __m512i b) {
  return Words::step(sum, a, b);
}
#if defined(__AVX512BF16__)
template <class Words>
inline __m512 step_of(__m512 sum, __m512i a, const ScaledWords& b) {
  // The products of a block are formed first, so they have to be in the range of f32 without the scale.
  return _mm512_fmadd_ps(Words::step(_mm512_setzero_ps(), a, b.words), b.scale, sum);
}
#endif

// Lanes of the sums of M rows of A by N of B, `stride` bytes from each other. What is read `ahead` is asked for.
template <class Words, int M, int N, class Weights>
inline void dot_sums(const MultiplyArgs& x, const Weights& weights, const std::byte* a, const std::byte* b,
                     size_t stride, size_t ahead, __m512 (&sum)[M][N]) {
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_ps();
  auto vectors = [&](size_t vector, auto load) __attribute__((always_inline)) {
    decltype(load(weights, b)) bv[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const std::byte* p = b + stride * static_cast<size_t>(j) + vector * Weights::kVectorBytes;
      __builtin_prefetch(p + ahead, 0, 0);
      bv[j] = load(weights, p);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const __m512i av = load(Words{}, a + x.a_pitch * static_cast<size_t>(i) + vector * 64);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[i][j] = step_of<Words>(sum[i][j], av, bv[j]);
    }
  };
  constexpr uint32_t kVector = 16 * Words::kPerWord;
  const uint32_t whole = x.k / kVector;
  for (uint32_t v = 0; v < whole; ++v)
    vectors(v, [](const auto& source, const std::byte* p) { return source.words(p, 0xFFFF); });
  if (const uint32_t rest = x.k % kVector; rest != 0)
    vectors(whole, [=](const auto& source, const std::byte* p) { return source.load_some(p, rest); });
}

// Rows m.. of A by rows n, n + apart, .. of B. Not inlined, so that registers are given out for each number of rows.
template <class Words, int M, int N, class Weights>
__attribute__((noinline)) void dot_rows(const MultiplyArgs& x, const Weights& weights, uint32_t m, uint32_t n,
                                        uint32_t apart) {
  __m512 sum[M][N];
  dot_sums<Words>(x, weights, x.a + x.a_pitch * m, x.b + x.b_pitch * n, x.b_pitch * apart, kStreamAhead, sum);
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) put_columns<N>(x, m + static_cast<uint32_t>(i), n, apart, sum[i]);
}

// Rows m.. of A by sixteen rows of B that are so short that adding up lanes costs as much as the products: heads of
// attention. All sixteen do it together.
template <class Words, int M, class Weights>
inline void dot_short_rows(const MultiplyArgs& x, const Weights& weights, uint32_t m, uint32_t n) {
  __m512 quarter[M][4];
  const std::byte *a = x.a + x.a_pitch * m, *b = x.b + x.b_pitch * n;
#pragma GCC unroll 4
  for (size_t q = 0; q < 4; ++q, b += 4 * x.b_pitch) {
    __m512 sum[M][4];
    dot_sums<Words>(x, weights, a, b, x.b_pitch, kRowsAhead * x.b_pitch, sum);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) quarter[i][q] = quarters(sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
    put_vector(x, m + static_cast<uint32_t>(i), n, horizontal_of_quarters(quarter[i]), 16, x.accumulate);
}

// All rows of A meet a few columns while these are in the cache.
template <class Words, class Weights = Words>
void multiply_dot(const MultiplyArgs& all, const Weights& weights = {}) {
  constexpr uint32_t kShort = 8 * 16 * Words::kPerWord;
  MultiplyArgs x = all;
  if (x.k <= kShort) {
    const uint32_t whole = x.n / 16 * 16;
    for (uint32_t n = 0; n < whole; n += 16)
      row_blocks<4>(x.m, [&](auto rows, uint32_t m) { dot_short_rows<Words, rows>(x, weights, m, n); });
    x.b += x.b_pitch * whole, x.c += whole, x.n -= whole;
  }
  far_columns<4>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
    row_blocks<4>(x.m, [&](auto rows, uint32_t m) { dot_rows<Words, rows, some>(x, weights, m, n, apart); });
  });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
