// Arithmetic on rows. Compiled three times with different -m flags; JAL_KERNELS names the table.
#include "kernels/kernels.hpp"

#include "kernels/functions.hpp"
#include "kernels/numbers.hpp"

namespace jalapeno::emu {

namespace JAL_KERNELS_ISA {
void multiply(const MultiplyArgs&);  // multiply.cpp
void combine(const CombineArgs&);    // combine.cpp
void copy_around_caches(const std::byte* from, size_t bytes, std::byte* to);
}  // namespace JAL_KERNELS_ISA

namespace {

using hw::DType;

template <class Fp>
inline void store_fp8(const float* source, uint32_t n, std::byte* out) {
  auto* o = reinterpret_cast<uint8_t*>(out);
  for (uint32_t i = 0; i < n; ++i) o[i] = Fp::to(source[i]);
}

// The largest magnitude of 32 values, NaNs apart: as the first operand of a maximum they are not taken.
inline float largest(const float* s) {
#if defined(__AVX512F__)
  const __m512 m = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(s)), _mm512_setzero_ps());
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(s + 16)), m));
#elif defined(__AVX2__)
  __m256 m = _mm256_setzero_ps();
  for (int i = 0; i < 32; i += 8) m = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.f), _mm256_loadu_ps(s + i)), m);
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
#else
  float peak = 0;
  for (int i = 0; i < 32; ++i) peak = std::max(peak, std::fabs(s[i]));
  return peak;
#endif
}

// Writes the exponent that a block of 32 shares: of elements that reach 2^most the largest just fits. A NaN makes it
// one. Returns what its values are to be multiplied by.
inline float put_shared_exponent(const float* s, int most, std::byte* out) {
  bool none = false;
  for (int i = 0; i < 32; ++i) none |= s[i] != s[i];
  const int e = none ? 0xFF : std::max(static_cast<int>(float_to_bits(largest(s)) >> 23) - most, 0);
  *out = static_cast<std::byte>(e);
  return kE8m0[254 - std::min<size_t>(static_cast<size_t>(e), 254)];
}

inline void store_q8_0(const float* s, std::byte* out) {
  const float peak = largest(s);
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
      for (uint32_t block = 0; block < n / 32; ++block, out += 34) store_q8_0(source + block * 32, out);
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
    case DType::kMXFP4:
      for (uint32_t block = 0; block < n / 32; ++block, out += 17) {
        const float* s = source + block * 32;
        const float inverse = put_shared_exponent(s, 2, out);
        // To nearest, ties to the even code, at most 6.
        auto code = [&](float v) {
          const float m = std::fabs(v) * inverse;
          const int up = (m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) + (m >= 3.5f) + (m > 5.f);
          return static_cast<uint8_t>(up | (v < 0 && up != 0 ? 8 : 0));
        };
        for (int i = 0; i < 16; ++i) out[1 + i] = std::byte(code(s[i]) | code(s[16 + i]) << 4);
      }
      return;
    case DType::kMXFP8:
      for (uint32_t block = 0; block < n / 32; ++block, out += 33) {
        const float* s = source + block * 32;
        const float inverse = put_shared_exponent(s, 8, out);
        float scaled[32];
        for (int i = 0; i < 32; ++i) scaled[i] = s[i] * inverse;
        store_fp8<E4M3>(scaled, 32, out + 1);
      }
      return;
    case DType::kE4M3:
      return store_fp8<E4M3>(source, n, out);
    case DType::kE5M2:
      return store_fp8<E5M2>(source, n, out);
  }
}

template <bool kLargest>
inline float lane_pick(const float* a, uint32_t n) {
  Floats best[kLaneVectors];
  for (Floats& v : best) v = a[0] - Floats{};
  uint32_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < kLaneVectors; ++v) {
      const Floats here = floats_at(a + i + v * kFloats);
      best[v] = (kLargest ? here > best[v] : here < best[v]) ? here : best[v];
    }
  float lanes[kLanes];
  std::memcpy(lanes, best, sizeof lanes);
  const auto pick = [](float x, float y) { return (kLargest ? x > y : x < y) ? x : y; };
  for (; i < n; ++i) lanes[0] = pick(a[i], lanes[0]);
  for (uint32_t k = 1; k < kLanes; ++k) lanes[0] = pick(lanes[k], lanes[0]);
  return lanes[0];
}

inline float sigmoid(float v) { return 1.f / (1.f + exp_fast(-v)); }
inline float gelu(float v) { return 0.5f * v * (1.f + tanh_exact(0.7978845608f * (v + 0.044715f * v * v * v))); }

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
      return map(a, out, n, log_exact);
    case U::kSqrt:
      return map(a, out, n, [](float v) { return std::sqrt(v); });
    case U::kRsqrt:
      return map(a, out, n, [](float v) { return 1.f / std::sqrt(v); });
    case U::kRcp:
      return map(a, out, n, [](float v) { return 1.f / v; });
    case U::kTanh:
      return map(a, out, n, tanh_exact);
    case U::kSigmoid:
      return map(a, out, n, sigmoid);
    case U::kSilu:
      return map(a, out, n, [](float v) { return v * sigmoid(v); });
    case U::kGelu:
      return map(a, out, n, gelu);
    case U::kRelu:
      return map(a, out, n, [](float v) { return std::max(v, 0.f); });
    case U::kSin:
      return map(a, out, n, sin_exact);
    case U::kCos:
      return map(a, out, n, cos_exact);
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
      return lane_pick<true>(a, n);
    case hw::ReduceOp::kMin:
      return lane_pick<false>(a, n);
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

const HostKernels JAL_KERNELS = {JAL_KERNELS_NAME,
                                 load,
                                 store,
                                 JAL_KERNELS_ISA::multiply,
                                 unary,
                                 binary,
                                 binary_scalar,
                                 reduce,
                                 exp_shifted,
                                 scale_by_row,
                                 JAL_KERNELS_ISA::combine,
                                 JAL_KERNELS_ISA::copy_around_caches};

}  // namespace jalapeno::emu
