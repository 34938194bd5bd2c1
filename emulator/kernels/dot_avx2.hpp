// A few rows of A by rows of B, [n, k], as inner products on AVX2: weights come straight from memory and become f32 in
// registers. Included by multiply.cpp only.
#pragma once
#include <limits>

#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"
#include "kernels/packed_avx2.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace jalapeno::emu {
namespace {

// How a row of weights becomes f32: kElements from k on, in vectors that take(vector, first, second) is given two at a
// time. Lanes hold what is cheapest to bring there: element(i) is whose place i is. kFactor: what all values are too
// small by. none(): a row has had a value that is no number where vectors() gave one.
struct PlainRows {
  static constexpr uint32_t kElements = 16;
  static constexpr float kFactor = 1;
  static constexpr uint32_t element(uint32_t i) { return i; }
  bool none() const { return false; }
};
struct F32Rows : PlainRows {
  static constexpr size_t kBytes = 4;
  template <class Take>
  void vectors(const std::byte* row, uint32_t k, Take take) {
    const auto* p = reinterpret_cast<const float*>(row) + k;
    take(0, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
  }
};
struct Bf16Rows : PlainRows {  // but a word of two is two f32 without moving lanes, even ones, then the others
  static constexpr size_t kBytes = 2;
  static constexpr uint32_t element(uint32_t i) { return i % 8 * 2 + i / 8; }
  template <class Take>
  void vectors(const std::byte* row, uint32_t k, Take take) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + size_t{k} * 2));
    take(0, _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
         _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xFFFF0000)))));
  }
};
struct F16Rows : PlainRows {
  static constexpr size_t kBytes = 2;
  template <class Take>
  void vectors(const std::byte* row, uint32_t k, Take take) {
    const auto* p = reinterpret_cast<const __m128i*>(row + size_t{k} * 2);
    take(0, _mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p + 1)));
  }
};

// A word of two codes is two f16, of e4m3 with too small an exponent: odd ones, then even ones. In e4m3 the code that
// is no number becomes one: rows that have it are told apart.
template <class Fp>
class Fp8Codes {
 public:
  static constexpr uint32_t kElements = 32;
  static constexpr size_t kBytes = 1;
  static constexpr float kFactor = Fp8Halves<Fp>::kFactor;
  static constexpr uint32_t element(uint32_t i) { return i % 16 * 2 + (i < 16 ? 1 : 0); }
  template <class Take>
  void vectors(const std::byte* p, Take take) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (kE4M3) {
      const __m256i all = _mm256_set1_epi8(0x7F);
      none_ = _mm256_or_si256(none_, _mm256_cmpeq_epi8(_mm256_and_si256(codes, all), all));
    }
    pair(0, halves(codes), take);
    pair(2, halves(_mm256_slli_epi16(codes, 8)), take);
  }
  bool none() const { return _mm256_movemask_epi8(none_) != 0; }

 private:
  static constexpr bool kE4M3 = Fp8Halves<Fp>::kE4M3;
  static __m256i halves(__m256i codes) {  // of the upper bytes
    if constexpr (!kE4M3) return _mm256_and_si256(codes, _mm256_set1_epi16(static_cast<int16_t>(0xFF00)));
    return _mm256_and_si256(_mm256_srai_epi16(codes, 1), _mm256_set1_epi16(static_cast<int16_t>(0xBF80)));
  }
  template <class Take>
  static void pair(int vector, __m256i halves, Take take) {
    take(vector, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
  }
  __m256i none_ = _mm256_setzero_si256();
};
template <class Fp>
struct Fp8Rows : Fp8Codes<Fp> {
  template <class Take>
  void vectors(const std::byte* row, uint32_t k, Take take) {
    Fp8Codes<Fp>::vectors(row + k, take);
  }
};
struct MxFp8Rows : Fp8Codes<E4M3> {  // rows are whole blocks
  template <class Take>
  void vectors(const std::byte* row, uint32_t k, Take take) {
    const std::byte* block = row + size_t{k} / 32 * 33;
    const __m256 scale = _mm256_broadcast_ss(&kE8m0[static_cast<uint8_t>(*block)]);
    Fp8Codes<E4M3>::vectors(
        block + 1, [&](int vector, __m256 first, __m256 second) __attribute__((always_inline)) {
          take(vector, _mm256_mul_ps(first, scale), _mm256_mul_ps(second, scale));
        });
  }
};

