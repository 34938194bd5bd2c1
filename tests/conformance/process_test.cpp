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
      execl(JALAPENO_EMULATOR, JALAPENO_EMULATOR, "--socket", socket().c_str(), "--hbm", "64M", nullptr);
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

}  // namespace
}  // namespace jalapeno::test
