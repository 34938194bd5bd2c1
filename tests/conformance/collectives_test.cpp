// Collectives among chips of one process: results against a reference computed here, graphs, errors and failures.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <jalapeno/jalapeno.hpp>
#include <jalapeno/tile.hpp>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "support/descriptors.hpp"

namespace jalapeno::test {
namespace {

// Chips, communicators and streams of a world in this process. Some of their HBM is their process's own until then.
struct World {
  explicit World(int ranks, const jalCommOptions* options = nullptr) {
    for (int r = 0; r < ranks; ++r) devices.emplace_back("emu:?hbm=64M&aperture=32M&threads=1");
    comms = Communicator::all(devices, options);
    for (const Device& d : devices) streams.emplace_back(d);
  }
  int ranks() const { return static_cast<int>(devices.size()); }
  void each(const std::function<void(int)>& f) const {
    for (int r = 0; r < ranks(); ++r) f(r);
  }
  void synchronize() const {
    for (const Stream& s : streams) s.synchronize();
  }
  std::vector<Device> devices;
  std::vector<Communicator> comms;
  std::vector<Stream> streams;
};

jalCommOptions deadline(uint32_t ms) {
  jalCommOptions o{};
  o.struct_size = sizeof o, o.deadline_ms = ms;
  return o;
}

// The documented order: a binary tree over the ranks, cut at powers of two.
template <class T, class F>
T tree(const std::vector<T>& v, size_t low, size_t high, F f) {
  if (high - low == 1) return v[low];
  size_t half = 1;
  while (2 * half < high - low) half *= 2;
  return f(tree(v, low, low + half, f), tree(v, low + half, high, f));
}

template <class T>
T apply(jalReduceOp op, T a, T b) {
  switch (op) {
    case jalProd:
      return static_cast<T>(a * b);
    case jalMin:
      return std::min(a, b);
    case jalMax:
      return std::max(a, b);
    default:
      return static_cast<T>(a + b);
  }
}

float from_bf16(uint16_t h) {
  const uint32_t bits = uint32_t{h} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
uint16_t to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

TEST(Collectives, AllReduceOfEverySizeAndWorld) {
  for (const int n : {1, 2, 3, 5, 8}) {
    World w(n);
    for (const size_t count : {0, 1, 3, 4, 5, 100, 2048, 4097, 100'003}) {
      std::vector<std::vector<float>> inputs;
      std::vector<Buffer<float>> in, out;
      std::mt19937 random(static_cast<unsigned>(count));
      for (int r = 0; r < n; ++r) {
        inputs.emplace_back(count);
        for (float& v : inputs.back()) v = static_cast<float>(random() % 2000) * 0.37f - 300;
        if (count > 0)
          in.emplace_back(w.devices[static_cast<size_t>(r)], std::span<const float>(inputs.back())),
              out.emplace_back(w.devices[static_cast<size_t>(r)], count);
        else
          in.emplace_back(), out.emplace_back();
      }
      w.each([&](int r) {
        const auto k = static_cast<size_t>(r);
        w.comms[k].all_reduce(in[k].data(), out[k].data(), count, jalSum, w.streams[k]);
      });
      w.synchronize();
      for (int r = 0; r < n && count > 0; ++r) {
        const auto got = out[static_cast<size_t>(r)].to_host();
        for (size_t i = 0; i < count; ++i) {
          std::vector<float> v;
          for (const auto& x : inputs) v.push_back(x[i]);
          ASSERT_EQ(got[i], tree(v, 0, v.size(), [](float a, float b) { return a + b; }))
              << "rank " << r << " of " << n << ", element " << i << " of " << count;
        }
      }
    }
  }
}

// A chip's memory moves when it is first opened to others, in its place: what is in it stays, and what a stream does
// meanwhile is not lost.
TEST(Collectives, MemoryThatWasThereBeforeIsTheSameAfterwards) {
  constexpr size_t kCount = 4 << 20, kPiece = 64 << 10;
  std::vector<Device> devices;
  for (int r = 0; r < 2; ++r) devices.emplace_back("emu:?hbm=64M&aperture=16M&threads=2");
  std::vector<float> values(kCount);
  for (size_t i = 0; i < kCount; ++i) values[i] = static_cast<float>(i % 1009);
  std::vector<Buffer<float>> before;
  for (const Device& d : devices) before.emplace_back(d, std::span<const float>(values));
  Buffer<float> copy(devices[0], kCount);
  Stream busy(devices[0]);
  for (size_t at = 0; at < kCount / 2; at += kPiece)
    busy.copy(copy.data() + at, before[0].data() + at, kPiece * sizeof(float));
  const auto comms = Communicator::all(devices, nullptr);
  for (size_t at = kCount / 2; at < kCount; at += kPiece)
    busy.copy(copy.data() + at, before[0].data() + at, kPiece * sizeof(float));
  busy.synchronize();
  EXPECT_EQ(copy.to_host(), values);
  std::vector<Stream> streams;
  for (const Device& d : devices) streams.emplace_back(d);
  for (size_t r = 0; r < 2; ++r) comms[r].all_reduce(before[r].data(), before[r].data(), kCount, jalSum, streams[r]);
  for (const Stream& s : streams) s.synchronize();
  for (float& v : values) v *= 2;
  for (const Buffer<float>& b : before) EXPECT_EQ(b.to_host(), values);
}

TEST(Collectives, BitsDoNotDependOnAlgorithmSizeOrPlace) {
  // One element in 4097, alone, and in place, by both algorithms: bf16 is rounded once.
  constexpr int kRanks = 5;
  constexpr size_t kCount = 6000;  // 12,000 bytes: fits a slot, so both algorithms can be asked for
  std::vector<std::vector<uint16_t>> results;
  std::vector<std::vector<bf16>> inputs(kRanks, std::vector<bf16>(kCount));
  std::mt19937 random(7);
  for (auto& v : inputs)
    for (bf16& x : v) x.bits = to_bf16(static_cast<float>(random() % 100000) * 1e-3f);
  for (const char* algorithm : {"one-shot", "two-shot"}) {
    setenv("JAL_COLL_ALGO", algorithm, 1);
    World w(kRanks);
    unsetenv("JAL_COLL_ALGO");
    for (const bool in_place : {false, true}) {
      std::vector<Buffer<bf16>> in, out;
      w.each([&](int r) {
        const auto k = static_cast<size_t>(r);
        in.emplace_back(w.devices[k], std::span<const bf16>(inputs[k]));
        out.emplace_back(w.devices[k], kCount);
        w.comms[k].all_reduce(in[k].data(), in_place ? in[k].data() : out[k].data(), kCount, jalAvg, w.streams[k]);
      });
      w.synchronize();
      w.each([&](int r) {
        std::vector<uint16_t> bits;
        for (bf16 b : (in_place ? in : out)[static_cast<size_t>(r)].to_host()) bits.push_back(b.bits);
        results.push_back(bits);
      });
    }
  }
  for (size_t i = 0; i < kCount; ++i) {
    std::vector<float> v;
    for (const auto& x : inputs) v.push_back(from_bf16(x[i].bits));
    const uint16_t expected = to_bf16(tree(v, 0, v.size(), [](float a, float b) { return a + b; }) / kRanks);
    for (const auto& r : results) ASSERT_EQ(r[i], expected) << i;
  }
}

// Random operations against a reference on the host, in int32 where every order gives the same.
class Differential {
 public:
  Differential(World& world, unsigned seed) : w_(world), random_(seed) {}

  void sequence(int length) {
    const auto n = static_cast<size_t>(w_.ranks());
    for (int step = 0; step < length; ++step) {
      const size_t count = pick({0, 1, 2, 7, 33, 500, 2100, 9000}), part = std::max<size_t>(count, 1);
      std::vector<std::vector<int32_t>> in(n, std::vector<int32_t>(part * n));
      for (auto& v : in)
        for (int32_t& x : v) x = static_cast<int32_t>(random_() % 2001) - 1000;
      std::vector<std::vector<int32_t>> out(n, std::vector<int32_t>(part * n, -7));
      const auto op = static_cast<jalReduceOp>(random_() % 4);
      const int root = static_cast<int>(random_() % n);
      const unsigned what = random_() % 7;
      const bool in_place = random_() % 3 == 0, graph = random_() % 5 == 0;
      std::vector<Buffer<int32_t>> a, b;
      for (size_t r = 0; r < n; ++r)
        a.emplace_back(w_.devices[r], std::span<const int32_t>(in[r])),
            b.emplace_back(w_.devices[r], std::span<const int32_t>(out[r]));
      auto fold = [&](size_t i) {
        std::vector<int32_t> v;
        for (const auto& x : in) v.push_back(x[i]);
        return tree(v, 0, n, [&](int32_t x, int32_t y) {
          return static_cast<int32_t>(apply<uint32_t>(op == jalMin || op == jalMax ? jalSum : op,
                                                      static_cast<uint32_t>(x), static_cast<uint32_t>(y)));
        });
      };
      auto value = [&](size_t i) {
        if (op == jalMin || op == jalMax) {
          int32_t best = in[0][i];
          for (const auto& x : in) best = apply(op, best, x[i]);
          return best;
        }
        return fold(i);
      };
      // The buffer that holds the result, and what it must be.
      std::vector<Buffer<int32_t>*> result(n);
      std::vector<std::vector<int32_t>> expected = out;
      auto expect_from = [&](size_t r, bool same) {
        result[r] = same ? &a[r] : &b[r];
        expected[r] = same ? in[r] : out[r];
      };
      std::function<void(size_t)> call;
      switch (what) {
        case 0:
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, in_place);
            for (size_t i = 0; i < count; ++i) expected[r][i] = value(i);
          }
          call = [&, in_place](size_t r) {
            w_.comms[r].all_reduce(a[r].data(), in_place ? a[r].data() : b[r].data(), count, op, w_.streams[r]);
          };
          break;
        case 1:
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, in_place);
            if (static_cast<int>(r) == root)
              for (size_t i = 0; i < count; ++i) expected[r][i] = value(i);
          }
          call = [&, in_place](size_t r) {
            w_.comms[r].reduce(a[r].data(), in_place ? a[r].data() : b[r].data(), count, op, root, w_.streams[r]);
          };
          break;
        case 2:
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, in_place);
            for (size_t i = 0; i < count; ++i) expected[r][i] = in[static_cast<size_t>(root)][i];
          }
          call = [&, in_place](size_t r) {
            w_.comms[r].broadcast(a[r].data(), in_place ? a[r].data() : b[r].data(), count, root, w_.streams[r]);
          };
          break;
        case 3:
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, in_place);
            for (size_t k = 0; k < n; ++k)
              for (size_t i = 0; i < count; ++i) expected[r][k * count + i] = in[k][(in_place ? k * count : 0) + i];
          }
          call = [&, in_place](size_t r) {
            w_.comms[r].all_gather(a[r].data() + (in_place ? r * count : 0), in_place ? a[r].data() : b[r].data(),
                                   count, w_.streams[r]);
          };
          break;
        case 4:
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, in_place);
            const size_t to = in_place ? r * count : 0;
            for (size_t i = 0; i < count; ++i) expected[r][to + i] = value(r * count + i);
          }
          call = [&, in_place](size_t r) {
            w_.comms[r].reduce_scatter(a[r].data(), in_place ? a[r].data() + r * count : b[r].data(), count, op,
                                       w_.streams[r]);
          };
          break;
        case 5:
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, false);
            for (size_t k = 0; k < n; ++k)
              for (size_t i = 0; i < count; ++i) expected[r][k * count + i] = in[k][r * count + i];
          }
          call = [&](size_t r) { w_.comms[r].all_to_all(a[r].data(), b[r].data(), count, w_.streams[r]); };
          break;
        default: {  // everybody sends to the next and receives from the one before
          for (size_t r = 0; r < n; ++r) {
            expect_from(r, false);
            for (size_t i = 0; i < count; ++i) expected[r][i] = in[(r + n - 1) % n][i];
          }
          call = [&](size_t r) {
            group([&] {
              w_.comms[r].send(a[r].data(), count, static_cast<int>((r + 1) % n), w_.streams[r]);
              w_.comms[r].receive(b[r].data(), count, static_cast<int>((r + n - 1) % n), w_.streams[r]);
            });
          };
        }
      }
      if (graph) {
        std::vector<Graph> graphs;
        for (size_t r = 0; r < n; ++r) graphs.emplace_back(w_.streams[r], [&] { call(r); });
        // Replayed only where it does not change what it reads.
        for (int replay = 0; replay < (in_place ? 1 : 3); ++replay)
          for (size_t r = 0; r < n; ++r) graphs[r].launch(w_.streams[r]);
        w_.synchronize();
      } else {
        for (size_t r = 0; r < n; ++r) call(r);
        w_.synchronize();
      }
      for (size_t r = 0; r < n; ++r)
        ASSERT_EQ(result[r]->to_host(), expected[r])
            << "operation " << what << " of " << count << " on rank " << r << " of " << n << ", step " << step
            << (in_place ? ", in place" : "") << (graph ? ", in a graph" : "");
    }
  }

 private:
  size_t pick(std::vector<size_t> from) { return from[random_() % from.size()]; }
  World& w_;
  std::mt19937 random_;
};

