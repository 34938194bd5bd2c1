// The kernel library against double precision, over ragged shapes. Tolerances: docs/kernels.md.
#include <algorithm>
#include <bit>
#include <numeric>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

constexpr uint32_t kPage = 16;

class Kernels : public OnDevice {
 protected:
  Kernel get(const std::string& name) { return library_kernel(device, name); }
  Buffer<float> up(const std::vector<float>& v) { return Buffer<float>(device, std::span<const float>(v)); }
  static float as_bf16(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    return std::bit_cast<float>((u + 0x7FFF + ((u >> 16) & 1)) >> 16 << 16);
  }
};

// Bytes of a [rows, columns] matrix in a type, and the values those bytes stand for.
struct Stored {
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};
uint16_t half_bits(float f) {  // round to nearest even, normal range only
  const uint32_t u = std::bit_cast<uint32_t>(f), m = u & 0x7FFFFFFF;
  if (m < 0x38800000) return static_cast<uint16_t>(u >> 16 & 0x8000);
  return static_cast<uint16_t>((u >> 16 & 0x8000) | ((m + 0xFFF + (m >> 13 & 1)) - 0x38000000) >> 13);
}
float half_value(uint16_t h) {
  const int e = h >> 10 & 31;
  const float v = e == 0 ? 0.f : std::ldexp(static_cast<float>(1024 + (h & 1023)), e - 25);
  return h & 0x8000 ? -v : v;
}
float fp8_value(uint8_t code, jalDType type) {  // finite codes only
  const int bits = type == jalE4M3 ? 3 : 2, bias = type == jalE4M3 ? 7 : 15, e = (code & 0x7F) >> bits;
  const float m = static_cast<float>(code & ((1 << bits) - 1)), one = static_cast<float>(1 << bits);
  const float v = e == 0 ? std::ldexp(m, 1 - bias - bits) : std::ldexp(one + m, e - bias - bits);
  return code & 0x80 ? -v : v;
}
// The largest of the codes up to `last` whose value is not above x. Its neighbour would do as well.
template <class Value>
int code_below(int last, float x, Value value) {
  int low = 0;
  for (int step = 64; step > 0; step /= 2)
    if (low + step <= last && value(low + step) <= x) low += step;
  return low;
}
Stored store(const std::vector<float>& x, jalDType type) {
  Stored s;
  s.values = x;
  auto put = [&](const void* p, size_t n) {
    s.bytes.insert(s.bytes.end(), static_cast<const uint8_t*>(p), static_cast<const uint8_t*>(p) + n);
  };
  if (type == jalF32) put(x.data(), x.size() * 4);
  for (size_t i = 0; (type == jalBF16 || type == jalF16) && i < x.size(); ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(x[i]);
    const uint16_t b = type == jalF16 ? half_bits(x[i]) : static_cast<uint16_t>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
    put(&b, 2);
    s.values[i] = type == jalF16 ? half_value(b) : std::bit_cast<float>(uint32_t{b} << 16);
  }
  for (size_t i = 0; (type == jalE4M3 || type == jalE5M2) && i < x.size(); ++i) {
    auto code = static_cast<uint8_t>(
        code_below(0x7B, std::fabs(x[i]), [&](int c) { return fp8_value(static_cast<uint8_t>(c), type); }));
    if (x[i] < 0) code |= 0x80;
    put(&code, 1);
    s.values[i] = fp8_value(code, type);
  }
  for (size_t i = 0; (type == jalQ8_0 || type == jalQ4_0) && i < x.size(); i += 32) {
    float peak = 0;
    for (size_t k = 0; k < 32; ++k) peak = std::max(peak, std::fabs(x[i + k]));
    const uint16_t d = half_bits(peak / (type == jalQ8_0 ? 127.f : 7.f));
    const float scale = half_value(d);
    put(&d, 2);
    uint8_t nibbles[16] = {};
    for (size_t k = 0; k < 32; ++k) {
      const int limit = type == jalQ8_0 ? 127 : 7;
      const int q = std::clamp(scale > 0 ? static_cast<int>(std::lrint(x[i + k] / scale)) : 0, -limit, limit);
      s.values[i + k] = scale * static_cast<float>(q);
      if (type == jalQ8_0) {
        const auto b = static_cast<int8_t>(q);
        put(&b, 1);
      } else {
        nibbles[k % 16] = static_cast<uint8_t>(nibbles[k % 16] | (q + 8) << (k < 16 ? 0 : 4));
      }
    }
    if (type == jalQ4_0) put(nibbles, 16);
  }
  for (size_t i = 0; (type == jalMXFP4 || type == jalMXFP8) && i < x.size(); i += 32) {
    float peak = 0x1p-20f;
    for (size_t k = 0; k < 32; ++k) peak = std::max(peak, std::fabs(x[i + k]));
    const int e = std::ilogb(peak) - (type == jalMXFP4 ? 2 : 8);
    const auto scale = static_cast<uint8_t>(e + 127);
    put(&scale, 1);
    uint8_t codes[32] = {};
    for (size_t k = 0; k < 32; ++k) {
      auto value = [&](int code) {
        static constexpr float kTwos[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
        return std::ldexp(type == jalMXFP4 ? kTwos[code] : fp8_value(static_cast<uint8_t>(code), jalE4M3), e);
      };
      const int code = code_below(type == jalMXFP4 ? 7 : 0x7E, std::fabs(x[i + k]), value);
      s.values[i + k] = x[i + k] < 0 ? -value(code) : value(code);
      const int sign = type == jalMXFP4 ? 8 : 0x80;
      codes[k] = static_cast<uint8_t>(code | (x[i + k] < 0 ? sign : 0));
    }
    if (type == jalMXFP4)
      for (size_t k = 0; k < 16; ++k) codes[k] = static_cast<uint8_t>(codes[k] | codes[k + 16] << 4);
    put(codes, type == jalMXFP4 ? 16 : 32);
  }
  return s;
}

struct MatmulCase {
  const char* kernel;
  jalDType type;
  double activation;  // relative rounding of one activation
};

TEST_F(Kernels, MatmulOfEveryWeightType) {
  for (const MatmulCase& c : {MatmulCase{"matmul_f32", jalF32, 0},
                              {"matmul_bf16", jalBF16, 0x1p-9},
                              {"matmul_f16", jalF16, 0x1p-12},
                              {"matmul_q8_0", jalQ8_0, 1 / 254.0},
                              {"matmul_q4_0", jalQ4_0, 1 / 254.0},
                              {"matmul_mxfp4", jalMXFP4, 1 / 254.0},
                              {"matmul_mxfp8", jalMXFP8, 0x1p-9},
                              {"matmul_e4m3", jalE4M3, 0x1p-9},
                              {"matmul_e5m2", jalE5M2, 0x1p-9},
                              {"matvec_f32", jalF32, 0},
                              {"matvec_bf16", jalBF16, 0x1p-9},
                              {"matvec_q8_0", jalQ8_0, 1 / 254.0},
                              {"matvec_q4_0", jalQ4_0, 1 / 254.0},
                              {"matvec_mxfp4", jalMXFP4, 1 / 254.0},
                              {"matvec_mxfp8", jalMXFP8, 0x1p-9},
                              {"matvec_e4m3", jalE4M3, 0x1p-9},
                              {"matvec_e5m2", jalE5M2, 0x1p-9}})
    for (auto [m, n, k] : {std::array{1u, 1u, 32u},
                           {1u, 65u, 576u},
                           {33u, 130u, 96u},
                           {3u, 64u, 4128u},
                           {70u, 31u, 64u},
                           {300u, 280u, 1120u}}) {
      const auto a = random_values(size_t{m} * k, m + n), w = random_values(size_t{n} * k, k);
      const Stored stored = store(w, c.type);
      Buffer<uint8_t> weights(device, std::span<const uint8_t>(stored.bytes));
      const auto av = up(a);
      auto out = up(random_values(size_t{m} * n, 5));
      const auto before = out.to_host();
      const jalTensor wt = tensor(weights.data(), c.type, {n, k});
      launch(stream, {2, 2}, get(c.kernel), av.as({m, k}), wt, out.as({m, n}));
      stream.synchronize();
      const auto got = out.to_host();
      launch(stream, {3, 1}, get(std::string(c.kernel) + "_add"), av.as({m, k}), wt, out.as({m, n}));
      stream.synchronize();
      const auto added = out.to_host();
      for (uint32_t i = 0; i < m; ++i)
        for (uint32_t j = 0; j < n; ++j) {
          double want = 0, squares = 0;
          for (uint32_t l = 0; l < k; ++l) {
            const double p = static_cast<double>(a[size_t{i} * k + l]) * stored.values[size_t{j} * k + l];
            want += p,
                squares += static_cast<double>(stored.values[size_t{j} * k + l]) * stored.values[size_t{j} * k + l];
          }
          // Activation rounding errors are independent: six standard deviations of their sum, and f32 accumulation.
          const double tolerance = 6 * c.activation * std::sqrt(squares) / std::sqrt(3.0) + 1e-6 * std::sqrt(k) + 1e-6;
          ASSERT_NEAR(got[size_t{i} * n + j], want, tolerance)
              << c.kernel << " " << m << "x" << n << "x" << k << " at " << i << "," << j;
          ASSERT_NEAR(added[size_t{i} * n + j], got[size_t{i} * n + j] * 2, 1e-5 + std::fabs(want) * 1e-6);
        }
    }
}

TEST_F(Kernels, PreparedLaunchesRunAsOftenAsTheyAreLaunched) {
  const uint32_t n = 300;
  const auto one = up(std::vector<float>(n, 1.f));
  auto sum = up(std::vector<float>(n, 0.f));
  const PreparedLaunch add({1, 1}, get("add"), sum.as({1, n}), one.as({1, n}), sum.as({1, n}));
  for (int i = 0; i < 5; ++i) add.launch(stream);
  Stream other(device);
  Event done(device);
  done.record(stream);
  other.wait(done);
  add.launch(other);
  other.synchronize();
  EXPECT_EQ(sum.to_host(), std::vector<float>(n, 6.f));
  const Graph graph(stream, [&] {
    add.launch(stream);
    add.launch(stream);
  });
  graph.launch(stream), graph.launch(stream);
  {
    // Destroyed while it is in flight.
    const PreparedLaunch brief({1, 1}, get("add"), sum.as({1, n}), one.as({1, n}), sum.as({1, n}));
    brief.launch(stream);
  }
  stream.synchronize();
  EXPECT_EQ(sum.to_host(), std::vector<float>(n, 11.f));
}

TEST_F(Kernels, PreparedLaunchesAreCheckedWhenTheyArePrepared) {
  const auto x = up(std::vector<float>(64, 1.f));
  auto message = [&](auto body) {
    try {
      body();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Kernel add = get("add");
  EXPECT_NE(message([&] {
              PreparedLaunch({1}, add, x.as({1, 64}));
            }).find("takes 3 arguments, got 1"),
            std::string::npos);
  EXPECT_NE(message([&] {
              PreparedLaunch(Grid(0), add, x.as({1, 64}), x.as({1, 64}), x.as({1, 64}));
            }).find("grid 0"),
            std::string::npos);
  jalPreparedLaunch_t raw{};
  {
    const PreparedLaunch launch({1}, add, x.as({1, 64}), x.as({1, 64}), x.as({1, 64}));
    raw = launch.get();
  }
  EXPECT_EQ(jalLaunchPrepared(raw, stream.get()), jalErrorInvalidHandle);
  EXPECT_EQ(jalLaunchPrepared(nullptr, stream.get()), jalErrorInvalidHandle);
  Device second("emu:?hbm=64M");
  Stream there(second);
  const PreparedLaunch here({1}, add, x.as({1, 64}), x.as({1, 64}), x.as({1, 64}));
  EXPECT_EQ(jalLaunchPrepared(here.get(), there.get()), jalErrorInvalidDevice);
}

TEST_F(Kernels, MatmulOfIntegersIsExact) {
  const uint32_t m = 5, n = 70, k = 300;
  std::vector<int8_t> a(m * k), w(n * k);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int8_t>(i * 37 % 255 - 127);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<int8_t>(i * 91 % 255 - 127);
  Buffer<int8_t> av(device, std::span<const int8_t>(a)), wv(device, std::span<const int8_t>(w));
  const auto sa = up(std::vector<float>(m, 0.5f)), sw = up(std::vector<float>(n, 2.f));
  Buffer<float> out(device, m * n);
  launch(stream, {1, 1}, get("matmul_i8"), av.as({m, k}), wv.as({n, k}), sa, sw, out.as({m, n}));
  stream.synchronize();
  const auto got = out.to_host();
  for (uint32_t i = 0; i < m; ++i)
    for (uint32_t j = 0; j < n; ++j) {
      int want = 0;
      for (uint32_t l = 0; l < k; ++l) want += a[i * k + l] * w[j * k + l];
      ASSERT_EQ(got[i * n + j], static_cast<float>(want));
    }
}

TEST_F(Kernels, EmbedGathersRowsAndZeroesUnknownTokens) {
  const auto table = random_values(50 * 9000, 1);
  const auto t = up(table);
  const std::vector<int32_t> tokens{3, 49, 0, 50, -1};
  Buffer<int32_t> ids(device, std::span<const int32_t>(tokens));
  Buffer<float> out(device, 5 * 9000);
  launch(stream, {2}, get("embed"), t.as({50, 9000}), ids, out.as({5, 9000}));
  stream.synchronize();
  const auto got = out.to_host();
  for (size_t i = 0; i < 5; ++i)
    for (size_t c = 0; c < 9000; c += 77)
      ASSERT_EQ(got[i * 9000 + c],
                tokens[i] >= 0 && tokens[i] < 50 ? table[static_cast<size_t>(tokens[i]) * 9000 + c] : 0.f);
}

TEST_F(Kernels, EightBitFloatsAreConvertedOnTheirWayInAndOut) {
  const uint32_t n = 300;
  const auto x = random_values(n, 1, -500, 500);
  const auto xv = up(x), zero = up(std::vector<float>(n, 0.f));
  const Buffer<int32_t> first(device, std::vector<int32_t>{0});
  auto through = [&]<class Fp8>(Fp8, jalDType type) {
    Buffer<Fp8> small(device, n);
    Buffer<float> back(device, n);
    launch(stream, {1, 1}, get("add"), xv.as({1, n}), zero.as({1, n}), small.as({1, n}));
    launch(stream, {1}, get("embed"), small.as({1, n}), first, back.as({1, n}));
    stream.synchronize();
    const auto codes = small.to_host();
    const auto got = back.to_host();
    const float bits = type == jalE4M3 ? 0x1p-4f : 0x1p-3f;
    for (uint32_t i = 0; i < n; ++i) {
      const float want = type == jalE4M3 ? std::clamp(x[i], -448.f, 448.f) : x[i];
      ASSERT_EQ(got[i], fp8_value(codes[i].bits, type));
      ASSERT_NEAR(got[i], want, std::fabs(want) * bits + 0x1p-10f);
    }
  };
  through(e4m3{}, jalE4M3);
  through(e5m2{}, jalE5M2);
}

TEST_F(Kernels, RmsNorm) {
  for (auto [rows, width] : {std::array{1u, 1u}, {5u, 100u}, {3u, 4097u}, {37u, 65u}, {2u, 16384u}}) {
    const auto x = random_values(rows * width, 2), w = random_values(width, 3);
    const auto xv = up(x), wv = up(w);
    Buffer<float> out(device, rows * width);
    launch(stream, {2}, get("rmsnorm"), xv.as({rows, width}), wv, out.as({rows, width}), 1e-5f);
    stream.synchronize();
    const auto got = out.to_host();
    for (uint32_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (uint32_t c = 0; c < width; ++c) sum += static_cast<double>(x[r * width + c]) * x[r * width + c];
      const double f = 1 / std::sqrt(sum / width + 1e-5f);
      for (uint32_t c = 0; c < width; ++c) ASSERT_NEAR(got[r * width + c], x[r * width + c] * f * w[c], 2e-6);
    }
  }
}

TEST_F(Kernels, SwigluAddAndSoftmax) {
  const uint32_t rows = 21, width = 9001;
  const auto a = random_values(rows * width, 4, -20, 20), b = random_values(rows * width, 5);
  const auto av = up(a), bv = up(b);
  Buffer<float> glu(device, rows * width), sum(device, rows * width), soft(device, rows * width);
  launch(stream, {2, 2}, get("swiglu"), av.as({rows, width}), bv.as({rows, width}), glu.as({rows, width}));
  launch(stream, {1, 3}, get("add"), av.as({rows, width}), bv.as({rows, width}), sum.as({rows, width}));
  launch(stream, {2}, get("softmax"), av.as({rows, width}), soft.as({rows, width}));
  stream.synchronize();
  const auto g = glu.to_host(), s = sum.to_host(), p = soft.to_host();
  for (uint32_t r = 0; r < rows; ++r) {
    double total = 0;
    for (uint32_t c = 0; c < width; ++c) total += std::exp(static_cast<double>(a[r * width + c]) - 20);
    for (uint32_t c = 0; c < width; ++c) {
      const size_t i = r * width + c;
      ASSERT_NEAR(g[i], a[i] / (1 + std::exp(-static_cast<double>(a[i]))) * b[i], 1e-5);
      ASSERT_EQ(s[i], a[i] + b[i]);
      ASSERT_NEAR(p[i], std::exp(static_cast<double>(a[i]) - 20) / total, 1e-7 + 2e-6 * p[i]);
    }
  }
}

TEST_F(Kernels, SoftmaxAcrossTilePieces) {
  const uint32_t width = 40000;
  const auto a = random_values(width, 6, -3, 3);
  const auto av = up(a);
  Buffer<float> out(device, width);
  launch(stream, {1}, get("softmax"), av.as({1, width}), out.as({1, width}));
  stream.synchronize();
  const auto p = out.to_host();
  EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), 1, 1e-5);
}

TEST_F(Kernels, RopeOfBothPairings) {
  const uint32_t tokens = 21, heads = 3, head = 8, rotated = 6, position0 = 11, context = 32;
  const auto x = random_values(tokens * heads * head, 7);
  std::vector<float> c(context * rotated / 2), s(c.size());
  for (uint32_t p = 0; p < context; ++p)
    for (uint32_t i = 0; i < rotated / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / rotated);
      c[p * rotated / 2 + i] = static_cast<float>(std::cos(angle)),
                          s[p * rotated / 2 + i] = static_cast<float>(std::sin(angle));
    }
  const auto xv = up(x), cv = up(c), sv = up(s);
  Buffer<int32_t> position(device, std::vector<int32_t>{static_cast<int32_t>(position0)});
  for (bool halves : {false, true}) {
    Buffer<float> out(device, x.size());
    launch(stream, {2}, get(halves ? "rope_halves_d8_r6" : "rope_interleaved_d8_r6"), xv.as({tokens, heads * head}),
           cv.as({context, rotated / 2}), sv.as({context, rotated / 2}), position, out.as({tokens, heads * head}));
    stream.synchronize();
    const auto got = out.to_host();
    for (uint32_t t = 0; t < tokens; ++t)
      for (uint32_t h = 0; h < heads; ++h)
        for (uint32_t i = 0; i < head; ++i) {
          const size_t base = (t * heads + h) * head;
          double want = x[base + i];
          if (i < rotated) {
            const uint32_t pair = halves ? i % (rotated / 2) : i / 2, first = halves ? pair : 2 * pair,
                           second = halves ? pair + rotated / 2 : first + 1;
            const double angle = (position0 + t) * std::pow(10000.0, -2.0 * pair / rotated);
            want = i == first ? x[base + first] * std::cos(angle) - x[base + second] * std::sin(angle)
                              : x[base + first] * std::sin(angle) + x[base + second] * std::cos(angle);
          }
          ASSERT_NEAR(got[base + i], want, 1e-6);
        }
  }
}

