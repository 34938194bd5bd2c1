// The library's edges: errors, handles, options, many devices, fork.
#include <sys/wait.h>
#include <unistd.h>

#include <jalapeno/tile.hpp>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

std::string detail() { return jalGetLastErrorDetail(); }

TEST(Errors, EveryNumberHasNameAndText) {
  for (int e = -5; e < 3000; ++e) {
    ASSERT_NE(jalGetErrorName(static_cast<jalError_t>(e)), nullptr);
    ASSERT_GT(std::strlen(jalGetErrorString(static_cast<jalError_t>(e))), 3u);
  }
  EXPECT_STREQ(jalGetErrorName(jalErrorIllegalAddress), "jalErrorIllegalAddress");
  EXPECT_EQ(jalGetVersion(), 100);
}

class Api : public OnDevice {};

TEST_F(Api, NullFreedAndForeignHandlesAreTold) {
  EXPECT_EQ(jalStreamSynchronize(nullptr), jalErrorInvalidHandle);
  EXPECT_NE(detail().find("NULL"), std::string::npos);
  EXPECT_EQ(jalStreamSynchronize(reinterpret_cast<jalStream_t>(device.get())), jalErrorInvalidHandle);
  EXPECT_NE(detail().find("another kind"), std::string::npos);
  EXPECT_EQ(jalStreamSynchronize(reinterpret_cast<jalStream_t>(&device)), jalErrorInvalidHandle);
  jalStream_t s{};
  ASSERT_EQ(jalStreamCreate(device.get(), nullptr, &s), jalSuccess);
  ASSERT_EQ(jalStreamDestroy(s), jalSuccess);
  EXPECT_EQ(jalStreamDestroy(s), jalErrorInvalidHandle);
  EXPECT_NE(detail().find("already freed"), std::string::npos);
  EXPECT_EQ(jalEventRecord(nullptr, stream.get()), jalErrorInvalidHandle);
}

TEST_F(Api, OptionsOutsideTheirRangeAreNamed) {
  jalStream_t s{};
  jalStreamOptions o{sizeof o, 7, 0};
  EXPECT_EQ(jalStreamCreate(device.get(), &o, &s), jalErrorInvalidValue);
  EXPECT_NE(detail().find("priority 7"), std::string::npos);
  o = {sizeof o, 0, 100};
  EXPECT_EQ(jalStreamCreate(device.get(), &o, &s), jalErrorInvalidValue);
  EXPECT_NE(detail().find("100"), std::string::npos);
  o = {3, 0, 0};
  EXPECT_EQ(jalStreamCreate(device.get(), &o, &s), jalErrorInvalidValue);
  EXPECT_NE(detail().find("struct_size is 3"), std::string::npos);
  EXPECT_EQ(jalStreamCreate(device.get(), nullptr, nullptr), jalErrorInvalidValue);
}

TEST_F(Api, PropertiesSayWhereTheirNumbersComeFrom) {
  const jalDeviceProperties p = device.properties();
  EXPECT_STRNE(p.config_name, "");
  if (!p.emulated && !embedded()) GTEST_SKIP() << "a board has its own numbers";
  EXPECT_TRUE(p.emulated);
  EXPECT_TRUE(p.assumed);
  EXPECT_STREQ(p.config_name, "assumed-1");
  EXPECT_EQ(p.cores, 64 / (p.virtual_functions + 1));
  EXPECT_GE(p.hbm_bytes, 64u << 20);
}

TEST_F(Api, TelemetryCountsWhatHappened) {
  const auto before = device.telemetry();
  Buffer<float> a(device, 1024), b(device, 1024), c(device, 1024);
  launch(stream, {1, 1}, library_kernel(device, "add"), a.as({1, 1024}), b.as({1, 1024}), c.as({1, 1024}));
  stream.synchronize();
  const auto after = device.telemetry();
  EXPECT_EQ(after.launches, before.launches + 1);
  EXPECT_GE(after.hbm_read_bytes - before.hbm_read_bytes, 8192u);
  EXPECT_GT(after.device_ns, before.device_ns);
  EXPECT_GT(after.energy_joules, 0);
  EXPECT_TRUE(after.healthy);
}

