// The kernel builder: write a kernel in C++, get a module for jalModuleLoadData. Header-only, needs no device.
//
//   using namespace jalapeno::tile;
//   Builder k("scale");
//   auto x = k.tensor("x", f32, 1), y = k.tensor("y", f32, 1);
//   auto factor = k.scalar_f32("factor");
//   auto t = k.spm(f32, 1, 4096);
//   k.loop(k.pid_x() * 4096, x.dim(0), k.grid_x() * 4096, [&](Reg i) {
//     k.load(t, x, {i});
//     k.binary(BinaryOp::kMul, t, t, factor);
//     k.store(y, {i}, t);
//   });
//   std::vector<std::byte> module = write_module({k.finish()});
//
// Semaphores are automatic: the builder knows which bytes every instruction reads and writes, orders engines where
// they meet, and lets them run apart everywhere else. Give a tile Stages(2) and index it with the counter of the loop
// it is used in, and loads of the next iteration overlap with the work of this one. Registers and tile registers are
// reused when the last C++ copy of their handle is gone; handles must not outlive their Builder. Errors are BuildError
// and name what was exceeded and where. Not thread-safe; one Builder makes one kernel.
#pragma once
#include <array>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <jalapeno/tile_module.hpp>
#include <jalapeno_hw/isa.hpp>
#include <map>
#include <memory>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace jalapeno::tile {

using hw::ActOp;
using hw::BinaryOp;
using hw::Cond;
using hw::DType;
using hw::Instruction;
using hw::Op;
using hw::ReduceOp;
using hw::RopeOp;
using hw::TernaryOp;
using hw::UnaryOp;
inline constexpr DType f32 = DType::kF32, bf16 = DType::kBF16, f16 = DType::kF16, i8 = DType::kI8, i32 = DType::kI32,
                       q8_0 = DType::kQ8_0, q4_0 = DType::kQ4_0, e4m3 = DType::kE4M3, e5m2 = DType::kE5M2,
                       mxfp4 = DType::kMXFP4, mxfp8 = DType::kMXFP8;

// A place in a kernel's source: the caller's own, or one that another front end names (`file` must outlive the
// Builder).
struct Where {
  const char* file;
  uint32_t line;
  Where(const std::source_location& s) : file(s.file_name()), line(s.line()) {}  // NOLINT: the usual case
  Where(const char* f, uint32_t l) : file(f), line(l) {}
};
using Here = std::source_location;

class BuildError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Builder;

namespace detail {
struct Slot {  // a register that is returned when the last handle goes
  std::function<void(uint8_t)> give;
  uint8_t index;
  ~Slot() {
    if (give) give(index);
  }
};
}  // namespace detail

class Reg;
class Value;
Reg emit_scalar(hw::SaluOp op, const Reg& a, const Value& b);

// A 64-bit scalar register. Arithmetic emits instructions.
class Reg {
 public:
  uint8_t index() const {
    if (slot_ == nullptr) throw BuildError("a Reg that no Builder made");
    return slot_->index;
  }

 private:
  friend class Builder;
  friend Reg emit_scalar(hw::SaluOp op, const Reg& a, const Value& b);
  Builder* builder_ = nullptr;
  std::shared_ptr<detail::Slot> slot_;
};

// A register or a constant.
class Value {
 public:
  Value(const Reg& reg) : reg_(reg), constant_(0), is_reg_(true) {}  // NOLINT: both are values
  template <std::integral T>
  Value(T constant) : constant_(static_cast<int64_t>(constant)), is_reg_(false) {}  // NOLINT

 private:
  friend class Builder;
  Reg reg_;
  int64_t constant_;
  bool is_reg_;
};

using Coordinates = std::vector<Value>;  // one for each dimension of a tensor

struct Stages {
  uint32_t count;
  explicit Stages(uint32_t n) : count(n) {}
};

// A two-dimensional tile in scratchpad or accumulators.
class Tile {
 public:
  uint32_t rows() const { return rows_; }
  uint32_t columns() const { return columns_; }
  DType dtype() const { return dtype_; }
  // The memory alone, for overlay(): gives the tile register back.
  Tile memory() const {
    Tile t = *this;
    t.slot_ = nullptr;
    return t;
  }

 private:
  friend class Builder;
  friend class StagedTile;
  std::shared_ptr<detail::Slot> slot_;
  uint32_t buffer_ = 0, rows_ = 0, columns_ = 0, stages_ = 1;
  uint32_t offset_ = 0, bytes_ = 0;  // of the memory it was defined with
  hw::Space space_ = hw::Space::kSpm;
  uint32_t stage_loop_ = 0;  // id of the loop whose counter chose the stage, 0: none
  DType dtype_ = f32;
};

class StagedTile {
 public:
  // The buffer of this iteration; i is the counter of the innermost loop, which must count in steps of 1.
  Tile operator[](const Reg& i) const;

 private:
  friend class Builder;
  Builder* builder_ = nullptr;
  Tile base_;
  uint32_t bytes_ = 0;
};

class Tensor {
 public:
  Reg dim(uint32_t k) const;  // elements

 private:
  friend class Builder;
  Builder* builder_ = nullptr;
  uint32_t offset_ = 0, rank_ = 0, buffer_ = 0;
};

struct MmaOptions {
  bool accumulate = true;   // add to the accumulators
  bool rows_are_k = false;  // B is stored [K, N]
};

struct DrainOptions {
  ActOp act = ActOp::kNone;
  const Tile* row_scale = nullptr;     // 1 x N
  const Tile* column_scale = nullptr;  // M x 1
};