// Queries of several heads share a KV head; keys lie in pages out of order; new tokens follow `past` old ones.
class AttentionTest : public Kernels {
 protected:
  void run(const std::string& kind, jalDType type, uint32_t past, uint32_t tokens, uint32_t heads, uint32_t kv_heads,
           uint32_t head, double tolerance) {
    const uint32_t total = past + tokens, pages = (total + kPage - 1) / kPage + 1, kv = kv_heads * head;
    const auto q = random_values(size_t{tokens} * heads * head, 1), k = random_values(size_t{total} * kv, 2),
               v = random_values(size_t{total} * kv, 3);
    std::vector<int32_t> table(pages);
    for (uint32_t p = 0; p < pages; ++p)
      table[p] = static_cast<int32_t>(kind == "causal" ? p : (p * 7 + 3) % pages == p ? p : pages - 1 - p);
    std::vector<float> kc(size_t{pages} * kPage * kv), vc(kc.size());
    for (uint32_t t = 0; t < total; ++t)
      for (uint32_t c = 0; c < kv; ++c) {
        const size_t slot = (static_cast<size_t>(table[t / kPage]) * kPage + t % kPage) * kv + c;
        kc[slot] = k[size_t{t} * kv + c], vc[slot] = v[size_t{t} * kv + c];
      }
    const Stored ks = store(kc, type), vs = store(vc, type);
    Buffer<uint8_t> kb(device, std::span<const uint8_t>(ks.bytes)), vb(device, std::span<const uint8_t>(vs.bytes));
    const jalTensor kt = tensor(kb.data(), type, {pages * kPage, kv}),
                    vt = tensor(vb.data(), type, {pages * kPage, kv});
    const auto qv = up(q);
    Buffer<float> out(device, q.size());
    Buffer<int32_t> tb(device, std::span<const int32_t>(table));
    const float scale = 1 / std::sqrt(static_cast<float>(head));
    const auto group = static_cast<int32_t>(heads / kv_heads);
    const std::string suffix = std::string(type == jalF32    ? "f32"
                                           : type == jalF16  ? "f16"
                                           : type == jalBF16 ? "bf16"
                                                             : "q8_0") +
                               "_d" + std::to_string(head);
    Buffer<int32_t> position(
        device, std::vector<int32_t>{static_cast<int32_t>(kind == "decode" || kind == "split" ? total - 1 : past)});
    auto view = [&](const Buffer<float>& b) {
      jalTensor t = b.as({heads, tokens, head});
      t.stride[0] = head * 4, t.stride[1] = uint64_t{heads} * head * 4;
      return t;
    };
    if (kind == "decode")
      launch(stream, {2, 1}, get("attention_decode_" + suffix), qv.as({1, heads, head}), kt, vt, position,
             tensor(tb.data(), jalI32, {1, pages}), out.as({1, heads, head}), group, scale);
    else if (kind == "split") {  // more shares than blocks of keys: some find none
      constexpr uint32_t kShares = 5;
      Buffer<float> partial(device, kShares * q.size()), state(device, size_t{kShares} * heads * 4);
      launch(stream, {2, 1, 3}, get("attention_split_" + suffix), qv.as({1, heads, head}), kt, vt, position,
             tensor(tb.data(), jalI32, {1, pages}), partial.as({kShares, heads, head}), state.as({kShares, heads, 4}),
             group, scale);
      launch(stream, {1, 1}, get("attention_merge_d" + std::to_string(head)), partial.as({kShares, heads, head}),
             state.as({kShares, heads, 4}), out.as({1, heads, head}));
      stream.synchronize();
    } else if (kind == "paged")
      launch(stream, {2, 2}, get("attention_paged_" + suffix), view(qv), kt, vt, position, tb, view(out), group, scale);
    else
      launch(stream, {3, 1}, get("attention_causal_" + suffix), view(qv), kt, vt, position, view(out), group, scale);
    stream.synchronize();
    const auto got = out.to_host();
    for (uint32_t t = 0; t < tokens; ++t)
      for (uint32_t h = 0; h < heads; ++h) {
        const uint32_t g = h / (heads / kv_heads), seen = past + t + 1;
        std::vector<double> p(seen);
        double peak = -1e30, sum = 0;
        for (uint32_t j = 0; j < seen; ++j) {
          double dot = 0;
          for (uint32_t c = 0; c < head; ++c)
            dot += static_cast<double>(q[(size_t{t} * heads + h) * head + c]) * k[size_t{j} * kv + g * head + c];
          p[j] = dot * scale, peak = std::max(peak, p[j]);
        }
        for (double& x : p) sum += x = std::exp(x - peak);
        for (uint32_t c = 0; c < head; ++c) {
          double want = 0;
          for (uint32_t j = 0; j < seen; ++j) want += p[j] / sum * v[size_t{j} * kv + g * head + c];
          ASSERT_NEAR(got[(size_t{t} * heads + h) * head + c], want, tolerance)
              << kind << " token " << t << " head " << h;
        }
      }
  }
};

