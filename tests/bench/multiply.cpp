// Matrix multiplications of the kernel library: cubes beside the arithmetic peak, few rows beside the memory.
#include <bit>
#include <jalapeno/jalapeno.hpp>

#include "bench.hpp"
#include "limits.hpp"
#include "peers.hpp"

namespace bench {
namespace {

using jalapeno::argument;
using jalapeno::check;
using jalapeno::tensor;

struct Format {
  const char* name;
  jalDType weights, activations;
  Peak peak;
  std::optional<Type> peer;
  size_t block, block_bytes;  // of weights
  double share_of_peak;
};
constexpr Format kF32{"f32", jalF32, jalF32, Peak::kFma, Type::kF32, 1, 4, 0.9};
constexpr Format kBf16{"bf16", jalBF16, jalBF16, Peak::kBf16, Type::kBf16, 1, 2, 0.92};
constexpr Format kI8{"i8", jalI8, jalI8, Peak::kInt8, Type::kInt8, 1, 1, 0.85};
constexpr Format kQ8{"q8_0", jalQ8_0, jalQ8_0, Peak::kInt8, std::nullopt, 32, 34, 0.85};
constexpr Format kMx4{"mxfp4", jalMXFP4, jalQ8_0, Peak::kInt8, std::nullopt, 32, 17, 0.85};
constexpr Format kMx8{"mxfp8", jalMXFP8, jalBF16, Peak::kBf16, std::nullopt, 32, 33, 0.92};
constexpr Format kE4{"e4m3", jalE4M3, jalBF16, Peak::kBf16, std::nullopt, 1, 1, 0.92};
constexpr Format kQ4{"q4_0", jalQ4_0, jalQ8_0, Peak::kInt8, std::nullopt, 32, 18, 0.85};

std::vector<std::byte> values(jalDType type, size_t count) {
  std::vector<std::byte> out;
  auto noise = [](size_t i) { return static_cast<uint32_t>(i * 2654435761u >> 16 & 255); };
  auto add = [&](auto v) {
    const auto* p = reinterpret_cast<const std::byte*>(&v);
    out.insert(out.end(), p, p + sizeof v);
  };
  for (size_t i = 0; i < count; ++i) {
    const float f = (static_cast<float>(noise(i)) - 128) / 128;
    if (type == jalF32)
      add(f);
    else if (type == jalBF16)
      add(static_cast<uint16_t>(std::bit_cast<uint32_t>(f) >> 16));
    else if (type == jalI8)
      add(static_cast<int8_t>(noise(i) - 128));
    else if (type == jalE4M3)
      add(static_cast<uint8_t>(noise(i) & 0xBF));  // no NaNs
    else if (i % 32 == 0) {                        // a block: its scale, then 32 or 16 bytes
      const bool wide = type == jalQ8_0 || type == jalMXFP8;
      if (type == jalMXFP4 || type == jalMXFP8)
        add(uint8_t{120});
      else
        add(uint16_t{0x2000});
      for (size_t b = 0; b < (wide ? 32 : 16); ++b) {
        const uint32_t v = noise(i + b);
        add(static_cast<uint8_t>(type == jalMXFP8 ? v & 0xBF : v == 128 ? 129 : v));  // no quantiser makes -128 of q8_0
      }
    }
  }
  return out;
}

// c[m, n] = a[m, k] * w[n, k], with `copies` of w that take turns.
class Multiply {
 public:
  Multiply(const Format& f, uint32_t m, uint32_t n, uint32_t k, int threads, uint32_t copies)
      : m_(m),
        n_(n),
        copies_(copies),
        device_(device_uri(threads)),
        stream_(device_),
        kernel_(jalapeno::library_kernel(device_,
                                         std::string(m <= 16 && f.weights != jalI8 ? "matvec_" : "matmul_") + f.name)),
        a_(device_, std::span<const std::byte>(values(f.activations, size_t{m} * k))),
        c_(device_, size_t{m} * n),
        weight_bytes_(size_t{n} * k / f.block * f.block_bytes),
        w_(device_, weight_bytes_ * copies) {
    const std::vector<std::byte> w = values(f.weights, size_t{n} * k);
    for (uint32_t i = 0; i < copies; ++i) {
      check(jalMemcpy(w_.data() + i * weight_bytes_, w.data(), weight_bytes_));
      std::vector<jalArg> args{argument(tensor(a_.data(), f.activations, {m, k})),
                               argument(tensor(w_.data() + i * weight_bytes_, f.weights, {n, k}))};
      if (f.weights == jalI8) {
        if (i == 0) {
          const std::vector<float> ones(std::max(m, n), 1.f);
          scales_ = jalapeno::Buffer<float>(device_, std::span<const float>(ones));
        }
        args.push_back(argument(tensor(scales_.data(), jalF32, {m})));
        args.push_back(argument(tensor(scales_.data(), jalF32, {n})));
      }
      args.push_back(argument(c_.as({m, n})));
      arguments_.push_back(std::move(args));
    }
    for (int i = 0; i < 3; ++i) run();  // launches that come again are lowered by the third time
  }
  // All copies, until done.
  void run() {
    for (const auto& args : arguments_)
      check(jalLaunchKernel(kernel_.get(), m_ <= 16 ? (n_ + 127) / 128 : (n_ + 255) / 256, (m_ + 255) / 256, 1,
                            args.data(), static_cast<uint32_t>(args.size()), stream_.get()));
    stream_.synchronize();
  }
  double bytes() const { return static_cast<double>(weight_bytes_) * copies_; }

