// The host's inner loops: conversions exact, products against double precision, on every instruction set this host has.
#include "kernels/kernels.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace jalapeno::emu {
namespace {

using hw::DType;

class HostKernelsTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    k_ = host_kernels_named(GetParam());
    if (k_ == nullptr) GTEST_SKIP() << "this host does not run " << GetParam();
  }
  const HostKernels* k_ = nullptr;
  std::mt19937 random_{7};
  std::vector<float> values(size_t n, float scale = 1) {
    std::uniform_real_distribution<float> d(-scale, scale);
    std::vector<float> out(n);
    for (float& v : out) v = d(random_);
    return out;
  }
};

float half(uint16_t h) {
  const int e = h >> 10 & 31, m = h & 1023;
  const double v = e == 0 ? std::ldexp(m, -24) : e == 31 ? (m ? NAN : INFINITY) : std::ldexp(1024 + m, e - 25);
  return static_cast<float>(h & 0x8000 ? -v : v);
}

TEST_P(HostKernelsTest, EveryHalfAndBrainFloatConvertsExactlyBothWays) {
  for (DType type : {DType::kF16, DType::kBF16}) {
    std::vector<uint16_t> bits(65536);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
    std::vector<float> out(65536);
    std::vector<uint16_t> back(65536);
    k_->load(type, reinterpret_cast<std::byte*>(bits.data()), 65536, out.data());
    k_->store(type, out.data(), 65536, reinterpret_cast<std::byte*>(back.data()));
    for (size_t i = 0; i < 65536; ++i) {
      const float want = type == DType::kF16 ? half(bits[i]) : std::bit_cast<float>(static_cast<uint32_t>(i) << 16);
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(out[i]));
        continue;
      }
      ASSERT_EQ(out[i], want) << i;
      ASSERT_EQ(back[i], bits[i]) << i;
    }
  }
}

TEST_P(HostKernelsTest, RoundingIsToNearestEven) {
  const float ties[] = {1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 1 + 0x1p-11f, 1 + 3 * 0x1p-11f,
                        65519.f,     65520.f,         0x1p-25f,     0x1.8p-24f};
  uint16_t b[8], h[8];
  k_->store(DType::kBF16, ties, 8, reinterpret_cast<std::byte*>(b));
  k_->store(DType::kF16, ties, 8, reinterpret_cast<std::byte*>(h));
  EXPECT_EQ(b[0], 0x3F80);
  EXPECT_EQ(b[1], 0x3F82);
  EXPECT_EQ(h[2], 0x3C00);
  EXPECT_EQ(h[3], 0x3C02);
  EXPECT_EQ(h[4], 0x7BFF);
  EXPECT_EQ(h[5], 0x7C00);
  EXPECT_EQ(h[6], 0);
  EXPECT_EQ(h[7], 2);
}

// The OCP's definition, in double precision.
double fp8(DType type, int code) {
  const int bits = type == DType::kE4M3 ? 3 : 2, bias = type == DType::kE4M3 ? 7 : 15;
  const int e = (code & 0x7F) >> bits, m = code & ((1 << bits) - 1);
  double v = e == 0 ? std::ldexp(m, 1 - bias - bits) : std::ldexp((1 << bits) + m, e - bias - bits);
  if (type == DType::kE4M3 && (code & 0x7F) == 0x7F) v = NAN;
  if (type == DType::kE5M2 && e == 31) v = m == 0 ? INFINITY : NAN;
  return code & 0x80 ? -v : v;
}

class Fp8Test : public HostKernelsTest {
 protected:
  std::vector<uint8_t> encode(DType type, const std::vector<float>& x) {
    std::vector<uint8_t> out(x.size());
    k_->store(type, x.data(), static_cast<uint32_t>(x.size()), reinterpret_cast<std::byte*>(out.data()));
    return out;
  }
  static int largest(DType type) { return type == DType::kE4M3 ? 0x7E : 0x7B; }
};

