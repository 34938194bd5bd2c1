// Order and time: streams, events, timelines, host functions, graphs.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <jalapeno/tile.hpp>
#include <thread>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

using namespace std::chrono_literals;

class Streams : public OnDevice {};

TEST_F(Streams, WorkOfOneStreamRunsInOrder) {
  Buffer<int32_t> b(device, 1 << 16);
  for (int k = 0; k < 200; ++k) stream.fill(b.data(), k, b.bytes());
  stream.synchronize();
  const auto host = b.to_host();
  EXPECT_EQ(host.front(), 0xC7C7C7C7);
  EXPECT_EQ(host.back(), host.front());
}

TEST_F(Streams, QueryAndPositionFollowTheWork) {
  Timeline gate(device);
  stream.wait(gate, 1);
  EXPECT_EQ(jalStreamQuery(stream.get()), jalErrorNotReady);
  uint64_t submitted, completed;
  check(jalStreamGetPosition(stream.get(), &submitted, &completed));
  EXPECT_EQ(submitted, completed + 1);
  EXPECT_FALSE(stream.synchronize_for(20ms)) << "a timeout is not an error state";
  gate.signal(1);
  stream.synchronize();
  EXPECT_EQ(jalStreamQuery(stream.get()), jalSuccess);
}

TEST_F(Streams, EventsOrderStreams) {
  Stream other(device);
  Buffer<int32_t> b(device, 1 << 18);
  Timeline gate(device);
  stream.wait(gate, 1);
  stream.fill(b.data(), 5, b.bytes());
  Event done(device);
  done.record(stream);
  other.wait(done);
  HostBuffer<int32_t> host(device, b.size());
  other.copy(host.data(), b.data(), b.bytes());
  EXPECT_FALSE(done.done());
  gate.signal(1);
  other.synchronize();
  EXPECT_TRUE(done.done());
  EXPECT_EQ(host[b.size() - 1], 0x05050505);
}

TEST_F(Streams, EventsHoldBothClocksApart) {
  Event begin(device, true), end(device, true), plain(device);
  Buffer<int32_t> b(device, 1 << 20);
  begin.record(stream);
  for (int k = 0; k < 10; ++k) stream.fill(b.data(), k, b.bytes());
  end.record(stream);
  plain.record(stream);
  stream.synchronize();
  const jalElapsed e = end.elapsed_since(begin);
  EXPECT_GT(e.device_ns, 0);
  EXPECT_GT(e.host_ns, 0);
  float ms = -1;
  check(jalEventElapsedTime(&ms, begin.get(), end.get()));
  EXPECT_NEAR(ms, e.host_ns * 1e-6, 1e-3 + e.host_ns * 1e-9);
  jalElapsed wrong{};
  wrong.struct_size = sizeof wrong;
  EXPECT_EQ(jalEventElapsed(&wrong, begin.get(), plain.get()), jalErrorIllegalState);
}

TEST_F(Streams, TimelinesPassValuesBetweenHostAndDevice) {
  Timeline t(device, 5);
  EXPECT_EQ(t.value(), 5u);
  stream.wait(t, 6);
  stream.signal(t, 9);
  EXPECT_EQ(jalTimelineWait(t.get(), 9, 10'000'000), jalErrorWaitTimeout);
  t.signal(6);
  t.wait(9, 5s);
  t.signal(3);
  EXPECT_EQ(t.value(), 9u) << "values only grow";
}

TEST_F(Streams, HostFunctionsRunInOrderBetweenWork) {
  std::atomic<int> calls{0};
  HostBuffer<int32_t> host(device, 1);
  struct Seen {
    std::atomic<int>* calls;
    int32_t* value;
    int32_t at[3];
  } seen{&calls, host.data(), {}};
  for (int k = 0; k < 3; ++k) {
    stream.fill(host.data(), k + 1, 4);
    check(jalLaunchHostFunc(
        stream.get(),
        [](void* p) {
          auto* s = static_cast<Seen*>(p);
          const int n = s->calls->fetch_add(1);
          s->at[n] = *s->value;
        },
        &seen));
  }
  stream.synchronize();
  EXPECT_EQ(calls, 3);
  for (int k = 0; k < 3; ++k) EXPECT_EQ(seen.at[k], 0x01010101 * (k + 1));
}

