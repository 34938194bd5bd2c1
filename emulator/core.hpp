// One compute core: runs a program instance to its end, eagerly and in program order, and keeps each
// engine's clock beside the result. That order is legal for every race-free program: a signal always
// comes from an earlier instruction, so a wait that is not satisfied when it is met never will be.
// Owns scratchpad, accumulators and registers. Knows no queues and no packets.
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <jalapeno_hw/isa.hpp>
#include <memory>
#include <vector>

#include "call_list.hpp"
#include "config.hpp"
#include "fault.hpp"
#include "kernels/kernels.hpp"
#include "memory.hpp"
#include "tile.hpp"

namespace jalapeno::emu {

class Checker;

// A program as the core runs it: operands in range, engines looked up, once for all launches.
struct Step {
  hw::Instruction instruction;
  hw::Engine engine;
  hw::EngineClass unit;
  bool plain;  // the sequencer alone: no semaphore, no other engine's queue
};
struct Program {
  std::vector<Step> steps;
  std::vector<uint8_t> semaphores;    // those it names
  uint32_t tiles = 0, registers = 0;  // how many it uses, from the first on
  bool lowers = true;                 // what it does follows from its arguments: neither from data nor from the core
};
// Copies and checks instructions so that the core may index with every field. Throws Fault.
Program prepare(const hw::Instruction* code, uint32_t count);

struct Launch {
  const Program* program = nullptr;
  std::array<std::byte, hw::kArgumentBytes> arguments{};
  uint32_t argument_bytes = 0;
  std::array<uint32_t, 3> grid{};
  const AddressMap* map = nullptr;
  const std::atomic<bool>* stop = nullptr;  // a reset wants the chip: instances end at their next look at the clock
  uint32_t watchdog_ms = 0;                 // of an instance
  uint32_t active_cores = 1;                // that share HBM's rate

  // In which order instances have their turn: those of one x after each other. In a multiplication they share rows of
  // the weights, which come from memory once.
  uint32_t instance_at(uint32_t turn) const { return transposed(turn, grid[1], grid[0]); }
  uint32_t turn_of(uint32_t instance) const { return transposed(instance, grid[0], grid[1]); }

 private:
  // What an index that counts along rows of `length`, so many to a plane, is when counted down the columns.
  static uint32_t transposed(uint32_t index, uint32_t length, uint32_t rows) {
    const uint32_t in_plane = index % (length * rows);
    return index - in_plane + in_plane % length * rows + in_plane / length;
  }
};

// What one instance did, in the chip's terms.
struct Tally {
  double duration_ns = 0, matrix_ns = 0, vector_ns = 0, dma_ns = 0, picojoules = 0;
  uint64_t instructions = 0, hbm_read = 0, hbm_write = 0, host_bytes = 0;
  Tally& operator+=(const Tally& o);
};

class Core {
 public:
  Core(const ChipConfig& config, const EmulatorOptions& options, uint32_t index);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Throws Fault with pid and instruction filled in. record: what it did is written there. The tally is the core's,
  // until it runs again.
  const Tally& run(const Launch& launch, std::array<uint32_t, 3> pid, CallList* record = nullptr);
  void replay(const Launch& launch, std::array<uint32_t, 3> pid, const CallList& list);  // throws Fault, as run()

 private:
  struct Semaphore {
    uint64_t count = 0, head = 0;
    std::array<double, 64> ready{};  // when the oldest signals came; more than 64 outstanding share the last one's time
    void give(double at, uint64_t n);
    double take(uint64_t n);
  };
  struct Loop {
    uint32_t begin;
    int64_t end, step;
  };

  void execute();
  void begin(const Launch& launch, std::array<uint32_t, 3> pid);
  [[noreturn]] void rethrow(Fault& f) const;
  void look_at_the_clock();
  // In replay.cpp: what the instruction just did, unless its engine said so itself; and doing it again.
  void record(const Step& step);
  void record_store(const Tile& t, const hw::TensorDescriptor& x, uint64_t first, std::array<int64_t, 2> rows,
                    std::array<int64_t, 2> columns, bool add);
  void record_instead(const Call& call) { list_->add(call), recorded_ = true; }
  std::byte* at(const Place& p) const;
  void play(const ZeroCall& call);
  void play(const CopyCall& call);
  void play(const MultiplyCall& call);
  void play(const StoreCall& call);
  void play(const StepCall& call);
  void control(const hw::Instruction& i);
  double dma(const hw::Instruction& i);
  double matrix(const hw::Instruction& i);
  double vector(const hw::Instruction& i);