TEST_P(Fp8Test, EveryCodeConvertsExactlyBothWays) {
  for (DType type : {DType::kE4M3, DType::kE5M2}) {
    std::vector<uint8_t> codes(256);
    for (size_t i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    std::vector<float> out(256);
    k_->load(type, reinterpret_cast<std::byte*>(codes.data()), 256, out.data());
    const auto back = encode(type, out);
    for (int i = 0; i < 256; ++i) {
      const auto at = static_cast<size_t>(i);
      const double want = fp8(type, i);
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(out[at])) << i;
        EXPECT_TRUE(std::isnan(fp8(type, back[at]))) << i;
        continue;
      }
      ASSERT_EQ(out[at], want) << hw::info(type).name << " " << i;
      ASSERT_EQ(std::signbit(out[at]), i >= 128) << i;
      // An infinity is a value to hold, not one to convert to.
      ASSERT_EQ(back[at], std::isinf(want) ? i - 1 : i) << hw::info(type).name << " " << i;
    }
    // Rows that are no whole number of vectors.
    for (uint32_t n = 1; n < 70; ++n) {
      std::vector<float> some(n + 1, -7.f);
      k_->load(type, reinterpret_cast<std::byte*>(codes.data()), n, some.data());
      EXPECT_EQ(std::memcmp(some.data(), out.data(), n * sizeof(float)), 0);
      EXPECT_EQ(some[n], -7.f);
      std::vector<uint8_t> short_back(n + 1, 0xA5);
      k_->store(type, out.data(), n, reinterpret_cast<std::byte*>(short_back.data()));
      EXPECT_EQ(std::memcmp(short_back.data(), back.data(), n), 0);
      EXPECT_EQ(short_back[n], 0xA5);
    }
  }
}

TEST_P(Fp8Test, BetweenNeighboursTheNearerWinsAndTiesGoToTheEvenCode) {
  for (DType type : {DType::kE4M3, DType::kE5M2}) {
    std::vector<float> x;
    std::vector<int> want;
    for (int code = 0; code < largest(type); ++code)
      for (const float sign : {1.f, -1.f}) {
        const auto middle = static_cast<float>((fp8(type, code) + fp8(type, code + 1)) / 2);
        const int minus = sign < 0 ? 0x80 : 0;
        x.insert(x.end(), {sign * middle, sign * std::nextafter(middle, 0.f), sign * std::nextafter(middle, 1e9f)});
        want.insert(want.end(), {(code + code % 2) | minus, code | minus, (code + 1) | minus});
      }
    const auto got = encode(type, x);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(got[i], want[i]) << hw::info(type).name << " " << x[i];
  }
}

TEST_P(Fp8Test, EveryBrainFloatGoesToTheNearestCode) {
  std::vector<float> x;
  for (uint32_t i = 0; i < 65536; ++i)
    if (const float v = std::bit_cast<float>(i << 16); !std::isnan(v)) x.push_back(v);
  for (DType type : {DType::kE4M3, DType::kE5M2}) {
    const auto got = encode(type, x);
    for (size_t i = 0; i < x.size(); ++i) {
      const double size = std::fabs(static_cast<double>(x[i]));
      int best = 0;
      for (int code = 1; code <= largest(type); ++code) {
        const double now = std::fabs(fp8(type, code) - size), before = std::fabs(fp8(type, best) - size);
        if (now < before || (now == before && code % 2 == 0)) best = code;
      }
      if (size > fp8(type, largest(type))) best = largest(type);
      ASSERT_EQ(got[i], best | (std::signbit(x[i]) ? 0x80 : 0)) << hw::info(type).name << " " << x[i];
    }
  }
}

