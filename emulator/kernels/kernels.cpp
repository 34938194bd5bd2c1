// Compiled three times with different -m flags; JAL_KERNELS names the table. Everything else has
// internal linkage, so that no function built for a newer CPU can be picked by the linker for an older one.
#include "kernels/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jalapeno::emu {
namespace {

using hw::DType;

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

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

inline uint16_t read16(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

void load(DType type, const std::byte* source, uint32_t n, float* out) {
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
  }
}

void store(DType type, const float* source, uint32_t n, std::byte* out) {
  switch (type) {
    case DType::kF32:
      std::memcpy(out, source, size_t{n} * 4);
      return;
    case DType::kBF16: {
      auto* o = reinterpret_cast<uint16_t*>(out);
      for (uint32_t i = 0; i < n; ++i) o[i] = to_bf16(source[i]);
      return;
    }
    case DType::kF16: {
      auto* o = reinterpret_cast<uint16_t*>(out);
      uint32_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(o + i), _mm256_cvtps_ph(_mm256_loadu_ps(source + i), 0));
#endif
      for (; i < n; ++i) o[i] = to_f16(source[i]);
      return;
    }
    case DType::kI8: {
      auto* o = reinterpret_cast<int8_t*>(out);
      for (uint32_t i = 0; i < n; ++i) o[i] = static_cast<int8_t>(std::lrintf(std::clamp(source[i], -128.f, 127.f)));
      return;
    }
    case DType::kI32: {
      auto* o = reinterpret_cast<int32_t*>(out);
      for (uint32_t i = 0; i < n; ++i)
        o[i] =
            static_cast<int32_t>(std::lrint(std::clamp(static_cast<double>(source[i]), -2147483648.0, 2147483647.0)));
      return;
    }
    case DType::kQ8_0:
      for (uint32_t block = 0; block < n / 32; ++block, out += 34) {
        const float* s = source + block * 32;
        float peak = 0;
        for (int i = 0; i < 32; ++i) peak = std::max(peak, std::fabs(s[i]));
        float d = peak / 127, inverse = d > 0 ? 1 / d : 0;
        uint16_t h = to_f16(d);
        std::memcpy(out, &h, 2);
        auto* q = reinterpret_cast<int8_t*>(out + 2);
        for (int i = 0; i < 32; ++i) {
          // Adding and subtracting 1.5 * 2^23 rounds to nearest even, and unlike lrintf it vectorises.
          float r = s[i] * inverse + 12582912.f;
          q[i] = static_cast<int8_t>(float_to_bits(r) - 0x4B400000);
        }
      }
      return;
    case DType::kQ4_0:
      for (uint32_t block = 0; block < n / 32; ++block, out += 18) {
        const float* s = source + block * 32;
        float peak = 0;
        for (int i = 0; i < 32; ++i)
          if (std::fabs(s[i]) > std::fabs(peak)) peak = s[i];
        float d = peak / -8, inverse = d != 0 ? 1 / d : 0;
        uint16_t h = to_f16(d);
        std::memcpy(out, &h, 2);
        auto quantise = [&](float v) { return static_cast<uint8_t>(std::clamp(v * inverse + 8.5f, 0.f, 15.f)); };
        for (int i = 0; i < 16; ++i) out[2 + i] = std::byte(quantise(s[i]) | quantise(s[16 + i]) << 4);
      }
      return;
  }
}

