// The driver's fences against an adversary that does with its stores all that a machine may do: many seeds, and proof
// that each fence is needed. The device tests run against it as well (test-device-adversary).
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/fences.hpp>
#include <jalapeno_driver/mmio.hpp>
#include <jalapeno_driver/queue.hpp>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "support/adversary.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

namespace jalapeno::driver {
namespace {

constexpr int64_t kPatienceNs = 20'000'000'000;

int seeds() {
  const char* text = std::getenv("JAL_TEST_SEEDS");
  const int n = text != nullptr ? std::atoi(text) : 1000;
  if (n < 1) ADD_FAILURE() << "JAL_TEST_SEEDS=" << text << ": expected a number";
  return n;
}

class Ordering : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { install_embedded_emulator(); }
  static constexpr uint64_t kWords = 256;

  static std::vector<uint64_t> numbers(uint64_t first) {
    std::vector<uint64_t> v(kWords);
    std::iota(v.begin(), v.end(), first);
    return v;
  }
  static std::span<const std::byte> bytes(const std::vector<uint64_t>& v) { return std::as_bytes(std::span(v)); }

  struct Held {
    Held() { adversary::hold(true); }
    ~Held() { adversary::hold(false); }
  };

  bool push_copy(hw::DeviceAddr from, hw::DeviceAddr to) {
    hw::CopyPacket copy{};
    copy.header.op = hw::PacketOp::kCopy;
    copy.source = from, copy.destination = to, copy.width_bytes = kWords * 8, copy.height = 1;
    return queue_.push(copy);
  }

  Device device_{"emu:?hbm=64M&threads=1"};
  AddressSpace space_{device_};
  Queue queue_{device_, space_.context(), 0, 4, 0};
  DmaMemory target_{device_.transport(), device_.iova_space(), kWords * 8};
};

// Fresh memory, written through the aperture, read by the device at once: tables, contents, packet and doorbell all
// have to be there in time, with the device awake or asleep.
TEST_F(Ordering, WhatTheDriverPublishesIsThereUnderEverySeed) {
  std::mt19937 random(5);
  for (int seed = 0; seed < seeds(); ++seed) {
    adversary::reseed(static_cast<uint64_t>(seed));
    const HbmBlock block = space_.allocate(1, hw::pte::kRead | hw::pte::kWrite, Reach::kHost);
    const auto sent = numbers(static_cast<uint64_t>(seed) << 32 | 1);
    space_.write(block, bytes(sent));
    for (unsigned k = random() % 3; k > 0; --k) {
      hw::Packet none{};
      ASSERT_TRUE(queue_.push(reinterpret_cast<const hw::TimelinePacket&>(none)));
    }
    ASSERT_TRUE(push_copy(block.address, target_.device_address()));
    queue_.ring();
    ASSERT_EQ(queue_.wait(queue_.next(), kPatienceNs), WaitResult::kReached) << "seed " << seed;
    ASSERT_EQ(queue_.status(), hw::Status::kOk) << "seed " << seed << ": " << queue_.fault().detail;
    ASSERT_EQ(std::memcmp(target_.data(), sent.data(), kWords * 8), 0) << "seed " << seed;
    space_.free(block);
    if (seed % 64 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the device falls asleep
  }
}

TEST_F(Ordering, QueuesOfSeveralThreadsKeepTheirOwnOrder) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      Queue q(device_, space_.context(), 0, 4, 0);
      DmaMemory out(device_.transport(), device_.iova_space(), 4096);
      for (int k = 0; k < seeds() / 4; ++k) {
        hw::FillPacket fill{};
        fill.header.op = hw::PacketOp::kFill;
        fill.destination = out.device_address(), fill.bytes = 4096, fill.pattern_bytes = 4,
        fill.pattern = static_cast<uint32_t>(k);
        if (!q.push(fill)) ++wrong;
        q.ring();
        if (q.wait(q.next(), kPatienceNs) != WaitResult::kReached || q.status() != hw::Status::kOk) ++wrong;
        for (size_t i = 0; i < 1024; ++i) wrong += reinterpret_cast<uint32_t*>(out.data())[i] != fill.pattern;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

// Each fence left out once: if nothing can go wrong without it, either it is not needed or the adversary is too kind.
TEST_F(Ordering, WithoutTheFlushTheDeviceReadsOldBytes) {
  const HbmBlock block = space_.allocate(1, hw::pte::kRead | hw::pte::kWrite, Reach::kHost);
  const Held held;
  int stale = 0;
  for (int seed = 0; seed < 100; ++seed) {
    adversary::reseed(static_cast<uint64_t>(seed));
    const auto sent = numbers(static_cast<uint64_t>(seed) << 32 | 1);
    // As AddressSpace::write does, and no flush_write_combining().
    store_aperture(space_.aperture(block).data(), sent.data(), sent.size() * sizeof sent[0]);
    ASSERT_TRUE(push_copy(block.address, target_.device_address()));
    queue_.ring();
    ASSERT_EQ(queue_.wait(queue_.next(), kPatienceNs), WaitResult::kReached);
    stale += std::memcmp(target_.data(), sent.data(), kWords * 8) != 0;
    flush_write_combining();
  }
  EXPECT_GT(stale, 0);
}

TEST_F(Ordering, WithoutTheFenceBeforeTheDoorbellAPacketIsTooLate) {
  const Held held;
  int early = 0;
  for (int seed = 0; seed < 100; ++seed) {
    adversary::reseed(static_cast<uint64_t>(seed));
    const uint64_t index = queue_.next();
    ASSERT_TRUE(push_copy(target_.device_address(), target_.device_address()));
    post_word(device_.doorbell(queue_.number()).tail, queue_.next());  // Queue::ring() without its fence
    device_.wake();
    ASSERT_EQ(queue_.wait(index + 1, kPatienceNs), WaitResult::kReached);
    if (queue_.status() != hw::Status::kOk) {
      ++early;  // nothing of it, or a part
      queue_.reset();
    }
    before_doorbell();
  }
  EXPECT_GT(early, 0);
}

}  // namespace
}  // namespace jalapeno::driver
