// A chip's HBM on the host. The aperture, which the host sees through a BAR, is shared memory from the start. What lies
// behind it is the process's own, because only that is sure of huge pages: in them decoding is 1.03 to 1.12 times as
// fast, and loading takes half. Before another process may map it, it moves. Knows no addresses but HBM's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <jalapeno_hw/registers.hpp>
#include <memory>
#include <vector>

#include "mapping.hpp"

namespace jalapeno::emu {

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

  // Calls work(k) for every k below count, each once, by whichever threads there are.
  using Parallel = std::function<void(uint32_t count, const std::function<void(uint32_t)>& work)>;
  // Moves what is the process's own to the file, in its place: nothing that points there changes, but nobody may read
  // or write it meanwhile. Once: later calls only say how it went. False: the system had no memory left, and some of it
  // still is the process's own. As fast as memory is brought in and copied.
  bool share(const Parallel& parallel);
  void scrub();  // it reads as zero again
  // Large writes are about to go there: the pages to bring in first. Not thread-safe.
  std::vector<std::byte*> missing_pages(std::byte* at, uint64_t bytes) { return populated_.take(*mapping_, at, bytes); }

 private:
  void take_own();
  bool move_page(const std::byte* from, std::byte* to) const;

  uint64_t aperture_bytes_, shared_bytes_;
  bool tried_ = false;  // to share it
  int fd_;
  std::shared_ptr<Mapping> mapping_;
  Populated populated_;
};

}  // namespace jalapeno::emu
