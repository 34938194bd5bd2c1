// hold_device URI: opens a device, says "held", does a little work whenever a line comes, ends with standard input.
#include <cstdio>
#include <iostream>
#include <jalapeno/jalapeno.hpp>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  jalapeno::Device device{std::string(argv[1])};
  jalapeno::Stream stream(device);
  const std::vector<float> host(1 << 16, 1.f);
  jalapeno::Buffer<float> x(device, host.size());
  std::printf("held\n");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    stream.copy(x.data(), host.data(), x.bytes());
    stream.synchronize();
    std::printf("done\n");
    std::fflush(stdout);
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
