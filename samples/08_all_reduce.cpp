// Collectives: four chips in one process add what they have, one by one and from a graph. Every rank gets the same
// bits.
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

int main() try {
  constexpr size_t kRanks = 4, kCount = 100'000;
  std::vector<jalapeno::Device> devices;
  for (size_t r = 0; r < kRanks; ++r) devices.emplace_back("emu:?hbm=64M&threads=1");
  const std::vector<jalapeno::Communicator> comms = jalapeno::Communicator::all(devices);  // rank r on devices[r]
  std::vector<jalapeno::Stream> streams;
  std::vector<jalapeno::Buffer<float>> sums;
  for (size_t r = 0; r < kRanks; ++r) {
    streams.emplace_back(devices[r]);
    sums.emplace_back(devices[r], std::span<const float>(std::vector<float>(kCount, static_cast<float>(r + 1))));
  }

  // Calls only enqueue, so one thread can issue them for all ranks, one after the other.
  for (size_t r = 0; r < kRanks; ++r) comms[r].all_reduce(sums[r].data(), sums[r].data(), kCount, jalSum, streams[r]);
  for (const auto& s : streams) s.synchronize();
  std::printf("rank 0 has %g after one all-reduce\n", static_cast<double>(sums[0].to_host()[0]));  // 1 + 2 + 3 + 4

  std::vector<jalapeno::Graph> graphs;
  for (size_t r = 0; r < kRanks; ++r)
    graphs.emplace_back(streams[r],
                        [&] { comms[r].all_reduce(sums[r].data(), sums[r].data(), kCount, jalAvg, streams[r]); });
  for (size_t r = 0; r < kRanks; ++r) graphs[r].launch(streams[r]);
  for (const auto& s : streams) s.synchronize();

  bool good = true;
  for (const auto& s : sums)
    for (const float v : s.to_host()) good &= v == 10;
  const jalTelemetry t = devices[0].telemetry();
  std::printf(
      "%zu ranks agree: %s; chip 0 fetched %.1f MB and put %.1f MB over the fabric, modelled %.1f us (assumed rates)\n",
      kRanks, good ? "yes" : "no", static_cast<double>(t.fabric_read_bytes) * 1e-6,
      static_cast<double>(t.fabric_write_bytes) * 1e-6, static_cast<double>(t.device_ns) * 1e-3);
  return good ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