// Sums in sixteen lanes that are added at the end: an order the compiler may vectorise without being allowed to
// reassociate, which would break exp_fast and every other exact trick in this file.
constexpr uint32_t kLanes = 16;
template <class Term>
inline float lane_sum(uint32_t n, Term term) {
  float lanes[kLanes] = {};
  uint32_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (uint32_t k = 0; k < kLanes; ++k) lanes[k] += term(i + k);
  for (uint32_t k = 0; i < n; ++i, ++k) lanes[k] += term(i);
  for (uint32_t width = kLanes / 2; width > 0; width /= 2)
    for (uint32_t k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  return lanes[0];
}
template <class Better>
inline float lane_pick(const float* a, uint32_t n, Better better) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, a[0]);
  uint32_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (uint32_t k = 0; k < kLanes; ++k) lanes[k] = better(a[i + k], lanes[k]) ? a[i + k] : lanes[k];
  for (; i < n; ++i) lanes[0] = better(a[i], lanes[0]) ? a[i] : lanes[0];
  for (uint32_t k = 1; k < kLanes; ++k) lanes[0] = better(lanes[k], lanes[0]) ? lanes[k] : lanes[0];
  return lanes[0];
}

inline float dot(const float* a, const float* b, uint32_t k) {
  return lane_sum(k, [=](uint32_t i) { return a[i] * b[i]; });
}

template <class T>
inline T* row(T* base, size_t pitch, size_t i) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) + pitch * i);
}

// A buffer that grows. No std::vector here: its code would be shared between the instruction sets.
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

// Any types: rows of B become f32 one at a time and meet every row of A.
void multiply_any(const MultiplyArgs& x) {
  static thread_local Scratch wide_memory, row_memory;
  const size_t length = x.rows_are_k ? x.n : x.k;
  float *wide = wide_memory.reserve(size_t{x.m} * x.k), *scratch = row_memory.reserve(length);
  for (uint32_t m = 0; m < x.m; ++m) load(x.a_type, x.a + x.a_pitch * m, x.k, wide + size_t{m} * x.k);
  if (!x.accumulate)
    for (uint32_t m = 0; m < x.m; ++m) std::memset(row(x.c, x.c_pitch, m), 0, size_t{x.n} * 4);
  for (uint32_t i = 0; i < (x.rows_are_k ? x.k : x.n); ++i) {
    const float* b = reinterpret_cast<const float*>(x.b + x.b_pitch * i);
    if (x.b_type != DType::kF32) {
      load(x.b_type, x.b + x.b_pitch * i, static_cast<uint32_t>(length), scratch);
      b = scratch;
    }
    for (uint32_t m = 0; m < x.m; ++m) {
      const float* a = wide + size_t{m} * x.k;
      float* c = row(x.c, x.c_pitch, m);
      if (x.rows_are_k) {
        const float factor = a[i];
        for (uint32_t n = 0; n < x.n; ++n) c[n] += factor * b[n];
      } else {
        c[i] += dot(a, b, x.k);
      }
    }
  }
}

void multiply_i8(const MultiplyArgs& x) {
  for (uint32_t m = 0; m < x.m; ++m) {
    auto* a = reinterpret_cast<const int8_t*>(x.a + x.a_pitch * m);
    auto* c = reinterpret_cast<int32_t*>(row(x.c, x.c_pitch, m));
    for (uint32_t n = 0; n < x.n; ++n) {
      int32_t sum = x.accumulate ? c[n] : 0;
      if (x.rows_are_k) {
        auto* b = reinterpret_cast<const int8_t*>(x.b) + n;
        for (uint32_t k = 0; k < x.k; ++k) sum += a[k] * b[k * x.b_pitch];
      } else {
        auto* b = reinterpret_cast<const int8_t*>(x.b + x.b_pitch * n);
        for (uint32_t k = 0; k < x.k; ++k) sum += a[k] * b[k];
      }
      c[n] = sum;
    }
  }
}

// Blocks of M rows by N rows of B, the sums in registers; Dot gives the inner product of one block.
template <class Block>
void blocked(const MultiplyArgs& x, Block block) {
  uint32_t m = 0;
  auto columns = [&](auto rows) {
    uint32_t n = 0;
    for (; n + 4 <= x.n; n += 4) block(rows, std::integral_constant<int, 4>{}, m, n);
    for (; n < x.n; ++n) block(rows, std::integral_constant<int, 1>{}, m, n);
  };
  for (; m + 4 <= x.m; m += 4) columns(std::integral_constant<int, 4>{});
  for (; m < x.m; ++m) columns(std::integral_constant<int, 1>{});
}

