// Memory and copies: every kind of pointer, every shape, and what happens outside the lines.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

class MemoryTest : public OnDevice {
 protected:
  std::vector<int32_t> numbers(size_t n) {
    std::vector<int32_t> v(n);
    std::iota(v.begin(), v.end(), 1);
    return v;
  }
};

TEST_F(MemoryTest, RoundTripsThroughPlainMemoryOfAnySize) {
  for (size_t n : {1u, 3u, 1000u, 262144u, 262145u, 900001u}) {
    const auto in = numbers(n);
    Buffer<int32_t> b(device, std::span<const int32_t>(in));
    EXPECT_EQ(b.to_host(), in) << n;
  }
}

TEST_F(MemoryTest, PinnedMemoryGoesBothWaysAsynchronously) {
  HostBuffer<int32_t> in(device, 5000), out(device, 5000);
  std::iota(in.begin(), in.end(), 7);
  Buffer<int32_t> b(device, 5000), c(device, 5000);
  stream.copy(b.data(), in.data(), in.bytes());
  stream.copy(c.data(), b.data(), b.bytes());
  stream.copy(out.data(), c.data(), c.bytes());
  stream.synchronize();
  EXPECT_TRUE(std::equal(in.begin(), in.end(), out.begin()));
}

TEST_F(MemoryTest, RegisteredMemoryKeepsTheStreamsOrder) {
  auto in = numbers(1000);
  std::vector<int32_t> middle(1000), out(1000);
  Buffer<int32_t> a(device, 1000), b(device, 1000);
  check(jalHostRegister(device.get(), middle.data(), middle.size() * 4));
  Timeline gate(device);
  stream.wait(gate, 1);
  // Down into registered memory and up again, all behind a closed gate: nothing may be read early.
  stream.copy(a.data(), in.data(), 4000);
  stream.copy(middle.data(), a.data(), 4000);
  stream.copy(b.data(), middle.data(), 4000);
  EXPECT_EQ(middle[0], 0);
  gate.signal(1);
  stream.synchronize();
  EXPECT_EQ(b.to_host(), in);
  EXPECT_EQ(jalHostRegister(device.get(), middle.data(), 4), jalErrorInvalidValue);
  check(jalHostUnregister(middle.data()));
  EXPECT_EQ(jalHostUnregister(middle.data()), jalErrorInvalidValue);
}

TEST_F(MemoryTest, TwoDimensionalCopiesKeepTheirPitches) {
  const auto in = numbers(10 * 16);
  Buffer<int32_t> b(device, 10 * 20);
  stream.fill(b.data(), 0, b.bytes());
  check(jalMemcpy2DAsync(b.data() + 2, 80, in.data() + 1, 64, 40, 10, stream.get()));
  std::vector<int32_t> out(10 * 10);
  check(jalMemcpy2DAsync(out.data(), 40, b.data() + 2, 80, 40, 10, stream.get()));
  stream.synchronize();
  for (size_t r = 0; r < 10; ++r)
    for (size_t c = 0; c < 10; ++c) EXPECT_EQ(out[r * 10 + c], in[r * 16 + c + 1]);
  EXPECT_EQ(b.to_host()[1], 0);
  EXPECT_EQ(b.to_host()[12], 0);
  EXPECT_EQ(jalMemcpy2DAsync(b.data(), 10, in.data(), 64, 40, 10, stream.get()), jalErrorInvalidValue);
}

TEST_F(MemoryTest, BatchesCopyEachPairOnce) {
  HostBuffer<int32_t> host(device, 100);
  std::iota(host.begin(), host.end(), 0);
  Buffer<int32_t> b(device, 100);
  std::vector<void*> to;
  std::vector<const void*> from;
  std::vector<size_t> bytes;
  for (int k = 0; k < 100; ++k) to.push_back(b.data() + (99 - k)), from.push_back(host.data() + k), bytes.push_back(4);
  check(jalMemcpyBatchAsync(to.data(), from.data(), bytes.data(), 100, stream.get()));
  stream.synchronize();
  for (int k = 0; k < 100; ++k) EXPECT_EQ(b.to_host()[static_cast<size_t>(k)], 99 - k);
  int plain = 0;
  from[3] = &plain;
  EXPECT_EQ(jalMemcpyBatchAsync(to.data(), from.data(), bytes.data(), 100, stream.get()), jalErrorInvalidValue);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("batch copy 3"), std::string::npos);
}

TEST_F(MemoryTest, FillsOfEachWidth) {
  Buffer<int32_t> b(device, 8);
  check(jalMemFillAsync(b.data(), 0x11, 1, 8, stream.get()));
  check(jalMemFillAsync(b.data() + 2, 0x2222, 2, 8, stream.get()));
  check(jalMemFillAsync(b.data() + 4, 0x33333333, 4, 16, stream.get()));
  stream.synchronize();
  EXPECT_EQ(b.to_host(), (std::vector<int32_t>{0x11111111, 0x11111111, 0x22222222, 0x22222222, 0x33333333, 0x33333333,
                                               0x33333333, 0x33333333}));
  EXPECT_EQ(jalMemFillAsync(b.data(), 0, 3, 3, stream.get()), jalErrorInvalidValue);
  EXPECT_EQ(jalMemFillAsync(reinterpret_cast<char*>(b.data()) + 1, 0, 4, 4, stream.get()), jalErrorMisalignedAddress);
}

