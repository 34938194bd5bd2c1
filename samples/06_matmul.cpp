// Matrix multiplication from the kernel library, bf16 weights: checked, timed, and the modelled chip's share of its
// peak.
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

int main() try {
  constexpr uint32_t kM = 512, kN = 1024, kK = 1024;
  const jalapeno::Device device;
  const jalapeno::Stream stream(device);
  std::vector<float> a(size_t{kM} * kK);
  std::vector<jalapeno::bf16> w(size_t{kN} * kK);
  auto value = [](size_t i) { return static_cast<float>(static_cast<int>(i * 2654435761u >> 20 & 255) - 128) / 128; };
  for (size_t i = 0; i < a.size(); ++i) a[i] = value(i);
  for (size_t i = 0; i < w.size(); ++i) w[i] = {static_cast<uint16_t>(std::bit_cast<uint32_t>(value(i + 7)) >> 16)};
  const jalapeno::Buffer<float> da(device, std::span<const float>(a)), dc(device, size_t{kM} * kN);
  const jalapeno::Buffer<jalapeno::bf16> dw(device, std::span<const jalapeno::bf16>(w));

  const jalapeno::Kernel matmul = jalapeno::library_kernel(device, "matmul_bf16");
  auto run = [&] {
    jalapeno::launch(stream, {kN / 64, kM / 32}, matmul, da.as({kM, kK}), dw.as({kN, kK}), dc.as({kM, kN}));
  };
  run(), stream.synchronize();
  const auto before = device.telemetry();
  const auto begin = std::chrono::steady_clock::now();
  run(), stream.synchronize();
  const double host_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double device_s = static_cast<double>(device.telemetry().device_ns - before.device_ns) * 1e-9;

  const std::vector<float> c = dc.to_host();
  double worst = 0;
  for (uint32_t m = 0; m < kM; m += 37)
    for (uint32_t n = 0; n < kN; n += 41) {
      double want = 0;
      for (uint32_t k = 0; k < kK; ++k)
        want += static_cast<double>(a[size_t{m} * kK + k]) *
                std::bit_cast<float>(uint32_t{w[size_t{n} * kK + k].bits} << 16);
      worst = std::max(worst, std::fabs(want - static_cast<double>(c[size_t{m} * kN + n])));
    }
  const double flop = 2.0 * kM * kN * kK;
  const jalDeviceProperties p = device.properties();
  std::printf("%u x %u x %u bf16, largest error %.2g\n", kM, kN, kK, worst);
  std::printf("this machine: %.1f GFLOP/s; modelled chip (configuration %s%s): %.1f TFLOP/s, %.0f %% of its peak\n",
              flop / host_s * 1e-9, p.config_name, p.assumed ? ", assumed" : "", flop / device_s * 1e-12,
              flop / device_s * 1e-10 / p.peak_tflops_bf16);
  return worst < 0.2 ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