inline void put(const MultiplyArgs& x, uint32_t m, uint32_t n, float sum) {
  float& c = row(x.c, x.c_pitch, m)[n];
  c = x.accumulate ? c + sum : sum;
}

#if defined(__AVX512F__)
void multiply_f32(const MultiplyArgs& x) {
  const uint32_t whole = x.k & ~15u;
  const __mmask16 tail = static_cast<__mmask16>((1u << (x.k & 15)) - 1);
  blocked(x, [&](auto rows, auto cols, uint32_t m, uint32_t n) {
    constexpr int M = rows, N = cols;
    __m512 sum[M][N];
    for (auto& r : sum)
      for (auto& s : r) s = _mm512_setzero_ps();
    auto step = [&](uint32_t k, __mmask16 mask) {
      __m512 b[N];
      for (int j = 0; j < N; ++j) b[j] = _mm512_maskz_loadu_ps(mask, x.b + x.b_pitch * (n + j) + size_t{k} * 4);
      for (int i = 0; i < M; ++i) {
        __m512 a = _mm512_maskz_loadu_ps(mask, x.a + x.a_pitch * (m + i) + size_t{k} * 4);
        for (int j = 0; j < N; ++j) sum[i][j] = _mm512_fmadd_ps(a, b[j], sum[i][j]);
      }
    };
    for (uint32_t k = 0; k < whole; k += 16) step(k, 0xFFFF);
    if (tail) step(whole, tail);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) put(x, m + i, n + j, _mm512_reduce_add_ps(sum[i][j]));
  });
}
#endif

#if defined(__AVX512BF16__)
void multiply_bf16(const MultiplyArgs& x) {
  const uint32_t whole = x.k & ~31u;
  const __mmask32 tail = static_cast<__mmask32>((uint64_t{1} << (x.k & 31)) - 1);
  blocked(x, [&](auto rows, auto cols, uint32_t m, uint32_t n) {
    constexpr int M = rows, N = cols;
    __m512 sum[M][N];
    for (auto& r : sum)
      for (auto& s : r) s = _mm512_setzero_ps();
    auto step = [&](uint32_t k, __mmask32 mask) {
      __m512bh b[N];
      for (int j = 0; j < N; ++j)
        b[j] = (__m512bh)_mm512_maskz_loadu_epi16(mask, x.b + x.b_pitch * (n + j) + size_t{k} * 2);
      for (int i = 0; i < M; ++i) {
        __m512bh a = (__m512bh)_mm512_maskz_loadu_epi16(mask, x.a + x.a_pitch * (m + i) + size_t{k} * 2);
        for (int j = 0; j < N; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], a, b[j]);
      }
    };
    for (uint32_t k = 0; k < whole; k += 32) step(k, ~0u);
    if (tail) step(whole, tail);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) put(x, m + i, n + j, _mm512_reduce_add_ps(sum[i][j]));
  });
}
#endif

#if defined(__AVX2__)
inline float horizontal(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <bool kFourBit>
inline __m256i block_values(const std::byte* p) {
  if constexpr (kFourBit) {
    __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2));
    __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_sub_epi8(_mm256_and_si256(both, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
  } else {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2));
  }
}

inline __m256i dot_bytes(__m256i a_signed, __m256i b_magnitude) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), b_magnitude, a_signed);
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(b_magnitude, a_signed), _mm256_set1_epi16(1));
#endif
}

