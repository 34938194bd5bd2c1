// The driver over its own interfaces: wake-ups, faults, waiting, allocators, and every OS call made to fail.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/os.hpp>
#include <jalapeno_driver/queue.hpp>
#include <jalapeno_hw/vfio_user.hpp>
#include <thread>

#include "support/descriptors.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

namespace jalapeno::driver {
namespace {

constexpr const char* kUri = "emu:?hbm=64M&threads=1";

class DriverTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { install_embedded_emulator(); }
};

hw::Packet nop() { return {}; }

TEST_F(DriverTest, OpensAndIdentifies) {
  const int before = test::open_descriptors();
  {
    Device d(kUri);
    EXPECT_EQ(d.identity().hbm_bytes, 64u << 20);
    EXPECT_EQ(d.identity().config_name, "assumed-1");
    EXPECT_EQ(d.health(), hw::kHealthReady);
  }
  EXPECT_EQ(test::open_descriptors(), before);
}

TEST_F(DriverTest, UnknownUrisAreNamed) {
  for (const char* uri : {"", "x", "emu:/nonexistent/chip.sock", "emu:?speed=9", "emu:?hbm=1", "vfio:0000:00:00.0"})
    try {
      Device d(uri);
      ADD_FAILURE() << uri;
    } catch (const std::exception& e) {
      EXPECT_NE(std::string(e.what()).find(std::string(uri).substr(5 < std::string(uri).size() ? 5 : 0)),
                std::string::npos)
          << e.what();
    }
}

// A missing fence between publishing the tail and reading the sleeper's flag loses wake-ups; each would cost a 50 ms
// nap, and the waiter's patience here is a second.
TEST_F(DriverTest, NoDoorbellIsLostWhileTheDeviceFallsAsleep) {
  Device d(kUri);
  AddressSpace space(d);
  Queue q(d, space.context(), 0, 6, 0);
  for (int k = 0; k < 3000; ++k) {
    ASSERT_TRUE(q.push(nop()));
    q.ring();
    ASSERT_EQ(q.wait(q.next(), 1'000'000'000), WaitResult::kReached) << k;
    if (k % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(90 + k % 40));
  }
}

TEST_F(DriverTest, RefusesPushWhenFullAndGoesOnWhenThereIsRoom) {
  Device d(kUri);
  AddressSpace space(d);
  Queue q(d, space.context(), 0, 4, 0);
  for (int k = 0; k < 16; ++k) EXPECT_TRUE(q.push(nop()));
  EXPECT_FALSE(q.push(nop()));
  q.ring();
  EXPECT_EQ(q.wait(16, 1'000'000'000), WaitResult::kReached);
  EXPECT_TRUE(q.push(nop()));
}

TEST_F(DriverTest, BadPacketStopsOnlyItsQueueAndResetBringsItBack) {
  Device d(kUri);
  AddressSpace space(d);
  Queue a(d, space.context(), 0, 6, 0), b(d, space.context(), 0, 6, 0);
  hw::Packet bad = nop();
  bad.header.op = hw::PacketOp{77};
  a.push(nop()), a.push(bad), a.push(nop());
  a.ring();
  b.push(nop());
  b.ring();
  EXPECT_EQ(a.wait(3, 1'000'000'000), WaitResult::kReached);
  EXPECT_EQ(b.wait(1, 1'000'000'000), WaitResult::kReached);
  EXPECT_EQ(a.status(), hw::Status::kBadPacket);
  EXPECT_EQ(a.fault().packet, 1u);
  EXPECT_EQ(failure(a.timeline(), 1), hw::Status::kOk);
  EXPECT_EQ(failure(a.timeline(), 2), hw::Status::kBadPacket);
  EXPECT_EQ(b.status(), hw::Status::kOk);
  a.reset();
  EXPECT_EQ(a.status(), hw::Status::kOk);
  EXPECT_EQ(failure(a.timeline(), 3), hw::Status::kBadPacket) << "what failed before the reset stays failed";
  a.push(nop());
  a.ring();
  EXPECT_EQ(a.wait(a.next(), 1'000'000'000), WaitResult::kReached);
  EXPECT_EQ(failure(a.timeline(), a.next()), hw::Status::kOk);
}

TEST_F(DriverTest, LyingSequenceAndTailAreFaults) {
  Device d(kUri);
  AddressSpace space(d);
  Queue q(d, space.context(), 0, 4, 0);
  std::atomic_ref(d.doorbell(q.number()).tail).store(1000);
  d.wake();
  while (q.status() == hw::Status::kOk) std::this_thread::yield();
  EXPECT_EQ(q.status(), hw::Status::kBadPacket);
}

TEST_F(DriverTest, PagesComeBackAndRunsAreNamedWhenTheyEnd) {
  Device d(kUri);
  AddressSpace space(d);
  const uint64_t all = space.free_bytes();
  std::vector<HbmBlock> blocks;
  for (int k = 0; k < 4; ++k) blocks.push_back(space.allocate(5 << 20));
  for (const auto& b : blocks) EXPECT_EQ(b.bytes, 6u << 20);
  try {
    space.allocate(uint64_t{1} << 30);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kOutOfDeviceMemory);
    EXPECT_NE(std::string(e.what()).find("largest run"), std::string::npos);
  }
  for (const auto& b : blocks) space.free(b);
  EXPECT_EQ(space.free_bytes(), all);
}

// A device that says what the test tells it to: other versions, nonsense, silence.
class FakeDevice {
 public:
  std::function<uint32_t(uint64_t offset)> read = [](uint64_t) { return 0u; };
  uint16_t major = 0;
  bool hang_up = false;

  FakeDevice() {
    path_ = ::testing::TempDir() + "fake" + std::to_string(getpid()) + ".sock";
    unlink(path_.c_str());
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    path_.copy(a.sun_path, sizeof a.sun_path - 1);
    listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeDevice() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
    unlink(path_.c_str());
  }
  std::string open_error() {
    try {
      Device d("emu:" + path_);
    } catch (const Error& e) {
      code = e.code();
      return e.what();
    }
    return "";
  }
  Code code{};

 private:
  void serve() {
    namespace vu = hw::vfio_user;
    const int fd = accept(listener_, nullptr, nullptr);
    if (fd < 0) return;
    vu::Header h{};
    while (recv(fd, &h, sizeof h, MSG_WAITALL) == sizeof h && !hang_up) {
      std::vector<std::byte> body(h.size - sizeof h);
      if (!body.empty()) recv(fd, body.data(), body.size(), MSG_WAITALL);
      std::vector<std::byte> out;
      auto put = [&](const auto& v) {
        out.insert(out.end(), reinterpret_cast<const std::byte*>(&v),
                   reinterpret_cast<const std::byte*>(&v) + sizeof v);
      };
      if (h.command == vu::kVersion) put(vu::Version{major, 0}), put(char{0});
      if (h.command == vu::kDeviceGetInfo) put(vu::DeviceInfo{16, 3, 9, 5});
      if (h.command == vu::kRegionRead) {
        vu::RegionAccess a{};
        std::memcpy(&a, body.data(), sizeof a);
        put(a);
        const uint64_t v = read(a.offset);
        out.insert(out.end(), reinterpret_cast<const std::byte*>(&v), reinterpret_cast<const std::byte*>(&v) + a.count);
      }
      const vu::Header r{h.id, h.command, static_cast<uint32_t>(sizeof r + out.size()), vu::kTypeReply, 0};
      send(fd, &r, sizeof r, MSG_NOSIGNAL);
      if (!out.empty()) send(fd, out.data(), out.size(), MSG_NOSIGNAL);
    }
    close(fd);
  }
  std::string path_;
  int listener_ = -1;
  std::thread thread_;
};

TEST(ForeignDevice, OtherVersionsAreNamedWithBothNumbers) {
  {
    FakeDevice d;
    d.read = [](uint64_t at) {
      return at == hw::reg::kMagic ? hw::kMagicValue : at == hw::reg::kInterfaceVersion ? 7u << 16 | 3 : 0;
    };
    EXPECT_NE(d.open_error().find("interface is 7.3, this driver needs 1.2"), std::string::npos);
    EXPECT_EQ(d.code, Code::kVersionMismatch);
  }
  {
    FakeDevice d;
    d.read = [](uint64_t at) {
      return at == hw::reg::kMagic              ? hw::kMagicValue
             : at == hw::reg::kInterfaceVersion ? hw::kInterfaceVersion
                                                : 2u << 16;
    };
    EXPECT_NE(d.open_error().find("instruction set is 2.0"), std::string::npos);
  }
  {
    FakeDevice d;
    d.major = 3;
    EXPECT_NE(d.open_error().find("vfio-user 3"), std::string::npos);
  }
}

TEST(ForeignDevice, NonsenseAndSilenceAreErrors) {
  {
    FakeDevice d;
    d.read = [](uint64_t) { return ~0u; };
    EXPECT_NE(d.open_error().find("all ones"), std::string::npos);
  }
  {
    FakeDevice d;
    d.hang_up = true;
    EXPECT_NE(d.open_error().find("process is gone"), std::string::npos);
    EXPECT_EQ(d.code, Code::kDeviceLost);
  }
}

TEST(RangeAllocator, NeighboursMergeAgain) {
  RangeAllocator r;
  r.add(0, 100);
  const uint64_t a = r.take(30), b = r.take(30), c = r.take(40);
  EXPECT_EQ(r.take(1), RangeAllocator::kNone);
  r.give(a, 30), r.give(c, 40), r.give(b, 30);
  EXPECT_EQ(r.largest(), 100u);
}

TEST(RangeAllocator, BoundsAreKeptAndWhatLiesAroundThemStaysFree) {
  RangeAllocator r;
  r.add(0, 100);
  EXPECT_EQ(r.take(30, 40), 40u);
  EXPECT_EQ(r.take(10, 0, 9), RangeAllocator::kNone);
  EXPECT_EQ(r.take(10, 35, 75), RangeAllocator::kNone) << "between 40 and 70 nothing is free";
  EXPECT_EQ(r.take(9, 0, 9), 0u);
  EXPECT_EQ(r.take(30, 9, 100), 9u);
  EXPECT_EQ(r.available(), 31u);
  EXPECT_EQ(r.largest(80), 10u) << "70 to 79";
  EXPECT_EQ(r.take_last(20), 80u);
  r.give(80, 20);
  r.give(40, 30), r.give(9, 30), r.give(0, 9);
  EXPECT_EQ(r.largest(), 100u);
}

// What the host has to reach lies in the aperture, the rest behind it, until that is full.
TEST_F(DriverTest, BlocksTheHostNeedNotReachLeaveTheApertureFree) {
  Device d("emu:?hbm=64M&aperture=16M&threads=1");
  ASSERT_EQ(d.hbm().size(), 16u << 20);
  AddressSpace space(d);
  const HbmBlock code = space.allocate(100, hw::pte::kRead, Reach::kHost);
  EXPECT_LE(code.physical + code.bytes, 16u << 20);
  std::vector<HbmBlock> blocks{space.allocate(48 << 20)};
  EXPECT_EQ(blocks[0].physical, 16u << 20);
  EXPECT_THROW(space.aperture(blocks[0]), Error);
  // What does not fit behind the aperture takes as little of it as it can.
  space.free(blocks[0]);
  blocks[0] = space.allocate(54 << 20);
  EXPECT_EQ(blocks[0].physical, 10u << 20);
  space.free(space.allocate(1, hw::pte::kRead, Reach::kHost));
  while (d.free_hbm() > 0) blocks.push_back(space.allocate(1));
  try {
    space.allocate(1, hw::pte::kRead, Reach::kHost);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kOutOfDeviceMemory);
    EXPECT_NE(std::string(e.what()).find("aperture of 16777216"), std::string::npos) << e.what();
  }
  for (const HbmBlock& b : blocks) space.free(b);
  const std::byte data[] = {std::byte{1}, std::byte{2}};
  space.write(code, data);
  EXPECT_EQ(std::memcmp(space.aperture(code).data(), data, sizeof data), 0);
  space.free(code);
}

// Runs a scenario that succeeds, then again with the first, second, ... OS call failing, until none is left to fail.
// Whatever fails: an Error, no crash, and nothing left open.
int countdown = 0, failures = 0;
template <auto Entry, int Errno, class Result, class... Args>
struct Failing {
  static inline Result (*original)(Args...);
  static Result call(Args... args) {
    if (countdown > 0 && --countdown == 0) {
      ++failures;
      errno = Errno;
      return static_cast<Result>(-1);
    }
    return original(args...);
  }
};

TEST_F(DriverTest, EveryFailingSystemCallIsAnErrorAndLeavesNothingBehind) {
  auto scenario = [] {
    Device d(kUri);
    AddressSpace space(d);
    Queue q(d, space.context(), 0, 6, 0);
    q.push(nop());
    q.ring();
    if (q.wait(1, 2'000'000'000) != WaitResult::kReached) throw Error(Code::kTimeout, "nop");
  };
  Os saved = os();
  using Memfd = Failing<&Os::memfd_create, EMFILE, int, const char*, unsigned>;
  using Event = Failing<&Os::eventfd, EMFILE, int, unsigned, int>;
  using Truncate = Failing<&Os::ftruncate, ENOSPC, int, int, off_t>;
  Memfd::original = saved.memfd_create, Event::original = saved.eventfd, Truncate::original = saved.ftruncate;
  scenario();
  const int before = test::open_descriptors();
  int points = 0;
  for (int nth = 1;; ++nth) {
    os() = saved;
    os().memfd_create = Memfd::call, os().eventfd = Event::call, os().ftruncate = Truncate::call;
    countdown = nth, failures = 0;
    try {
      scenario();
    } catch (const Error&) {
    }
    os() = saved;
    EXPECT_EQ(test::open_descriptors(), before) << "after failing call " << nth;
    if (failures == 0) break;
    ++points;
  }
  EXPECT_GE(points, 4);
}

}  // namespace
}  // namespace jalapeno::driver