class Builder {
 public:
  explicit Builder(std::string name, Where where = Here::current()) : where_(where) {
    kernel_.name = std::move(name);
    kernel_.source = file_of(where);
    blocks_.emplace_back();
    open_.push_back(0);
    for (uint8_t r = hw::kRegisters - 1; r > 0; --r) free_registers_.push_back(r);
    for (int t = hw::kTiles - 1; t >= 0; --t) free_tiles_.push_back(static_cast<uint8_t>(t));
  }
  Builder(const Builder&) = delete;
  Builder& operator=(const Builder&) = delete;

  // ---- Arguments, in the order of the launch ----
  Tensor tensor(const std::string& name, DType dtype, uint32_t rank) {
    return add_tensor(name, static_cast<uint32_t>(dtype), rank);
  }
  Tensor any_tensor(const std::string& name, uint32_t rank) { return add_tensor(name, hw::kAnyDType, rank); }
  Reg scalar_i32(const std::string& name, Where w = Here::current()) {
    return add_scalar(name, hw::ArgumentKind::kI32, w);
  }
  Reg scalar_i64(const std::string& name, Where w = Here::current()) {
    return add_scalar(name, hw::ArgumentKind::kI64, w);
  }
  Reg scalar_f32(const std::string& name, Where w = Here::current()) {
    return add_scalar(name, hw::ArgumentKind::kF32, w);
  }

  // ---- Memory ----
  Tile spm(DType dtype, uint32_t rows, uint32_t columns, Where w = Here::current()) {
    return define(dtype, rows, columns, hw::Space::kSpm, 1, w);
  }
  StagedTile spm(DType dtype, uint32_t rows, uint32_t columns, Stages stages, Where w = Here::current()) {
    StagedTile s;
    s.builder_ = this;
    s.base_ = define(dtype, rows, columns, hw::Space::kSpm, stages.count, w);
    s.bytes_ = stage_bytes(dtype, rows, columns);
    return s;
  }
  Tile acc(uint32_t rows, uint32_t columns, DType dtype = f32, Where w = Here::current()) {
    return define(dtype, rows, columns, hw::Space::kAcc, 1, w);
  }
  // The memory of `tile` as another tile, for values whose lives do not overlap. Throws when it is too small.
  Tile overlay(const Tile& tile, DType dtype, uint32_t rows, uint32_t columns, Where w = Here::current()) {
    if (stage_bytes(dtype, rows, columns) > tile.bytes_)
      fail(w, "overlay of " + std::to_string(stage_bytes(dtype, rows, columns)) + " bytes on a tile of " +
                  std::to_string(tile.bytes_));
    return place(dtype, rows, columns, tile.space_, tile.offset_, tile.bytes_, tile.buffer_, 1, w);
  }
  // rows x columns of `tile` from (row, column) on; all may be registers.
  Tile slice(const Tile& tile, const Value& row, const Value& column, const Value& rows, const Value& columns,
             Where w = Here::current()) {
    Tile t = tile;
    t.slot_ = take_tile(w);
    const Reg r0 = reg(row, w), r1 = reg(column, w);
    Instruction i = make(Op::TSLICE);
    i.t[0] = index_of(t), i.t[1] = index_of(tile), i.r[0] = r0.index(), i.r[1] = r1.index();
    std::vector<Reg> hold{r0, r1};
    auto size = [&](const Value& v, uint32_t& shown, uint64_t& imm, uint8_t& r) {
      if (v.is_reg_)
        r = v.reg_.index();
      else
        imm = static_cast<uint64_t>(v.constant_), shown = static_cast<uint32_t>(v.constant_);
    };
    size(rows, t.rows_, i.imm0, i.r[2]), size(columns, t.columns_, i.imm1, i.r[3]);
    emit(i, {}, w);
    return t;
  }

  // ---- Scalars ----
  Reg pid_x(Where w = Here::current()) { return special(hw::Special::kPidX, w); }
  Reg pid_y(Where w = Here::current()) { return special(hw::Special::kPidY, w); }
  Reg pid_z(Where w = Here::current()) { return special(hw::Special::kPidZ, w); }
  Reg grid_x(Where w = Here::current()) { return special(hw::Special::kGridX, w); }
  Reg grid_y(Where w = Here::current()) { return special(hw::Special::kGridY, w); }
  Reg grid_z(Where w = Here::current()) { return special(hw::Special::kGridZ, w); }
  Reg constant(int64_t v, Where w = Here::current()) {
    Reg r = take_register(w);
    Instruction i = make(Op::MOVI);
    i.r[0] = r.index(), i.imm0 = static_cast<uint64_t>(v);
    emit(i, {}, w);
    return r;
  }
  Reg constant_f32(float v, Where w = Here::current()) { return constant(bits(v), w); }
  Reg scalar(hw::SaluOp op, const Value& a, const Value& b, Where w = Here::current()) {
    const Reg x = reg(a, w), r = take_register(w);
    Instruction i = make(Op::SALU);
    i.sub = static_cast<uint8_t>(op), i.r[0] = r.index(), i.r[1] = x.index();
    if (b.is_reg_)
      i.r[2] = b.reg_.index();
    else
      i.flags = hw::kFlagImmediate, i.imm0 = static_cast<uint64_t>(b.constant_);
    emit(i, {}, w);
    return r;
  }
  // to = value, for what a loop changes.
  void assign(const Reg& to, const Value& value, Where w = Here::current()) {
    Instruction i = make(value.is_reg_ ? Op::SALU : Op::MOVI);
    i.r[0] = to.index();
    if (value.is_reg_)
      i.sub = static_cast<uint8_t>(hw::SaluOp::kAdd), i.flags = hw::kFlagImmediate, i.r[1] = value.reg_.index();
    if (!value.is_reg_) i.imm0 = static_cast<uint64_t>(value.constant_);
    emit(i, {}, w);
  }
  Reg min(const Value& a, const Value& b, Where w = Here::current()) { return scalar(hw::SaluOp::kMin, a, b, w); }
  Reg max(const Value& a, const Value& b, Where w = Here::current()) { return scalar(hw::SaluOp::kMax, a, b, w); }
  Reg cdiv(const Value& a, const Value& b, Where w = Here::current()) { return scalar(hw::SaluOp::kCeilDiv, a, b, w); }
  // Element (row, column) of a tile, sign extended (floats: their bits). Waits for whoever writes the tile.
  Reg read(const Tile& tile, const Value& row, const Value& column, Where w = Here::current()) {
    const Reg a = reg(row, w), b = reg(column, w), r = take_register(w);
    Instruction i = make(Op::LDS);
    i.t[0] = index_of(tile), i.r[0] = r.index(), i.r[1] = a.index(), i.r[2] = b.index();
    emit(i, {{tile, false}}, w);
    return r;
  }
  void write(const Tile& tile, const Value& row, const Value& column, const Value& value, Where w = Here::current()) {
    const Reg a = reg(row, w), b = reg(column, w), v = reg(value, w);
    Instruction i = make(Op::STS);
    i.t[0] = index_of(tile), i.r[0] = v.index(), i.r[1] = a.index(), i.r[2] = b.index();
    emit(i, {{tile, true}}, w);
  }