// Both operands in blocks of 32 with a scale each: integer products inside a block, f32 between blocks.
template <bool kFourBit>
void multiply_blocks(const MultiplyArgs& x) {
  constexpr size_t kBytes = kFourBit ? 18 : 34;
  blocked(x, [&](auto rows, auto cols, uint32_t m, uint32_t n) {
    constexpr int M = rows, N = cols;
    __m256 sum[M][N];
    for (auto& r : sum)
      for (auto& s : r) s = _mm256_setzero_ps();
    for (uint32_t k = 0; k < x.k / 32; ++k) {
      __m256i b[N], magnitude[N];
      float scale[N];
      for (int j = 0; j < N; ++j) {
        const std::byte* p = x.b + x.b_pitch * (n + j) + k * kBytes;
        b[j] = block_values<kFourBit>(p);
        magnitude[j] = _mm256_abs_epi8(b[j]);
        scale[j] = _cvtsh_ss(read16(p));
      }
      for (int i = 0; i < M; ++i) {
        const std::byte* p = x.a + x.a_pitch * (m + i) + size_t{k} * 34;
        __m256i a = block_values<false>(p);
        float factor = _cvtsh_ss(read16(p));
        for (int j = 0; j < N; ++j)
          sum[i][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot_bytes(_mm256_sign_epi8(a, b[j]), magnitude[j])),
                                      _mm256_set1_ps(factor * scale[j]), sum[i][j]);
      }
    }
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) put(x, m + i, n + j, horizontal(sum[i][j]));
  });
}
#endif

void multiply(const MultiplyArgs& x) {
  if (x.a_type == DType::kI8 && x.b_type == DType::kI8) return multiply_i8(x);
#if defined(__AVX512F__)
  if (!x.rows_are_k && x.a_type == DType::kF32 && x.b_type == DType::kF32) return multiply_f32(x);
#endif
#if defined(__AVX512BF16__)
  if (!x.rows_are_k && x.a_type == DType::kBF16 && x.b_type == DType::kBF16) return multiply_bf16(x);
#endif
#if defined(__AVX2__)
  if (!x.rows_are_k && x.a_type == DType::kQ8_0 && x.b_type == DType::kQ8_0) return multiply_blocks<false>(x);
  if (!x.rows_are_k && x.a_type == DType::kQ8_0 && x.b_type == DType::kQ4_0) return multiply_blocks<true>(x);
#endif
  multiply_any(x);
}

// exp within 2 ulp: 2^n * 2^f with f in [-0.5, 0.5], a polynomial for 2^f. No branches, so loops vectorise.
inline float exp_fast(float v) {
  float clamped = std::min(std::max(v, -104.f), 89.f);
  // Through the integer and back: with reassociation allowed, adding and subtracting the constant would cancel.
  int32_t e = static_cast<int32_t>(float_to_bits(clamped * 1.44269504f + 12582912.f) - 0x4B400000);
  float n = static_cast<float>(e);
  float f = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.f;
  int32_t half = e >> 1;  // two steps reach subnormals and 2^128 without overflow of the exponent field
  float r = p * bits_to_float(static_cast<uint32_t>(half + 127) << 23) *
            bits_to_float(static_cast<uint32_t>(e - half + 127) << 23);
  r = v < -104.f ? 0.f : r;
  r = v > 89.f ? std::numeric_limits<float>::infinity() : r;
  return v != v ? v : r;
}

inline float sigmoid(float v) { return 1.f / (1.f + exp_fast(-v)); }
inline float gelu(float v) { return 0.5f * v * (1.f + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v))); }

template <class F>
inline void map(const float* a, float* out, uint32_t n, F f) {
  for (uint32_t i = 0; i < n; ++i) out[i] = f(a[i]);
}

