// jalapeno-objdump: module to text that jalapeno-as reads again. With a kernel's name of the library instead of a file:
// the library's kernel.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "tools/assembly.hpp"

int main(int argc, char** argv) try {
  using namespace jalapeno;
  const bool library = argc == 3 && std::string(argv[1]) == "--library";
  if ((argc != 2 && !library) || std::string(argv[1]) == "--help") {
    std::fprintf(stderr, "usage: jalapeno-objdump MODULE | --library KERNEL\n");
    return 2;
  }
  std::vector<std::byte> bytes;
  if (library) {
    bytes = runtime::build_library_module(argv[2]);
  } else {
    std::ifstream in(argv[1], std::ios::binary);
    if (!in) throw std::runtime_error(std::string(argv[1]) + ": cannot be read");
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    bytes.resize(text.size());
    std::copy(text.begin(), text.end(), reinterpret_cast<char*>(bytes.data()));
  }
  std::fputs(runtime::disassemble(runtime::parse_module(bytes)).c_str(), stdout);
  if (std::fflush(stdout) != 0) throw std::runtime_error("standard output: write error");
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-objdump: %s\n", e.what());
  return 1;
}
