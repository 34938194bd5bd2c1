// Shared by the tests over the public API: a device of the URI under test, and reference arithmetic.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <jalapeno/jalapeno.hpp>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/descriptors.hpp"

namespace jalapeno::test {

// JAL_TEST_URI lets the same binary run on another device: the emulator in its own process, or a board.
inline std::string uri(const std::string& options = "") {
  const char* fixed = std::getenv("JAL_TEST_URI");
  return fixed != nullptr && *fixed != 0 ? fixed : "emu:?hbm=1G&aperture=256M" + (options.empty() ? "" : "&" + options);
}
inline bool embedded() { return std::getenv("JAL_TEST_URI") == nullptr; }

class OnDevice : public ::testing::Test {
 protected:
  Device device{uri()};
  Stream stream{device};
};

inline std::vector<float> random_values(size_t n, unsigned seed, float low = -1, float high = 1) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> distribution(low, high);
  std::vector<float> out(n);
  for (float& v : out) v = distribution(generator);
  return out;
}

}  // namespace jalapeno::test