TEST_F(AttentionTest, CausalPagedAndDecode) {
  struct Type {
    jalDType type;
    double tolerance;
  };
  for (const Type& t : {Type{jalF32, 2e-6}, {jalBF16, 2e-2}, {jalF16, 3e-3}, {jalQ8_0, 2e-2}}) {
    if (t.type != jalQ8_0) run("causal", t.type, 0, 1, 2, 1, 16, t.tolerance);  // no whole block
    run("causal", t.type, 0, 130, 4, 2, 32, t.tolerance);
    run("paged", t.type, 37, 70, 6, 3, 64, t.tolerance);
    run("paged", t.type, 200, 3, 2, 2, 32, t.tolerance);
    run("decode", t.type, 0, 1, 4, 4, 32, t.tolerance);
    run("decode", t.type, 300, 1, 9, 3, 64, t.tolerance);
    run("split", t.type, 0, 1, 4, 4, 32, t.tolerance);
    run("split", t.type, 300, 1, 9, 3, 64, t.tolerance);
    run("split", t.type, 1500, 1, 4, 2, 32, t.tolerance);
  }
}

TEST_F(Kernels, RopeKvAppendsIntoThePagesOfTheTable) {
  const uint32_t tokens = 40, kv = 16, position0 = 13;
  const auto k = random_values(tokens * kv, 1), v = random_values(tokens * kv, 2);
  const auto kv_ = up(k), vv = up(v), c = up(std::vector<float>(64 * 4, 1.f)), s = up(std::vector<float>(64 * 4, 0.f));
  Buffer<int32_t> position(device, std::vector<int32_t>{static_cast<int32_t>(position0)}),
      table(device, std::vector<int32_t>{2, 0, 3, 1});
  Buffer<float> kc(device, 64 * kv), vc(device, 64 * kv);
  stream.fill(kc.data(), 0, kc.bytes()), stream.fill(vc.data(), 0, vc.bytes());
  launch(stream, {3}, get("rope_kv_interleaved_d8_r8"), kv_.as({tokens, kv}), vv.as({tokens, kv}), c.as({64, 4}),
         s.as({64, 4}), position, table.as({1, 4}), kc.as({64, kv}), vc.as({64, kv}));
  stream.synchronize();
  const auto gk = kc.to_host(), gv = vc.to_host();
  const int pages[] = {2, 0, 3, 1};
  for (uint32_t t = 0; t < tokens; ++t) {
    const uint32_t at = position0 + t, slot = static_cast<uint32_t>(pages[at / kPage]) * kPage + at % kPage;
    for (uint32_t i = 0; i < kv; ++i) {
      ASSERT_EQ(gk[slot * kv + i], k[t * kv + i]);
      ASSERT_EQ(gv[slot * kv + i], v[t * kv + i]);
    }
  }
  EXPECT_EQ(std::count_if(gk.begin(), gk.end(), [](float f) { return f != 0; }), tokens * kv);
}