TEST_F(MemoryTest, CopiesOutsideTheirAllocationAreRefusedWithTheNumbers) {
  Buffer<int32_t> b(device, 100);
  std::vector<int32_t> host(200);
  EXPECT_EQ(jalMemcpyAsync(b.data(), host.data(), 401, stream.get()), jalErrorInvalidValue);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("401 bytes at offset 0 leaves its allocation of 400"),
            std::string::npos)
      << jalGetLastErrorDetail();
  EXPECT_EQ(jalMemcpyAsync(b.data() + 100, host.data(), 1, stream.get()), jalErrorInvalidValue);
  EXPECT_EQ(jalMemcpyAsync(b.data() - 64, host.data(), 4, stream.get()), jalErrorInvalidValue);
  EXPECT_EQ(jalMemcpyAsync(nullptr, host.data(), 4, stream.get()), jalErrorInvalidValue);
  EXPECT_EQ(jalMemcpy(host.data(), host.data() + 1, 4), jalErrorInvalidValue);
}

TEST_F(MemoryTest, FreeingTwiceOrForeignPointersIsTold) {
  void* p{};
  check(jalMalloc(device.get(), &p, 1000));
  EXPECT_EQ(jalFree(static_cast<char*>(p) + 4), jalErrorInvalidValue);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("inside an allocation"), std::string::npos);
  check(jalFree(p));
  EXPECT_EQ(jalFree(p), jalErrorInvalidValue);
  int local = 0;
  EXPECT_EQ(jalFree(&local), jalErrorInvalidValue);
  EXPECT_EQ(jalHostFree(&local), jalErrorInvalidValue);
  check(jalFree(nullptr));
}

TEST_F(MemoryTest, ExhaustionNamesWhatIsLeftAndMemoryComesBack) {
  size_t free0 = 0, total = 0;
  check(jalDeviceGetMemoryInfo(device.get(), &free0, &total));
  void* p{};
  EXPECT_EQ(jalMalloc(device.get(), &p, total * 2), jalErrorOutOfMemory);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("largest run"), std::string::npos);
  EXPECT_EQ(jalMalloc(device.get(), &p, 0), jalErrorInvalidValue);
  for (int round = 0; round < 3; ++round) {
    std::vector<void*> all;
    while (jalMalloc(device.get(), &p, 64 << 20) == jalSuccess) all.push_back(p);
    EXPECT_GE(all.size(), 10u);
    while (jalMalloc(device.get(), &p, 2 << 20) == jalSuccess) all.push_back(p);
    for (void* q : all) check(jalFree(q));
  }
  // What is kept for later gives way to what is small, too.
  std::vector<void*> small;
  for (int i = 0; i < 3; ++i)
    if (jalMalloc(device.get(), &p, 1 << 19) == jalSuccess) small.push_back(p);
  EXPECT_EQ(small.size(), 3u) << jalGetLastErrorDetail();
  for (void* q : small) check(jalFree(q));
  check(jalMemPoolTrim(device.get(), 0));
  size_t free1 = 0;
  check(jalDeviceGetMemoryInfo(device.get(), &free1, &total));
  EXPECT_GE(free1 + (4u << 20), free0);
}

TEST_F(MemoryTest, FreedMemoryIsNotReusedWhileWorkStillUsesIt) {
  Timeline gate(device);
  Buffer<int32_t> target(device, 1 << 20);
  void* p{};
  check(jalMalloc(device.get(), &p, 4 << 20));
  check(jalMemset(p, 7, 4 << 20));
  stream.wait(gate, 1);
  stream.copy(target.data(), p, 4 << 20);
  check(jalFree(p));  // returns at once
  void* q{};
  check(jalMalloc(device.get(), &q, 4 << 20));
  EXPECT_NE(p, q);
  check(jalMemset(q, 9, 4 << 20));
  gate.signal(1);
  stream.synchronize();
  EXPECT_EQ(target.to_host()[1000], 0x07070707);
  check(jalFree(q));
}

TEST_F(MemoryTest, StreamOrderedAllocationReusesAtOnceInItsStream) {
  void *p{}, *q{};
  check(jalMallocAsync(&p, 1 << 21, stream.get()));
  stream.fill(p, 1, 1 << 21);
  check(jalFreeAsync(p, stream.get()));
  check(jalMallocAsync(&q, 1 << 21, stream.get()));
  stream.fill(q, 2, 1 << 21);
  check(jalFreeAsync(q, stream.get()));
  stream.synchronize();
}

TEST_F(MemoryTest, PeerCopiesGoBetweenDevices) {
  const char* peer = std::getenv("JAL_TEST_PEER_URI");
  Device second(peer != nullptr ? peer : "emu:?hbm=64M");
  const auto in = numbers(300000);
  Buffer<int32_t> a(device, std::span<const int32_t>(in)), b(second, in.size());
  check(jalMemcpyPeerAsync(b.data(), a.data(), a.bytes(), stream.get()));
  stream.synchronize();
  EXPECT_EQ(b.to_host(), in);
  EXPECT_EQ(jalMemsetAsync(b.data(), 0, 4, stream.get()), jalErrorInvalidDevice);
}

// Chunks on their way to plain memory are not another thread's: a wait lets the stream go, not its staging.
TEST_F(MemoryTest, ThreadsReadThroughOneStreamWithoutMixing) {
  constexpr int kThreads = 6;
  std::vector<Buffer<int32_t>> buffers;
  for (int n = 0; n < kThreads; ++n)
    buffers.emplace_back(device, std::span<const int32_t>(std::vector<int32_t>(64, n)));
  std::atomic<int> wrong{0};
  for (int round = 0; round < 200; ++round) {
    std::vector<std::thread> threads;
    for (int n = 0; n < kThreads; ++n)
      threads.emplace_back([&, n] {
        std::vector<int32_t> host(64);
        stream.copy(host.data(), buffers[static_cast<size_t>(n)].data(), 256);
        wrong += std::count(host.begin(), host.end(), n) != 64;
      });
    for (std::thread& t : threads) t.join();
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace jalapeno::test
