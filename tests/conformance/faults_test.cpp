// Kernels that misbehave: each gives a record that says what, where and with which numbers; the process and the other
// streams go on, and a reset brings the stream back.
#include <jalapeno/tile.hpp>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

namespace jt = jalapeno::tile;
using jt::Reg;

class Faults : public OnDevice {
 protected:
  Module load(const jt::KernelCode& code) {
    const auto bytes = jt::write_module({code});
    return Module(device, bytes);
  }
  jalErrorRecord fail_with(jalError_t code) {
    EXPECT_EQ(jalStreamSynchronize(stream.get()), code) << jalGetLastErrorDetail();
    return stream.error_record();
  }
  void launch_for(const Module& endless, uint32_t deadline_ms) {
    jalLaunchConfig c{};
    c.struct_size = sizeof c, c.grid[0] = c.grid[1] = c.grid[2] = 1, c.deadline_ms = deadline_ms;
    check(jalLaunchKernelEx(endless.kernel("endless").get(), &c, nullptr, 0, stream.get()));
  }
  void recover() {
    stream.reset();
    Buffer<float> a(device, std::vector<float>{1, 2}), b(device, std::vector<float>{3, 4}), c(device, 2);
    launch(stream, {1, 1}, library_kernel(device, "add"), a.as({1, 2}), b.as({1, 2}), c.as({1, 2}));
    stream.synchronize();
    EXPECT_EQ(c.to_host(), (std::vector<float>{4, 6}));
  }
};

jt::KernelCode endless() {
  jt::Builder k("endless");
  k.loop(0, INT64_MAX, [&](Reg) {});
  return k.finish();
}

// A kernel that reads row `row` of its tensor, whatever the tensor's shape says.
jt::KernelCode reader() {
  jt::Builder k("reader");
  auto x = k.tensor("x", jt::f32, 2), y = k.tensor("y", jt::f32, 2);
  auto t = k.spm(jt::f32, 1, 16);
  Reg row = k.scalar_i32("row");
  k.load(t, x, {row, 0});
  k.store(y, {row, 0}, t);
  return k.finish();
}

TEST_F(Faults, TensorLargerThanItsAllocationIsRefusedAtLaunch) {
  const Module m = load(reader());
  Buffer<float> x(device, 16 * 4), y(device, 16 * 4);
  EXPECT_THROW(launch(stream, {1}, m.kernel("reader"), x.as({5, 16}), y.as({4, 16}), 0), Error);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("argument 0 (x): needs 320 bytes, its allocation has 256"),
            std::string::npos)
      << jalGetLastErrorDetail();
}

TEST_F(Faults, FreedMemoryUnderAKernelIsAnAddressFaultThatNamesEverything) {
  const Module m = load(reader());
  void* p{};
  check(jalMalloc(device.get(), &p, 4 << 20));
  Buffer<float> neighbour(device, 1 << 20), y(device, 16 * 65536);
  const uint32_t rows = 65536;
  Timeline gate(device);
  // The launch is accepted while the memory exists; then it goes, behind the back of the runtime's fences.
  const Graph g(stream, [&] {
    launch(stream, {1}, m.kernel("reader"), tensor(p, jalF32, {rows, 16}), y.as({rows, 16}), 1000);
  });
  check(jalFree(p));
  check(jalMemPoolTrim(device.get(), 0));
  g.launch(stream);
  const jalErrorRecord r = fail_with(jalErrorIllegalAddress);
  EXPECT_STREQ(r.kernel, "reader");
  EXPECT_STREQ(r.source_file, "faults_test.cpp");
  EXPECT_GT(r.source_line, 0u);
  EXPECT_EQ(r.address, reinterpret_cast<uint64_t>(p) + 1000 * 64);
  EXPECT_EQ(r.access, 1u);
  EXPECT_NE(r.allocation, 0u);
  recover();
}

