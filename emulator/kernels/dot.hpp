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

// Sums of four vectors at once.
inline __m128 horizontal(__m512 v0, __m512 v1, __m512 v2, __m512 v3) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v0, v1), _mm512_unpackhi_ps(v0, v1));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v2, v3), _mm512_unpackhi_ps(v2, v3));
  const __m512 s = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

// The sums of columns n, n + apart, .. of a row of C: kN of one or of four.
template <int kN>
inline void put_columns(const MultiplyArgs& x, uint32_t m, uint32_t n, uint32_t apart, const __m512 (&sum)[kN]) {
  static_assert(kN == 1 || kN == 4);
  float* c = row(x.c, x.c_pitch, m) + n;
  if constexpr (kN == 4) {
    alignas(16) float four[4];
    _mm_store_ps(four, horizontal(sum[0], sum[1], sum[2], sum[3]));
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

// Rows m.. of A by rows n, n + apart, .. of B.
template <class Words, int M, int N, class Weights>
inline void dot_rows(const MultiplyArgs& x, const Weights& weights, uint32_t m, uint32_t n, uint32_t apart) {
  const std::byte *a = x.a + x.a_pitch * m, *b = x.b + x.b_pitch * n;
  const size_t stride = x.b_pitch * apart;
  __m512 sum[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_ps();
  auto vectors = [&](size_t vector, auto load) __attribute__((always_inline)) {
    decltype(load(weights, b)) bv[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const std::byte* p = b + stride * static_cast<size_t>(j) + vector * Weights::kVectorBytes;
      stream_ahead(p);
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
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) put_columns<N>(x, m + static_cast<uint32_t>(i), n, apart, sum[i]);
}

// All rows of A meet a few columns while these are in the cache.
template <class Words, class Weights = Words>
void multiply_dot(const MultiplyArgs& x, const Weights& weights = {}) {
  far_columns<4>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
    uint32_t m = 0;
    for (; m + 4 <= x.m; m += 4) dot_rows<Words, 4, some>(x, weights, m, n, apart);
    for (; m < x.m; ++m) dot_rows<Words, 1, some>(x, weights, m, n, apart);
  });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
