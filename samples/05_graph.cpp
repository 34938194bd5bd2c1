// A graph: record a chain of launches once, replay it with one packet, then change one node's arguments.
#include <chrono>
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

int main() try {
  constexpr int kNodes = 100, kReplays = 50;
  const jalapeno::Device device;
  const jalapeno::Stream stream(device);
  const jalapeno::Kernel add = jalapeno::library_kernel(device, "add");
  const std::vector<float> zeros(8, 0.f), ones(8, 1.f), tens(8, 10.f);
  const jalapeno::Buffer<float> sum(device, std::span<const float>(zeros)), one(device, std::span<const float>(ones)),
      ten(device, std::span<const float>(tens));
  const jalTensor s = sum.as({1, 8}), o = one.as({1, 8}), t = ten.as({1, 8});

  auto milliseconds = [](auto f) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  };
  const double plain = milliseconds([&] {
    for (int r = 0; r < kReplays; ++r)
      for (int k = 0; k < kNodes; ++k) jalapeno::launch(stream, {1, 1}, add, s, o, s);
    stream.synchronize();
  });
  const jalapeno::Graph graph(stream, [&] {
    for (int k = 0; k < kNodes; ++k) jalapeno::launch(stream, {1, 1}, add, s, o, s);
  });
  const double replayed = milliseconds([&] {
    for (int r = 0; r < kReplays; ++r) graph.launch(stream);
    stream.synchronize();
  });
  const float after = sum.to_host()[0];
  graph.set_arguments(kNodes - 1, s, t, s);  // the last addition adds ten
  graph.launch(stream);
  stream.synchronize();
  const float changed = sum.to_host()[0];
  std::printf("%d launches: %.2f ms one by one, %.2f ms as a replayed graph (%.2f x)\n", kNodes * kReplays, plain,
              replayed, plain / replayed);
  std::printf("sum %.0f, after one replay with a changed node %.0f\n", static_cast<double>(after),
              static_cast<double>(changed));
  return after == 2 * kNodes * kReplays && changed == after + kNodes - 1 + 10 ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
