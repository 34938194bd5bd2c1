// The core's DMA engines: boxes of tensors to tiles and back, rows by index, scratchpad copies.
#include <algorithm>
#include <cstring>

#include "checker.hpp"
#include "core.hpp"
#include "fault.hpp"
#include "words.hpp"

namespace jalapeno::emu {

using hw::Instruction;
using hw::Op;
using hw::Status;

namespace {
// Bytes from the begin of the first row to the end of the last. A stride is the client's: as many as there are where
// that is more, which no extent has.
uint64_t reach_of(uint64_t stride, uint64_t rows, uint64_t bytes) {
  uint64_t reach;
  if (__builtin_mul_overflow(stride, rows - 1, &reach) || __builtin_add_overflow(reach, bytes, &reach))
    return UINT64_MAX;
  return reach;
}
}  // namespace

hw::TensorDescriptor Core::tensor(const Instruction& i) const {
  if (i.imm0 > launch_->argument_bytes || sizeof(hw::TensorDescriptor) > launch_->argument_bytes - i.imm0)
    throw Fault(Status::kIllegalInstruction, "tensor argument at %llu, but the launch has %u bytes",
                static_cast<unsigned long long>(i.imm0), launch_->argument_bytes)
        .value(i.imm0);
  hw::TensorDescriptor t;
  std::memcpy(&t, launch_->arguments.data() + i.imm0, sizeof t);
  if (!hw::valid(t.dtype) || t.rank < 1 || t.rank > 4)
    throw Fault(Status::kIllegalInstruction, "tensor argument at %llu has type %u and rank %u",
                static_cast<unsigned long long>(i.imm0), static_cast<uint32_t>(t.dtype), t.rank);
  return t;
}

void Core::count_traffic(uint64_t address, uint64_t bytes, bool store) {
  dma_bytes_ += bytes;
  if (address & hw::kHostWindow)
    tally_.host_bytes += bytes;
  else
    (store ? tally_.hbm_write : tally_.hbm_read) += bytes;
}

// A row as f32: in place where it is that already, and aligned to it.
const float* Core::as_floats(hw::DType type, const std::byte* p, uint32_t columns, int scratch) {
  if (type == hw::DType::kF32 && reinterpret_cast<uintptr_t>(p) % 4 == 0) return reinterpret_cast<const float*>(p);
  host_.load(type, p, columns, scratch_[scratch].get());
  return scratch_[scratch].get();
}

void Core::load_converted(hw::DType type, const std::byte* memory, uint32_t columns, std::byte* tile,
                          hw::DType tile_type) {
  if (type == tile_type)
    std::memcpy(tile, memory, hw::row_bytes(type, columns));
  else if (tile_type == hw::DType::kF32)
    host_.load(type, memory, columns, reinterpret_cast<float*>(tile));
  else
    host_.store(tile_type, as_floats(type, memory, columns, 0), columns, tile);
}

void Core::store_converted(hw::DType type, std::byte* memory, uint32_t columns, const std::byte* tile,
                           hw::DType tile_type, bool add) {
  if (type == tile_type && !add) {
    std::memcpy(memory, tile, hw::row_bytes(type, columns));
    return;
  }
  const float* values = as_floats(tile_type, tile, columns, 0);
  if (add) {
    const float* present = as_floats(type, memory, columns, 1);
    float* sum = type == hw::DType::kF32 ? reinterpret_cast<float*>(memory) : scratch_[0].get();
    host_.binary(hw::BinaryOp::kAdd, values, present, sum, columns);
    values = sum;
  }
  if (reinterpret_cast<const std::byte*>(values) != memory) host_.store(type, values, columns, memory);
}

// One row between memory and scratchpad, types converted. `add` reads, adds and writes back.
void Core::move_row(const hw::TensorDescriptor& tensor, uint64_t address, std::byte* tile, hw::DType tile_type,
                    uint32_t columns, bool store, bool add) {
  const uint64_t bytes = hw::row_bytes(tensor.dtype, columns);
  std::byte* memory = memory_.span(address, bytes, store ? hw::kAccessWrite : hw::kAccessRead);
  // Across two extents, or a fault: through a bounce buffer, which also finds the exact address.
  std::vector<std::byte> bounce;
  if (memory == nullptr || (add && memory_.span(address, bytes, hw::kAccessRead) == nullptr)) {
    bounce.resize(bytes);
    if (!store || add) memory_.read(address, bounce.data(), bytes);
    memory = bounce.data();
  }
  if (store)
    store_converted(tensor.dtype, memory, columns, tile, tile_type, add);
  else
    load_converted(tensor.dtype, memory, columns, tile, tile_type);
  if (store && !bounce.empty()) memory_.write(address, bounce.data(), bytes);
}

namespace {
void fill_row(const HostKernels& host, float* scratch, std::byte* tile, hw::DType type, uint32_t columns, float value) {
  std::fill_n(scratch, columns, value);
  host.store(type, scratch, columns, tile);
}
}  // namespace

// Rows r.. of a tile from memory that has its type. False: they are not in one piece.
bool Core::load_rows(const Tile& t, uint32_t r, uint32_t rows, uint64_t address, uint64_t stride) {
  const std::byte* memory = memory_.span(address, reach_of(stride, rows, t.row_bytes), hw::kAccessRead);
  if (memory == nullptr) return false;
  count_traffic(address, uint64_t{t.row_bytes} * rows, false);
  if (rows == t.rows && (address & hw::kHostWindow) == 0 && defer_load(t, memory, stride, t.row_bytes)) {
    recorded_ = true;  // with whoever reads it
    return true;
  }
  if (list_ != nullptr) {
    Place to = Place::of(t);
    to.at += uint64_t{t.pitch} * r;
    record_instead(CopyCall{Place::of(memory), to, stride, t.pitch, rows, t.row_bytes});
  }
  if (stride == t.row_bytes && t.pitch == t.row_bytes)
    std::memcpy(data(t, r), memory, uint64_t{t.row_bytes} * rows);
  else
    for (uint32_t k = 0; k < rows; ++k) std::memcpy(data(t, r + k), memory + stride * k, t.row_bytes);
  return true;
}

void Core::dma_box(const Instruction& i, bool store) {
  const hw::TensorDescriptor x = tensor(i);
  if (!store) forget_overwritten(tiles_[i.t[0]]);
  const Tile& t = store ? in(i, 0) : out(i, 0);
  const hw::DTypeInfo& d = hw::info(x.dtype);
  uint64_t base = hw::raw(x.base);
  bool outside = false;
  for (int k = 0; k + 2 < x.rank; ++k) {
    const int64_t c = reg(i.r[k]);
    outside |= c < 0 || c >= x.shape[k];
    base += static_cast<uint64_t>(c) * x.stride[k];
  }
  const int64_t row0 = x.rank >= 2 ? reg(i.r[x.rank - 2]) : 0;
  const int64_t rows = x.rank >= 2 ? x.shape[x.rank - 2] : 1;
  const uint64_t stride = x.rank >= 2 ? x.stride[x.rank - 2] : 0;
  const int64_t column0 = reg(i.r[x.rank - 1]), columns = x.shape[x.rank - 1];
  // Coordinates are the program's: bring them into a range where nothing below overflows.
  const int64_t kFar = int64_t{1} << 40;
  outside |= row0 <= -kFar || row0 >= kFar || column0 <= -kFar || column0 >= kFar;
  const int64_t skip = outside ? t.columns : std::clamp<int64_t>(-column0, 0, t.columns);
  const int64_t valid =
      outside ? 0 : std::clamp<int64_t>(std::min<int64_t>(t.columns, columns - column0) - skip, 0, t.columns);
  if (options_.check_bounds && (outside || valid == 0 || row0 >= rows || row0 + t.rows <= 0))
    throw Fault(Status::kOutOfBounds, "%s box at row %lld, column %lld of %ux%u is outside the tensor of %lldx%lld",
                store ? "DST" : "DLD", static_cast<long long>(row0), static_cast<long long>(column0), t.rows, t.columns,
                static_cast<long long>(rows), static_cast<long long>(columns))
        .tile(i.t[0]);
  if (d.block > 1 && valid > 0 && (column0 % d.block != 0 || valid % d.block != 0 || skip % d.block != 0))
    throw Fault(Status::kTileFault, "columns %lld to %lld of a %s tensor begin or end inside a block of %u",
                static_cast<long long>(column0 + skip), static_cast<long long>(column0 + skip + valid), d.name, d.block)
        .tile(i.t[0]);
  const uint64_t first = base + hw::row_bytes(x.dtype, static_cast<uint64_t>(std::max<int64_t>(column0, 0)));
  const uint64_t bytes = hw::row_bytes(x.dtype, static_cast<uint64_t>(valid));
  const bool add = store && (i.flags & hw::kFlagAccumulate);
  if (store && valid > 0) {  // it may write what a pending load has yet to read
    const int64_t begin = std::max<int64_t>(row0, 0), end = std::min<int64_t>(row0 + t.rows, rows);
    const uint64_t reach = end > begin ? reach_of(stride, static_cast<uint64_t>(end - begin), bytes) : 0;
    const bool hbm = (base & hw::kHostWindow) == 0;  // host memory may be mapped at two addresses: no overlap is seen
    const std::byte* p =
        hbm ? memory_.span(first + static_cast<uint64_t>(begin) * stride, reach, hw::kAccessWrite) : nullptr;
    if (p != nullptr)
      settle_sources(p, p + reach);
    else
      settle_all();
  }

  // The common load: whole rows, same type, one extent.
  if (!store && x.dtype == t.dtype && valid == t.columns && row0 >= 0 && row0 + t.rows <= rows &&
      load_rows(t, 0, t.rows, first + static_cast<uint64_t>(row0) * stride, stride))
    return;
  for (uint32_t r = 0; r < t.rows; ++r) {
    const bool row_valid = valid > 0 && row0 + r >= 0 && row0 + r < rows;
    if (!store && (!row_valid || valid != t.columns))
      fill_row(host_, scratch_[2].get(), data(t, r), t.dtype, t.columns, as_float(i.imm1));
    if (!row_valid) continue;
    const uint64_t address = first + static_cast<uint64_t>(row0 + r) * stride;
    move_row(x, address, data(t, r) + hw::row_bytes(t.dtype, static_cast<uint64_t>(skip)), t.dtype,
             static_cast<uint32_t>(valid), store, add);
    count_traffic(address, bytes * (add ? 2 : 1), store);
  }
  if (store && list_ != nullptr) record_store(t, x, first, {row0, rows}, {skip, valid}, add);
}

// The part of the tile that is inside the tensor, in one piece of memory; otherwise it stays the instruction it is.
void Core::record_store(const Tile& t, const hw::TensorDescriptor& x, uint64_t first, std::array<int64_t, 2> rows,
                        std::array<int64_t, 2> columns, bool add) {
  const auto [row0, all_rows] = rows;
  const auto [skip, valid] = columns;
  const int64_t begin = std::max<int64_t>(row0, 0), end = std::min<int64_t>(row0 + t.rows, all_rows);
  if (valid <= 0 || end <= begin) {
    recorded_ = true;  // nothing
    return;
  }
  Tile part = t;
  part.offset += static_cast<uint32_t>(begin - row0) * t.pitch +
                 static_cast<uint32_t>(hw::row_bytes(t.dtype, static_cast<uint64_t>(skip)));
  part.rows = static_cast<uint32_t>(end - begin), part.columns = static_cast<uint32_t>(valid);
  part.row_bytes = static_cast<uint32_t>(hw::row_bytes(t.dtype, part.columns));
  const uint64_t stride = x.rank >= 2 ? x.stride[x.rank - 2] : 0,
                 address = first + static_cast<uint64_t>(begin) * stride,
                 reach = reach_of(stride, part.rows, hw::row_bytes(x.dtype, part.columns));
  std::byte* memory = memory_.span(address, reach, hw::kAccessWrite);
  if (memory == nullptr || (add && memory_.span(address, reach, hw::kAccessRead) == nullptr)) return;
  record_instead(StoreCall{part, memory, stride, x.dtype, add, (address & hw::kHostWindow) == 0});
}

void Core::dma_rows(const Instruction& i, bool store) {
  const hw::TensorDescriptor x = tensor(i);
  const Tile& index = in(i, 1);
  store ? settle_all() : forget_overwritten(tiles_[i.t[0]]);
  const Tile& t = store ? in(i, 0) : out(i, 0);
  const uint32_t unit = static_cast<uint32_t>(i.imm1);
  const int64_t column0 = reg(i.r[0]);
  const hw::DTypeInfo& d = hw::info(x.dtype);
  if (x.rank != 2 || unit == 0 || index.dtype != hw::DType::kI32 ||
      uint64_t{index.rows} * index.columns * unit < t.rows || column0 < 0 || column0 % d.block != 0 ||
      column0 + t.columns > x.shape[1])
    throw Fault(Status::kTileFault,
                "%s of %ux%u from column %lld of a rank-%u tensor of %u columns by %ux%u %s indices of %u rows each",
                store ? "DSCATTER" : "DGATHER", t.rows, t.columns, static_cast<long long>(column0), x.rank, x.shape[1],
                index.rows, index.columns, hw::info(index.dtype).name, unit)
        .tile(i.t[1]);
  const uint64_t stride = x.stride[0], first = hw::raw(x.base) + hw::row_bytes(x.dtype, static_cast<uint64_t>(column0));
  const auto which = [&](uint32_t k) {
    int32_t v;
    std::memcpy(&v, data(index, k / index.columns) + size_t{4} * (k % index.columns), 4);
    return v;
  };
  // Units that follow each other in memory are one box: pages of a cache mostly do.
  for (uint32_t r = 0; r < t.rows;) {
    const int32_t begin = which(r / unit);
    uint32_t rows = std::min(unit - r % unit, t.rows - r);
    while (r + rows < t.rows && which((r + rows) / unit) == begin + static_cast<int64_t>((r + rows) / unit - r / unit))
      rows += std::min(unit, t.rows - r - rows);
    const int64_t row = int64_t{begin} * unit + r % unit, last = row + rows - 1;
    const bool inside = begin >= 0 && last < x.shape[0];
    if (store || !inside || x.dtype != t.dtype ||
        !load_rows(t, r, rows, first + static_cast<uint64_t>(row) * stride, stride))
      for (uint32_t k = 0; k < rows; ++k) move_indexed_row(x, first, row + k, data(t, r + k), t, store, i);
    r += rows;
  }
}

// Outside it reads as zero and writes nothing.
void Core::move_indexed_row(const hw::TensorDescriptor& x, uint64_t first, int64_t row, std::byte* tile, const Tile& t,
                            bool store, const Instruction& i) {
  if (row < 0 || row >= x.shape[0]) {
    if (options_.check_bounds && row >= 0)
      throw Fault(Status::kOutOfBounds, "index %lld selects row %lld of a tensor of %u rows",
                  static_cast<long long>(row / static_cast<int64_t>(i.imm1)), static_cast<long long>(row), x.shape[0])
          .tile(i.t[1]);
    if (!store) fill_row(host_, scratch_[2].get(), tile, t.dtype, t.columns, 0);
    return;
  }
  const uint64_t address = first + static_cast<uint64_t>(row) * x.stride[0];
  move_row(x, address, tile, t.dtype, t.columns, store, false);
  count_traffic(address, hw::row_bytes(x.dtype, t.columns), store);
}

void Core::dma_copy(const Instruction& i) {
  const Tile& s = in(i, 1);
  const Tile& d = out(i, 0);
  const bool transposed = static_cast<hw::CopyOp>(i.sub) == hw::CopyOp::kTransposed;
  if (transposed ? d.rows != s.columns || d.columns != s.rows : d.rows != s.rows || d.columns != s.columns)
    throw Fault(Status::kTileFault, "DCPY %ux%u from %ux%u%s", d.rows, d.columns, s.rows, s.columns,
                transposed ? " transposed" : "")
        .tile(i.t[0]);
  dma_bytes_ += hw::row_bytes(s.dtype, s.columns) * s.rows;
  if (!transposed) {
    for (uint32_t r = 0; r < d.rows; ++r) {
      float* o = row_buffer(d, r, 1);
      std::memmove(o, load_row(s, r, 0), size_t{d.columns} * 4);
      store_row(d, r, o);
    }
    return;
  }
  std::vector<float> turned(size_t{d.rows} * d.columns);
  for (uint32_t r = 0; r < s.rows; ++r) {
    const float* in_row = load_row(s, r, 0);
    for (uint32_t c = 0; c < s.columns; ++c) turned[size_t{c} * d.columns + r] = in_row[c];
  }
  for (uint32_t r = 0; r < d.rows; ++r) store_row(d, r, turned.data() + size_t{r} * d.columns);
}

double Core::dma(const Instruction& i) {
  dma_bytes_ = 0;
  dma_latency_ = config_.hbm_latency_ns;
  const uint64_t host_before = tally_.host_bytes;
  switch (static_cast<Op>(i.op)) {
    case Op::DLD:
      dma_box(i, false);
      break;
    case Op::DST:
      dma_box(i, true);
      break;
    case Op::DGATHER:
      dma_rows(i, false);
      break;
    case Op::DSCATTER:
      dma_rows(i, true);
      break;
    case Op::DCPY:
      dma_copy(i);
      dma_latency_ = 0;
      break;
    default:
      throw Fault(Status::kIllegalInstruction, "opcode %u on a DMA engine", i.op);
  }
  const uint64_t host = tally_.host_bytes - host_before;
  double rate = config_.spm_bytes_per_cycle * config_.core_clock_ghz;  // bytes per ns
  if (i.op != uint8_t(Op::DCPY)) rate = std::min(rate, config_.hbm_gbytes_per_second / launch_->active_cores);
  if (host > 0)
    rate = std::min(rate, config_.host_gbytes_per_second / launch_->active_cores),
    dma_latency_ = config_.host_latency_ns;
  tally_.picojoules += static_cast<double>(dma_bytes_ - host) *
                           (i.op == uint8_t(Op::DCPY) ? config_.pj_per_spm_byte : config_.pj_per_hbm_byte) +
                       static_cast<double>(host) * config_.pj_per_host_byte;
  return static_cast<double>(dma_bytes_) / rate;
}

}  // namespace jalapeno::emu
