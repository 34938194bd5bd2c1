// A file in this process's memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace jalapeno::emu {

// A shared mapping of a file, unmapped with its last user. A large one begins where a huge page may.
class Mapping {
 public:
  Mapping(int fd, uint64_t offset, uint64_t bytes, bool writable);  // throws std::runtime_error
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  uint64_t bytes_;
};

}  // namespace jalapeno::emu