TEST_F(Streams, CompletionCanBeAnEventfd) {
  const int fd = eventfd(0, EFD_NONBLOCK);
  Timeline gate(device);
  stream.wait(gate, 1);
  check(jalStreamNotifyEventfd(stream.get(), fd));
  pollfd p{fd, POLLIN, 0};
  EXPECT_EQ(poll(&p, 1, 20), 0);
  gate.signal(1);
  EXPECT_EQ(poll(&p, 1, 5000), 1);
  stream.synchronize();  // the descriptor is the library's until the stream has passed the call
  close(fd);
}

TEST_F(Streams, SixtyFourAtOnceFromFourThreads) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::vector<Stream> streams;
      std::vector<Buffer<int32_t>> buffers;
      for (int k = 0; k < 16; ++k) streams.emplace_back(device, k % 4), buffers.emplace_back(device, 1000);
      for (int round = 0; round < 20; ++round)
        for (size_t k = 0; k < streams.size(); ++k)
          streams[k].fill(buffers[k].data(), static_cast<int>(t * 16 + static_cast<int>(k)), buffers[k].bytes());
      for (size_t k = 0; k < streams.size(); ++k) {
        streams[k].synchronize();
        if (buffers[k].to_host()[999] !=
            static_cast<int32_t>(0x01010101u * static_cast<unsigned>(t * 16 + static_cast<int>(k))))
          ++wrong;
      }
    });
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Streams, GraphsReplayAndTakeNewArguments) {
  Buffer<float> x(device, std::vector<float>(8, 1.f)), y(device, std::vector<float>(8, 2.f)),
      z(device, std::vector<float>(8, 10.f));
  const Kernel add = library_kernel(device, "add");
  const Graph g(stream, [&] {
    launch(stream, {1, 1}, add, x.as({1, 8}), y.as({1, 8}), x.as({1, 8}));
    launch(stream, {1, 1}, add, x.as({1, 8}), y.as({1, 8}), x.as({1, 8}));
  });
  EXPECT_EQ(x.to_host()[0], 1.f) << "recording runs nothing";
  for (int k = 0; k < 5; ++k) g.launch(stream);
  stream.synchronize();
  EXPECT_EQ(x.to_host()[7], 21.f);
  g.set_arguments(1, x.as({1, 8}), z.as({1, 8}), x.as({1, 8}));
  g.launch(stream);
  stream.synchronize();
  EXPECT_EQ(x.to_host()[7], 33.f);
  EXPECT_THROW(g.set_arguments(2, x), Error);
  EXPECT_THROW(g.set_arguments(1, x), Error);
}

// Who changes or destroys a graph waits for each stream that runs it, not for the last one only.
TEST_F(Streams, GraphsWaitForAllStreamsThatRunThem) {
  Buffer<float> x(device, std::vector<float>(8, 1.f)), y(device, std::vector<float>(8, 2.f)),
      z(device, std::vector<float>(8, 10.f));
  const Kernel add = library_kernel(device, "add");
  const Graph g(stream, [&] { launch(stream, {1, 1}, add, x.as({1, 8}), y.as({1, 8}), x.as({1, 8})); });
  Timeline gate(device);
  Stream behind(device);
  behind.wait(gate, 1);
  g.launch(behind);
  g.launch(stream);
  stream.synchronize();
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    gate.signal(1);
  });
  g.set_arguments(0, x.as({1, 8}), z.as({1, 8}), x.as({1, 8}));
  opener.join();
  behind.synchronize();
  EXPECT_EQ(x.to_host()[0], 5.f);
  g.launch(stream);
  stream.synchronize();
  EXPECT_EQ(x.to_host()[0], 15.f);
}

