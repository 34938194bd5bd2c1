// A kernel of our own: written with the tile builder, loaded, launched, checked.
#include <cmath>
#include <cstdio>
#include <jalapeno/jalapeno.hpp>
#include <jalapeno/tile.hpp>

namespace {

std::vector<std::byte> vector_add() {
  using namespace jalapeno::tile;
  constexpr uint32_t kTile = 4096;
  Builder k("vector_add");
  auto a = k.tensor("a", f32, 1), b = k.tensor("b", f32, 1), c = k.tensor("c", f32, 1);
  // Two stages: the next pieces are loaded while this one is added.
  auto x = k.spm(f32, 1, kTile, Stages(2)), y = k.spm(f32, 1, kTile, Stages(2));
  Reg pid = k.pid_x(), grid = k.grid_x();
  k.loop(0, k.cdiv(k.max(k.cdiv(a.dim(0), kTile) - pid, 0), grid), [&](Reg i) {
    Reg at = (pid + i * grid) * kTile;
    Tile xt = x[i], yt = y[i];
    k.load(xt, a, {at});  // outside the tensor reads as 0
    k.load(yt, b, {at});
    k.add(xt, xt, yt);
    k.store(c, {at}, xt);  // outside is clipped
  });
  return write_module({k.finish()});
}

}  // namespace

int main() try {
  constexpr size_t kElements = 1'000'003;  // no multiple of anything
  const jalapeno::Device device;
  const jalapeno::Stream stream(device);
  std::vector<float> a(kElements), b(kElements);
  for (size_t i = 0; i < kElements; ++i) a[i] = static_cast<float>(i % 1000), b[i] = 0.5f;
  const jalapeno::Buffer<float> da(device, std::span<const float>(a)), db(device, std::span<const float>(b)),
      dc(device, kElements);

  const jalapeno::Module module(device, vector_add());
  jalapeno::launch(stream, {64}, module.kernel("vector_add"), da, db, dc);
  stream.synchronize();

  const std::vector<float> c = dc.to_host();
  for (size_t i = 0; i < kElements; ++i)
    if (c[i] != a[i] + b[i]) {
      std::printf("element %zu is %g, expected %g\n", i, c[i], a[i] + b[i]);
      return 1;
    }
  std::printf("%zu sums are right\n", kElements);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