  // ---- Control ----
  // for (i = begin; i < end; i += step) body(i)
  void loop(const Value& begin, const Value& end, const Value& step, const std::function<void(Reg)>& body,
            Where w = Here::current()) {
    body(begin_loop(begin, end, step, w));
    end_block(w);
  }
  void loop(const Value& begin, const Value& end, const std::function<void(Reg)>& body, Where w = Here::current()) {
    loop(begin, end, 1, body, w);
  }
  // Runs body when a cond b holds.
  void when(const Value& a, Cond cond, const Value& b, const std::function<void()>& body, Where w = Here::current()) {
    begin_when(a, cond, b, w);
    body();
    end_block(w);
  }
  // The same for front ends that have no function to pass: end_block() closes what was opened last. A register or tile
  // made before a loop must be held until the loop is closed: given back inside, its number could be taken again there,
  // and the next iteration would find something else in it.
  Reg begin_loop(const Value& begin, const Value& end, const Value& step, Where w = Here::current()) {
    const Reg b = reg(begin, w), e = reg(end, w), s = reg(step, w), counter = take_register(w);
    Instruction i = make(Op::LOOP);
    i.r[0] = counter.index(), i.r[1] = b.index(), i.r[2] = e.index(), i.r[3] = s.index();
    const bool unit = !step.is_reg_ && step.constant_ == 1;
    enter(i, w, unit ? counter.index() : hw::kNone);
    blocks_.back().counter = counter;
    return counter;
  }
  void begin_when(const Value& a, Cond cond, const Value& b, Where w = Here::current()) {
    static constexpr Cond kOpposite[] = {Cond::kNe, Cond::kEq, Cond::kGe, Cond::kGt, Cond::kLe, Cond::kLt};
    const Reg x = reg(a, w), y = reg(b, w);
    Instruction i = make(Op::BR);
    i.sub = static_cast<uint8_t>(kOpposite[static_cast<int>(cond)]), i.r[0] = x.index(), i.r[1] = y.index();
    enter(i, w, hw::kNone);
  }
  void end_block(Where w = Here::current()) {
    if (open_.size() == 1) fail(w, "end of a loop or condition that was not opened");
    blocks_[static_cast<size_t>(open_.back())].counter = Reg();
    open_.pop_back();
  }
  void trap(uint32_t code, Where w = Here::current()) {
    Instruction i = make(Op::TRAP);
    i.imm0 = code;
    emit(i, {}, w);
  }

  // ---- DMA: coordinates name the tile's first element in every dimension of the tensor ----
  void load(const Tile& to, const Tensor& from, const Coordinates& at, float fill = 0, Where w = Here::current()) {
    box(Op::DLD, from, at, to, false, fill, w);
  }
  void store(const Tensor& to, const Coordinates& at, const Tile& from, Where w = Here::current()) {
    box(Op::DST, to, at, from, false, 0, w);
  }
  void store_add(const Tensor& to, const Coordinates& at, const Tile& from, Where w = Here::current()) {
    box(Op::DST, to, at, from, true, 0, w);
  }
  // Row r of `to` is row index[r / unit] * unit + r % unit of `from`, columns from `column` on; an index outside reads
  // as 0.
  void gather(const Tile& to, const Tensor& from, const Tile& index, const Value& column, uint32_t unit = 1,
              Where w = Here::current()) {
    rows(Op::DGATHER, from, to, index, column, unit, w);
  }
  void scatter(const Tensor& to, const Tile& from, const Tile& index, const Value& column, uint32_t unit = 1,
               Where w = Here::current()) {
    rows(Op::DSCATTER, to, from, index, column, unit, w);
  }
  void copy(const Tile& to, const Tile& from, bool transposed = false, Where w = Here::current()) {
    Instruction i = make(Op::DCPY);
    i.queue = 3, i.sub = transposed, i.t[0] = index_of(to), i.t[1] = index_of(from);
    emit(i, {{from, false}, {to, true}}, w);
  }

  // ---- Matrix engine ----
  void zero(const Tile& acc, Where w = Here::current()) {
    Instruction i = make(Op::MINIT);
    i.t[0] = index_of(acc);
    emit(i, {{acc, true}}, w);
  }
  // acc[M, N] (+)= a[M, K] * b[N, K]
  void mma(const Tile& acc, const Tile& a, const Tile& b, MmaOptions o = {}, Where w = Here::current()) {
    Instruction i = make(Op::MMA);
    i.flags = static_cast<uint8_t>((o.accumulate ? hw::kFlagAccumulate : 0) | (o.rows_are_k ? hw::kFlagRowsAreK : 0));
    i.t[0] = index_of(acc), i.t[1] = index_of(a), i.t[2] = index_of(b);
    emit(i, {{a, false}, {b, false}, {acc, true}}, w);
  }
  void drain(const Tile& to, const Tile& acc, DrainOptions o = {}, Where w = Here::current()) {
    Instruction i = make(Op::MDRAIN);
    i.sub = static_cast<uint8_t>(o.act), i.t[0] = index_of(to), i.t[1] = index_of(acc);
    std::vector<Access> a{{acc, false}, {to, true}};
    if (o.row_scale) i.t[2] = index_of(*o.row_scale), a.push_back({*o.row_scale, false});
    if (o.column_scale) i.t[3] = index_of(*o.column_scale), a.push_back({*o.column_scale, false});
    emit(i, a, w);
  }