TEST_F(Faults, DivisionByZeroNamesLineAndGridPosition) {
  jt::Builder k("divider");
  Reg d = k.scalar_i32("d");
  k.when(k.pid_x(), jt::Cond::kEq, 2, [&] { (void)k.scalar(hw::SaluOp::kDiv, 7, d); });
  const uint32_t line = __LINE__ - 1;
  const Module m = load(k.finish());
  launch(stream, {4}, m.kernel("divider"), 0);
  const jalErrorRecord r = fail_with(jalErrorDivideByZero);
  EXPECT_EQ(r.source_line, line);
  EXPECT_EQ(r.grid_position[0], 2u);
  EXPECT_NE(std::string(r.call_site).find("faults_test.cpp:"), std::string::npos);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("divider"), std::string::npos);
  recover();
}

TEST_F(Faults, KernelWithoutEndMeetsItsDeadline) {
  const Module m = load(endless());
  launch_for(m, 50);
  const jalErrorRecord r = fail_with(jalErrorLaunchTimeout);
  EXPECT_NE(std::string(r.detail).find("50 ms"), std::string::npos);
  recover();
}

// A reset that comes as a program begins ends it as one that comes later does.
TEST_F(Faults, AResetAtAnyMomentEndsTheProgram) {
  const Module m = load(endless());
  for (int turn = 0; turn < 300; ++turn) {
    launch_for(m, 600'000);
    for (int spin = 0; spin < turn % 30 * 50; ++spin) (void)jalStreamQuery(stream.get());
    stream.reset();
  }
  recover();
}

TEST_F(Faults, MemoryComesAndGoesWhileAProgramRuns) {
  const Module m = load(endless());
  const uint64_t large = uint64_t{64} << 20;
  void* before = nullptr;
  check(jalMalloc(device.get(), &before, large));
  launch_for(m, 600'000);
  void* during = nullptr;
  check(jalMalloc(device.get(), &during, large));
  check(jalFree(before)), check(jalFree(during));
  check(jalMemPoolTrim(device.get(), 0));
  const Module other = load(reader());
  EXPECT_EQ(jalStreamQuery(stream.get()), jalErrorNotReady);
  recover();
}

TEST_F(Faults, ResetTellsHowMuchStoodBehindTheFault) {
  jt::Builder k("trap");
  k.trap(1);
  const Module m = load(k.finish());
  Buffer<int32_t> b(device, 4);
  Timeline gate(device);
  stream.wait(gate, 1);
  launch(stream, {1}, m.kernel("trap"));
  for (int n = 0; n < 5; ++n) stream.fill(b.data(), n, b.bytes());
  gate.signal(1);
  EXPECT_EQ(jalStreamSynchronize(stream.get()), jalErrorAssert);
  EXPECT_EQ(stream.reset(), 5u);
}

TEST_F(Faults, TrapCarriesItsCode) {
  jt::Builder k("trap");
  k.trap(1234);
  const Module m = load(k.finish());
  launch(stream, {1}, m.kernel("trap"));
  EXPECT_NE(std::string(fail_with(jalErrorAssert).detail).find("1234"), std::string::npos);
  recover();
}

// Instances run in another order, on several threads: the failure is the first one's by its place in the grid.
TEST_F(Faults, OfSeveralInstancesTheFirstInTheGridIsNamed) {
  jt::Builder k("picky");
  for (const auto& [x, y] : {std::pair{0, 3}, {2, 1}, {4, 1}, {5, 2}})  // (2, 1) has the lowest index
    k.when(k.pid_x(), jt::Cond::kEq, x, [&] { k.when(k.pid_y(), jt::Cond::kEq, y, [&] { k.trap(1); }); });
  const Module m = load(k.finish());
  for (int round = 0; round < 4; ++round) {
    launch(stream, {7, 4}, m.kernel("picky"));
    const jalErrorRecord r = fail_with(jalErrorAssert);
    EXPECT_EQ(r.grid_position[0], 2u);
    EXPECT_EQ(r.grid_position[1], 1u);
    recover();
  }
}

TEST_F(Faults, TileLargerThanItsSliceIsATileFault) {
  jt::Builder k("slicer");
  Reg n = k.scalar_i32("n");
  auto t = k.spm(jt::f32, 4, 16);
  k.fill(k.slice(t, 0, 0, 1, n), 0);
  const Module m = load(k.finish());
  launch(stream, {1}, m.kernel("slicer"), 17);
  EXPECT_NE(std::string(fail_with(jalErrorTileFault).detail).find("1x17"), std::string::npos);
  recover();
}

TEST_F(Faults, AFaultLeavesOtherStreamsBitExactAndPoisonsDependants) {
  jt::Builder k("trap");
  k.trap(1);
  const Module m = load(k.finish());
  const auto x = random_values(300 * 64, 1), w = random_values(100 * 64, 2);
  Buffer<float> xv(device, std::span<const float>(x)), wv(device, std::span<const float>(w)), alone(device, 300 * 100),
      beside(device, 300 * 100);
  const Kernel matmul = library_kernel(device, "matmul_f32");
  Stream b(device), dependant(device);
  launch(b, {2, 10}, matmul, xv.as({300, 64}), wv.as({100, 64}), alone.as({300, 100}));
  b.synchronize();
  for (int round = 0; round < 5; ++round) {
    launch(stream, {1}, m.kernel("trap"));
    launch(b, {2, 10}, matmul, xv.as({300, 64}), wv.as({100, 64}), beside.as({300, 100}));
    // Work behind the fault never runs, and who waits for it is told.
    Event after(device);
    EXPECT_EQ(jalStreamSynchronize(stream.get()), jalErrorAssert);
    EXPECT_EQ(jalEventRecord(after.get(), stream.get()), jalErrorAssert);
    b.synchronize();
    EXPECT_EQ(beside.to_host(), alone.to_host());
    stream.reset();
  }
  Timeline gate(device);
  stream.wait(gate, 1);
  launch(stream, {1}, m.kernel("trap"));
  Event after(device);
  after.record(stream);
  dependant.wait(after);
  dependant.fill(beside.data(), 1, 4);
  gate.signal(1);
  EXPECT_EQ(jalStreamSynchronize(dependant.get()), jalErrorDependencyFailed);
  EXPECT_EQ(dependant.error_record().root_code, jalErrorAssert);
  EXPECT_EQ(beside.to_host(), alone.to_host());
  recover();
}

TEST_F(Faults, WrongArgumentsAreNamedBeforeAnythingRuns) {
  const Kernel add = library_kernel(device, "add");
  Buffer<float> a(device, 8);
  Buffer<int32_t> n(device, 8);
  struct Case {
    std::vector<jalArg> args;
    const char* text;
  };
  jalTensor odd = a.as({1, 4});
  odd.data = reinterpret_cast<char*>(a.data()) + 2;
  jalTensor host = a.as({1, 8});
  float plain[8];
  host.data = plain;
  for (const Case& c :
       {Case{{argument(a.as({1, 8})), argument(a.as({1, 8}))}, "takes 3 arguments, got 2"},
        {{argument(a.as({1, 8})), argument(1.f), argument(a.as({1, 8}))}, "argument 1 (b): is f32, expected tensor"},
        {{argument(a.as({1, 8})), argument(n.as({1, 8})), argument(a.as({1, 8}))},
         "argument 1 (b): is i32, expected f32"},
        {{argument(a.as({1, 8})), argument(a.as({8})), argument(a.as({1, 8}))},
         "argument 1 (b): has rank 1, expected 2"},
        {{argument(odd), argument(a.as({1, 8})), argument(a.as({1, 8}))}, "not aligned to 4"},
        {{argument(host), argument(a.as({1, 8})), argument(a.as({1, 8}))}, "neither device nor pinned"}}) {
    EXPECT_NE(jalLaunchKernel(add.get(), 1, 1, 1, c.args.data(), static_cast<uint32_t>(c.args.size()), stream.get()),
              jalSuccess);
    EXPECT_NE(std::string(jalGetLastErrorDetail()).find(c.text), std::string::npos) << jalGetLastErrorDetail();
  }
  const std::vector<jalArg> good(3, argument(a.as({1, 8})));
  EXPECT_EQ(jalLaunchKernel(add.get(), 0, 1, 1, good.data(), 3, stream.get()), jalErrorInvalidValue);
  stream.synchronize();
}

TEST(InjectedFaults, EccErrorsReachTheStreamAndTheTelemetry) {
  if (!embedded()) GTEST_SKIP() << "faults are ordered when the emulator starts";
  Device device("emu:?hbm=64M&fault=ecc_uncorrectable@launch:2,ecc_corrected@launch:1");
  Stream stream(device);
  Buffer<float> a(device, 8);
  const Kernel add = library_kernel(device, "add");
  launch(stream, {1, 1}, add, a.as({1, 8}), a.as({1, 8}), a.as({1, 8}));
  stream.synchronize();
  launch(stream, {1, 1}, add, a.as({1, 8}), a.as({1, 8}), a.as({1, 8}));
  EXPECT_EQ(jalStreamSynchronize(stream.get()), jalErrorEccUncorrectable);
  EXPECT_EQ(device.telemetry().ecc_corrected, 1u);
  EXPECT_EQ(device.telemetry().ecc_uncorrected, 1u);
  stream.reset();
  launch(stream, {1, 1}, add, a.as({1, 8}), a.as({1, 8}), a.as({1, 8}));
  stream.synchronize();
}

TEST(InjectedFaults, ALostInterruptDelaysButDoesNotHang) {
  if (!embedded()) GTEST_SKIP() << "faults are ordered when the emulator starts";
  Device device("emu:?hbm=64M&fault=drop_interrupt@interrupt:1,drop_interrupt@interrupt:2,drop_interrupt@interrupt:3");
  Stream stream(device);
  Buffer<int32_t> b(device, 1 << 22);
  for (int k = 0; k < 5; ++k) {
    stream.fill(b.data(), k, b.bytes());
    EXPECT_TRUE(stream.synchronize_for(std::chrono::seconds(5)));
  }
}

TEST(InjectedFaults, AFatalErrorOfTheChipEndsEveryWait) {
  if (!embedded()) GTEST_SKIP() << "faults are ordered when the emulator starts";
  Device device("emu:?hbm=64M&fault=fatal@packet:3");
  Stream stream(device);
  Buffer<int32_t> b(device, 4);
  for (int k = 0; k < 3; ++k) (void)jalMemsetAsync(b.data(), k, b.bytes(), stream.get());
  EXPECT_EQ(jalStreamSynchronize(stream.get()), jalErrorDeviceLost);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("fatal error"), std::string::npos) << jalGetLastErrorDetail();
}

// Emulated chips of one process share threads.
TEST(Neighbours, AHungChipDoesNotHoldUpTheOthers) {
  const Device hung("emu:?hbm=64M&threads=1&watchdog_ms=600000&fault=hang@launch:1"), other("emu:?hbm=64M&threads=1");
  Stream a(hung), b(other);
  auto add = [](const Device& d, const Stream& s) {
    const Buffer<float> x(d, std::vector<float>{1, 2}), y(d, std::vector<float>{3, 4}), z(d, 2);
    launch(s, {1, 1}, library_kernel(d, "add"), x.as({1, 2}), y.as({1, 2}), z.as({1, 2}));
    s.synchronize();
    return z.to_host();
  };
  const Buffer<float> x(hung, 2);
  launch(a, {1, 1}, library_kernel(hung, "add"), x.as({1, 2}), x.as({1, 2}), x.as({1, 2}));
  for (int turn = 0; turn < 50; ++turn) EXPECT_EQ(add(other, b), (std::vector<float>{4, 6}));
  EXPECT_EQ(jalStreamQuery(a.get()), jalErrorNotReady);
  a.reset();
}

}  // namespace
}  // namespace jalapeno::test