void unary(hw::UnaryOp op, const float* a, float* out, uint32_t n) {
  using U = hw::UnaryOp;
  switch (op) {
    case U::kCopy:
      std::memmove(out, a, size_t{n} * 4);
      return;
    case U::kNeg:
      return map(a, out, n, [](float v) { return -v; });
    case U::kAbs:
      return map(a, out, n, [](float v) { return std::fabs(v); });
    case U::kExp:
      return map(a, out, n, exp_fast);
    case U::kLog:
      return map(a, out, n, [](float v) { return std::log(v); });
    case U::kSqrt:
      return map(a, out, n, [](float v) { return std::sqrt(v); });
    case U::kRsqrt:
      return map(a, out, n, [](float v) { return 1.f / std::sqrt(v); });
    case U::kRcp:
      return map(a, out, n, [](float v) { return 1.f / v; });
    case U::kTanh:
      return map(a, out, n, [](float v) { return std::tanh(v); });
    case U::kSigmoid:
      return map(a, out, n, sigmoid);
    case U::kSilu:
      return map(a, out, n, [](float v) { return v * sigmoid(v); });
    case U::kGelu:
      return map(a, out, n, gelu);
    case U::kRelu:
      return map(a, out, n, [](float v) { return std::max(v, 0.f); });
    case U::kSin:
      return map(a, out, n, [](float v) { return std::sin(v); });
    case U::kCos:
      return map(a, out, n, [](float v) { return std::cos(v); });
    case U::kFloor:
      return map(a, out, n, [](float v) { return std::floor(v); });
  }
}

template <class Get>
inline void binary_with(hw::BinaryOp op, Get get, float* out, uint32_t n) {
  using B = hw::BinaryOp;
  auto each = [&](auto f) {
    for (uint32_t i = 0; i < n; ++i) {
      auto [x, y] = get(i);
      out[i] = f(x, y);
    }
  };
  switch (op) {
    case B::kAdd:
      return each([](float x, float y) { return x + y; });
    case B::kSub:
      return each([](float x, float y) { return x - y; });
    case B::kMul:
      return each([](float x, float y) { return x * y; });
    case B::kDiv:
      return each([](float x, float y) { return x / y; });
    case B::kMin:
      return each([](float x, float y) { return std::min(x, y); });
    case B::kMax:
      return each([](float x, float y) { return std::max(x, y); });
    case B::kLt:
      return each([](float x, float y) { return x < y ? 1.f : 0.f; });
    case B::kLe:
      return each([](float x, float y) { return x <= y ? 1.f : 0.f; });
    case B::kEq:
      return each([](float x, float y) { return x == y ? 1.f : 0.f; });
  }
}
struct Pair {
  float x, y;
};
void binary(hw::BinaryOp op, const float* a, const float* b, float* out, uint32_t n) {
  binary_with(
      op,
      [=](uint32_t i) {
        return Pair{a[i], b[i]};
      },
      out, n);
}
void binary_scalar(hw::BinaryOp op, const float* a, float b, bool reverse, float* out, uint32_t n) {
  if (reverse)
    binary_with(
        op,
        [=](uint32_t i) {
          return Pair{b, a[i]};
        },
        out, n);
  else
    binary_with(
        op,
        [=](uint32_t i) {
          return Pair{a[i], b};
        },
        out, n);
}

float reduce(hw::ReduceOp op, const float* a, uint32_t n) {
  switch (op) {
    case hw::ReduceOp::kSum:
      return lane_sum(n, [=](uint32_t i) { return a[i]; });
    case hw::ReduceOp::kSumSq:
      return lane_sum(n, [=](uint32_t i) { return a[i] * a[i]; });
    case hw::ReduceOp::kMax:
      return lane_pick(a, n, [](float x, float y) { return x > y; });
    case hw::ReduceOp::kMin:
      return lane_pick(a, n, [](float x, float y) { return x < y; });
    case hw::ReduceOp::kArgMax:
      break;
  }
  return 0;
}

float exp_shifted(const float* a, float scale, float peak, float* out, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) out[i] = exp_fast(a[i] * scale - peak);
  return lane_sum(n, [=](uint32_t i) { return out[i]; });
}

void scale_by_row(const float* a, float factor, const float* weight, float* out, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) out[i] = a[i] * factor * weight[i];
}

}  // namespace

const HostKernels JAL_KERNELS = {JAL_KERNELS_NAME, load,          store,  multiply,    unary,
                                 binary,           binary_scalar, reduce, exp_shifted, scale_by_row};

}  // namespace jalapeno::emu
