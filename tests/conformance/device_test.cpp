// The function on its bus, through the driver's own interfaces: DMA, interrupts, resets, removal. The same tests on the
// embedded emulator, on one behind a socket, in a virtual machine and on a board; JAL_TEST_URI chooses.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/os.hpp>
#include <jalapeno_driver/queue.hpp>
#include <jalapeno_driver/vfio.hpp>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "support/descriptors.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

namespace jalapeno::driver {
namespace {

constexpr int64_t kPatienceNs = 20'000'000'000;

std::string uri() {
  const char* fixed = std::getenv("JAL_TEST_URI");
  return fixed != nullptr && *fixed != 0 ? fixed : "emu:?hbm=256M";
}
// Of a PCI function; "" when the device under test is none.
std::string address() { return uri().rfind("vfio:", 0) == 0 ? uri().substr(5) : ""; }

class DeviceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { install_embedded_emulator(); }
};

hw::TimelinePacket timeline_packet(hw::PacketOp op, hw::DeviceAddr timeline, uint64_t value) {
  hw::TimelinePacket p{};
  p.header.op = op, p.timeline = timeline, p.value = value;
  return p;
}

std::string lost(const std::function<void()>& attempt) {
  try {
    attempt();
  } catch (const Error& e) {
    return e.code() == Code::kDeviceLost ? e.what() : std::string("another error: ") + e.what();
  }
  return "no error";
}

TEST_F(DeviceTest, DmaReachesHostMemoryOfEverySizeAndNothingElse) {
  Device d(uri());
  AddressSpace space(d);
  Queue q(d, space.context(), 0, 6, 0);
  std::mt19937_64 random(1);
  for (uint64_t bytes : {uint64_t{4096}, uint64_t{68 << 10}, uint64_t{2} << 20, uint64_t{9} << 20}) {
    DmaMemory source(d.transport(), d.iova_space(), bytes), target(d.transport(), d.iova_space(), bytes);
    for (uint64_t k = 0; k < bytes / 8; ++k) reinterpret_cast<uint64_t*>(source.data())[k] = random();
    const HbmBlock block = space.allocate(bytes, hw::pte::kRead | hw::pte::kWrite, Reach::kHost);
    for (const auto& [from, to] :
         {std::pair{source.device_address(), block.address}, std::pair{block.address, target.device_address()}}) {
      hw::CopyPacket copy{};
      copy.header.op = hw::PacketOp::kCopy;
      copy.source = from, copy.destination = to, copy.width_bytes = bytes, copy.height = 1;
      ASSERT_TRUE(q.push(copy));
    }
    q.ring();
    ASSERT_EQ(q.wait(q.next(), kPatienceNs), WaitResult::kReached);
    ASSERT_EQ(q.status(), hw::Status::kOk) << q.fault().detail;
    EXPECT_EQ(std::memcmp(source.data(), target.data(), bytes), 0) << bytes << " bytes";
    EXPECT_EQ(std::memcmp(source.data(), space.aperture(block).data(), bytes), 0) << "through the HBM aperture";
    space.free(block);
  }
  hw::FillPacket fill{};
  fill.header.op = hw::PacketOp::kFill;
  fill.destination = hw::host_address(hw::Iova{uint64_t{1} << 38}), fill.bytes = 64, fill.pattern_bytes = 4;
  ASSERT_TRUE(q.push(fill));
  q.ring();
  ASSERT_EQ(q.wait(q.next(), kPatienceNs), WaitResult::kReached);
  EXPECT_EQ(q.status(), hw::Status::kDmaFault);
  EXPECT_EQ(q.fault().address, hw::raw(fill.destination));
}

TEST_F(DeviceTest, MemoryThatWasGivenBackIsOutOfReach) {
  Device d(uri());
  AddressSpace space(d);
  Queue q(d, space.context(), 0, 6, 0);
  auto gone = std::make_unique<DmaMemory>(d.transport(), d.iova_space(), 4096);
  const hw::DeviceAddr where = gone->device_address();
  gone.reset();
  hw::FillPacket fill{};
  fill.header.op = hw::PacketOp::kFill;
  fill.destination = where, fill.bytes = 64, fill.pattern_bytes = 4;
  ASSERT_TRUE(q.push(fill));
  q.ring();
  ASSERT_EQ(q.wait(q.next(), kPatienceNs), WaitResult::kReached);
  EXPECT_EQ(q.status(), hw::Status::kDmaFault);
}

TEST_F(DeviceTest, EveryQueueHasItsOwnVector) {
  constexpr int kQueues = 32;
  Device d(uri());
  AddressSpace space(d);
  DmaMemory page(d.transport(), d.iova_space(), 4096);
  auto* gate = new (page.data()) hw::Timeline{};
  std::vector<std::unique_ptr<Queue>> queues;
  for (int k = 0; k < kQueues; ++k) queues.push_back(std::make_unique<Queue>(d, space.context(), 0, 6, 0));
  for (auto& q : queues) {
    ASSERT_TRUE(q->push(timeline_packet(hw::PacketOp::kWait, page.device_address(), 1)));
    q->ring();
  }
  std::vector<std::thread> waiters;
  std::atomic<int> reached{0};
  for (auto& q : queues)
    waiters.emplace_back([&, queue = q.get()] { reached += queue->wait(1, kPatienceNs) == WaitResult::kReached; });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // all of them asleep and armed
  std::atomic_ref(gate->value).store(1, std::memory_order_release);
  d.wake();
  for (std::thread& t : waiters) t.join();
  EXPECT_EQ(reached, kQueues);
  const int64_t deadline = monotonic_ns() + kPatienceNs;  // the last ones may still be on their way
  auto fired = [&] {
    int n = 0;
    for (auto& q : queues) n += d.interrupts(q->number()) > 0;
    return n;
  };
  while (fired() < kQueues && monotonic_ns() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(fired(), kQueues);
}

TEST_F(DeviceTest, ResetEndsEverythingAndTheNextOpenWorks) {
  {
    Device d(uri());
    AddressSpace space(d);
    Queue q(d, space.context(), 0, 6, 0);
    const uint32_t before = d.epoch();
    d.transport().reset();
    EXPECT_EQ(d.epoch(), before + 1);
    EXPECT_EQ(d.health(), hw::kHealthReady);
    d.transport().write32(hw::reg::kQueueSelect, q.number());
    EXPECT_EQ(d.transport().read32(hw::reg::kQueueState), hw::kQueueStateOff);
  }
  Device d(uri());
  AddressSpace space(d);
  Queue q(d, space.context(), 0, 6, 0);
  ASSERT_TRUE(q.push(hw::Packet{}));
  q.ring();
  EXPECT_EQ(q.wait(1, kPatienceNs), WaitResult::kReached);
}

// JAL_TEST_RESETS of them; work between them, descriptors as before.
TEST_F(DeviceTest, ManyResetsLeaveNothingBehind) {
  const char* text = std::getenv("JAL_TEST_RESETS");
  const int resets = text != nullptr ? std::atoi(text) : 50;
  Device d(uri());
  const int before = test::open_descriptors();
  const uint32_t epoch = d.epoch();
  for (int n = 0; n < resets; ++n) {
    if (n % 10 == 0) {
      AddressSpace space(d);
      Queue q(d, space.context(), 0, 6, 0);
      ASSERT_TRUE(q.push(hw::Packet{}));
      q.ring();
      ASSERT_EQ(q.wait(1, kPatienceNs), WaitResult::kReached) << n;
    }
    d.transport().reset();
  }
  EXPECT_EQ(d.epoch(), epoch + static_cast<uint32_t>(resets));
  EXPECT_EQ(d.health(), hw::kHealthReady);
  EXPECT_EQ(d.free_hbm(), d.identity().hbm_bytes / hw::kPageBytes);
  EXPECT_LE(test::open_descriptors(), before + 2) << "one queue's interrupt, and an embedded chip's copy of it";
}

TEST_F(DeviceTest, SecondProcessIsToldThatTheDeviceIsBusy) {
  if (uri().rfind("emu:?", 0) == 0) GTEST_SKIP() << "an embedded emulator is nobody else's";
  Device first(uri());
  try {
    Device second(uri());
    ADD_FAILURE() << "opened twice";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBusy) << e.what();
  }
}

// A stream of work that only ends when the device does; returns what the waiter was told.
std::string told_during_work(const std::function<void()>& disturb) {
  Device d(uri());
  AddressSpace space(d);
  DmaMemory page(d.transport(), d.iova_space(), 4096);
  new (page.data()) hw::Timeline{};
  Queue q(d, space.context(), 0, 6, 0);
  q.push(timeline_packet(hw::PacketOp::kWait, page.device_address(), 1));
  q.ring();
  std::thread disturber([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    disturb();
  });
  const int64_t begin = monotonic_ns();
  const std::string told = lost([&] { q.wait(1, kPatienceNs); });
  std::printf("told after %.1f ms: %s\n", static_cast<double>(monotonic_ns() - begin) * 1e-6 - 50, told.c_str());
  // Afterwards every operation says the same, and nothing crashes.
  EXPECT_EQ(lost([&] { Queue again(d, space.context(), 0, 6, 0); }), told);
  EXPECT_EQ(lost([&] { d.telemetry(); }), told);
  disturber.join();
  return told;
}

void tell_kernel(const std::string& file, const std::string& text) {
  std::ofstream out(file);
  out << text;
  out.close();
  EXPECT_TRUE(out) << file;
}

TEST_F(DeviceTest, ResetBySomeoneElseIsNoticedDuringWork) {
  if (address().empty()) GTEST_SKIP() << "only the kernel can reset a device that a process holds";
  const std::string told = told_during_work([] { tell_kernel("/sys/bus/pci/devices/" + address() + "/reset", "1"); });
  EXPECT_NE(told.find("reset by someone else"), std::string::npos) << told;
  Device again(uri());
  EXPECT_EQ(again.health(), hw::kHealthReady);
}

TEST_F(DeviceTest, RemovalDuringWorkIsAnErrorAndTheDeviceComesBack) {
  if (address().empty()) GTEST_SKIP() << "only the kernel can remove a device";
  const std::string told = told_during_work([] { tell_kernel("/sys/bus/pci/devices/" + address() + "/remove", "1"); });
  EXPECT_NE(told.find("takes the device back"), std::string::npos) << told;
  EXPECT_FALSE(pci_function(address()).has_value());
  try {
    Device d(uri());
    ADD_FAILURE() << "opened a device that is not there";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kNoDevice);
    EXPECT_NE(std::string(e.what()).find("no PCI function has this address"), std::string::npos) << e.what();
  }
  tell_kernel("/sys/bus/pci/rescan", "1");
  ASSERT_TRUE(pci_function(address()).has_value());
  if (pci_function(address())->kernel_driver != "vfio-pci") {
    try {
      Device d(uri());
      ADD_FAILURE() << "opened without vfio-pci";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("expected vfio-pci"), std::string::npos) << e.what();
    }
    tell_kernel("/sys/bus/pci/devices/" + address() + "/driver_override", "vfio-pci");
    tell_kernel("/sys/bus/pci/drivers_probe", address());
  }
  Device again(uri());
  EXPECT_EQ(again.health(), hw::kHealthReady);
}

}  // namespace
}  // namespace jalapeno::driver
