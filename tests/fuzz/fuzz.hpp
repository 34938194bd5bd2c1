// A fuzz target is what libFuzzer asks for, and inputs to begin with. scripts/fuzz builds them with libFuzzer; the
// tests build them with main.cpp, which tries the seeds and some thousand changes of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
std::vector<std::vector<uint8_t>> fuzz_seeds();

namespace jalapeno::fuzz {
template <class T>
void append(std::vector<uint8_t>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}
}  // namespace jalapeno::fuzz
