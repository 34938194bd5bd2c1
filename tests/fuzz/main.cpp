// Without libFuzzer: the seeds, files named on the command line, and changes of both that a number chooses.
// With -write=DIR only writes the seeds there, for libFuzzer to begin with.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz.hpp"

int main(int argc, char** argv) {
  std::vector<std::vector<uint8_t>> inputs = fuzz_seeds();
  for (int k = 1; k < argc; ++k) {
    const std::string word = argv[k];
    if (word.rfind("-write=", 0) == 0) {
      for (size_t i = 0; i < inputs.size(); ++i)
        std::ofstream(word.substr(7) + "/seed" + std::to_string(i), std::ios::binary)
            .write(reinterpret_cast<const char*>(inputs[i].data()), static_cast<std::streamsize>(inputs[i].size()));
      return 0;
    }
    std::ifstream in(word, std::ios::binary);
    if (!in) {
      std::fprintf(stderr, "%s: cannot be read\n", word.c_str());
      return 2;
    }
    inputs.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  int runs = 3000;
  if (const char* text = std::getenv("JAL_FUZZ_RUNS"); text != nullptr) {
    char* end = nullptr;
    runs = static_cast<int>(std::strtol(text, &end, 10));
    if (*text == 0 || *end != 0 || runs < 0) {
      std::fprintf(stderr, "JAL_FUZZ_RUNS=%s: expected a number\n", text);
      return 2;
    }
  }
  for (const auto& input : inputs) LLVMFuzzerTestOneInput(input.data(), input.size());
  std::mt19937 random(7);
  for (int run = 0; run < runs; ++run) {
    std::vector<uint8_t> input = inputs[random() % inputs.size()];
    for (unsigned changes = 1 + random() % 8; changes > 0 && !input.empty(); --changes) {
      const size_t at = random() % input.size();
      switch (random() % 4) {
        case 0:
          input[at] = static_cast<uint8_t>(random());
          break;
        case 1:
          input[at] = static_cast<uint8_t>(input[at] ^ 1u << random() % 8);
          break;
        case 2:
          input.resize(at);
          break;
        default: {  // a piece of another
          const auto& other = inputs[random() % inputs.size()];
          for (size_t i = 0; i < 16 && at + i < input.size() && i < other.size(); ++i) input[at + i] = other[i];
        }
      }
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%zu inputs and %d changes\n", inputs.size(), runs);
}
