// jalapeno-as: text to module.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>

#include "tools/assembly.hpp"

int main(int argc, char** argv) try {
  using namespace jalapeno;
  if (argc != 4 || std::string(argv[2]) != "-o") {
    std::fprintf(stderr, "usage: jalapeno-as INPUT -o MODULE   (INPUT - is standard input)\n");
    return 2;
  }
  const std::string input = argv[1], output = argv[3];
  std::ifstream file(input);
  if (input != "-" && !file) throw std::runtime_error(input + ": cannot be read");
  std::istream& in = input == "-" ? std::cin : file;
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto bytes = tile::write_module(runtime::assemble(text, input));
  (void)runtime::parse_module(bytes);  // what the loader would refuse is refused here
  std::ofstream out(output, std::ios::binary);
  if (!out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error(output + ": cannot be written");
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-as: %s\n", e.what());
  return 1;
}
