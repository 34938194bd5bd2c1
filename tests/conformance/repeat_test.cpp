// A launch that comes again does the same, to the last bit, with whatever its memory holds by then. The emulator runs
// it in other ways the first, second and third time (emulator/lowered.hpp); lower=0 keeps it to the first.
#include <jalapeno/tile.hpp>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

namespace jt = jalapeno::tile;

constexpr int kTimes = 4;

// A machine to run one thing several times, and what it left each time.
class Repeat {
 public:
  explicit Repeat(const std::string& options) : device(uri(options)), stream(device) {}

  Device device;
  Stream stream;
  std::vector<std::vector<float>> results;
  std::vector<double> modelled_ns;

  Buffer<float> up(size_t n, unsigned seed) {
    return Buffer<float>(device, std::span<const float>(random_values(n, seed)));
  }
  Kernel build(jt::KernelCode code) {
    modules.emplace_back(device, jt::write_module({code}));
    return modules.back().kernel(code.name);
  }
  // Launches with `out` as it was in the beginning, inputs changed before the last time.
  template <class Run>
  void times(Buffer<float>& out, Buffer<float>* input, Run run) {
    const auto before = out.to_host();
    for (int k = 0; k < kTimes; ++k) {
      stream.copy(out.data(), before.data(), before.size() * sizeof(float));
      if (k == kTimes - 1 && input != nullptr) {
        const auto other = random_values(input->size(), 99);
        stream.copy(input->data(), other.data(), other.size() * sizeof(float));
      }
      const Event begin(device, true), end(device, true);
      begin.record(stream);
      run();
      end.record(stream);
      stream.synchronize();
      modelled_ns.push_back(end.elapsed_since(begin).device_ns);
      results.push_back(out.to_host());
    }
  }

 private:
  std::vector<Module> modules;
};

// what(machine) fills results.
template <class What>
void same_every_time(const std::string& name, What what) {
  Repeat machine("threads=2");
  what(machine);
  ASSERT_EQ(machine.results.size(), kTimes) << name;
  for (int k = 1; k < kTimes - 1; ++k) EXPECT_EQ(machine.results[0], machine.results[static_cast<size_t>(k)]) << name;
  EXPECT_NE(machine.results[0], machine.results[kTimes - 1]) << name << ": its input changed";
  if (!embedded()) return;
  Repeat plain("threads=1&lower=0");
  what(plain);
  for (size_t k = 0; k < kTimes; ++k) {
    EXPECT_EQ(machine.results[k], plain.results[k]) << name << ", launch " << k;
    EXPECT_NEAR(machine.modelled_ns[k], plain.modelled_ns[k], 1) << name << ", launch " << k;
  }
}

TEST(Repeat, MultiplicationsOfOneAndManyRows) {
  struct Format {
    const char* name;
    jalDType type;
    double bytes;
  };
  for (const Format& f : {Format{"f32", jalF32, 4},
                          {"bf16", jalBF16, 2},
                          {"f16", jalF16, 2},
                          {"q8_0", jalQ8_0, 34.0 / 32},
                          {"q4_0", jalQ4_0, 18.0 / 32},
                          {"mxfp4", jalMXFP4, 17.0 / 32},
                          {"mxfp8", jalMXFP8, 33.0 / 32},
                          {"e4m3", jalE4M3, 1}})
    for (const char* base : {"matvec_", "matmul_"})
      for (const char* end : {"", "_add"})
        for (auto [m, n, k] : {std::array{1u, 300u, 576u}, {2u, 303u, 1120u}, {3u, 640u, 96u}, {37u, 290u, 1120u}})
          same_every_time(std::string(base) + f.name + end + " " + std::to_string(m),
                          [&, m = m, n = n, k = k](Repeat& r) {
                            auto a = r.up(size_t{m} * k, 1), out = r.up(size_t{m} * n, 3);
                            // Weights of any type from the same floats, by the device.
                            auto w = r.up(size_t{n} * k, 2);
                            Buffer<uint8_t> stored(r.device, static_cast<size_t>(size_t{n} * k * f.bytes));
                            const jalTensor wt = tensor(stored.data(), f.type, {n, k});
                            jt::Builder convert("convert");
                            auto from = convert.tensor("from", jt::f32, 2);
                            auto to = convert.any_tensor("to", 2);
                            auto t = convert.spm(jt::f32, 1, 4096);
                            convert.loop(0, from.dim(0), [&](jt::Reg row) {
                              jt::Tile part = convert.slice(t, 0, 0, 1, from.dim(1));
                              convert.load(part, from, {row, 0});
                              convert.store(to, {row, 0}, part);
                            });
                            launch(r.stream, {1}, r.build(convert.finish()), w.as({n, k}), wt);
                            r.times(out, &a, [&, m = m, n = n, k = k] {
                              launch(r.stream, {5, 2}, library_kernel(r.device, std::string(base) + f.name + end),
                                     a.as({m, k}), wt, out.as({m, n}));
                            });
                          });
}

