// Copies between host and device, beside this machine's own memcpy and the modelled chip's host link.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

namespace {

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<long>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

template <class F>
double seconds(F f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main() try {
  constexpr size_t kBytes = 64 << 20;
  constexpr int kRounds = 7;
  const jalapeno::Device device;
  const jalapeno::Stream stream(device);
  jalapeno::HostBuffer<char> pinned(device, kBytes), other(device, kBytes);
  void* memory = nullptr;
  jalapeno::check(jalMalloc(device.get(), &memory, kBytes));
  std::fill(pinned.begin(), pinned.end(), 'x');
  stream.copy(memory, pinned.data(), kBytes);  // touches every page once
  stream.synchronize();

  std::vector<double> up, down, limit;
  const auto before = device.telemetry();
  for (int k = 0; k < kRounds; ++k) {  // interleaved, so that a noisy moment hits all three
    up.push_back(seconds([&] { stream.copy(memory, pinned.data(), kBytes), stream.synchronize(); }));
    down.push_back(seconds([&] { stream.copy(pinned.data(), memory, kBytes), stream.synchronize(); }));
    limit.push_back(seconds([&] { std::memcpy(other.data(), pinned.data(), kBytes); }));
  }
  const auto after = device.telemetry();
  const double gb = kBytes * 1e-9, memcpy_rate = gb / median(limit);
  std::printf("64 MiB, median of %d, this machine\n", kRounds);
  std::printf("  host to device  %6.2f GB/s  %5.2f x memcpy\n", gb / median(up), gb / median(up) / memcpy_rate);
  std::printf("  device to host  %6.2f GB/s  %5.2f x memcpy\n", gb / median(down), gb / median(down) / memcpy_rate);
  std::printf("  memcpy          %6.2f GB/s\n", memcpy_rate);
  const jalDeviceProperties p = device.properties();
  std::printf("Modelled link (configuration %s%s): %.1f GB/s\n", p.config_name, p.assumed ? ", assumed" : "",
              2 * kRounds * kBytes / static_cast<double>(after.device_ns - before.device_ns));
  return jalFree(memory) == jalSuccess ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