// A module whose kernel "fill" fills eight elements.
std::vector<std::byte> module_that_fills(float value) {
  namespace jt = jalapeno::tile;
  jt::Builder k("fill");
  auto out = k.tensor("out", jt::f32, 1);
  auto t = k.spm(jt::f32, 1, 8);
  k.fill(t, value);
  k.store(out, {0}, t);
  auto image = jt::write_module({k.finish()});
  EXPECT_THROW(k.finish(), jt::BuildError);
  EXPECT_THROW(k.fill(jt::Tile(), 0), jt::BuildError);
  return image;
}

TEST_F(Streams, GraphsKeepTheCodeOfAnUnloadedModule) {
  const auto image = module_that_fills(7);
  Module module(device, image);
  Buffer<float> x(device, 8);
  const Graph g(stream, [&] { launch(stream, {1}, module.kernel("fill"), x); });
  module = Module(device, image);
  check(jalMemPoolTrim(device.get(), 0));
  const Module other(device, module_that_fills(8)), third(device, module_that_fills(9));  // in its place, were it free
  g.launch(stream);
  stream.synchronize();
  EXPECT_EQ(x.to_host()[7], 7.f);
}

// The place of code that is still to run is nobody else's, also when all that named it is gone.
TEST_F(Streams, LaunchesThatWaitKeepTheCodeOfADestroyedPreparedLaunch) {
  Buffer<float> x(device, 8);
  Timeline gate(device);
  PreparedLaunch prepared;
  {
    const Module module(device, module_that_fills(7));
    prepared = PreparedLaunch({1}, module.kernel("fill"), x);
  }
  stream.wait(gate, 1);
  prepared.launch(stream);
  prepared = PreparedLaunch();
  const Module other(device, module_that_fills(8));
  gate.signal(1);
  stream.synchronize();
  EXPECT_EQ(x.to_host()[0], 7.f);
}

TEST_F(Streams, LaunchesBeforeACaptureKeepTheCodeOfAModuleUnloadedInIt) {
  Buffer<float> x(device, 8);
  Timeline gate(device);
  jalGraph_t graph{};
  {
    const Module module(device, module_that_fills(7));
    stream.wait(gate, 1);
    launch(stream, {1}, module.kernel("fill"), x);
    check(jalStreamBeginCapture(stream.get()));
  }
  const Module other(device, module_that_fills(8));
  gate.signal(1);
  check(jalStreamEndCapture(stream.get(), &graph));
  check(jalGraphDestroy(graph));
  stream.synchronize();
  EXPECT_EQ(x.to_host()[0], 7.f);
}

// What is small shares pages; what takes another's place is what runs there.
TEST_F(Streams, ManyModulesAndGraphsTakeFewPagesAndEachOthersPlaces) {
  constexpr size_t kCount = 40;
  Buffer<float> x(device, 8);
  std::vector<std::unique_ptr<Module>> modules(kCount);
  std::vector<std::unique_ptr<Graph>> graphs(kCount);
  std::vector<float> value(kCount);
  auto make = [&](size_t i, float v) {
    value[i] = v;
    graphs[i].reset(), modules[i].reset();
    modules[i] = std::make_unique<Module>(device, module_that_fills(v));
    graphs[i] = std::make_unique<Graph>(stream, [&] { launch(stream, {1}, modules[i]->kernel("fill"), x); });
  };
  auto holds = [&](float v) { return x.to_host() == std::vector<float>(8, v); };
  make(0, 0);
  size_t free0 = 0, free1 = 0, total = 0;
  check(jalDeviceGetMemoryInfo(device.get(), &free0, &total));
  for (size_t i = 1; i < kCount; ++i) make(i, static_cast<float>(i));
  check(jalDeviceGetMemoryInfo(device.get(), &free1, &total));
  EXPECT_LE(free0, free1 + (8u << 20)) << "a page of 2 MiB for each of " << kCount - 1 << " would be more";
  for (size_t round = 0; round < 3; ++round) {
    for (size_t i = round; i < kCount; i += 3) make(i, value[i] + 100);
    for (size_t i = 0; i < kCount; ++i) {
      graphs[i]->launch(stream);
      stream.synchronize();
      EXPECT_TRUE(holds(value[i])) << "graph " << i << " in round " << round;
      launch(stream, {1}, modules[kCount - 1 - i]->kernel("fill"), x);
      stream.synchronize();
      EXPECT_TRUE(holds(value[kCount - 1 - i])) << "module " << kCount - 1 - i << " in round " << round;
    }
  }
}

