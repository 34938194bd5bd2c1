// Elementary functions from additions, multiplications and divisions alone, so that their bits do not depend on the
// host's C library. Internal linkage, as in numbers.hpp.
#pragma once
#include <cstdint>
#include <limits>

#include "kernels/numbers.hpp"

namespace jalapeno::emu {
namespace {

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

// The rest are computed in double and rounded once: within 1 ulp.

inline float log_exact(float v) {
  if (!(v > 0)) return v == 0 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  if (v == std::numeric_limits<float>::infinity()) return v;
  uint64_t bits = double_to_bits(v);
  int e = static_cast<int>(bits >> 52) - 1023;
  double m = bits_to_double((bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1023} << 52);
  if (m > 1.4142135623730951) m /= 2, ++e;
  const double t = (m - 1) / (m + 1), s = t * t;
  double p = 1. / 17;
  for (int n : {15, 13, 11, 9, 7, 5, 3, 1}) p = p * s + 1. / n;
  return static_cast<float>(2 * t * p + e * 0.69314718055994531);
}

inline float tanh_exact(float v) {
  const double x = std::fabs(v);
  double y = 1;
  if (x < 0.02) {
    const double s = x * x;
    y = x * (1 - s * (1. / 3 - s * (2. / 15 - s * (17. / 315))));
  } else if (x < 20) {
    const double w = 2 * x * 1.4426950408889634;
    const int n = static_cast<int>(w + 0.5);
    const double f = (w - n) * 0.69314718055994531;
    double p = 1. / 13;
    for (int k = 12; k > 0; --k) p = (1 + p * f) / k;
    y = 1 - 2 / ((1 + p * f) * bits_to_double(static_cast<uint64_t>(n + 1023) << 52) + 1);
  }
  return v != v ? v : std::copysign(static_cast<float>(y), v);
}

// `v` less whole quarters of a turn, in [-pi/4, pi/4], and the quarters.
struct Angle {
  double rest;
  uint32_t quarters;
};
inline Angle quarter_turns(float v) {
  if (std::fabs(v) < 0x1p20f) {
    const double x = v;
    const auto n = static_cast<int32_t>(x * 0.63661977236758134 + (v < 0 ? -0.5 : 0.5));
    // pi / 2 in parts of 33 bits: the products are exact.
    return {((x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2ep-69, static_cast<uint32_t>(n)};
  }
  // The bits of 2 / pi that matter for this exponent, times the mantissa: whole turns wrap around.
  __extension__ using Wide = unsigned __int128;
  static constexpr uint64_t kTwoOverPi[] = {0, 0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041};
  const uint32_t bits = float_to_bits(v);
  const int e = static_cast<int>(bits >> 23 & 255) - 150, first = 64 + e - 2;  // of the window
  auto word = [&](int at) {
    const uint64_t high = kTwoOverPi[at / 64] << at % 64;
    return at % 64 == 0 || at / 64 == 3 ? high : high | kTwoOverPi[at / 64 + 1] >> (64 - at % 64);
  };
  Wide product = (Wide{word(first)} << 64 | word(first + 64)) * ((bits & 0x7FFFFF) | 0x800000);
  const auto quarters = static_cast<uint32_t>((product + (Wide{1} << 125)) >> 126);
  const double rest =
      static_cast<double>(static_cast<int64_t>(static_cast<uint64_t>(product >> 62))) * 0x1p-64 * 1.5707963267948966;
  return v < 0 ? Angle{-rest, 0 - quarters} : Angle{rest, quarters};
}
inline float sine_of(Angle a) {
  const double r = a.rest, s = r * r;
  const bool cosine = a.quarters & 1;
  double p = 0;  // r or 1, times 1 - s / (2 * 3) * (1 - s / (4 * 5) * ...), or of (1 * 2), (3 * 4), ...
  for (int n = 14; n > 0; n -= 2) p = (1 - p) * s / (cosine ? n * (n - 1) : n * (n + 1));
  const double y = (cosine ? 1 : r) * (1 - p);
  return static_cast<float>(a.quarters & 2 ? -y : y);
}
inline float sin_exact(float v) {
  return v - v != 0 ? std::numeric_limits<float>::quiet_NaN() : sine_of(quarter_turns(v));
}
inline float cos_exact(float v) {
  if (v - v != 0) return std::numeric_limits<float>::quiet_NaN();
  Angle a = quarter_turns(v);
  ++a.quarters;
  return sine_of(a);
}

}  // namespace
}  // namespace jalapeno::emu
