// The emulator as a process that is stopped and killed under its client.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

using namespace std::chrono_literals;

class Process : public ::testing::Test {
 protected:
  void SetUp() override { start(); }
  void TearDown() override {
    stop();
    rmdir(folder_.c_str());
  }
  void start() {
    if (folder_.empty()) {
      std::string pattern = ::testing::TempDir() + "jalapeno-XXXXXX";
      folder_ = mkdtemp(pattern.data());
    }
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ready[1], 1);
      close(ready[0]), close(ready[1]);
      const std::string vfs = std::to_string(virtual_functions_),
                        hbm = std::to_string(64 * (virtual_functions_ + 1)) + "M";
      execl(JALAPENO_EMULATOR, JALAPENO_EMULATOR, "--socket", socket().c_str(), "--hbm", hbm.c_str(), "--vfs",
            vfs.c_str(), nullptr);
      _exit(127);
    }
    close(ready[1]);
    char line[16];
    ASSERT_GT(read(ready[0], line, sizeof line), 0) << "the emulator did not start";
    close(ready[0]);
  }
  void stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGCONT);
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
    unlink(socket().c_str()), unlink((socket() + ".lock").c_str());
  }
  std::string socket() const { return folder_ + "/chip.sock"; }
  std::string device_uri() const { return "emu:" + socket(); }

  std::string folder_;
  pid_t pid_ = -1;
  int virtual_functions_ = 0;
};

TEST_F(Process, StoppedEmulatorMakesWaitsTimeOutAndGoesOnAfterwards) {
  Device device(device_uri());
  Stream stream(device);
  Buffer<int32_t> b(device, 1000);
  kill(pid_, SIGSTOP);
  int status = 0;  // not before every thread of it has stopped: one of them may be polling
  ASSERT_EQ(waitpid(pid_, &status, WUNTRACED), pid_);
  ASSERT_TRUE(WIFSTOPPED(status));
  stream.fill(b.data(), 3, b.bytes());
  EXPECT_FALSE(stream.synchronize_for(100ms));
  kill(pid_, SIGCONT);
  stream.synchronize();
  EXPECT_EQ(b.to_host()[999], 0x03030303);
}