TEST_P(Fp8Test, ConversionSaturatesAndKeepsNaN) {
  for (DType type : {DType::kE4M3, DType::kE5M2}) {
    const float top = type == DType::kE4M3 ? 448.f : 57344.f;
    const float beyond = type == DType::kE4M3 ? 464.f : 61440.f;  // where the next value would begin
    const auto got = encode(type, {top, -top, std::nextafter(top, 1e9f), beyond, -2 * beyond, 3e38f, INFINITY,
                                   -INFINITY, NAN, -NAN, std::bit_cast<float>(0x7F800001u), 1e-30f, -0.f});
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(std::fabs(fp8(type, got[i])), top) << i;
    EXPECT_EQ(got[1], largest(type) | 0x80);
    EXPECT_EQ(got[4], largest(type) | 0x80);
    EXPECT_EQ(got[7], largest(type) | 0x80);
    for (size_t i = 8; i < 11; ++i) EXPECT_TRUE(std::isnan(fp8(type, got[i]))) << i;
    EXPECT_EQ(got[11], 0);
    EXPECT_EQ(got[12], 0x80);
  }
}

// Each code meets 1, in any place of short and long rows, in few rows (inner products) and in many (panels).
TEST_P(Fp8Test, EveryCodeKeepsItsValueInAProduct) {
  for (DType type : {DType::kE4M3, DType::kE5M2})
    for (uint32_t m : {1u, 4u, 16u})
      for (uint32_t k : {2u, 74u}) {
        const uint8_t one = type == DType::kE4M3 ? 0x38 : 0x3C;
        std::vector<uint8_t> a(size_t{m} * k, one), b(size_t{256} * k);
        for (uint32_t i = 0; i < 256; ++i) b[i * k + i * 7 % k] = static_cast<uint8_t>(i);
        std::vector<float> out(size_t{m} * 256);
        k_->multiply({reinterpret_cast<std::byte*>(a.data()), reinterpret_cast<std::byte*>(b.data()), out.data(), k, k,
                      256 * 4, m, 256, k, type, type, false, false});
        for (uint32_t i = 0; i < m; ++i)
          for (int code = 0; code < 256; ++code) {
            const float got = out[i * 256 + static_cast<uint32_t>(code)];
            const double want = fp8(type, code);
            if (std::isnan(want))
              EXPECT_TRUE(std::isnan(got)) << code;
            else
              EXPECT_EQ(got, want) << hw::info(type).name << " " << code << " " << m << "x" << k;
          }
      }
}

// Small and huge angles, and what lies between floats' extremes.
TEST_P(HostKernelsTest, ElementaryFunctionsAreWithinOneUnitInTheLastPlace) {
  using U = hw::UnaryOp;
  struct Case {
    U op;
    double (*want)(double);
  };
  std::vector<float> x = values(20000, 12);
  for (float v : values(20000, 2e6f)) x.push_back(v);
  for (int e = -149; e < 128; ++e)
    for (float v : values(20)) x.push_back(std::ldexp(v, e));
  const float specials[] = {0.f, -0.f, INFINITY, -INFINITY, NAN, 1.f, 0x1p20f, -0x1p20f, 3.40282347e38f, 1.5707964f};
  x.insert(x.end(), std::begin(specials), std::end(specials));
  std::vector<float> got(x.size());
  for (const Case& c : {Case{U::kLog, std::log}, {U::kTanh, std::tanh}, {U::kSin, std::sin}, {U::kCos, std::cos}}) {
    k_->unary(c.op, x.data(), got.data(), static_cast<uint32_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = c.want(x[i]);
      if (std::isnan(want) || std::isinf(want)) {
        ASSERT_EQ(std::isnan(got[i]), std::isnan(want)) << static_cast<int>(c.op) << " of " << x[i];
        ASSERT_TRUE(std::isnan(want) || got[i] == want) << x[i];
        continue;
      }
      const auto near = static_cast<float>(want);
      const double unit = std::nextafter(std::fabs(near), INFINITY) - std::fabs(near);
      ASSERT_LE(std::fabs(got[i] - want), unit) << static_cast<int>(c.op) << " of " << x[i] << " is " << got[i];
    }
  }
}