TEST_F(Streams, IllegalCallInACaptureIsNamedAndTheNextCaptureWorks) {
  Buffer<float> x(device, 8);
  std::vector<float> plain(8);
  check(jalStreamBeginCapture(stream.get()));
  stream.fill(x.data(), 1, x.bytes());
  EXPECT_EQ(jalMemcpyAsync(plain.data(), x.data(), x.bytes(), stream.get()), jalErrorStreamCaptureUnsupported);
  jalGraph_t graph{};
  EXPECT_EQ(jalStreamEndCapture(stream.get(), &graph), jalErrorStreamCaptureInvalidated);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("jalMemcpyAsync after 1 recorded"), std::string::npos)
      << jalGetLastErrorDetail();
  const Graph g(stream, [&] { stream.fill(x.data(), 0, x.bytes()); });
  g.launch(stream);
  stream.synchronize();
  EXPECT_EQ(jalStreamEndCapture(stream.get(), &graph), jalErrorIllegalState);
}

TEST_F(Streams, ResetDropsWorkThatWaitsForEver) {
  Timeline never(device), after(device);
  stream.wait(never, 1);
  stream.signal(after, 1);
  Event dropped(device);
  dropped.record(stream);
  Stream dependant(device);
  dependant.wait(dropped);
  EXPECT_GE(stream.reset(), 2u);
  Buffer<int32_t> b(device, 4);
  stream.fill(b.data(), 1, b.bytes());
  stream.synchronize();
  EXPECT_EQ(jalTimelineWait(after.get(), 1, 1'000'000'000), jalErrorDependencyFailed);
  EXPECT_EQ(jalStreamSynchronizeUntil(dependant.get(), 1'000'000'000), jalErrorDependencyFailed);
  EXPECT_EQ(jalEventQuery(dropped.get()), jalErrorDependencyFailed);
}

// Device time, as the events have it: the second stream's work begins when the first stream's first copy is done, not
// when its last one is, however far an emulated chip has run ahead.
TEST_F(Streams, AWaitIsOverWhenItsValueWasReachedNotLater) {
  Buffer<uint8_t> a(device, 8 << 20), b(device, 8 << 20);
  Timeline gate(device);
  Stream other(device);
  Event first(device, true), last(device, true), late(device, true);
  stream.copy(b.data(), a.data(), a.bytes());
  first.record(stream);
  for (int k = 0; k < 6; ++k) stream.copy(b.data(), a.data(), a.bytes());
  last.record(stream);
  stream.wait(gate, 1);  // the stream stays busy: an idle device would begin at its present time
  last.synchronize();
  other.wait(first);
  late.record(other);
  late.synchronize();
  EXPECT_LT(late.elapsed_since(first).device_ns, last.elapsed_since(first).device_ns / 2);
  gate.signal(1);
  stream.synchronize();
}

TEST_F(Streams, ClosingADeviceCallsWhatStillWaits) {
  std::atomic<int> called{0};
  const int fd = eventfd(0, EFD_NONBLOCK);
  ASSERT_GE(fd, 0);
  {
    Device own("emu:?hbm=64M");
    jalStream_t s{};
    jalTimeline_t never{};
    check(jalStreamCreate(own.get(), nullptr, &s));
    check(jalTimelineCreate(own.get(), 0, &never));
    check(jalStreamWaitTimeline(s, never, 1));
    check(jalLaunchHostFunc(
        s, [](void* p) { ++*static_cast<std::atomic<int>*>(p); }, &called));
    check(jalStreamNotifyEventfd(s, fd));
  }
  EXPECT_EQ(called, 1);
  uint64_t count = 0;
  EXPECT_EQ(read(fd, &count, sizeof count), 8);
  EXPECT_EQ(count, 1u);
  close(fd);
}

}  // namespace
}  // namespace jalapeno::test