// Tokens of several sequences, each in its place; one has no page there.
TEST_F(Kernels, RopeKvOfSeveralSequences) {
  const uint32_t tokens = 9, kv = 8, pages = 3;
  const auto k = random_values(tokens * kv, 1);
  const auto kv_ = up(k), c = up(std::vector<float>(64 * 4, 1.f)), s = up(std::vector<float>(64 * 4, 0.f));
  for (bool own_positions : {true, false}) {
    std::vector<int32_t> position, entries;
    for (uint32_t t = 0; t < tokens; ++t) {
      position.push_back(own_positions ? static_cast<int32_t>(t * 5) : 0);
      for (uint32_t p = 0; p < pages; ++p) entries.push_back(t == 4 ? -1 : static_cast<int32_t>(t * pages + p));
    }
    position.resize(own_positions ? tokens : 1);
    Buffer<int32_t> at(device, position), table(device, entries);
    const uint32_t slots = tokens * pages * kPage;
    Buffer<float> kc(device, slots * kv), vc(device, slots * kv);
    stream.fill(kc.data(), 0, kc.bytes()), stream.fill(vc.data(), 0, vc.bytes());
    launch(stream, {1}, get("rope_kv_interleaved_d8_r8"), kv_.as({tokens, kv}), kv_.as({tokens, kv}), c.as({64, 4}),
           s.as({64, 4}), at, table.as({tokens, pages}), kc.as({slots, kv}), vc.as({slots, kv}));
    stream.synchronize();
    std::vector<float> want(slots * kv, 0.f);
    for (uint32_t t = 0; t < tokens; ++t) {
      const uint32_t place = own_positions ? t * 5 : t, slot = (t * pages + place / kPage) * kPage + place % kPage;
      if (t != 4) std::copy_n(&k[t * kv], kv, &want[slot * kv]);
    }
    EXPECT_EQ(kc.to_host(), want) << own_positions;
    EXPECT_EQ(vc.to_host(), want) << own_positions;
  }
}