TEST(Repeat, RowsAndElements) {
  const uint32_t rows = 5, width = 3001;
  for (const char* name : {"rmsnorm", "swiglu", "softmax", "add"})
    same_every_time(name, [&](Repeat& r) {
      auto x = r.up(rows * width, 1), y = r.up(rows * width, 2), out = r.up(rows * width, 3), w = r.up(width, 4);
      const std::string kernel = name;
      r.times(out, &x, [&] {
        if (kernel == "rmsnorm")
          launch(r.stream, {2}, library_kernel(r.device, kernel), x.as({rows, width}), w, out.as({rows, width}), 1e-5f);
        else if (kernel == "softmax")
          launch(r.stream, {2}, library_kernel(r.device, kernel), x.as({rows, width}), out.as({rows, width}));
        else
          launch(r.stream, {2, 2}, library_kernel(r.device, kernel), x.as({rows, width}), y.as({rows, width}),
                 out.as({rows, width}));
      });
    });
}

// A product over its own operand: the result must not be written while it is read.
TEST(Repeat, AResultOverItsOwnOperand) {
  same_every_time("in place", [](Repeat& r) {
    constexpr uint32_t kN = 64;
    auto out = r.up(kN * kN, 1), w = r.up(kN * kN, 2);
    jt::Builder k("in_place");
    auto X = k.tensor("x", jt::f32, 2), W = k.tensor("w", jt::f32, 2);
    auto a = k.spm(jt::f32, kN, kN), b = k.spm(jt::f32, kN, kN), o = k.spm(jt::f32, kN, kN);
    auto c = k.acc(kN, kN);
    k.zero(c);
    k.load(a, X, {0, 0});
    k.load(b, W, {0, 0});
    k.mma(c, a, b);
    k.drain(o, c);
    k.store(X, {0, 0}, o);
    const Kernel kernel = r.build(k.finish());
    r.times(out, &w, [&] { launch(r.stream, {1}, kernel, out.as({kN, kN}), w.as({kN, kN})); });
  });
}

// Boxes over a tensor's edges, elements written from registers, tiles that lie over each other, several pieces.
TEST(Repeat, EdgesRegistersAndOverlays) {
  same_every_time("edges", [](Repeat& r) {
    constexpr uint32_t kRows = 50, kColumns = 70;
    auto x = r.up(kRows * kColumns, 1), out = r.up(kRows * kColumns, 2);
    jt::Builder k("edges");
    auto X = k.tensor("x", jt::f32, 2), Y = k.tensor("y", jt::f32, 2);
    auto t = k.spm(jt::f32, 16, 32), h = k.overlay(t, jt::bf16, 16, 32);
    k.loop(k.pid_x(), 4, k.grid_x(), [&](jt::Reg piece) {
      k.loop(0, 3, [&](jt::Reg column) {
        k.load(t, X, {piece * 16 - 3, column * 32 - 5}, 0.25f);
        k.write(t, 3, 4, k.constant_f32(7));
        k.unary(jt::UnaryOp::kExp, t, t);
        k.store(Y, {piece * 16 - 3, column * 32 - 5}, t);
        k.load(h, X, {piece * 16 - 3, column * 32 - 5}, 1);
        k.store_add(Y, {piece * 16 - 3, column * 32 - 5}, h);
      });
    });
    const Kernel kernel = r.build(k.finish());
    r.times(out, &x, [&] { launch(r.stream, {2}, kernel, x.as({kRows, kColumns}), out.as({kRows, kColumns})); });
  });
}