  bool load_rows(const Tile& t, uint32_t r, uint32_t rows, uint64_t address, uint64_t stride);
  void dma_box(const hw::Instruction& i, bool store);
  void dma_rows(const hw::Instruction& i, bool store);
  void move_indexed_row(const hw::TensorDescriptor& x, uint64_t first, int64_t row, std::byte* tile, const Tile& t,
                        bool store, const hw::Instruction& i);
  void dma_copy(const hw::Instruction& i);
  void move_row(const hw::TensorDescriptor& tensor, uint64_t address, std::byte* tile, hw::DType tile_type,
                uint32_t columns, bool store, bool add);
  void load_converted(hw::DType type, const std::byte* memory, uint32_t columns, std::byte* tile, hw::DType tile_type);
  void store_converted(hw::DType type, std::byte* memory, uint32_t columns, const std::byte* tile, hw::DType tile_type,
                       bool add);
  hw::TensorDescriptor tensor(const hw::Instruction& i) const;
  void count_traffic(uint64_t address, uint64_t bytes, bool store);
  void top_k(const hw::Instruction& i);
  void softmax(const hw::Instruction& i);
  void rope(const hw::Instruction& i);

  int64_t reg(uint8_t r) const { return r == hw::kNone ? 0 : registers_[r]; }
  float reg_f32(uint8_t r) const;
  void set(uint8_t r, int64_t v) {
    if (r != 0) registers_[r] = v;
  }
  void define(uint8_t t, const Tile& tile);
  // Operands of the instruction being run; t is its position 0..3. They tell the checker.
  const Tile& in(const hw::Instruction& i, int t);
  const Tile& out(const hw::Instruction& i, int t);
  std::byte* data(const Tile& t, uint32_t row = 0) {
    return (t.space == hw::Space::kSpm ? spm_ : acc_) + t.offset + size_t{t.pitch} * row;
  }
  // A load whose bytes are still where they came from. Weight tiles are read once, by the next multiply: copying
  // them to scratchpad first would cost a third of the time of a decode step. Whoever else touches the scratchpad
  // range, or stores to memory, has the bytes moved first, so that no program can tell.
  struct PendingLoad {
    uint32_t offset = 0, pitch = 0, rows = 0, row_bytes = 0;  // rows 0: none
    const std::byte* source = nullptr;
    uint64_t stride = 0;
    uint32_t end() const { return offset + pitch * (rows - 1) + row_bytes; }
  };
  struct Operand {
    const Tile& tile;
    const std::byte* data;
    size_t pitch;
    Place place;
  };
  Operand multiplicand(const hw::Instruction& i, int t);
  bool defer_load(const Tile& t, const std::byte* source, uint64_t stride, uint64_t row_bytes);
  void settle(const Tile& t);
  void settle(PendingLoad& load);
  void settle_all();
  void settle_sources(const std::byte* begin, const std::byte* end);
  void forget_overwritten(const Tile& t);

  const float* as_floats(hw::DType type, const std::byte* p, uint32_t columns, int scratch);
  const float* load_row(const Tile& t, uint32_t row, int scratch);
  float* row_buffer(const Tile& t, uint32_t row, int scratch);
  void store_row(const Tile& t, uint32_t row, const float* values);

  const ChipConfig& config_;
  const EmulatorOptions& options_;
  const HostKernels& host_;
  uint32_t index_;
  double cycle_;  // ns
  std::byte *spm_, *acc_;
  std::unique_ptr<float[]> scratch_[4];
  std::vector<std::pair<float, int32_t>> candidates_;
  std::unique_ptr<Checker> checker_;

  // State of the instance being run
  const Launch* launch_ = nullptr;
  Memory memory_;
  std::array<uint32_t, 3> pid_{};
  uint32_t pc_ = 0, budget_ = 0;
  uint64_t next_look_ns_ = 0, began_ns_ = 0;  // the host's clock, the thread's own clock; 0: not looked yet
  bool halted_ = false;
  std::array<int64_t, hw::kRegisters> registers_{};
  std::array<Tile, hw::kTiles> tiles_{};
  std::array<Semaphore, hw::kSemaphores> semaphores_{};
  std::vector<Loop> loops_;
  std::array<double, hw::kEngines> clock_{};
  double finished_ = 0, dma_latency_ = 0;
  uint64_t dma_bytes_ = 0;
  std::array<PendingLoad, 4> pending_{};
  uint32_t next_pending_ = 0;
  Tally tally_;
  CallList* list_ = nullptr;  // being recorded
  bool recorded_ = false;     // the current instruction is in it, or need not be
};

}  // namespace jalapeno::emu