  // ---- Vector engine ----
  void unary(UnaryOp op, const Tile& to, const Tile& a, Where w = Here::current()) {
    vector(Op::VUNI, static_cast<uint8_t>(op), {to}, {a}, w);
  }
  void convert(const Tile& to, const Tile& a, Where w = Here::current()) { unary(UnaryOp::kCopy, to, a, w); }
  // b may be 1 x N or M x 1; reverse: b op a
  void binary(BinaryOp op, const Tile& to, const Tile& a, const Tile& b, Where w = Here::current()) {
    vector(Op::VBIN, static_cast<uint8_t>(op), {to}, {a, b}, w);
  }
  void binary_reverse(BinaryOp op, const Tile& to, const Tile& a, const Tile& b, Where w = Here::current()) {
    vector(Op::VBIN, static_cast<uint8_t>(op), {to}, {a, b}, w, hw::kFlagReverse);
  }
  // b holds f32 bits
  void binary(BinaryOp op, const Tile& to, const Tile& a, const Reg& b, bool reverse = false,
              Where w = Here::current()) {
    Instruction i = make(Op::VBIN);
    i.sub = static_cast<uint8_t>(op),
    i.flags = static_cast<uint8_t>(hw::kFlagScalar | (reverse ? hw::kFlagReverse : 0));
    i.t[0] = index_of(to), i.t[1] = index_of(a), i.r[0] = b.index();
    emit(i, {{a, false}, {to, true}}, w);
  }
  void binary(BinaryOp op, const Tile& to, const Tile& a, float b, bool reverse = false, Where w = Here::current()) {
    binary(op, to, a, constant_f32(b, w), reverse, w);
  }
  void add(const Tile& to, const Tile& a, const Tile& b, Where w = Here::current()) {
    binary(BinaryOp::kAdd, to, a, b, w);
  }
  void mul(const Tile& to, const Tile& a, const Tile& b, Where w = Here::current()) {
    binary(BinaryOp::kMul, to, a, b, w);
  }
  void ternary(TernaryOp op, const Tile& to, const Tile& a, const Tile& b, const Tile& c, Where w = Here::current()) {
    vector(Op::VTER, static_cast<uint8_t>(op), {to}, {a, b, c}, w);
  }
  // Keeps element (r, c) where c + column0 < limit + r * step.
  void mask(const Tile& to, const Tile& a, const Value& column0, const Value& limit, uint32_t step, float fill,
            Where w = Here::current()) {
    const Reg c = reg(column0, w), l = reg(limit, w);
    Instruction i = make(Op::VMASK);
    i.t[0] = index_of(to), i.t[1] = index_of(a), i.r[0] = c.index(), i.r[1] = l.index(), i.imm0 = step,
    i.imm1 = static_cast<uint64_t>(bits(fill));
    emit(i, {{a, false}, {to, true}}, w);
  }
  void reduce(ReduceOp op, const Tile& to, const Tile& a, Where w = Here::current()) {
    vector(Op::VRED, static_cast<uint8_t>(op), {to}, {a}, w);
  }
  void rmsnorm(const Tile& to, const Tile& a, const Tile& weight, const Reg& eps, Where w = Here::current()) {
    Instruction i = make(Op::VNORM);
    i.t[0] = index_of(to), i.t[1] = index_of(a), i.t[2] = index_of(weight), i.r[0] = eps.index();
    emit(i, {{a, false}, {weight, false}, {to, true}}, w);
  }
  void rope(RopeOp op, const Tile& to, const Tile& a, const Tile& cosine, const Tile& sine, uint32_t head,
            uint32_t rotated, Where w = Here::current()) {
    Instruction i = make(Op::VROPE);
    i.sub = static_cast<uint8_t>(op), i.imm0 = head, i.imm1 = rotated;
    i.t[0] = index_of(to), i.t[1] = index_of(a), i.t[2] = index_of(cosine), i.t[3] = index_of(sine);
    emit(i, {{a, false}, {cosine, false}, {sine, false}, {to, true}}, w);
  }
  // One step of online softmax: state is M x 3 (max, sum, correction); start it at -inf, 0, 0.
  void softmax_step(const Tile& p, const Tile& scores, const Tile& state, const Reg& scale, Where w = Here::current()) {
    Instruction i = make(Op::VSMX);
    i.t[0] = index_of(p), i.t[1] = index_of(scores), i.t[2] = index_of(state), i.r[0] = scale.index();
    emit(i, {{scores, false}, {state, true}, {p, true}}, w);
  }
  void glu(ActOp act, const Tile& to, const Tile& gate, const Tile& up, Where w = Here::current()) {
    vector(Op::VGLU, static_cast<uint8_t>(act), {to}, {gate, up}, w);
  }
  // values M x k f32, indices M x k i32; merge keeps what they hold as candidates
  void top_k(const Tile& values, const Tile& indices, const Tile& a, const Value& base, bool merge,
             Where w = Here::current()) {
    const Reg b = reg(base, w);
    Instruction i = make(Op::VTOPK);
    i.flags = merge ? hw::kFlagAccumulate : 0;
    i.t[0] = index_of(values), i.t[1] = index_of(indices), i.t[2] = index_of(a), i.r[0] = b.index();
    emit(i, {{a, false}, {values, true}, {indices, true}}, w);
  }
  void uniform(const Tile& to, const Value& seed, const Value& counter, Where w = Here::current()) {
    const Reg s = reg(seed, w), c = reg(counter, w);
    Instruction i = make(Op::VRNG);
    i.t[0] = index_of(to), i.r[0] = s.index(), i.r[1] = c.index();
    emit(i, {{to, true}}, w);
  }
  void scan(const Tile& to, const Tile& a, Where w = Here::current()) { vector(Op::VSCAN, 0, {to}, {a}, w); }
  void iota(const Tile& to, const Value& start, int64_t row_step, int64_t column_step, Where w = Here::current()) {
    const Reg s = reg(start, w);
    Instruction i = make(Op::VIOTA);
    i.t[0] = index_of(to), i.r[0] = s.index(), i.imm0 = static_cast<uint64_t>(row_step),
    i.imm1 = static_cast<uint64_t>(column_step);
    emit(i, {{to, true}}, w);
  }
  void fill(const Tile& to, float value, Where w = Here::current()) {
    Instruction i = make(Op::VFILL);
    i.t[0] = index_of(to), i.imm0 = static_cast<uint64_t>(bits(value));
    emit(i, {{to, true}}, w);
  }