// Rows m.. of A, f32 in the order of Rows, by rows n, n + apart, .. of B.
template <class Rows, int kM, int kN>
inline void dot_rows(const MultiplyArgs& x, const float* a, size_t a_pitch, uint32_t m, uint32_t n, uint32_t apart) {
  const std::byte* b = x.b + x.b_pitch * n;
  const size_t stride = x.b_pitch * apart;
  Rows rows[kN];
  __m256 sum[kM][kN];
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) sum[i][j] = _mm256_setzero_ps();
  const uint32_t whole = x.k / Rows::kElements * Rows::kElements;
  for (uint32_t k = 0; k < whole; k += Rows::kElements) {
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) {
      const std::byte* p = b + stride * static_cast<size_t>(j);
      stream_ahead(p + k * Rows::kBytes);
      rows[j].vectors(
          p, k, [&](int vector, __m256 first, __m256 second) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int i = 0; i < kM; ++i) {
              const float* av = a + a_pitch * (m + static_cast<uint32_t>(i)) + k + vector * 8;
              sum[i][j] = _mm256_fmadd_ps(_mm256_loadu_ps(av), first, sum[i][j]);
              sum[i][j] = _mm256_fmadd_ps(_mm256_loadu_ps(av + 8), second, sum[i][j]);
            }
          });
    }
  }
  float rest[kN][Rows::kElements];
  for (int j = 0; j < kN; ++j) {
    const std::byte* p = b + stride * static_cast<size_t>(j) + hw::row_bytes(x.b_type, whole);
    if (whole < x.k) load(x.b_type, p, x.k - whole, rest[j]);
    for (int i = 0; i < kM; ++i) {
      float s = rows[j].none() ? std::numeric_limits<float>::quiet_NaN() : horizontal(sum[i][j]) * Rows::kFactor;
      for (uint32_t k = whole; k < x.k; ++k) s += a[a_pitch * (m + static_cast<uint32_t>(i)) + k] * rest[j][k - whole];
      put(x, m + static_cast<uint32_t>(i), n + static_cast<uint32_t>(j) * apart, s);
    }
  }
}

template <class Rows>
void multiply_dot(const MultiplyArgs& x) {
  constexpr uint32_t kElements = Rows::kElements;
  constexpr bool kInOrder = Rows::element(1) == 1;
  static thread_local Scratch memory;
  const float* a = reinterpret_cast<const float*>(x.a);
  size_t pitch = x.a_pitch / 4;
  if (!kInOrder || !in_place(x.a_type, x.a, x.a_pitch)) {
    float* wide = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, memory);
    for (uint32_t m = 0; !kInOrder && m < x.m; ++m)
      for (uint32_t k = 0; k + kElements <= x.k; k += kElements) {
        float *out = wide + size_t{m} * x.k + k, plain[kElements];
        std::memcpy(plain, out, sizeof plain);
        for (uint32_t i = 0; i < kElements; ++i) out[i] = plain[Rows::element(i)];
      }
    a = wide, pitch = x.k;
  }
  const auto multiply = [&]<int kM, int kN>() {
    far_columns<kN>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
      row_blocks<kM>(x.m, [&](auto rows, uint32_t m) { dot_rows<Rows, rows, some>(x, a, pitch, m, n, apart); });
    });
  };
  // Rows of A meet more columns of what is read at once; codes, which take long to become f32, more rows.
  if (Rows::kBytes == 1 && x.m > 3)
    multiply.template operator()<4, 2>();
  else
    multiply.template operator()<3, 4>();
}

// Calls f with how rows of B are read as they lie. False: they are not.
template <class F>
inline bool with_rows(const MultiplyArgs& x, F f) {
  switch (x.b_type) {
    case DType::kF32:
      return in_place(x.b_type, x.b, x.b_pitch) && (f(F32Rows{}), true);
    case DType::kBF16:
      return f(Bf16Rows{}), true;
    case DType::kF16:
      return f(F16Rows{}), true;
    case DType::kE4M3:
      return f(Fp8Rows<E4M3>{}), true;
    case DType::kE5M2:
      return f(Fp8Rows<E5M2>{}), true;
    case DType::kMXFP8:
      return f(MxFp8Rows{}), true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace jalapeno::emu

#endif