TEST_F(Kernels, ArgmaxAndTopK) {
  const uint32_t width = 40001;
  auto x = random_values(2 * width, 9);
  x[17] = x[39000] = 2;  // a tie: the lower index wins
  x[width + 40000] = 3;
  const auto xv = up(x);
  Buffer<int32_t> best(device, 2), indices(device, 2 * 50);
  Buffer<float> values(device, 2 * 50);
  launch(stream, {1}, get("argmax"), xv.as({2, width}), best);
  launch(stream, {2}, get("topk_k50"), xv.as({2, width}), values.as({2, 50}), indices.as({2, 50}));
  stream.synchronize();
  EXPECT_EQ(best.to_host(), (std::vector<int32_t>{17, 40000}));
  const auto v = values.to_host();
  const auto n = indices.to_host();
  for (uint32_t r = 0; r < 2; ++r) {
    std::vector<uint32_t> order(width);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return x[r * width + a] > x[r * width + b]; });
    for (uint32_t k = 0; k < 50; ++k) {
      ASSERT_EQ(static_cast<uint32_t>(n[r * 50 + k]), order[k]);
      ASSERT_EQ(v[r * 50 + k], x[r * width + order[k]]);
    }
  }
}

TEST_F(Kernels, SamplingFollowsTheDistributionItWasGiven) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f), -30.f};
  const auto x = up(logits);
  Buffer<int32_t> token(device, 1), position(device, std::vector<int32_t>{0});
  HostBuffer<int32_t> out(device, 1);
  auto draw = [&](const char* kernel, float temperature, float top_p, int64_t seed) {
    launch(stream, {1}, get(kernel), x.as({1, 5}), token, position, temperature, top_p, seed);
    stream.copy(out.data(), token.data(), 4);
    stream.synchronize();
    return out[0];
  };
  std::array<int, 5> seen{};
  const int n = 2000;
  for (int k = 0; k < n; ++k) ++seen[static_cast<size_t>(draw("sample_k5", 1, 1, 42))];
  EXPECT_EQ(position.to_host()[0], n);
  // Five standard deviations of a binomial count.
  for (size_t k = 0; k < 4; ++k) {
    const double p = std::exp(static_cast<double>(logits[k]));
    EXPECT_NEAR(seen[k], n * p, 5 * std::sqrt(n * p * (1 - p))) << k;
  }
  EXPECT_EQ(seen[4], 0);
  for (int k = 0; k < 200; ++k) {
    EXPECT_LE(draw("sample_k2", 1, 1, k), 1);
    EXPECT_LE(draw("sample_k5", 1, 0.7f, k), 1) << "0.5 < 0.7, 0.5 + 0.3 > 0.7: two tokens stay";
    EXPECT_EQ(draw("sample_k5", 0.01f, 1, k), 0);
  }
}

}  // namespace
}  // namespace jalapeno::test
