#include <cstdio>
#include <jalapeno/jalapeno.hpp>
#include <jalapeno/tile.hpp>

extern "C" int version_from_c(void);

int main() {
  const jalapeno::Device device("emu:?hbm=64M");
  const jalapeno::Stream stream(device);
  const jalapeno::Buffer<float> x(device, std::vector<float>{1, 2, 3});
  jalapeno::launch(stream, {1, 1}, jalapeno::library_kernel(device, "add"), x.as({1, 3}), x.as({1, 3}), x.as({1, 3}));
  stream.synchronize();
  std::printf("version %d, %g\n", version_from_c(), static_cast<double>(x.to_host()[2]));
  return x.to_host()[2] == 6 ? 0 : 1;
}