// All values a byte can have on both sides, also the one that no quantiser makes.
TEST_P(HostKernelsTest, BlocksOfAnyBytesMeetIntegerProducts) {
  const uint32_t n = 9, k = 96;
  for (const uint32_t m : {1u, 3u, 5u, 7u}) {
    std::vector<std::byte> a(m * k / 32 * 34), b(n * k / 32 * 34);
    for (auto* v : {&a, &b})
      for (size_t i = 0; i < v->size(); ++i) {
        const size_t at = i % 34;  // a scale of 1, then bytes, many of them the lowest
        (*v)[i] = at == 0              ? std::byte{0}
                  : at == 1            ? std::byte{0x3C}
                  : random_() % 4 == 0 ? std::byte{0x80}
                                       : std::byte(random_() & 255);
      }
    std::vector<float> out(m * n);
    k_->multiply({a.data(), b.data(), out.data(), k / 32 * 34, k / 32 * 34, n * 4, m, n, k, DType::kQ8_0, DType::kQ8_0,
                  false, false});
    for (uint32_t i = 0; i < m; ++i)
      for (uint32_t j = 0; j < n; ++j) {
        int want = 0;
        for (uint32_t l = 0; l < k; ++l)
          want += static_cast<int8_t>(a[(i * k / 32 + l / 32) * 34 + 2 + l % 32]) *
                  static_cast<int8_t>(b[(j * k / 32 + l / 32) * 34 + 2 + l % 32]);
        ASSERT_EQ(out[i * n + j], static_cast<float>(want)) << m << " rows, " << i << "," << j;
      }
  }
}

// The same by nibbles, whose products are added in 16 bits: the largest meet the lowest byte, which is the most that
// can come together.
TEST_P(HostKernelsTest, NibblesOfAnyValueMeetIntegerProducts) {
  const uint32_t n = 19, k = 96;
  for (const DType type : {DType::kQ4_0, DType::kMXFP4}) {
    const bool mx = type == DType::kMXFP4;
    const size_t block = hw::info(type).bytes, row = k / 32 * block;
    for (const uint32_t m : {1u, 2u, 3u, 4u, 7u, 13u})
      for (const bool extreme : {false, true}) {
        std::vector<std::byte> a(m * k / 32 * 34), b(n * row);
        for (size_t i = 0; i < a.size(); ++i)
          a[i] = i % 34 == 0   ? std::byte{0}
                 : i % 34 == 1 ? std::byte{0x3C}
                 : extreme     ? std::byte{0x80}
                               : std::byte(random_() & 255);
        for (size_t i = 0; i < b.size(); ++i) {
          const size_t at = i % block;
          if (at < (mx ? 1u : 2u))
            b[i] = mx ? std::byte{127} : at == 0 ? std::byte{0} : std::byte{0x3C};
          else
            b[i] = extreme ? (mx ? std::byte{0x77} : std::byte{0xFF}) : std::byte(random_() & 255);
        }
        std::vector<float> wide(size_t{n} * k), out(m * n);
        for (uint32_t j = 0; j < n; ++j) k_->load(type, b.data() + j * row, k, wide.data() + size_t{j} * k);
        k_->multiply(
            {a.data(), b.data(), out.data(), k / 32 * 34, row, n * 4, m, n, k, DType::kQ8_0, type, false, false});
        for (uint32_t i = 0; i < m; ++i)
          for (uint32_t j = 0; j < n; ++j) {
            float want = 0;  // exact: halves of small integers
            for (uint32_t l = 0; l < k; ++l)
              want += static_cast<float>(static_cast<int8_t>(a[(i * k / 32 + l / 32) * 34 + 2 + l % 32])) *
                      wide[size_t{j} * k + l];
            ASSERT_EQ(out[i * n + j], want) << hw::info(type).name << " " << m << " rows, " << i << "," << j;
          }
      }
  }
}