  // Places semaphores and gives the kernel away; the builder is empty afterwards.
  KernelCode finish(Where w = Here::current()) {
    if (finished_) throw BuildError("kernel " + kernel_.name + ": finish() was called before");
    finished_ = true;
    if (open_.size() != 1) throw BuildError("kernel " + kernel_.name + ": finish() inside a loop");
    semaphore_ = 0;
    lower(blocks_[0]);
    join_all(w.line);
    put(make(Op::HALT), w.line);
    kernel_.argument_bytes = argument_bytes_;
    kernel_.spm_bytes = spm_used_, kernel_.acc_bytes = acc_used_;
    KernelCode done = std::move(kernel_);
    kernel_.name = done.name;
    return done;
  }

 private:
  friend class Reg;
  friend class StagedTile;
  friend class Tensor;
  friend Reg emit_scalar(hw::SaluOp op, const Reg& a, const Value& b);

  struct Access {
    Tile tile;
    bool write;
  };
  struct Touch {  // what an instruction does to a buffer
    uint32_t buffer, stages, stage_loop;
    bool write;
  };
  struct Item {  // an instruction, or a block behind LOOP or BR
    Instruction instruction;
    std::vector<Touch> touches;
    uint32_t line = 0;
    int block = -1;
  };
  struct Block {
    std::vector<Item> items;
    uint32_t loop_id = 0;  // 0: not a loop
    uint8_t unit_counter = hw::kNone;
    bool leaf = true;
    Reg counter;  // of an open loop; its bounds are read once, at LOOP
  };
  struct Edge {
    size_t from, to;
    uint32_t distance;  // iterations; 0 within one
    uint8_t semaphore;
  };

  uint8_t index_of(const Tile& t) const {
    if (t.slot_ == nullptr) fail(where_, "a tile that no Builder made");
    return t.slot_->index;
  }
  static std::string file_of(const Where& w) {
    const std::string path = w.file;
    return path.substr(path.find_last_of('/') + 1);
  }
  static int64_t bits(float f) {
    uint32_t b;
    std::memcpy(&b, &f, 4);
    return b;
  }
  static Instruction make(Op op) {
    Instruction i{};
    i.op = static_cast<uint8_t>(op);
    for (int k = 0; k < 4; ++k) i.t[k] = i.r[k] = hw::kNone;
    for (int k = 0; k < 2; ++k) i.wait[k] = i.signal[k] = hw::kNone;
    return i;
  }
  [[noreturn]] void fail(const Where& w, const std::string& what) const {
    throw BuildError("kernel " + kernel_.name + ", " + file_of(w) + ":" + std::to_string(w.line) + ": " + what);
  }

  Reg take_register(const Where& w) {
    Reg r;
    r.builder_ = this;
    r.slot_ = std::shared_ptr<detail::Slot>(new detail::Slot{nullptr, 0});
    if (free_registers_.empty()) fail(w, "more than 31 registers are alive");
    r.slot_->index = free_registers_.back();
    free_registers_.pop_back();
    r.slot_->give = [this](uint8_t i) { free_registers_.push_back(i); };
    return r;
  }
  std::shared_ptr<detail::Slot> take_tile(const Where& w) {
    if (free_tiles_.empty()) fail(w, "more than " + std::to_string(hw::kTiles) + " tiles are alive");
    auto slot = std::shared_ptr<detail::Slot>(new detail::Slot{nullptr, free_tiles_.back()});
    free_tiles_.pop_back();
    slot->give = [this](uint8_t i) { free_tiles_.push_back(i); };
    return slot;
  }
  Reg reg(const Value& v, const Where& w) {
    if (v.is_reg_) return v.reg_;
    if (v.constant_ != 0) return constant(v.constant_, w);
    Reg zero;  // R0
    zero.builder_ = this;
    zero.slot_ = std::shared_ptr<detail::Slot>(new detail::Slot{nullptr, 0});
    return zero;
  }
  Reg special(hw::Special s, const Where& w) {
    Reg r = take_register(w);
    Instruction i = make(Op::SPR);
    i.sub = static_cast<uint8_t>(s), i.r[0] = r.index();
    emit(i, {}, w);
    return r;
  }