TEST(Collectives, RandomSequencesGiveWhatTheHostComputes) {
  const char* many = std::getenv("JAL_TEST_SEQUENCES");
  const int sequences = many != nullptr ? std::atoi(many) : 20;
  for (const int n : {2, 3, 4, 7}) {
    World w(n);
    for (int k = 0; k < sequences; ++k) {
      Differential(w, static_cast<unsigned>(1000 * n + k)).sequence(6);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Collectives, RangesMayDifferForEveryPairAndMismatchesAreFound) {
  constexpr size_t kRanks = 3;
  const auto options = deadline(10'000);
  World w(kRanks, &options);
  // Rank a gives b a + 2 * b elements; some pairs give none.
  auto count = [](size_t a, size_t b) { return a == b ? size_t{0} : a + 2 * b; };
  for (const bool graph : {false, true}) {
    std::vector<Buffer<int32_t>> in, out;
    std::vector<std::vector<size_t>> gives(kRanks), gets(kRanks), from(kRanks), to(kRanks);
    for (size_t r = 0; r < kRanks; ++r) {
      size_t give = 0, get = 0;
      for (size_t k = 0; k < kRanks; ++k) {
        gives[r].push_back(count(r, k)), from[r].push_back(give), give += count(r, k);
        gets[r].push_back(count(k, r)), to[r].push_back(get), get += count(k, r);
      }
      std::vector<int32_t> values(give);
      for (size_t i = 0; i < give; ++i) values[i] = static_cast<int32_t>(1000 * r + i);
      in.emplace_back(w.devices[r], std::span<const int32_t>(values)), out.emplace_back(w.devices[r], get);
    }
    std::vector<Graph> graphs;
    for (size_t r = 0; r < kRanks; ++r) {
      auto call = [&, r] {
        check(jalAllToAllV(in[r].data(), gives[r].data(), from[r].data(), out[r].data(), gets[r].data(), to[r].data(),
                           jalI32, w.comms[r].get(), w.streams[r].get()));
      };
      if (graph)
        graphs.emplace_back(w.streams[r], call);
      else
        call();
    }
    for (int replay = 0; replay < 2 && graph; ++replay)
      for (size_t r = 0; r < kRanks; ++r) graphs[r].launch(w.streams[r]);
    w.synchronize();
    for (size_t r = 0; r < kRanks; ++r) {
      const auto got = out[r].to_host();
      for (size_t k = 0; k < kRanks; ++k)
        for (size_t i = 0; i < gets[r][k]; ++i)
          ASSERT_EQ(got[to[r][k] + i], static_cast<int32_t>(1000 * k + from[k][r] + i)) << r << " from " << k;
    }
  }
  // One rank expects more than it is given.
  std::vector<Buffer<int32_t>> in, out;
  for (size_t r = 0; r < kRanks; ++r) in.emplace_back(w.devices[r], 16), out.emplace_back(w.devices[r], 16);
  for (size_t r = 0; r < kRanks; ++r) {
    const std::vector<size_t> one(kRanks, 1), more{1, r == 1 ? size_t{2} : 1, 1}, at{0, 4, 8};
    check(jalAllToAllV(in[r].data(), one.data(), at.data(), out[r].data(), (r == 1 ? more : one).data(), at.data(),
                       jalI32, w.comms[r].get(), w.streams[r].get()));
  }
  EXPECT_EQ(jalStreamSynchronize(w.streams[1].get()), jalErrorCollectiveMismatch) << jalGetLastErrorDetail();
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("gives 4 bytes"), std::string::npos) << jalGetLastErrorDetail();
}

TEST(Collectives, MismatchedCallsAreNamedOnBothSides) {
  World w(2);
  Buffer<float> a(w.devices[0], 100), b(w.devices[1], 100);
  w.comms[0].all_reduce(a.data(), a.data(), 100, jalSum, w.streams[0]);
  w.comms[1].all_reduce(b.data(), b.data(), 99, jalSum, w.streams[1]);
  for (const int r : {0, 1}) {
    EXPECT_EQ(jalStreamSynchronize(w.streams[static_cast<size_t>(r)].get()), jalErrorCollectiveMismatch);
    const std::string text = jalGetLastErrorDetail();
    EXPECT_NE(text.find("all_reduce of 100 f32 sum"), std::string::npos) << text;
    EXPECT_NE(text.find("all_reduce of 99 f32 sum"), std::string::npos) << text;
    EXPECT_EQ(w.comms[static_cast<size_t>(r)].error(), jalErrorCollectiveMismatch);
    EXPECT_GE(w.comms[static_cast<size_t>(r)].error_record().rank, 0);  // either: whoever saw it first has told it
  }
  // The streams go on, the communicator does not.
  w.streams[0].reset();
  EXPECT_EQ(jalBarrier(w.comms[0].get(), w.streams[0].get()), jalErrorCollectiveMismatch);
}

TEST(Collectives, TheLateRankIsNamedAtTheDeadline) {
  const auto options = deadline(200);
  World w(3, &options);
  w.comms[0].barrier(w.streams[0]);
  w.comms[2].barrier(w.streams[2]);
  EXPECT_EQ(jalStreamSynchronize(w.streams[0].get()), jalErrorCollectiveTimeout);
  const std::string text = jalGetLastErrorDetail();
  EXPECT_NE(text.find("no word from rank 1 of 3"), std::string::npos) << text;
  EXPECT_NE(text.find("it is alive and waits for nobody"), std::string::npos) << text;
  // Everybody is told, also who was late.
  EXPECT_NE(jalStreamSynchronize(w.streams[2].get()), jalSuccess);
  for (int k = 0; k < 2000 && w.comms[1].error() == jalSuccess; ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_NE(jalBarrier(w.comms[1].get(), w.streams[1].get()), jalSuccess);
  EXPECT_NE(w.comms[1].dump().find("jalErrorCollectiveTimeout"), std::string::npos) << w.comms[1].dump();
}

TEST(Collectives, AbortEndsEveryRank) {
  World w(3);
  w.comms[0].barrier(w.streams[0]);
  w.comms[1].barrier(w.streams[1]);
  w.comms[2].abort();
  for (const size_t r : {0, 1}) {
    EXPECT_EQ(jalStreamSynchronize(w.streams[r].get()), jalErrorCommAborted) << jalGetLastErrorDetail();
    EXPECT_EQ(w.comms[r].error_record().rank, 2);
  }
}

TEST(Collectives, AResetStreamEndsTheOthersWait) {
  World w(2);
  Timeline never(w.devices[0]);
  w.streams[0].wait(never, 1);
  w.comms[0].barrier(w.streams[0]);
  w.comms[1].barrier(w.streams[1]);
  EXPECT_EQ(w.streams[0].reset(), 3u);  // the wait, the post and the await are dropped
  EXPECT_EQ(jalStreamSynchronize(w.streams[1].get()), jalErrorCommAborted) << jalGetLastErrorDetail();
}

TEST(Collectives, AFailedKernelBeforeAnOperationEndsTheOthersWait) {
  World w(2);
  // A launch of a kernel that stops itself, on rank 0 alone.
  tile::Builder stop("stop");
  stop.trap(7);
  const auto image = tile::write_module({stop.finish()});
  const Module module(w.devices[0], image);
  Timeline gate(w.devices[0]);
  w.streams[0].wait(gate, 1);  // both are enqueued when it fails
  launch(w.streams[0], {1}, module.kernel("stop"));
  w.comms[0].barrier(w.streams[0]);
  w.comms[1].barrier(w.streams[1]);
  gate.signal(1);
  EXPECT_EQ(jalStreamSynchronize(w.streams[1].get()), jalErrorDependencyFailed);
  EXPECT_NE(std::string(jalGetLastErrorDetail()).find("rank 0"), std::string::npos) << jalGetLastErrorDetail();
  EXPECT_EQ(jalStreamSynchronize(w.streams[0].get()), jalErrorAssert);
  EXPECT_NE(w.comms[0].error(), jalSuccess);
}

TEST(Collectives, AStreamThatHasFailedIsToldToWhoWaits) {
  World w(2);
  tile::Builder stop("stop");
  stop.trap(7);
  const auto image = tile::write_module({stop.finish()});
  const Module module(w.devices[0], image);
  launch(w.streams[0], {1}, module.kernel("stop"));
  EXPECT_EQ(jalStreamSynchronize(w.streams[0].get()), jalErrorAssert);
  w.comms[1].barrier(w.streams[1]);
  EXPECT_EQ(jalBarrier(w.comms[0].get(), w.streams[0].get()), jalErrorAssert);
  EXPECT_EQ(jalStreamSynchronize(w.streams[1].get()), jalErrorDependencyFailed) << jalGetLastErrorDetail();
  EXPECT_EQ(w.comms[1].error_record().rank, 0);
}

TEST(Collectives, WorkGoesOnWithFewerLinksAndEndsWithNone) {
  std::string down = "link_error@put:1";
  for (int put = 3; put < 15; ++put) down += ",link_down@put:" + std::to_string(put);  // one of the twelve each
  std::vector<Device> devices;
  devices.emplace_back("emu:?hbm=64M&threads=1&fault=" + down),
      devices.emplace_back("emu:?hbm=64M&aperture=32M&threads=1");
  const auto comms = Communicator::all(devices);
  const std::vector<float> ones(1000, 1.f);
  Buffer<float> a(devices[0], std::span<const float>(ones)), b(devices[1], std::span<const float>(ones));
  const Stream s(devices[0]), t(devices[1]);
  auto once = [&] {
    comms[0].all_reduce(a.data(), a.data(), a.size(), jalMax, s);
    comms[1].all_reduce(b.data(), b.data(), b.size(), jalMax, t);
    s.synchronize(), t.synchronize();
  };
  once(), once();
  EXPECT_EQ(devices[0].telemetry().links_up, 12u);
  EXPECT_EQ(devices[0].telemetry().fabric_errors, 1u);
  once();
  EXPECT_EQ(devices[0].telemetry().links_up, 11u);
  EXPECT_EQ(a.to_host(), ones);
  for (int put = 4; put < 14; ++put) once();
  EXPECT_EQ(devices[0].telemetry().links_up, 1u);
  EXPECT_THROW(once(), Error);
  EXPECT_EQ(jalStreamSynchronize(s.get()), jalErrorLinkDown) << jalGetLastErrorDetail();
  EXPECT_EQ(devices[0].telemetry().links_up, 0u);
}

TEST(Collectives, SplitAndShrinkGoOnWithFewer) {
  World w(4);
  std::vector<jalComm_t> parts(4);
  group([&] {
    for (size_t r = 0; r < 4; ++r)
      check(jalCommSplit(w.comms[r].get(), static_cast<int>(r % 2), -static_cast<int>(r), &parts[r]));
  });
  std::vector<Communicator> halves;
  for (jalComm_t c : parts) halves.emplace_back(c);
  EXPECT_EQ(halves[0].rank(), 1) << "ordered by key";
  EXPECT_EQ(halves[2].rank(), 0);
  std::vector<Buffer<int32_t>> v;
  for (size_t r = 0; r < 4; ++r) {
    const int32_t value = 1 << r;
    v.emplace_back(w.devices[r], std::span<const int32_t>(&value, 1));
    halves[r].all_reduce(v[r].data(), v[r].data(), 1, jalSum, w.streams[r]);
  }
  w.synchronize();
  EXPECT_EQ(v[0].to_host()[0], 1 + 4);
  EXPECT_EQ(v[3].to_host()[0], 2 + 8);

  w.comms[1].abort();
  std::vector<jalComm_t> left(4);
  const int excluded = 1;
  group([&] {
    for (const size_t r : {0, 2, 3}) check(jalCommShrink(w.comms[r].get(), &excluded, 1, &left[r]));
  });
  std::vector<Communicator> survivors;
  for (const size_t r : {0, 2, 3}) {
    survivors.emplace_back(left[r]);
    EXPECT_EQ(survivors.back().ranks(), 3);
    survivors.back().all_reduce(v[r].data(), v[r].data(), 1, jalMax, w.streams[r]);
  }
  for (const size_t r : {0, 2, 3}) w.streams[r].synchronize();
  EXPECT_EQ(v[2].to_host()[0], 10);
}

TEST(Collectives, WhatIsMadeInAGroupIsThereWhenItHasEnded) {
  World w(4);
  const jalUniqueId id = Communicator::unique_id();
  std::vector<Communicator> joined, halves, survivors;
  group([&] {
    for (int r = 0; r < 4; ++r) joined.emplace_back(w.devices[static_cast<size_t>(r)], 4, id, r);
  });
  group([&] {
    for (int r = 0; r < 4; ++r) halves.push_back(joined[static_cast<size_t>(r)].split(r % 2));
    EXPECT_THROW((void)halves[0].rank(), Error);
  });
  const int excluded[] = {2};
  group([&] {
    for (const size_t r : {0, 1, 3}) survivors.push_back(joined[r].shrink(excluded));
  });
  for (int r = 0; r < 4; ++r) EXPECT_EQ(halves[static_cast<size_t>(r)].rank(), r / 2);
  for (const Communicator& c : survivors) EXPECT_EQ(c.ranks(), 3);
  // An exception forgets what was collected: nobody waits for the other ranks.
  Buffer<float> x(w.devices[0], 4);
  EXPECT_THROW(group([&] {
                 joined[0].all_reduce(x.data(), x.data(), 4, jalSum, w.streams[0]);
                 (void)joined[0].split(-7);
               }),
               Error);
  w.streams[0].synchronize();
  EXPECT_EQ(joined[0].info().operations, 0u);
}

TEST(Collectives, BuffersOverlapInPlaceOnly) {
  World w(2);
  Buffer<float> x(w.devices[0], 100), y(w.devices[1], 100);
  const Communicator& c = w.comms[0];
  auto refused = [&](auto call, const char* text) {
    try {
      call();
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), jalErrorInvalidValue);
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  float* p = x.data();
  refused([&] { c.all_reduce(p, p + 1, 50, jalSum, w.streams[0]); }, "all_reduce: send and receive overlap; in place");
  refused([&] { c.broadcast(p + 1, p, 50, 0, w.streams[0]); }, "broadcast: send and receive overlap");
  refused([&] { c.all_gather(p + 1, p, 10, w.streams[0]); }, "in place, send is this rank's part of receive");
  refused([&] { c.reduce_scatter(p, p + 10, 20, jalSum, w.streams[0]); }, "receive is this rank's part of send");
  refused([&] { c.all_to_all(p, p, 10, w.streams[0]); }, "all_to_all: send and receive overlap");
}

TEST(Collectives, BadInputIsNamed) {
  World w(2);
  Buffer<float> a(w.devices[0], 16), other(w.devices[1], 16);
  const Communicator& c = w.comms[0];
  const jalStream_t s = w.streams[0].get();
  auto refused = [&](jalError_t got, jalError_t expected, const char* text) {
    EXPECT_EQ(got, expected);
    EXPECT_NE(std::string(jalGetLastErrorDetail()).find(text), std::string::npos) << jalGetLastErrorDetail();
  };
  refused(jalAllReduce(nullptr, a.data(), 4, jalF32, jalSum, c.get(), s), jalErrorInvalidValue, "send is NULL");
  refused(jalAllReduce(a.data(), a.data(), 17, jalF32, jalSum, c.get(), s), jalErrorInvalidValue,
          "leaves its allocation of 64");
  refused(jalAllReduce(a.data(), other.data(), 4, jalF32, jalSum, c.get(), s), jalErrorInvalidDevice, "another device");
  refused(jalAllReduce(a.data(), a.data(), 4, jalQ8_0, jalSum, c.get(), s), jalErrorInvalidValue, "expected f32");
  refused(jalAllReduce(a.data(), a.data(), 4, jalF32, static_cast<jalReduceOp>(7), c.get(), s), jalErrorInvalidValue,
          "operation 7");
  refused(jalAllReduce(a.data(), a.data(), SIZE_MAX / 2, jalF32, jalSum, c.get(), s), jalErrorInvalidValue,
          "more than any device");
  refused(jalBroadcast(a.data(), a.data(), 4, jalF32, 2, c.get(), s), jalErrorInvalidValue, "root 2 of 2");
  refused(jalSend(a.data(), 4, jalF32, -1, c.get(), s), jalErrorInvalidValue, "peer -1 of 2");
  refused(jalAllReduce(a.data(), a.data(), 4, jalF32, jalSum, c.get(), w.streams[1].get()), jalErrorInvalidDevice,
          "another device");
  float host[4];
  refused(jalAllReduce(host, a.data(), 4, jalF32, jalSum, c.get(), s), jalErrorInvalidValue, "not device memory");
  refused(jalAllReduce(a.data(), a.data(), 4, jalF32, jalSum, nullptr, s), jalErrorInvalidHandle, "NULL");
  refused(jalAllToAll(a.data(), a.data(), 2, jalF32, c.get(), s), jalErrorInvalidValue, "overlap");
  refused(jalGroupEnd(), jalErrorIllegalState, "without jalGroupStart");
  jalComm_t out{};
  jalUniqueId id{};
  refused(jalCommInitRank(&out, w.devices[0].get(), 2, &id, 0, nullptr), jalErrorInvalidValue, "jalGetUniqueId");
  id = Communicator::unique_id();
  refused(jalCommInitRank(&out, w.devices[0].get(), 2, &id, 2, nullptr), jalErrorInvalidValue, "rank 2 of 2");
  jalCommOptions o{};
  o.struct_size = sizeof o, o.init_timeout_ms = 300;
  refused(jalCommInitRank(&out, w.devices[0].get(), 2, &id, 0, &o), jalErrorCollectiveTimeout,
          "did not come in time: 1");
}

TEST(Collectives, DuplicateRanksAndDifferentWorldSizesAreRefusedEverywhere) {
  Device a("emu:?hbm=64M&threads=1"), b("emu:?hbm=64M&threads=1");
  for (const bool duplicate : {true, false}) {
    const jalUniqueId id = Communicator::unique_id();
    std::string said[2];
    std::vector<std::thread> threads;
    for (int k = 0; k < 2; ++k)
      threads.emplace_back([&, k] {
        jalComm_t c{};
        EXPECT_EQ(jalCommInitRank(&c, (k == 0 ? a : b).get(), duplicate ? 3 : 2 + k, &id, duplicate ? 1 : k, nullptr),
                  jalErrorInvalidValue);
        said[k] = jalGetLastErrorDetail();
      });
    for (auto& t : threads) t.join();
    for (const std::string& s : said)
      EXPECT_NE(s.find(duplicate ? "two processes came as rank 1" : "expects"), std::string::npos) << s;
  }
}

TEST(Collectives, GivesBackWhatItTook) {
  Device d("emu:?hbm=64M&threads=1"), e("emu:?hbm=64M&threads=1");
  Stream s(d), t(e);
  std::vector<jalDevice_t> handles{d.get(), e.get()};
  auto once = [&] {
    std::vector<jalComm_t> c(2);
    check(jalCommInitAll(c.data(), handles.data(), 2, nullptr));
    check(jalBarrier(c[0], s.get())), check(jalBarrier(c[1], t.get()));
    s.synchronize(), t.synchronize();
    for (jalComm_t x : c) check(jalCommDestroy(x));
  };
  once();
  size_t free_before = 0, free_after = 0;
  check(jalDeviceGetMemoryInfo(d.get(), &free_before, nullptr));
  const size_t descriptors = open_descriptors();
  for (int k = 0; k < 20; ++k) once();
  check(jalDeviceGetMemoryInfo(d.get(), &free_after, nullptr));
  EXPECT_EQ(free_after, free_before);
  EXPECT_LE(open_descriptors(), descriptors + 2);  // a meeting's thread may still be closing its sockets
}

}  // namespace
}  // namespace jalapeno::test
