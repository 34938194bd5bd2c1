// Number formats, row by row. Included by every file that is compiled once per host instruction set: internal linkage
// throughout, so that no function built for a newer CPU can be picked by the linker for an older one.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <jalapeno_hw/isa.hpp>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jalapeno::emu {
namespace {

using hw::DType;

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float bits_to_float(uint32_t bits) { return same_bits<float>(bits); }
inline uint32_t float_to_bits(float f) { return same_bits<uint32_t>(f); }
inline double bits_to_double(uint64_t bits) { return same_bits<double>(bits); }
inline uint64_t double_to_bits(double d) { return same_bits<uint64_t>(d); }

inline float from_bf16(uint16_t h) { return bits_to_float(uint32_t{h} << 16); }
inline uint16_t to_bf16(float f) {  // round to nearest even; a NaN stays a NaN
  uint32_t bits = float_to_bits(f);
  uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16 | 0x40) : rounded);
}

inline float from_f16(uint16_t h) {
  uint32_t sign = uint32_t{h & 0x8000u} << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3FFu;
  if (exponent == 0) return bits_to_float(sign | float_to_bits(static_cast<float>(mantissa) * 0x1p-24f));
  if (exponent == 31) return bits_to_float(sign | 0x7F800000 | mantissa << 13);
  return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline uint16_t to_f16(float f) {
  uint32_t bits = float_to_bits(f), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7C00);  // 65536 and up: infinity
  if (magnitude < 0x38800000) {  // subnormal: let the FPU round at the right bit
    float shifted = bits_to_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3F000000));
  }
  uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

// The OCP's eight-bit floats: three bits of mantissa (e4m3) or two (e5m2) behind four or five of exponent. In e4m3 all
// codes but the last are finite.
template <uint32_t kMantissa>
struct Fp8 {
  static constexpr uint32_t kBias = (1u << (6 - kMantissa)) - 1, kLargest = kMantissa == 3 ? 0x7E : 0x7B;
  static constexpr uint32_t kShift = 23 - kMantissa, kRebias = (127 - kBias) << 23;
  static constexpr uint32_t kSmallest = (128 - kBias - kMantissa) << 23;  // bits of the smallest subnormal

  static float from(uint8_t code) {
    const uint32_t magnitude = code & 0x7F;
    const uint32_t small = float_to_bits(static_cast<float>(magnitude) * bits_to_float(kSmallest));
    const uint32_t finite = magnitude >> kMantissa == 0 ? small : (magnitude << kShift) + kRebias;
    return bits_to_float(uint32_t{code & 0x80u} << 24 |
                         (magnitude > kLargest ? magnitude << kShift | 0x7F800000 : finite));
  }
  static uint8_t to(float f) {  // round to nearest even and saturate, infinities too; a NaN stays a NaN
    const uint32_t bits = float_to_bits(f), magnitude = bits & 0x7FFFFFFF;
    const uint32_t clamped = std::min(magnitude, (kLargest << kShift) + kRebias);
    // A subnormal is rounded by the FPU: the last bit of the sum is worth the smallest subnormal.
    constexpr uint32_t kUnit = kSmallest + (23u << 23);
    const uint32_t small = float_to_bits(bits_to_float(clamped) + bits_to_float(kUnit)) - kUnit;
    const uint32_t normal = (clamped - kRebias + (1u << (kShift - 1)) - 1 + (clamped >> kShift & 1)) >> kShift;
    const uint32_t finite = clamped < kRebias + (1u << 23) ? small : normal;
    return static_cast<uint8_t>((bits >> 24 & 0x80) | (magnitude > 0x7F800000 ? 0x7F : finite));
  }
};
using E4M3 = Fp8<3>;
using E5M2 = Fp8<2>;

// The OCP's block scales, powers of two. A look costs less than the cases.
constexpr std::array<float, 256> e8m0_values() {
  std::array<float, 256> all{};
  for (uint32_t e = 0; e < 255; ++e) all[e] = std::bit_cast<float>(e > 0 ? e << 23 : 0x400000u);
  all[255] = std::bit_cast<float>(0x7FC00000u);
  return all;
}
constexpr std::array<float, 256> kE8m0 = e8m0_values();
constexpr int8_t kMxFp4Twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#if defined(__AVX2__) && defined(__F16C__)
// Shifted, a code is an f16, of e4m3 with too small an exponent: subnormals come out right.
template <class Fp>
struct Fp8Halves {
  static constexpr bool kE4M3 = std::is_same_v<Fp, E4M3>;
  static constexpr float kFactor = kE4M3 ? 256 : 1;  // what the value is too small by
  static __m128i of(__m128i low_codes) {             // the lowest eight
    const __m128i codes = _mm_cvtepu8_epi16(low_codes), up = _mm_slli_epi16(codes, 8);
    if constexpr (!kE4M3) return up;
    const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7F));
    const __m128i sign = _mm_and_si128(up, _mm_set1_epi16(static_cast<int16_t>(0x8000)));
    const __m128i none = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F)), _mm_set1_epi16(0x7E00));
    return _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), none);
  }
};
#endif

