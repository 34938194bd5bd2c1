// The checked level: for each four bytes of scratchpad and accumulators, who wrote and who read last, and
// for each engine how far it has seen the others (vector clocks through semaphores and issue order).
// The chip's compute-sanitizer. Knows no time and no data.
#pragma once
#include <array>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <jalapeno_hw/isa.hpp>
#include <memory>

#include "config.hpp"

namespace jalapeno::emu {

struct Tile;

class Checker {
 public:
  Checker(const EmulatorOptions& options, uint32_t spm_bytes, uint32_t acc_bytes);

  void begin_instance();
  void begin_instruction(hw::Engine engine, uint32_t instruction);
  void wait(uint8_t semaphore, uint64_t n);
  void signal(uint8_t semaphore, uint64_t n);
  void read(const Tile& tile, uint8_t tile_register);   // throws Fault
  void write(const Tile& tile, uint8_t tile_register);  // throws Fault
  uint32_t last_signaller(uint8_t semaphore) const { return signaller_[semaphore]; }

 private:
  using Clock = std::array<uint32_t, hw::kEngines>;
  struct Word {
    uint32_t generation, writer_clock, writer, written;
    std::array<uint32_t, hw::kEngines> reader_clock, reader;
    uint8_t writer_engine;
  };
  template <class F>
  void words(const Tile& tile, F f);
  Word& fresh(Word& w);
  [[noreturn]] void race(const Tile& tile, uint8_t t, uint32_t row, const char* what, uint8_t engine, uint32_t other);

  bool races_, uninitialized_;
  // Zero pages until something touches them: there are megabytes of words, and most kernels use few.
  struct Free {
    void operator()(Word* p) const { std::free(p); }
  };
  using Words = std::unique_ptr<Word[], Free>;
  static Words zeroed(size_t count);
  Words spm_, acc_;
  uint32_t generation_ = 0;
  std::array<Clock, hw::kEngines> clocks_{};
  std::array<std::deque<Clock>, hw::kSemaphores> signals_;
  std::array<uint32_t, hw::kSemaphores> signaller_{};
  uint8_t engine_ = 0;
  uint32_t instruction_ = 0;
};

}  // namespace jalapeno::emu
