// A chip's HBM on the host. The aperture, which the host sees through a BAR, is shared memory from the start. What lies
// behind it is the process's own, because only that is sure of huge pages: in them decoding is 1.03 to 1.12 times as
// fast, and loading takes half. Before another process may map it, it moves. Knows no addresses but HBM's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <jalapeno_hw/registers.hpp>
#include <memory>
#include <vector>

namespace jalapeno::emu {

// A shared mapping of a file, unmapped with its last user.
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

// Which pages of a mapped HBM are there already. Large writes are about to go somewhere: host memory is brought in
// behind it at once, where it was not yet. One page fault for every 4 KiB costs many times as much. Not thread-safe.
class Populated {
 public:
  Populated() = default;
  explicit Populated(const Mapping& hbm) : pages_(hbm.bytes() / hw::kPageBytes) {}
  // Pages to bring in for a range, none outside of it, and some behind it where writes go on; they count as there.
  std::vector<std::byte*> take(const Mapping& hbm, std::byte* at, uint64_t bytes);
  static void bring_in(std::byte* page);  // by any thread
  void range(const Mapping& hbm, std::byte* at, uint64_t bytes) {
    for (std::byte* page : take(hbm, at, bytes)) bring_in(page);
  }

 private:
  std::vector<bool> pages_;
};

class Hbm {
 public:
  Hbm(uint64_t bytes, uint64_t aperture_bytes);  // throws std::runtime_error
  ~Hbm();
  Hbm(const Hbm&) = delete;
  Hbm& operator=(const Hbm&) = delete;

  // A file of all of it. What lies behind the aperture is in there once share() succeeded.
  int fd() const { return fd_; }
  uint64_t bytes() const { return mapping_->bytes(); }
  uint64_t aperture_bytes() const { return aperture_bytes_; }
  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }

  // Moves what is the process's own to the file, in its place: nothing that points there changes, but nobody may read
  // or write it meanwhile. False: the system has no memory left; what moved has moved, and the rest is as it was.
  bool share();
  void scrub();  // it reads as zero again
  // Large writes are about to go there: the pages to bring in first. Not thread-safe.
  std::vector<std::byte*> missing_pages(std::byte* at, uint64_t bytes) { return populated_.take(*mapping_, at, bytes); }

 private:
  uint64_t aperture_bytes_, shared_bytes_;
  int fd_;
  std::shared_ptr<Mapping> mapping_;
  Populated populated_;
};

}  // namespace jalapeno::emu