 private:
  uint32_t m_, n_, copies_;
  jalapeno::Device device_;
  jalapeno::Stream stream_;
  jalapeno::Kernel kernel_;
  jalapeno::Buffer<std::byte> a_;
  jalapeno::Buffer<float> c_, scales_;
  size_t weight_bytes_;
  jalapeno::Buffer<std::byte> w_;
  std::vector<std::vector<jalArg>> arguments_;
};

// Seconds of one run, over as many as 30 ms take.
template <class F>
double run_seconds(F run) {
  int count = 0;
  const auto begin = Clock::now();
  do run(), ++count;
  while (seconds_since(begin) < 0.03);
  return seconds_since(begin) / count;
}

Row cube(const Options& options, const Format& f, uint32_t edge, int threads) {
  const double gop = 2e-9 * edge * edge * edge;
  std::optional<Type> peer = f.peer;
  if (peer == Type::kBf16 && !has_dot(Peak::kBf16)) peer = Type::kF32;  // oneDNN has no bf16 for such a host
  const std::unique_ptr<PeerMultiply> other =
      peer && peers() != nullptr ? peers()->multiply(*peer, edge, edge, edge, threads) : nullptr;
  if (other) other->run();
  Multiply ours(f, edge, edge, edge, threads, 1);
  std::vector<Measurement> all{{}, [&] { return gop / run_seconds([&] { ours.run(); }); }, {}};
  if (has_peak()) all[0] = [&] { return peak_gops(f.peak, threads); };
  if (other) all[2] = [&] { return gop / run_seconds([&] { other->run(); }); };
  const auto m = interleave(options, all, 7, 3);
  Row row{"", "", *m[1], "Gop/s"};
  row.goal = ">= " + std::to_string(f.share_of_peak).substr(0, 4) + " of " + peak_name(f.peak);
  if (m[0]) row.limit = Reference{peak_name(f.peak), *m[0]};
  if (m[0] && (m[2] || !peer)) row.met = m[1]->median >= f.share_of_peak * m[0]->median;
  if (peer) {
    const char* name = *peer == Type::kF32 ? "OpenBLAS" : "oneDNN";
    row.goal += std::string(", >= ") + name;
    if (m[2]) row.peer = Reference{name, *m[2]};
    if (m[2] && row.met) row.met = *row.met && m[1]->median >= m[2]->median;
  }
  return row;
}

Row few_rows(const Options& options, const Format& f, uint32_t rows, int threads) {
  constexpr uint32_t kEdge = 4096;
  constexpr size_t kBeyondCache = 256 << 20;
  const size_t each = size_t{kEdge} * kEdge / f.block * f.block_bytes;
  Multiply ours(f, rows, kEdge, kEdge, threads, static_cast<uint32_t>((kBeyondCache + each - 1) / each));
  const auto m = interleave(
      options,
      {[&] { return stream_read_gbs(threads); }, [&] { return ours.bytes() * 1e-9 / seconds([&] { ours.run(); }); }}, 7,
      3);
  return {"",
          "",
          *m[1],
          "GB/s",
          Reference{"streaming read", *m[0]},
          {},
          ">= 0.90 of streaming read",
          m[1]->median >= 0.9 * m[0]->median};
}

}  // namespace

std::vector<Case> multiply_cases(const Options& options) {
  std::vector<Case> out;
  for (int t : options.threads) {
    const std::string end = "/t" + std::to_string(t);
    auto add_cubes = [&](const Format& f, std::initializer_list<uint32_t> edges) {
      for (uint32_t e : edges) {
        if (options.quick && e > 2048) continue;
        out.push_back({std::string("multiply/") + f.name + "/" + std::to_string(e) + end,
                       std::string(f.name) + " cube of " + std::to_string(e) + ", " + std::to_string(t) + " thread(s)",
                       [&f, e, t](const Options& o) { return cube(o, f, e, t); }});
      }
    };
    add_cubes(kBf16, {512, 1024, 2048, 4096});
    add_cubes(kI8, {1024, 4096});
    add_cubes(kQ8, {1024, 4096});
    add_cubes(kF32, {2048});
    for (const Format* f : {&kBf16, &kQ8, &kQ4, &kMx4, &kMx8, &kE4})
      for (uint32_t rows : {1u, 8u})
        out.push_back({std::string("multiply/") + f->name + "/rows" + std::to_string(rows) + end,
                       std::string(f->name) + ", " + std::to_string(rows) + " row(s), weights from memory, " +
                           std::to_string(t) + " thread(s)",
                       [f, rows, t](const Options& o) { return few_rows(o, *f, rows, t); }});
  }
  return out;
}

}  // namespace bench