// More of A than stays in a cache, in several depths, the last of them short: exact in every type.
TEST_P(HostKernelsTest, ManyRowsInSeveralDepths) {
  const uint32_t m = 70, n = 37;
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8})
    for (const uint32_t k : {1056u, 1057u}) {
      const auto number = [](uint64_t i) { return static_cast<int>(i * 2654435761u >> 13 & 7) - 3; };
      const auto filled = [&](uint32_t rows, uint64_t salt) {
        const size_t pitch = hw::row_bytes(type, k);
        std::vector<std::byte> out(pitch * rows);
        std::vector<float> one(k);
        for (uint32_t r = 0; r < rows; ++r) {
          for (uint32_t i = 0; i < k; ++i) one[i] = static_cast<float>(number(salt + uint64_t{r} * k + i));
          k_->store(type, one.data(), k, out.data() + pitch * r);
        }
        return out;
      };
      const auto a = filled(m, 1), b = filled(n, 99991);
      std::vector<float> out(m * n);
      k_->multiply({a.data(), b.data(), out.data(), hw::row_bytes(type, k), hw::row_bytes(type, k), n * 4, m, n, k,
                    type, type, false, false});
      for (uint32_t i = 0; i < m; ++i)
        for (uint32_t j = 0; j < n; ++j) {
          int want = 0;
          for (uint32_t l = 0; l < k; ++l)
            want += number(1 + uint64_t{i} * k + l) * number(99991 + uint64_t{j} * k + l);
          int32_t whole;
          std::memcpy(&whole, &out[i * n + j], 4);
          const float got = type == DType::kI8 ? static_cast<float>(whole) : out[i * n + j];
          ASSERT_EQ(got, static_cast<float>(want)) << hw::info(type).name << " " << k << ": " << i << "," << j;
        }
    }
}

