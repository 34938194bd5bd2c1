// Which devices are there, and what they say about themselves.
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

int main() try {
  int count = 0;
  jalapeno::check(jalGetDeviceCount(&count));
  std::printf("%d device(s)\n", count);
  for (int k = 0; k < count; ++k) {
    char uri[256];
    jalapeno::check(jalGetDeviceUri(k, uri, sizeof uri));
    const jalapeno::Device device{std::string(uri)};
    const jalDeviceProperties p = device.properties();
    const jalTelemetry t = device.telemetry();
    std::printf("%d: %s%s, chip configuration %s%s\n", k, p.uri, p.emulated ? " (emulated)" : "", p.config_name,
                p.assumed ? " (assumed: no data sheet is public)" : "");
    std::printf("   %u cores at %.2f GHz, %u KiB scratchpad and %u KiB accumulators each, %.0f TFLOP/s bf16\n", p.cores,
                p.core_clock_ghz, p.spm_bytes >> 10, p.acc_bytes >> 10, p.peak_tflops_bf16);
    std::printf("   %.1f GiB HBM at %.0f GB/s, %u links of %.0f Gb/s, %.0f W\n",
                static_cast<double>(p.hbm_bytes) / (1 << 30), p.hbm_gbytes_per_second, p.links, p.link_gbits_per_second,
                p.power_limit_watts);
    std::printf("   interface %u.%u, instruction set %u.%u, %s, %.1f C\n", p.interface_version >> 16,
                p.interface_version & 0xFFFF, p.isa_version >> 16, p.isa_version & 0xFFFF,
                t.healthy ? "healthy" : "NOT healthy", t.temperature_celsius);
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
