// A million launches: no growth of memory or descriptors.
#include <fstream>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

// 0 under a sanitizer, whose own bookkeeping grows.
size_t resident_kib() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 0;
#else
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::stoul(line.substr(6));
  return 0;
#endif
}

TEST(Soak, AMillionLaunchesLeaveNothingBehind) {
  Device device(uri());
  Stream stream(device);
  Buffer<float> a(device, 8);
  const Kernel add = library_kernel(device, "add");
  auto run = [&](int n) {
    for (int k = 0; k < n; ++k) launch(stream, {1, 1}, add, a.as({1, 8}), a.as({1, 8}), a.as({1, 8}));
    stream.synchronize();
  };
  run(20000);
  const size_t memory = resident_kib();
  const int descriptors = open_descriptors();
  run(1'000'000);
  EXPECT_EQ(open_descriptors(), descriptors);
  EXPECT_LE(resident_kib(), memory + 1024);
}

TEST(Soak, ObjectsComeAndGo) {
  Device device(uri());
  for (int warm = 0; warm < 2; ++warm) {
    const size_t memory = resident_kib();
    const int descriptors = open_descriptors();
    for (int k = 0; k < 2000; ++k) {
      Stream s(device);
      Event e(device, true);
      e.record(s);
      Buffer<int32_t> b(device, 1000);
      s.fill(b.data(), 1, b.bytes());
      s.synchronize();
    }
    if (warm == 1) {
      EXPECT_LE(open_descriptors(), descriptors);
      EXPECT_LE(resident_kib(), memory + 2048);
    }
  }
}

}  // namespace
}  // namespace jalapeno::test
