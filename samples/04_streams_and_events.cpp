// Two streams: copies on one overlap with work on the other, events order them and time them.
#include <cmath>
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

int main() try {
  constexpr uint32_t kRows = 256, kWidth = 8192, kPieces = 8;
  const jalapeno::Device device;
  const jalapeno::Stream copies(device), work(device);
  const jalapeno::Kernel softmax = jalapeno::library_kernel(device, "softmax");
  jalapeno::HostBuffer<float> host(device, size_t{kRows} * kWidth);
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<float>(i % 17);
  const jalapeno::Buffer<float> in(device, host.size()), out(device, host.size());

  const jalapeno::Event begin(device, true), end(device, true);
  std::vector<jalapeno::Event> arrived;
  begin.record(copies);
  for (uint32_t k = 0; k < kPieces; ++k) {
    const size_t at = size_t{k} * kRows / kPieces * kWidth, n = size_t{kRows} / kPieces * kWidth;
    copies.copy(in.data() + at, host.data() + at, n * sizeof(float));
    arrived.emplace_back(device);
    arrived.back().record(copies);
    work.wait(arrived.back());  // this piece only: the next one is copied meanwhile
    jalapeno::launch(work, {kRows / kPieces}, softmax,
                     jalapeno::tensor(in.data() + at, jalF32, {kRows / kPieces, kWidth}),
                     jalapeno::tensor(out.data() + at, jalF32, {kRows / kPieces, kWidth}));
  }
  end.record(work);
  work.synchronize();

  double sum = 0;
  for (float p : out.to_host()) sum += p;
  const jalElapsed e = end.elapsed_since(begin);
  const jalDeviceProperties p = device.properties();
  std::printf("%u rows of probabilities sum to %.3f\n", kRows, sum);
  std::printf("this machine: %.3f ms; modelled chip (configuration %s%s): %.3f ms\n", e.host_ns * 1e-6, p.config_name,
              p.assumed ? ", assumed" : "", e.device_ns * 1e-6);
  return std::abs(sum - kRows) < 0.1 ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