template <class Fp>
inline void load_fp8(const std::byte* source, uint32_t n, float* out) {
  auto* s = reinterpret_cast<const uint8_t*>(source);
  uint32_t i = 0;
#if defined(__AVX2__) && defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(s + i));
    _mm256_storeu_ps(out + i,
                     _mm256_mul_ps(_mm256_cvtph_ps(Fp8Halves<Fp>::of(codes)), _mm256_set1_ps(Fp8Halves<Fp>::kFactor)));
  }
#endif
  for (; i < n; ++i) out[i] = Fp::from(s[i]);
}

inline uint16_t read16(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

inline float half_at(const std::byte* p) {
#if defined(__F16C__)
  return _cvtsh_ss(read16(p));
#else
  return from_f16(read16(p));
#endif
}

[[maybe_unused]] void load(DType type, const std::byte* source, uint32_t n, float* out) {
  switch (type) {
    case DType::kF32:
      std::memcpy(out, source, size_t{n} * 4);
      return;
    case DType::kBF16: {
      auto* s = reinterpret_cast<const uint16_t*>(source);
      for (uint32_t i = 0; i < n; ++i) out[i] = from_bf16(s[i]);
      return;
    }
    case DType::kF16: {
      auto* s = reinterpret_cast<const uint16_t*>(source);
      uint32_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i))));
#endif
      for (; i < n; ++i) out[i] = from_f16(s[i]);
      return;
    }
    case DType::kI8: {
      auto* s = reinterpret_cast<const int8_t*>(source);
      for (uint32_t i = 0; i < n; ++i) out[i] = static_cast<float>(s[i]);
      return;
    }
    case DType::kI32: {
      auto* s = reinterpret_cast<const int32_t*>(source);
      for (uint32_t i = 0; i < n; ++i) out[i] = static_cast<float>(s[i]);
      return;
    }
    case DType::kQ8_0:
      for (uint32_t block = 0; block < n / 32; ++block, source += 34) {
        float d = from_f16(read16(source));
        auto* q = reinterpret_cast<const int8_t*>(source + 2);
        for (int i = 0; i < 32; ++i) out[block * 32 + i] = d * static_cast<float>(q[i]);
      }
      return;
    case DType::kQ4_0:
      for (uint32_t block = 0; block < n / 32; ++block, source += 18) {
        float d = from_f16(read16(source));
        auto* q = reinterpret_cast<const uint8_t*>(source + 2);
        for (int i = 0; i < 16; ++i) {
          out[block * 32 + i] = d * static_cast<float>((q[i] & 15) - 8);
          out[block * 32 + 16 + i] = d * static_cast<float>((q[i] >> 4) - 8);
        }
      }
      return;
    case DType::kMXFP4:
      for (uint32_t block = 0; block < n / 32; ++block, source += 17) {
        const float half = kE8m0[static_cast<uint8_t>(*source)] * 0.5f;
        auto* q = reinterpret_cast<const uint8_t*>(source + 1);
        for (int i = 0; i < 16; ++i) {
          out[block * 32 + i] = half * static_cast<float>(kMxFp4Twice[q[i] & 15]);
          out[block * 32 + 16 + i] = half * static_cast<float>(kMxFp4Twice[q[i] >> 4]);
        }
      }
      return;
    case DType::kMXFP8:
      for (uint32_t block = 0; block < n / 32; ++block, source += 33) {
        const float scale = kE8m0[static_cast<uint8_t>(*source)];
        load_fp8<E4M3>(source + 1, 32, out + block * 32);
        for (int i = 0; i < 32; ++i) out[block * 32 + i] *= scale;
      }
      return;
    case DType::kE4M3:
      return load_fp8<E4M3>(source, n, out);
    case DType::kE5M2:
      return load_fp8<E5M2>(source, n, out);
  }
}