  Tensor add_tensor(const std::string& name, uint32_t dtype, uint32_t rank) {
    if (rank < 1 || rank > 4)
      throw BuildError("kernel " + kernel_.name + ": tensor " + name + " of rank " + std::to_string(rank) +
                       ", expected 1 to 4");
    Tensor t;
    t.builder_ = this, t.rank_ = rank,
    t.offset_ = add_argument(name, hw::ArgumentKind::kTensor, dtype, rank, sizeof(hw::TensorDescriptor));
    t.buffer_ = next_buffer_++;
    return t;
  }
  Reg add_scalar(const std::string& name, hw::ArgumentKind kind, const Where& w) {
    return load_argument(add_argument(name, kind, 0, 0, 8),
                         kind == hw::ArgumentKind::kI32 ? hw::LoadKind::kI32 : hw::LoadKind::kU64, w);
  }
  uint32_t add_argument(const std::string& name, hw::ArgumentKind kind, uint32_t dtype, uint32_t rank, uint32_t bytes) {
    if (argument_bytes_ + bytes > hw::kArgumentBytes)
      throw BuildError("kernel " + kernel_.name + ": more than " + std::to_string(hw::kArgumentBytes) +
                       " argument bytes");
    kernel_.arguments.push_back({name, kind, argument_bytes_, dtype, rank});
    argument_bytes_ += bytes;
    return argument_bytes_ - bytes;
  }
  Reg load_argument(uint32_t offset, hw::LoadKind kind, const Where& w) {
    Reg r = take_register(w);
    Instruction i = make(Op::LDARG);
    i.sub = static_cast<uint8_t>(kind), i.r[0] = r.index(), i.imm0 = offset;
    emit(i, {}, w);
    return r;
  }

  static uint32_t stage_bytes(DType dtype, uint32_t rows, uint32_t columns) {
    return (static_cast<uint32_t>(hw::row_bytes(dtype, columns)) * rows + 63) & ~63u;
  }
  Tile define(DType dtype, uint32_t rows, uint32_t columns, hw::Space space, uint32_t stages, const Where& w) {
    const bool good = rows > 0 && columns > 0 && rows < 65536 && columns < 65536 && stages > 0 &&
                      columns % hw::info(dtype).block == 0;
    if (!good)
      fail(w, "tile of " + std::to_string(rows) + " x " + std::to_string(columns) + " " + hw::info(dtype).name +
                  " with " + std::to_string(stages) + " stages");
    uint32_t& used = space == hw::Space::kSpm ? spm_used_ : acc_used_;
    const uint64_t wanted = used + hw::row_bytes(dtype, columns) * rows * stages;
    if (wanted > uint64_t{1} << 28)
      fail(w, "tiles of " + std::to_string(wanted) + " bytes; no core has more than " + std::to_string(1 << 28));
    const uint32_t offset = used, bytes = stage_bytes(dtype, rows, columns);
    used += bytes * stages;
    return place(dtype, rows, columns, space, offset, bytes, next_buffer_++, stages, w);
  }
  Tile place(DType dtype, uint32_t rows, uint32_t columns, hw::Space space, uint32_t offset, uint32_t bytes,
             uint32_t buffer, uint32_t stages, const Where& w) {
    const hw::TileDescriptor d{offset,
                               static_cast<uint32_t>(hw::row_bytes(dtype, columns)),
                               static_cast<uint16_t>(rows),
                               static_cast<uint16_t>(columns),
                               dtype,
                               space,
                               0};
    Tile t;
    t.slot_ = take_tile(w), t.buffer_ = buffer, t.rows_ = rows, t.columns_ = columns, t.dtype_ = dtype;
    t.stages_ = stages, t.space_ = space, t.offset_ = offset, t.bytes_ = bytes;
    Instruction i = make(Op::TDEF);
    i.t[0] = index_of(t);
    std::memcpy(&i.imm0, &d, 8);
    std::memcpy(&i.imm1, reinterpret_cast<const char*>(&d) + 8, 8);
    emit(i, {}, w);
    return t;
  }
  Tile stage(const StagedTile& s, const Reg& i, const Where& w) {
    Tile t = s.base_;
    t.slot_ = take_tile(w);
    const Block& block = blocks_[static_cast<size_t>(open_.back())];
    t.stage_loop_ = block.unit_counter == i.index() ? block.loop_id : 0;
    Instruction x = make(Op::TSTAGE);
    x.t[0] = index_of(t), x.t[1] = index_of(s.base_), x.r[0] = i.index(), x.imm0 = s.bytes_, x.imm1 = s.base_.stages_;
    emit(x, {}, w);
    return t;
  }

  void box(Op op, const Tensor& tensor, const Coordinates& at, const Tile& tile, bool add, float fill_value,
           const Where& w) {
    if (at.size() != tensor.rank_)
      fail(w, std::to_string(at.size()) + " coordinates for a tensor of rank " + std::to_string(tensor.rank_));
    Instruction i = make(op);
    std::vector<Reg> hold;
    for (const Value& v : at) {
      hold.push_back(reg(v, w));
      i.r[hold.size() - 1] = hold.back().index();
    }
    const bool is_store = op == Op::DST;
    i.queue = is_store ? 2 : tile.buffer_ % 2;
    i.flags = add ? hw::kFlagAccumulate : 0;
    i.t[0] = index_of(tile), i.imm0 = tensor.offset_;
    if (!is_store) i.imm1 = static_cast<uint64_t>(bits(fill_value));
    emit(i, {{tile, !is_store}}, w, tensor.buffer_, is_store);
  }
  void rows(Op op, const Tensor& tensor, const Tile& tile, const Tile& index, const Value& column, uint32_t unit,
            const Where& w) {
    const Reg c = reg(column, w);
    Instruction i = make(op);
    const bool is_store = op == Op::DSCATTER;
    i.queue = is_store ? 2 : tile.buffer_ % 2;
    i.t[0] = index_of(tile), i.t[1] = index_of(index), i.r[0] = c.index(), i.imm0 = tensor.offset_, i.imm1 = unit;
    emit(i, {{tile, !is_store}, {index, false}}, w, tensor.buffer_, is_store);
  }
  void vector(Op op, uint8_t sub, std::initializer_list<Tile> out, std::initializer_list<Tile> in, const Where& w,
              uint8_t flags = 0) {
    Instruction i = make(op);
    i.sub = sub, i.flags = flags;
    std::vector<Access> a;
    int k = 0;
    for (const Tile& t : out) i.t[k++] = index_of(t), a.push_back({t, true});
    for (const Tile& t : in) i.t[k++] = index_of(t), a.push_back({t, false});
    emit(i, a, w);
  }

