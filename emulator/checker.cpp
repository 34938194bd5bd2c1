#include "checker.hpp"

#include "core.hpp"
#include "fault.hpp"

namespace jalapeno::emu {

Checker::Checker(const EmulatorOptions& options, uint32_t spm_bytes, uint32_t acc_bytes)
    : races_(options.check_races),
      uninitialized_(options.check_uninitialized),
      spm_(zeroed(spm_bytes / 4)),
      acc_(zeroed(acc_bytes / 4)) {}

Checker::Words Checker::zeroed(size_t count) {
  Words words(static_cast<Word*>(std::calloc(count, sizeof(Word))));
  if (words == nullptr) throw std::bad_alloc();
  return words;
}

void Checker::begin_instance() {
  ++generation_;
  for (Clock& c : clocks_) c.fill(0);
  for (auto& s : signals_) s.clear();
  signaller_.fill(hw::kNoInstruction);
}

void Checker::begin_instruction(hw::Engine engine, uint32_t instruction) {
  engine_ = static_cast<uint8_t>(engine), instruction_ = instruction;
  Clock& mine = clocks_[engine_];
  const Clock& control = clocks_[0];  // issued by the sequencer: it follows all the sequencer has seen
  for (uint32_t e = 0; e < hw::kEngines; ++e) mine[e] = std::max(mine[e], control[e]);
  ++mine[engine_];
}

void Checker::wait(uint8_t semaphore, uint64_t n) {
  auto& queue = signals_[semaphore];
  for (; n > 0 && !queue.empty(); --n) {
    for (uint32_t e = 0; e < hw::kEngines; ++e) clocks_[engine_][e] = std::max(clocks_[engine_][e], queue.front()[e]);
    queue.pop_front();
  }
}

void Checker::signal(uint8_t semaphore, uint64_t n) {
  signaller_[semaphore] = instruction_;
  for (; n > 0 && signals_[semaphore].size() < 4096; --n) signals_[semaphore].push_back(clocks_[engine_]);
}

Checker::Word& Checker::fresh(Word& w) {
  if (w.generation != generation_) w = Word{}, w.generation = generation_;
  return w;
}

template <class F>
void Checker::words(const Tile& tile, F f) {
  auto& memory = tile.space == hw::Space::kSpm ? spm_ : acc_;
  const uint64_t bytes = hw::row_bytes(tile.dtype, tile.columns);
  for (uint32_t r = 0; r < tile.rows; ++r) {
    uint64_t begin = tile.offset + uint64_t{tile.pitch} * r;
    for (uint64_t w = begin / 4; w < (begin + bytes + 3) / 4; ++w) f(fresh(memory[w]), r);
  }
}

void Checker::race(const Tile& tile, uint8_t t, uint32_t row, const char* what, uint8_t engine, uint32_t other) {
  throw Fault(hw::Status::kRace, "%s %s T%u row %u while %s of instruction %u (%s) is not ordered before it",
              hw::kEngineNames[engine_].data(), what, t, row, what[0] == 'r' ? "the write" : "an access", other,
              hw::kEngineNames[engine].data())
      .at(tile.offset + uint64_t{tile.pitch} * row, hw::row_bytes(tile.dtype, tile.columns),
          what[0] == 'r' ? hw::kAccessRead : hw::kAccessWrite)
      .tile(t);
}

void Checker::read(const Tile& tile, uint8_t t) {
  words(tile, [&](Word& w, uint32_t row) {
    if (uninitialized_ && !w.written)
      throw Fault(hw::Status::kUninitialized, "%s reads T%u row %u, which nothing has written",
                  hw::kEngineNames[engine_].data(), t, row)
          .at(tile.offset + uint64_t{tile.pitch} * row, hw::row_bytes(tile.dtype, tile.columns), hw::kAccessRead)
          .tile(t);
    if (races_ && w.written && w.writer_engine != engine_ && clocks_[engine_][w.writer_engine] < w.writer_clock)
      race(tile, t, row, "reads", w.writer_engine, w.writer);
    w.reader_clock[engine_] = clocks_[engine_][engine_];
    w.reader[engine_] = instruction_;
  });
}

void Checker::write(const Tile& tile, uint8_t t) {
  words(tile, [&](Word& w, uint32_t row) {
    if (races_) {
      if (w.written && w.writer_engine != engine_ && clocks_[engine_][w.writer_engine] < w.writer_clock)
        race(tile, t, row, "writes", w.writer_engine, w.writer);
      for (uint8_t e = 0; e < hw::kEngines; ++e)
        if (e != engine_ && clocks_[engine_][e] < w.reader_clock[e]) race(tile, t, row, "writes", e, w.reader[e]);
    }
    w.written = 1;
    w.writer_engine = engine_;
    w.writer_clock = clocks_[engine_][engine_];
    w.writer = instruction_;
  });
}

}  // namespace jalapeno::emu