// What a program reads into registers may be another each time.
TEST(Repeat, ControlThatFollowsData) {
  Repeat r("threads=1");
  jt::Builder k("count");
  auto N = k.tensor("n", jt::i32, 1), Y = k.tensor("y", jt::f32, 1);
  auto n = k.spm(jt::i32, 1, 1);
  auto y = k.spm(jt::f32, 1, 1);
  k.load(n, N, {0});
  k.fill(y, 0);
  k.loop(0, k.read(n, 0, 0), [&](jt::Reg) { k.binary(jt::BinaryOp::kAdd, y, y, 1.f); });
  k.store(Y, {0}, y);
  const Kernel kernel = r.build(k.finish());
  Buffer<int32_t> count(r.device, 1);
  Buffer<float> out(r.device, 1);
  for (int32_t times : {3, 5, 2, 7, 0}) {
    r.stream.copy(count.data(), &times, sizeof times);
    launch(r.stream, {1}, kernel, count, out);
    r.stream.synchronize();
    EXPECT_EQ(out.to_host()[0], static_cast<float>(times));
  }
}

// More instances than lists are kept of.
TEST(Repeat, AGridOfManyInstances) {
  Repeat r("");
  constexpr uint32_t kCount = 40000;
  jt::Builder k("many");
  auto Y = k.tensor("y", jt::f32, 2);
  auto y = k.spm(jt::f32, 1, 4);
  k.load(y, Y, {k.pid_x(), 0});
  for (int i = 0; i < 6; ++i) k.binary(jt::BinaryOp::kAdd, y, y, 1.f);
  k.store(Y, {k.pid_x(), 0}, y);
  const Kernel kernel = r.build(k.finish());
  Buffer<float> out(r.device, size_t{kCount} * 4);
  r.stream.fill(out.data(), 0, out.bytes());
  for (int times = 0; times < 4; ++times) launch(r.stream, {kCount}, kernel, out.as({kCount, 4}));
  r.stream.synchronize();
  for (const float v : out.to_host()) ASSERT_EQ(v, 24);
}

// The same addresses, freed and used again for another program and other data.
TEST(Repeat, MemoryAndModulesThatChangeTheirOwner) {
  Device device{uri()};
  Stream stream(device);
  for (int round = 0; round < 6; ++round) {
    const uint32_t n = 4096;
    Buffer<float> x(device, std::span<const float>(random_values(n, static_cast<unsigned>(round)))), y(device, n);
    jt::Builder k("scale");
    auto X = k.tensor("x", jt::f32, 1), Y = k.tensor("y", jt::f32, 1);
    auto t = k.spm(jt::f32, 1, 1024);
    k.loop(k.pid_x() * 1024, X.dim(0), k.grid_x() * 1024, [&](jt::Reg i) {
      k.load(t, X, {i});
      k.binary(jt::BinaryOp::kMul, t, t, static_cast<float>(round + 1));
      k.store(Y, {i}, t);
    });
    const Module module(device, jt::write_module({k.finish()}));
    const Kernel kernel = module.kernel("scale");
    const auto want = x.to_host();
    for (int times = 0; times < 3; ++times) {
      stream.fill(y.data(), 0, n * sizeof(float));
      launch(stream, {2}, kernel, x, y);
      stream.synchronize();
      const auto got = y.to_host();
      for (uint32_t i = 0; i < n; ++i) ASSERT_EQ(got[i], want[i] * static_cast<float>(round + 1)) << round << " " << i;
    }
  }
}

}  // namespace
}  // namespace jalapeno::test