TEST(Devices, BadUrisAreNamed) {
  jalDevice_t d{};
  for (const char* uri : {"gpu:0", "emu:/nonexistent/chip.sock", "emu:?hbm=tiny", "vfio:0000:3b:00.0"}) {
    EXPECT_NE(jalDeviceOpen(uri, &d), jalSuccess) << uri;
    EXPECT_NE(detail().find(std::string(uri).substr(5)), std::string::npos) << detail();
  }
  EXPECT_EQ(jalDeviceOpen("emu:", nullptr), jalErrorInvalidValue);
}

TEST(Devices, TenAtOnceAndNothingLeftBehind) {
  { Device warm("emu:?hbm=64M&threads=1"); }
  const int before = open_descriptors();
  {
    std::vector<Device> devices;
    for (int k = 0; k < 10; ++k) devices.emplace_back("emu:?hbm=64M&threads=1");
    for (const Device& d : devices) {
      Stream s(d);
      Buffer<int32_t> b(d, 100);
      s.fill(b.data(), 1, b.bytes());
      s.synchronize();
      EXPECT_EQ(b.to_host()[99], 0x01010101);
    }
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Devices, ObjectsOfAClosedDeviceAreFreedHandles) {
  jalDevice_t d{};
  jalStream_t s{};
  jalEvent_t e{};
  void* p{};
  ASSERT_EQ(jalDeviceOpen("emu:?hbm=64M", &d), jalSuccess);
  ASSERT_EQ(jalStreamCreate(d, nullptr, &s), jalSuccess);
  ASSERT_EQ(jalEventCreate(d, 0, &e), jalSuccess);
  ASSERT_EQ(jalMalloc(d, &p, 100), jalSuccess);
  ASSERT_EQ(jalDeviceClose(d), jalSuccess);
  EXPECT_EQ(jalStreamSynchronize(s), jalErrorInvalidHandle);
  EXPECT_EQ(jalEventQuery(e), jalErrorInvalidHandle);
  EXPECT_EQ(jalFree(p), jalErrorInvalidValue);
  EXPECT_EQ(jalDeviceClose(d), jalErrorInvalidHandle);
}

TEST_F(Api, ForkedChildGetsACleanErrorAndTheParentGoesOn) {
  const pid_t child = fork();
  if (child == 0) _exit(jalStreamSynchronize(stream.get()) == jalErrorForkedChild ? 0 : 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  Buffer<int32_t> b(device, 4);
  stream.fill(b.data(), 2, b.bytes());
  stream.synchronize();
}

TEST_F(Api, LibraryNamesThatDoNotExistAreNamed) {
  jalKernel_t k{};
  for (const char* name : {"", "matmul", "matmul_f64", "topk_k0", "topk_k2000", "rope_interleaved_d64_r7",
                           "attention_causal_q8_0_d48", "attention_causal_q4_0_d64", "topk_k40junk"}) {
    EXPECT_EQ(jalLibraryGetKernel(device.get(), name, &k), jalErrorNotFound) << name;
    EXPECT_NE(detail().find(name), std::string::npos);
  }
}

TEST_F(Api, KernelsTellTheirArguments) {
  const Kernel k = library_kernel(device, "rmsnorm");
  std::string seen;
  jalArgInfo a{};
  a.struct_size = sizeof a;
  for (uint32_t i = 0; i < k.info().arguments; ++i) {
    ASSERT_EQ(jalKernelGetArgumentInfo(k.get(), i, &a), jalSuccess);
    seen += std::string(a.name) + ":" + std::to_string(a.kind) + ":" + std::to_string(a.dtype) + ":" +
            std::to_string(a.rank) + " ";
  }
  EXPECT_EQ(seen, "x:3:0:2 weight:3:0:1 out:3:-1:2 eps:2:-1:0 ");
  EXPECT_EQ(jalKernelGetArgumentInfo(k.get(), 4, &a), jalErrorNotFound);
  EXPECT_NE(detail().find("has 4 arguments"), std::string::npos);
  EXPECT_EQ(jalKernelGetArgumentInfo(k.get(), 0, nullptr), jalErrorInvalidValue);
}

// What a front end without functions to pass uses: blocks that open and close, memory used twice, values that loops
// change.
std::vector<std::byte> running_sum() {
  using namespace jalapeno::tile;
  Builder k("running_sum", Where("front_end.py", 7));
  auto x = k.tensor("x", f32, 2), y = k.tensor("y", f32, 1);
  auto sum = k.spm(f32, 1, 8), piece = k.spm(f32, 1, 8);
  k.fill(sum, 0);
  Reg rows = k.constant(0);
  Reg i = k.begin_loop(0, x.dim(0), 1);
  k.load(piece, x, {i, 0}, 0);
  k.begin_when(i, Cond::kNe, 1);
  k.add(sum, sum, piece);
  k.assign(rows, rows + 1);
  k.end_block();
  k.end_block();
  Tile scaled = k.overlay(piece.memory(), f32, 1, 8);
  k.binary(BinaryOp::kMul, scaled, sum, k.scalar(hw::SaluOp::kIntToFloat, rows, 0));
  k.store(y, {0}, scaled, Where("front_end.py", 12));
  return write_module({k.finish()});
}

TEST_F(Api, BlocksOverlaysAndAssignmentsOfTheBuilder) {
  Module module(device, running_sum());
  std::vector<float> host(3 * 8);
  for (size_t n = 0; n < host.size(); ++n) host[n] = static_cast<float>(n);
  Buffer<float> x(device, std::span<const float>(host)), y(device, 8);
  launch(stream, {1}, module.kernel("running_sum"), x.as({3, 8}), y);
  stream.synchronize();
  EXPECT_EQ(y.to_host()[3], 2 * (3.f + 19.f));  // rows 0 and 2, twice
  tile::Builder k("small");
  auto t = k.spm(tile::f32, 1, 8);
  EXPECT_THROW(k.overlay(t, tile::f32, 2, 16), tile::BuildError);
  EXPECT_THROW(k.end_block(), tile::BuildError);
}

// More loads, sums and stores in a row than there are semaphores: the builder cuts them where it must.
TEST_F(Api, StraightCodeOfAnyLength) {
  using namespace jalapeno::tile;
  for (bool in_loop : {false, true}) {
    constexpr int kGroups = 48;
    Builder k("long");
    auto x = k.tensor("x", f32, 1), y = k.tensor("y", f32, 1);
    std::vector<std::pair<Tile, Tile>> tiles;
    for (int g = 0; g < 8; ++g) tiles.emplace_back(k.spm(f32, 1, 16), k.spm(f32, 1, 16));
    auto body = [&] {
      for (int g = 0; g < kGroups; ++g) {
        auto& [in, out] = tiles[static_cast<size_t>(g) % 8];
        k.load(in, x, {g * 16});
        k.add(out, in, in);
        k.store(y, {g * 16}, out);
      }
    };
    if (in_loop)
      k.loop(0, 2, [&](const tile::Reg&) { body(); });
    else
      body();
    Module module(device, write_module({k.finish()}));
    std::vector<float> host(kGroups * 16);
    for (size_t n = 0; n < host.size(); ++n) host[n] = static_cast<float>(n);
    Buffer<float> a(device, std::span<const float>(host)), b(device, host.size());
    launch(stream, {1}, module.kernel("long"), a, b);
    stream.synchronize();
    const std::vector<float> got = b.to_host();
    for (size_t n = 0; n < host.size(); ++n) ASSERT_EQ(got[n], 2 * host[n]);
  }
}

TEST_F(Api, ModulesAreShownAsText) {
  const std::vector<std::byte> image = running_sum();
  size_t needed = 0;
  ASSERT_EQ(jalModuleDisassemble(image.data(), image.size(), nullptr, 0, &needed), jalSuccess);
  std::string text(needed, 'x');
  ASSERT_EQ(jalModuleDisassemble(image.data(), image.size(), text.data(), text.size(), nullptr), jalSuccess);
  EXPECT_EQ(text.find('\0'), needed - 1);
  EXPECT_NE(text.find(".kernel running_sum source front_end.py"), std::string::npos);
  EXPECT_NE(text.find("line=12"), std::string::npos);
  char start[8];
  ASSERT_EQ(jalModuleDisassemble(image.data(), image.size(), start, sizeof start, nullptr), jalSuccess);
  EXPECT_STREQ(start, ".kernel");
  EXPECT_EQ(jalModuleDisassemble(image.data(), 10, nullptr, 0, &needed), jalErrorInvalidImage);
  EXPECT_EQ(jalModuleDisassemble(image.data(), image.size(), nullptr, 4, &needed), jalErrorInvalidValue);
}

}  // namespace
}  // namespace jalapeno::test
