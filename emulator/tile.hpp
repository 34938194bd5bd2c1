// A tile register: where a matrix lies in a core's scratchpad or accumulators.
#pragma once
#include <cstdint>
#include <jalapeno_hw/isa.hpp>

namespace jalapeno::emu {

struct Tile {
  uint32_t offset = 0, pitch = 0, rows = 0, columns = 0;
  hw::DType dtype = hw::DType::kF32;
  hw::Space space = hw::Space::kSpm;
  uint32_t row_bytes = 0;  // of its columns
  uint64_t end() const { return offset + uint64_t{pitch} * (rows - 1) + row_bytes; }
  bool operator==(const Tile&) const = default;
};

}  // namespace jalapeno::emu