  void emit(const Instruction& i, const std::vector<Access>& accesses, const Where& w, uint32_t tensor_buffer = 0,
            bool tensor_write = false) {
    where_ = w;
    Item item;
    item.instruction = i;
    item.line = w.line;
    for (const Access& a : accesses)
      item.touches.push_back({a.tile.buffer_, a.tile.stages_, a.tile.stage_loop_, a.write});
    if (tensor_buffer != 0) item.touches.push_back({tensor_buffer, 1, 0, tensor_write});
    blocks_[static_cast<size_t>(open_.back())].items.push_back(std::move(item));
  }
  void enter(const Instruction& head, const Where& w, uint8_t unit_counter) {
    emit(head, {}, w);
    Block& outer = blocks_[static_cast<size_t>(open_.back())];
    outer.items.back().block = static_cast<int>(blocks_.size());
    outer.leaf = false;
    const bool is_loop = head.op == static_cast<uint8_t>(Op::LOOP);
    const int index = static_cast<int>(blocks_.size());
    blocks_.emplace_back();
    if (is_loop) blocks_.back().loop_id = next_loop_++, blocks_.back().unit_counter = unit_counter;
    open_.push_back(index);
  }

  // ---- Lowering: straight-line runs get edges, blocks are fenced by joins, leaf loops are pipelined ----
  static size_t engine(const Instruction& i) { return static_cast<size_t>(hw::engine_of(i)); }
  uint8_t new_semaphore(uint32_t line) {
    if (semaphore_ >= hw::kSemaphores)
      throw BuildError("kernel " + kernel_.name + ", line " + std::to_string(line) + ": needs more than " +
                       std::to_string(hw::kSemaphores) + " semaphores at once; split the loop body");
    return semaphore_++;
  }
  size_t put(const Instruction& i, uint32_t line) {
    kernel_.code.push_back(i);
    kernel_.lines.push_back(line);
    return kernel_.code.size() - 1;
  }
  void put_semaphore(Op op, size_t queue, uint8_t semaphore, uint64_t n, uint32_t line) {
    Instruction i = make(op);
    i.queue = static_cast<uint8_t>(queue);
    (op == Op::WAIT ? i.wait : i.signal)[0] = semaphore;
    i.imm0 = n;
    put(i, line);
  }
  // The sequencer waits until every engine with work since the last join is done.
  void join_all(uint32_t line) {
    for (size_t e = 1; e < hw::kEngines; ++e) {
      if (!dirty_[e]) continue;
      // All semaphores but those a surrounding loop holds are free here.
      const uint8_t s = new_semaphore(line);
      put_semaphore(Op::SIGNAL, e, s, 1, line);
      put_semaphore(Op::WAIT, 0, s, 1, line);
      dirty_[e] = false;
      --semaphore_;  // zero again
    }
  }

  static bool conflict(const Item& a, const Item& b, uint32_t loop_id, uint32_t& distance) {
    bool found = false;
    distance = ~0u;
    for (const Touch& x : a.touches)
      for (const Touch& y : b.touches) {
        if (x.buffer != y.buffer || (!x.write && !y.write)) continue;
        const bool staged = loop_id != 0 && x.stage_loop == loop_id && y.stage_loop == loop_id;
        distance = std::min(distance, staged ? x.stages : 1u);
        found = true;
      }
    return found;
  }

  // Edges of a run of instructions, without semaphores yet; loop_id != 0 adds those into later iterations.
  std::vector<Edge> edges_of(const std::vector<const Item*>& run, uint32_t loop_id) {
    // For each target and source engine: the strongest wait, as (distance, -from): smaller distance, later source.
    std::vector<std::map<size_t, std::pair<uint32_t, size_t>>> wants(run.size());
    auto want = [&](size_t from, size_t to, uint32_t distance) {
      const size_t source = engine(run[from]->instruction), target = engine(run[to]->instruction);
      if (source == target || source == 0) return;  // same queue, or issued later anyway
      auto [it, fresh] = wants[to].try_emplace(source, distance, from);
      if (fresh) return;
      if (distance < it->second.first || (distance == it->second.first && from > it->second.second))
        it->second = {distance, from};
    };
    for (size_t to = 0; to < run.size(); ++to)
      for (size_t from = 0; from < run.size(); ++from) {
        uint32_t distance;
        if (from == to || !conflict(*run[from], *run[to], loop_id, distance)) continue;
        if (from < to)
          want(from, to, 0);
        else if (loop_id != 0)
          want(from, to, distance);
      }
    // An earlier instruction of the same queue that waits for as much makes a wait redundant.
    std::vector<Edge> edges;
    std::map<std::pair<size_t, size_t>, std::vector<std::pair<uint32_t, size_t>>> seen;
    for (size_t to = 0; to < run.size(); ++to)
      for (const auto& [source, wish] : wants[to]) {
        auto& before = seen[{source, engine(run[to]->instruction)}];
        bool covered = false;
        for (const auto& [distance, from] : before)
          covered |= distance < wish.first || (distance == wish.first && from >= wish.second);
        if (covered) continue;
        before.push_back(wish);
        edges.push_back({wish.second, to, wish.first, hw::kNone});
      }
    return edges;
  }