TEST_F(Process, KilledEmulatorIsADeviceLostAndANewOneCanBeOpened) {
  Device device(device_uri());
  Stream stream(device);
  HostBuffer<int32_t> pinned(device, 1000);
  Timeline never(device);
  stream.wait(never, 1);
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
  EXPECT_EQ(jalStreamSynchronizeUntil(stream.get(), 5'000'000'000), jalErrorDeviceLost);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("device lost"), std::string::npos);
  void* p{};
  EXPECT_EQ(jalMalloc(device.get(), &p, 8 << 20), jalErrorDeviceLost);
  pinned[0] = 7;  // memory stays ours: no SIGBUS
  start();
  Device again(device_uri());
  Stream s(again);
  Buffer<int32_t> b(again, 10);
  s.fill(b.data(), 1, b.bytes());
  s.synchronize();
}

TEST_F(Process, KilledInTheMiddleOfWorkAtManyMoments) {
  for (int round = 0; round < 6; ++round) {
    Device device(device_uri());
    Stream stream(device);
    Buffer<int32_t> b(device, 1 << 20);
    for (int k = 0; k < 200; ++k) stream.fill(b.data(), k, b.bytes());
    usleep(static_cast<useconds_t>(round * 700));
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    const jalError_t e = jalStreamSynchronizeUntil(stream.get(), 5'000'000'000);
    EXPECT_TRUE(e == jalErrorDeviceLost || e == jalSuccess) << jalGetErrorName(e);
    unlink(socket().c_str());
    start();
  }
}

TEST_F(Process, TheNextClientCannotReadTheLastOnesMemory) {
  {
    Device device(device_uri());
    Buffer<int32_t> secret(device, 1 << 20);
    check(jalMemset(secret.data(), 0x5A, secret.bytes()));
  }
  Device device(device_uri());
  Buffer<int32_t> b(device, 8 << 20);
  for (int32_t v : b.to_host()) ASSERT_EQ(v, 0);
}

TEST_F(Process, ASecondClientIsToldThatTheDeviceIsInUse) {
  Device first(device_uri());
  jalDevice_t second{};
  EXPECT_EQ(jalDeviceOpen(device_uri().c_str(), &second), jalErrorBusy);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("another client"), std::string::npos);
  Stream stream(first);
  stream.synchronize();
}

TEST_F(Process, NoDescriptorIsLeftAfterFiftyConnections) {
  { Device warm(device_uri()); }
  const int before = open_descriptors();
  for (int k = 0; k < 50; ++k) {
    Device device(device_uri());
    Stream stream(device);
    stream.synchronize();
  }
  EXPECT_EQ(open_descriptors(), before);
}

// One chip, shared by its physical function and three virtual ones.
class Partitions : public Process {
 protected:
  Partitions() { virtual_functions_ = 3; }
  std::string uri(int function) const { return device_uri() + (function == 0 ? "" : ".vf" + std::to_string(function)); }
  static void reset_function(const std::string& uri) {
    const std::string command = std::string(JALAPENO_SMI) + " --reset " + uri + " >/dev/null";
    ASSERT_EQ(system(command.c_str()), 0);
  }
};

TEST_F(Partitions, HaveEqualSharesThatAddUpToTheChip) {
  const jalDeviceProperties whole = Device("emu:?hbm=64M").properties();
  for (int f = 0; f <= 3; ++f) {
    const Device device(uri(f));
    const jalDeviceProperties p = device.properties();
    EXPECT_EQ(p.function, static_cast<uint32_t>(f));
    EXPECT_EQ(p.virtual_functions, 3u);
    EXPECT_EQ(p.cores * 4, whole.cores);
    EXPECT_EQ(p.hbm_bytes, 64u << 20);
    EXPECT_DOUBLE_EQ(p.hbm_gbytes_per_second * 4, whole.hbm_gbytes_per_second);
    EXPECT_DOUBLE_EQ(p.peak_tflops_bf16 * 4, whole.peak_tflops_bf16);
    EXPECT_DOUBLE_EQ(p.power_limit_watts * 4, whole.power_limit_watts);
  }
  EXPECT_EQ(whole.virtual_functions, 0u);
}

TEST_F(Partitions, WorkAtTheSameTimeEachInItsOwnMemory) {
  constexpr size_t kWords = 4 << 20;
  std::vector<std::thread> threads;
  std::array<bool, 4> right{};
  for (int f = 0; f <= 3; ++f)
    threads.emplace_back([&, f] {
      Device device(uri(f));
      Stream stream(device);
      Buffer<int32_t> b(device, kWords);
      bool good = true;
      for (int turn = 0; turn < 20; ++turn) {
        check(jalMemsetAsync(b.data(), f * 20 + turn, b.bytes(), stream.get()));
        stream.synchronize();
        for (int32_t v : b.to_host()) good &= v == (f * 20 + turn) * 0x01010101;
      }
      void* more{};  // the quota: a second buffer of 48 MiB is not there, whatever the others leave free
      good &= jalMalloc(device.get(), &more, 48 << 20) == jalErrorOutOfMemory;
      right[static_cast<size_t>(f)] = good;
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(right, (std::array{true, true, true, true}));
}

TEST_F(Partitions, TheResetOfOneLeavesTheOthersAndThatOfThePhysicalOneTakesAll) {
  Device second(uri(2));
  Stream stream(second);
  Buffer<int32_t> b(second, 1000);
  check(jalMemset(b.data(), 7, b.bytes()));
  reset_function(uri(1));
  check(jalMemsetAsync(b.data(), 9, 4, stream.get()));
  stream.synchronize();
  EXPECT_EQ(b.to_host()[1], 0x07070707);
  Timeline never(second);
  stream.wait(never, 1);
  reset_function(uri(0));
  EXPECT_EQ(jalStreamSynchronizeUntil(stream.get(), 5'000'000'000), jalErrorDeviceLost);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("physical function"), std::string::npos);
  Device again(uri(2));  // and whoever comes next reads zeros
  const Buffer<int32_t> c(again, 4 << 20);
  for (int32_t v : c.to_host()) ASSERT_EQ(v, 0);
}

TEST_F(Partitions, AreRefusedWhereSharesWouldBeTooSmall) {
  const std::string command = std::string(JALAPENO_EMULATOR) + " --socket " + folder_ + "/x --vfs 3 --hbm 128M 2>&1";
  FILE* out = popen(command.c_str(), "r");
  char text[512] = {};
  (void)!fread(text, 1, sizeof text - 1, out);
  EXPECT_NE(pclose(out), 0);
  EXPECT_NE(std::string(text).find("at least 64M for each"), std::string::npos) << text;
  unlink((folder_ + "/x.lock").c_str());
}

}  // namespace
}  // namespace jalapeno::test