// A vector of the instruction set's.
#if defined(__AVX512F__)
constexpr uint32_t kFloats = 16;
#elif defined(__AVX2__)
constexpr uint32_t kFloats = 8;
#else
constexpr uint32_t kFloats = 4;
#endif
typedef float Floats __attribute__((vector_size(kFloats * 4)));
inline Floats floats_at(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Sums in sixteen lanes that are added at the end: an order that may be vectorised without the compiler being allowed
// to reassociate, which would break exp_fast and every other exact trick in this file. Lanes are vectors, because GCC
// 12 keeps an array of them in memory.
constexpr uint32_t kLanes = 16, kLaneVectors = kLanes / kFloats;
template <class Term>
inline float lane_sum(uint32_t n, Term term) {
  Floats sum[kLaneVectors] = {};
  uint32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    float terms[kLanes];
    for (uint32_t k = 0; k < kLanes; ++k) terms[k] = term(i + k);
#pragma GCC unroll 4
    for (uint32_t v = 0; v < kLaneVectors; ++v) sum[v] += floats_at(terms + v * kFloats);
  }
  float lanes[kLanes];
  std::memcpy(lanes, sum, sizeof lanes);
  for (uint32_t k = 0; i < n; ++i, ++k) lanes[k] += term(i);
  for (uint32_t width = kLanes / 2; width > 0; width /= 2)
    for (uint32_t k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  return lanes[0];
}
template <class T>
inline T* row(T* base, size_t pitch, size_t i) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) + pitch * i);
}

// Calls f(integral_constant rows, first row) for blocks of kMost rows, then one smaller block.
template <int kMost, class F>
inline void row_blocks(uint32_t rows, F f) {
  uint32_t m = 0;
  for (; m + kMost <= rows; m += kMost) f(std::integral_constant<int, kMost>{}, m);
  auto rest = [&]<int kRows>(auto self, std::integral_constant<int, kRows>) {
    if (rows - m == kRows)
      f(std::integral_constant<int, kRows>{}, m);
    else if constexpr (kRows > 1)
      self(self, std::integral_constant<int, kRows - 1>{});
  };
  if (m < rows) rest(rest, std::integral_constant<int, kMost - 1>{});
}

// Calls f(integral_constant some, n, apart) for columns n, n + apart, .. `kN` at a time, as far apart as they can be,
// then for the rest one by one: one stream of reads alone does not use the memory's rate.
template <int kN, class F>
inline void far_columns(uint32_t columns, F f) {
  const uint32_t apart = columns / kN;
  for (uint32_t n = 0; n < apart; ++n) f(std::integral_constant<int, kN>{}, n, apart);
  for (uint32_t n = apart * kN; n < columns; ++n) f(std::integral_constant<int, 1>{}, n, 0u);
}

// Asks for what follows in a stream of weights that are read once: into the first-level cache only, so that programs,
// arguments and activations stay in the others. As far ahead as was best on Zen 3 (decoding 1.07 to 1.26 times as fast)
// and on Zen 5, where 512 bytes are worse than nothing.
#if defined(__AVX512F__)
constexpr size_t kStreamAhead = 1024;
#else
constexpr size_t kStreamAhead = 512;
#endif
constexpr size_t kRowsAhead = 32;  // where of each row only a part is read, or it is short
[[maybe_unused]] inline void stream_ahead(const std::byte* p) { __builtin_prefetch(p + kStreamAhead, 0, 0); }

// A buffer that grows. No std::vector here: its code would be shared between the instruction sets.
// Of a thread, on the heap: what lies in thread-local storage is cleared for every thread of the process.
struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  float* reserve(size_t want) {
    if (size < want) {
      std::free(data);
      data = static_cast<float*>(std::aligned_alloc(64, (want * 4 + 63) / 64 * 64));
      size = want;
    }
    return data;
  }
  ~Scratch() { std::free(data); }
};

// Can rows be read as f32 where they are? A program may lay a tile anywhere.
[[maybe_unused]] inline bool in_place(DType type, const std::byte* p, size_t pitch) {
  return type == DType::kF32 && (reinterpret_cast<uintptr_t>(p) | pitch) % 4 == 0;
}

// Rows of any type as f32, one behind the other.
[[maybe_unused]] inline float* as_floats(DType type, const std::byte* from, size_t pitch, uint32_t rows,
                                         uint32_t columns, Scratch& memory) {
  float* wide = memory.reserve(size_t{rows} * columns);
  for (uint32_t m = 0; m < rows; ++m) load(type, from + pitch * m, columns, wide + size_t{m} * columns);
  return wide;
}

}  // namespace
}  // namespace jalapeno::emu