  // One is left over for join_all.
  bool fit(const std::vector<Edge>& edges) const { return edges.size() + 1 <= hw::kSemaphores - size_t{semaphore_}; }
  void give_semaphores(std::vector<Edge>& edges, uint32_t line) {
    for (Edge& x : edges) x.semaphore = new_semaphore(line);
  }
  // Straight code; where semaphores run out, everything waits for everything in its middle.
  void lower_run(const std::vector<const Item*>& run) {
    if (run.empty()) return;
    std::vector<Edge> edges = edges_of(run, 0);
    if (!fit(edges)) {
      const uint8_t base = semaphore_;
      const auto middle = run.begin() + static_cast<std::ptrdiff_t>(run.size() / 2);
      lower_run({run.begin(), middle});
      join_all((*middle)->line);
      semaphore_ = base;
      lower_run({middle, run.end()});
      return;
    }
    give_semaphores(edges, run.back()->line);
    put_run(run, edges);
  }

  void put_run(const std::vector<const Item*>& run, const std::vector<Edge>& edges) {
    for (size_t k = 0; k < run.size(); ++k) {
      Instruction i = run[k]->instruction;
      const size_t e = engine(i);
      std::vector<uint8_t> waits, signals;
      for (const Edge& x : edges) {
        if (x.to == k) waits.push_back(x.semaphore);
        if (x.from == k) signals.push_back(x.semaphore);
      }
      for (size_t n = 2; n < waits.size(); ++n) put_semaphore(Op::WAIT, e, waits[n], 1, run[k]->line);
      for (size_t n = 0; n < std::min<size_t>(2, waits.size()); ++n) i.wait[n] = waits[n];
      for (size_t n = 0; n < std::min<size_t>(2, signals.size()); ++n) i.signal[n] = signals[n];
      put(i, run[k]->line);
      for (size_t n = 2; n < signals.size(); ++n) put_semaphore(Op::SIGNAL, e, signals[n], 1, run[k]->line);
      if (e != 0) dirty_[e] = true;
    }
  }

  void lower(const Block& block) {
    const uint8_t base = semaphore_;
    std::vector<const Item*> run;
    auto flush = [&] {
      lower_run(run);
      run.clear();
    };
    for (const Item& item : block.items) {
      if (item.block < 0) {
        run.push_back(&item);
        continue;
      }
      flush();
      join_all(item.line);
      semaphore_ = base;
      const Block& inner = blocks_[static_cast<size_t>(item.block)];
      if (inner.loop_id == 0) {
        const size_t head = put(item.instruction, item.line);
        lower(inner);
        join_all(item.line);
        kernel_.code[head].imm1 = kernel_.code.size();
      } else {
        lower_loop(item, inner);
      }
      semaphore_ = base;
    }
    flush();
  }

  void lower_loop(const Item& head_item, const Block& body) {
    std::vector<const Item*> run;
    std::vector<Edge> edges;
    if (body.leaf) {
      for (const Item& item : body.items) run.push_back(&item);
      edges = edges_of(run, body.loop_id);
    }
    if (!body.leaf || !fit(edges)) {
      const size_t head = put(head_item.instruction, head_item.line);
      lower(body);
      join_all(head_item.line);
      close_loop(head, head_item.line);
      return;
    }
    give_semaphores(edges, head_item.line);
    for (const Edge& x : edges)
      if (x.distance > 0) put_semaphore(Op::SIGNAL, 0, x.semaphore, x.distance, head_item.line);
    const size_t head = put(head_item.instruction, head_item.line);
    put_run(run, edges);
    close_loop(head, head_item.line);
    for (const Edge& x : edges)
      if (x.distance > 0) put_semaphore(Op::WAIT, 0, x.semaphore, x.distance, head_item.line);
    join_all(head_item.line);
  }
  void close_loop(size_t head, uint32_t line) {
    Instruction end = make(Op::ENDL);
    end.imm0 = head;
    kernel_.code[head].imm0 = put(end, line);
  }

  Where where_;  // of the last instruction
  KernelCode kernel_;
  std::vector<uint8_t> free_registers_, free_tiles_;  // outlive the handles in blocks_
  std::vector<Block> blocks_;
  std::vector<int> open_;
  uint32_t argument_bytes_ = 0, spm_used_ = 0, acc_used_ = 0, next_buffer_ = 1, next_loop_ = 1;
  uint8_t semaphore_ = 0;
  bool finished_ = false;
  std::array<bool, hw::kEngines> dirty_{};
};

// Operators have no place for a source location: they count as part of the line before them.
inline Tile StagedTile::operator[](const Reg& i) const {
  if (builder_ == nullptr) throw BuildError("a tile that no Builder made");
  return builder_->stage(*this, i, builder_->where_);
}
inline Reg Tensor::dim(uint32_t k) const {
  if (builder_ == nullptr) throw BuildError("dim() of a tensor that no Builder made");
  if (k >= rank_)
    builder_->fail(builder_->where_,
                   "dimension " + std::to_string(k) + " of a tensor of rank " + std::to_string(rank_));
  return builder_->load_argument(offset_ + 16 + 4 * k, hw::LoadKind::kU32, builder_->where_);
}
inline Reg emit_scalar(hw::SaluOp op, const Reg& a, const Value& b) {
  return a.builder_->scalar(op, a, b, a.builder_->where_);
}
inline Reg operator+(const Reg& a, const Value& b) { return emit_scalar(hw::SaluOp::kAdd, a, b); }
inline Reg operator-(const Reg& a, const Value& b) { return emit_scalar(hw::SaluOp::kSub, a, b); }
inline Reg operator*(const Reg& a, const Value& b) { return emit_scalar(hw::SaluOp::kMul, a, b); }
inline Reg operator/(const Reg& a, const Value& b) { return emit_scalar(hw::SaluOp::kDiv, a, b); }
inline Reg operator%(const Reg& a, const Value& b) { return emit_scalar(hw::SaluOp::kMod, a, b); }

}  // namespace jalapeno::tile
