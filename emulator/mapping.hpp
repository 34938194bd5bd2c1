// Memory of this process that the kernel is asked for: files, and what begins at a huge page.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace jalapeno::emu {

// Throws std::runtime_error: what was attempted, and why it failed.
[[noreturn]] void fail_by_errno(const std::string& what);

constexpr uint64_t kHugePage = 2 << 20;
// Whole pages of zeros, at least `bytes`, that begin where a huge page may; the caller's to unmap. nullptr: there are
// none.
std::byte* at_huge_page(uint64_t bytes, int protection);

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
