// What one instance of a launch does to memory, once its control flow, addresses and checks are known: a list of calls
// of the host's kernels. Owns the list and how neighbours in it join; knows neither registers nor time.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "kernels/kernels.hpp"
#include "tile.hpp"

namespace jalapeno::emu {

struct Step;

// Instances run on any core, so that scratchpad and accumulators are places relative to one.
struct Place {
  enum class Base : uint8_t { kMemory, kSpm, kAcc } base = Base::kMemory;
  uintptr_t at = 0;  // an address of the host, or an offset
  bool operator==(const Place&) const = default;

  static Place of(const std::byte* memory) { return {Base::kMemory, reinterpret_cast<uintptr_t>(memory)}; }
  static Place of(const Tile& t) { return {t.space == hw::Space::kSpm ? Base::kSpm : Base::kAcc, t.offset}; }
};

struct ZeroCall {
  Tile tile;
};
struct CopyCall {
  Place from, to;
  uint64_t from_pitch, to_pitch;
  uint32_t rows, bytes;  // of a row
};
struct MultiplyCall {
  MultiplyArgs args;  // but for its three pointers
  Place a, b, c;
};
// Rows of a tile to memory, types converted.
struct StoreCall {
  Tile tile;
  std::byte* memory;
  uint64_t stride;
  hw::DType type;  // in memory
  bool add, hbm;
};
// Whatever else: the instruction with the operands it had.
struct StepCall {
  const Step* step;
  std::array<Tile, 4> tiles;
  std::array<int64_t, 4> registers;
};
using Call = std::variant<ZeroCall, CopyCall, MultiplyCall, StoreCall, StepCall>;

class CallList {
 public:
  explicit CallList(size_t most) : most_(most) {}
  void add(Call call);  // one too many makes it unusable
  // Joins what an instance's end allows: results go to memory from where the multiplication leaves them, or at once.
  // What scratchpad and accumulators hold between instances is nobody's business.
  void fuse();

  // Takes over what the next instance does, where both are one multiplication and theirs lie side by side.
  bool absorb(const CallList& next);
  uint64_t weight_bytes() const;  // that it reads, where it is one multiplication; 0 otherwise

  bool usable() const { return usable_; }
  const std::vector<Call>& calls() const { return calls_; }

 private:
  std::vector<Call> calls_;
  size_t most_;
  bool usable_ = true;
};

}  // namespace jalapeno::emu