// The OCP's MX 1.0 by hand: a power of two, then values of two or eight bits of exponent and mantissa.
TEST_P(HostKernelsTest, MxBlocksAreWhatTheOcpSays) {
  const float twos[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  std::vector<std::byte> block(17);
  std::vector<float> out(32);
  for (const auto& [scale, factor] : {std::pair{127, 1.0}, {130, 8.0}, {1, 0x1p-126}, {0, 0x1p-127}, {254, 0x1p127}}) {
    block[0] = std::byte(scale);
    for (size_t i = 0; i < 16; ++i) block[1 + i] = std::byte(i | (15 - i) << 4);
    k_->load(DType::kMXFP4, block.data(), 32, out.data());
    for (size_t i = 0; i < 16; ++i) {
      const auto want = static_cast<float>(twos[i & 7] * factor) * (i < 8 ? 1.f : -1.f);
      ASSERT_EQ(out[i], want) << scale << " " << i;
      ASSERT_EQ(out[31 - i], want) << scale << " " << i;
    }
  }
  block[0] = std::byte{0xFF};
  k_->load(DType::kMXFP4, block.data(), 32, out.data());
  for (float v : out) ASSERT_TRUE(std::isnan(v));

  // The largest power of two in the block becomes 4; nearest value, ties to the even code, 6 at most.
  std::vector<float> x(32, 0.f);
  const float given[] = {7.9f, -5, 0.25f, 0.26f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, -0.2f, 5.1f, 1.3f},
              kept[] = {6, -4, 0, 0.5f, 1, 1, 2, 2, 4, 0, 6, 1.5f};
  for (const float factor : {1.f, 0x1p-9f, 0x1p100f}) {
    for (size_t i = 0; i < std::size(given); ++i) x[i * 2] = given[i] * factor;
    k_->store(DType::kMXFP4, x.data(), 32, block.data());
    ASSERT_EQ(static_cast<int>(block[0]), 127 + std::ilogb(factor));
    k_->load(DType::kMXFP4, block.data(), 32, out.data());
    for (size_t i = 0; i < std::size(given); ++i) ASSERT_EQ(out[i * 2], kept[i] * factor) << given[i] << " " << factor;
  }
  std::vector<std::byte> wide(33);
  x.assign(32, 0.f), x[3] = 300, x[4] = -500, x[5] = 0x1p-9f, x[6] = 17;
  k_->store(DType::kMXFP8, x.data(), 32, wide.data());
  ASSERT_EQ(static_cast<int>(wide[0]), 127);  // 256 is the largest power of two in it, and e4m3's
  k_->load(DType::kMXFP8, wide.data(), 32, out.data());
  const std::vector<float> held(out.begin() + 3, out.begin() + 7);
  ASSERT_EQ(held, (std::vector<float>{288, -448, 0x1p-9f, 16}));
  for (DType type : {DType::kMXFP4, DType::kMXFP8}) {
    x[9] = NAN;
    k_->store(type, x.data(), 32, wide.data());
    ASSERT_EQ(wide[0], std::byte{0xFF});
    x[9] = 0;
    k_->store(type, std::vector<float>(32, 0.f).data(), 32, wide.data());
    k_->load(type, wide.data(), 32, out.data());
    for (float v : out) ASSERT_EQ(v, 0);
  }
}

// A scale of 2^120 beside zeros: nothing on the way may be larger than the value.
TEST_P(HostKernelsTest, MxFp8KeepsItsLargestScales) {
  std::vector<std::byte> b(33);
  b[0] = std::byte{247}, b[1] = std::byte{0x38};
  for (const uint32_t m : {1u, 3u, 5u, 20u}) {
    std::vector<uint16_t> a(size_t{m} * 32, 0x3F80);
    std::vector<float> out(m);
    k_->multiply({reinterpret_cast<std::byte*>(a.data()), b.data(), out.data(), 64, 33, 4, m, 1, 32, DType::kBF16,
                  DType::kMXFP8, false, false});
    for (float v : out) ASSERT_EQ(v, 0x1p120f) << m;
    b[32] = std::byte{0xFF};  // no number
    k_->multiply({reinterpret_cast<std::byte*>(a.data()), b.data(), out.data(), 64, 33, 4, m, 1, 32, DType::kBF16,
                  DType::kMXFP8, false, false});
    for (float v : out) ASSERT_TRUE(std::isnan(v)) << m;
    b[32] = std::byte{0};
  }
}

TEST_P(HostKernelsTest, ProductsMeetDoublePrecision) {
  struct Case {
    DType a, b;
    bool rows_are_k;
  };
  for (const Case& c : {Case{DType::kF32, DType::kF32, false}, {DType::kBF16, DType::kBF16, false},
                        {DType::kF16, DType::kF16, false},     {DType::kQ8_0, DType::kQ8_0, false},
                        {DType::kQ8_0, DType::kQ4_0, false},   {DType::kQ8_0, DType::kMXFP4, false},
                        {DType::kBF16, DType::kMXFP8, false},  {DType::kF32, DType::kMXFP4, true},
                        {DType::kBF16, DType::kQ8_0, true},    {DType::kF32, DType::kF32, true},
                        {DType::kBF16, DType::kBF16, true},    {DType::kE4M3, DType::kE4M3, false},
                        {DType::kE5M2, DType::kE5M2, false},   {DType::kE4M3, DType::kE5M2, false},
                        {DType::kE5M2, DType::kE4M3, true},    {DType::kBF16, DType::kE4M3, false},
                        {DType::kBF16, DType::kE5M2, true},    {DType::kE4M3, DType::kBF16, false},
                        {DType::kF32, DType::kE4M3, false},    {DType::kE5M2, DType::kF16, false},
                        {DType::kF32, DType::kQ8_0, false},    {DType::kE4M3, DType::kMXFP8, false},
                        {DType::kF32, DType::kMXFP8, false},   {DType::kF16, DType::kF16, true},
                        {DType::kF32, DType::kF16, true},      {DType::kF32, DType::kBF16, true}})
    for (auto [m, n, k] : {std::array{1u, 1u, 32u},
                           {1u, 7u, 96u},
                           {5u, 9u, 160u},
                           {4u, 4u, 64u},
                           {6u, 33u, 992u},
                           {13u, 31u, 64u},
                           {7u, 6u, 96u},
                           {11u, 5u, 320u},
                           {29u, 70u, 1120u},
                           {12u, 32u, 2080u},
                           {3u, 5u, 77u},
                           {3u, 70u, 64u},
                           {7u, 103u, 45u},
                           {14u, 37u, 525u}}) {
      const uint32_t rows = c.rows_are_k ? k : n, columns = c.rows_are_k ? n / 1 : k;
      if (k % hw::info(c.a).block != 0 || columns % hw::info(c.b).block != 0) continue;
        // Rows with odd distances, at odd addresses: a program may lay its tiles so.
#if defined(__SANITIZE_ADDRESS__)
      const size_t odd = 0;  // UBSan minds what x86 does not
#else
      const size_t odd = k % 3;
#endif
      const size_t ap = hw::row_bytes(c.a, k) + odd, bp = hw::row_bytes(c.b, columns) + odd;
      std::vector<std::byte> a_memory(ap * m + odd), b_memory(bp * rows + odd);
      std::byte *a = a_memory.data() + odd, *b = b_memory.data() + odd;
      const auto av = values(size_t{m} * k), bv = values(size_t{rows} * columns);
      std::vector<float> ax(size_t{m} * k), bx(size_t{rows} * columns);  // as the types hold them
      for (uint32_t i = 0; i < m; ++i)
        k_->store(c.a, &av[size_t{i} * k], k, &a[ap * i]),
            kPortableKernels.load(c.a, &a[ap * i], k, &ax[size_t{i} * k]);
      for (uint32_t i = 0; i < rows; ++i)
        k_->store(c.b, &bv[size_t{i} * columns], columns, &b[bp * i]),
            kPortableKernels.load(c.b, &b[bp * i], columns, &bx[size_t{i} * columns]);
      std::vector<float> out(size_t{m} * n, 0.5f), anew(size_t{m} * n, NAN);
      k_->multiply({a, b, out.data(), ap, bp, size_t{n} * 4, m, n, k, c.a, c.b, c.rows_are_k, true});
      k_->multiply({a, b, anew.data(), ap, bp, size_t{n} * 4, m, n, k, c.a, c.b, c.rows_are_k, false});
      for (uint32_t i = 0; i < m; ++i)
        for (uint32_t j = 0; j < n; ++j) {
          double want = 0.5, size = 1;
          for (uint32_t l = 0; l < k; ++l) {
            const double p = static_cast<double>(ax[size_t{i} * k + l]) *
                             bx[c.rows_are_k ? size_t{l} * columns + j : size_t{j} * columns + l];
            want += p, size += std::fabs(p);
          }
          ASSERT_NEAR(out[size_t{i} * n + j], want, size * 4e-7 * std::sqrt(k))
              << hw::info(c.a).name << " " << hw::info(c.b).name << " " << m << "x" << n << "x" << k;
          ASSERT_NEAR(anew[size_t{i} * n + j], want - 0.5, size * 4e-7 * std::sqrt(k))
              << hw::info(c.a).name << " " << hw::info(c.b).name << " " << m << "x" << n << "x" << k;
        }
    }
}

// What a launch that comes again relies on: few rows are added to C when their sums are complete.
TEST_P(HostKernelsTest, FewRowsAreAddedOnce) {
  for (auto [a_type, b_type] : {std::pair{DType::kF32, DType::kF32},
                                {DType::kBF16, DType::kBF16},
                                {DType::kF16, DType::kF16},
                                {DType::kQ8_0, DType::kQ8_0},
                                {DType::kQ8_0, DType::kQ4_0},
                                {DType::kQ8_0, DType::kMXFP4},
                                {DType::kBF16, DType::kMXFP8},
                                {DType::kBF16, DType::kE4M3},
                                {DType::kE5M2, DType::kE5M2},
                                {DType::kF32, DType::kQ8_0},
                                {DType::kF32, DType::kMXFP8},
                                {DType::kF32, DType::kBF16}})
    for (uint32_t m : {1u, 2u, 3u})
      for (bool lowest : {false, true}) {  // of q8_0 the one value that has no opposite
        const uint32_t n = 39, k = 1632;
        const size_t ap = hw::row_bytes(a_type, k), bp = hw::row_bytes(b_type, k);
        std::vector<std::byte> a(ap * m), b(bp * n);
        for (uint32_t i = 0; i < m; ++i) k_->store(a_type, values(k).data(), k, &a[ap * i]);
        for (uint32_t i = 0; i < n; ++i) k_->store(b_type, values(k).data(), k, &b[bp * i]);
        if (lowest && a_type == DType::kQ8_0) a[ap * (m - 1) + 5] = std::byte{0x80};
        const auto before = values(size_t{m} * n);
        std::vector<float> added = before, sums(before.size());
        k_->multiply({a.data(), b.data(), added.data(), ap, bp, size_t{n} * 4, m, n, k, a_type, b_type, false, true});
        k_->multiply({a.data(), b.data(), sums.data(), ap, bp, size_t{n} * 4, m, n, k, a_type, b_type, false, false});
        for (size_t i = 0; i < sums.size(); ++i)
          ASSERT_EQ(added[i], before[i] + sums[i]) << hw::info(a_type).name << " " << hw::info(b_type).name << " " << m;
      }
}

TEST_P(HostKernelsTest, IntegerProductsAreExact) {
  for (auto [m, n, k] : {std::array{3u, 4u, 50u}, {3u, 4u, 52u}, {14u, 37u, 1200u}})
    for (bool accumulate : {false, true}) {
      std::vector<int8_t> a(size_t{m} * k), b(size_t{n} * k);
      for (auto& v : a) v = static_cast<int8_t>(random_());
      for (auto& v : b) v = static_cast<int8_t>(random_());
      std::vector<int32_t> out(size_t{m} * n, 5);
      k_->multiply({reinterpret_cast<std::byte*>(a.data()), reinterpret_cast<std::byte*>(b.data()),
                    reinterpret_cast<float*>(out.data()), k, k, size_t{n} * 4, m, n, k, DType::kI8, DType::kI8, false,
                    accumulate});
      for (uint32_t i = 0; i < m; ++i)
        for (uint32_t j = 0; j < n; ++j) {
          int want = accumulate ? 5 : 0;
          for (uint32_t l = 0; l < k; ++l) want += a[size_t{i} * k + l] * b[size_t{j} * k + l];
          ASSERT_EQ(out[size_t{i} * n + j], want) << m << "x" << n << "x" << k;
        }
    }
}

TEST_P(HostKernelsTest, ExpIsWithinTwoUlpAndKeepsItsEnds) {
  std::vector<float> x;
  for (float v = -86; v < 88; v += 0.0137f) x.push_back(v);
  std::vector<float> out(x.size());
  k_->unary(hw::UnaryOp::kExp, x.data(), out.data(), static_cast<uint32_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(out[i] / want, 1, 2.4e-7) << x[i];
  }
  const float ends[] = {-INFINITY, INFINITY, NAN, -1000, 1000, 0};
  float got[6];
  k_->unary(hw::UnaryOp::kExp, ends, got, 6);
  EXPECT_EQ(got[0], 0);
  EXPECT_EQ(got[1], INFINITY);
  EXPECT_TRUE(std::isnan(got[2]));
  EXPECT_EQ(got[3], 0);
  EXPECT_EQ(got[4], INFINITY);
  EXPECT_EQ(got[5], 1);
}

INSTANTIATE_TEST_SUITE_P(Isa, HostKernelsTest, ::testing::Values("portable", "avx2", "avx512"));
INSTANTIATE_TEST_SUITE_P(Isa, Fp8Test, ::testing::Values("portable", "avx2", "avx512"));

}  // namespace
}  // namespace jalapeno::emu
