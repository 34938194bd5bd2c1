#include "core.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "checker.hpp"
#include "fault.hpp"
#include "mapping.hpp"
#include "words.hpp"

namespace jalapeno::emu {
namespace {

using hw::Instruction;
using hw::Op;
using hw::Status;

// Zeroed, in huge pages where there are any: touching four megabytes page by page costs more than a process's start.
size_t rounded(uint32_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }
std::byte* allocate(uint32_t bytes) {
  std::byte* p = at_huge_page(rounded(bytes), PROT_READ | PROT_WRITE);
  if (p == nullptr) throw std::bad_alloc();
  madvise(p, rounded(bytes), MADV_HUGEPAGE);
  return p;
}
void release(std::byte* p, uint32_t bytes) { munmap(p, rounded(bytes)); }

[[noreturn]] void divide_by_zero() { throw Fault(Status::kDivideByZero, "integer division by zero"); }

int64_t scalar(hw::SaluOp op, int64_t a, int64_t b) {
  using S = hw::SaluOp;
  const uint64_t ua = static_cast<uint64_t>(a), ub = static_cast<uint64_t>(b);
  switch (op) {  // unsigned arithmetic: overflow wraps
    case S::kAdd:
      return static_cast<int64_t>(ua + ub);
    case S::kSub:
      return static_cast<int64_t>(ua - ub);
    case S::kMul:
      return static_cast<int64_t>(ua * ub);
    case S::kDiv:
    case S::kMod:
    case S::kCeilDiv: {
      if (b == 0) divide_by_zero();
      if (b == -1) return op == S::kMod ? 0 : static_cast<int64_t>(0 - ua);
      int64_t quotient = a / b, rest = a % b;
      if (op == S::kDiv) return quotient;
      if (op == S::kMod) return rest;
      return quotient + (rest != 0 && (rest > 0) == (b > 0));
    }
    case S::kAnd:
      return a & b;
    case S::kOr:
      return a | b;
    case S::kXor:
      return a ^ b;
    case S::kShl:
      return static_cast<int64_t>(ua << (ub & 63));
    case S::kShr:
      return a >> (ub & 63);
    case S::kMin:
      return std::min(a, b);
    case S::kMax:
      return std::max(a, b);
    case S::kFAdd:
      return float_bits(as_float(ua) + as_float(ub));
    case S::kFSub:
      return float_bits(as_float(ua) - as_float(ub));
    case S::kFMul:
      return float_bits(as_float(ua) * as_float(ub));
    case S::kFDiv:
      return float_bits(as_float(ua) / as_float(ub));
    case S::kIntToFloat:
      return float_bits(static_cast<float>(a));
    case S::kFloatToInt: {
      float f = as_float(ua);
      return f >= 9.2e18f ? INT64_MAX : f <= -9.2e18f ? INT64_MIN : f != f ? 0 : static_cast<int64_t>(f);
    }
  }
  return 0;
}

bool holds(hw::Cond c, int64_t a, int64_t b) {
  switch (c) {
    case hw::Cond::kEq:
      return a == b;
    case hw::Cond::kNe:
      return a != b;
    case hw::Cond::kLt:
      return a < b;
    case hw::Cond::kLe:
      return a <= b;
    case hw::Cond::kGt:
      return a > b;
    case hw::Cond::kGe:
      return a >= b;
  }
  return false;
}

}  // namespace

Program prepare(const Instruction* code, uint32_t count) {
  Program p;
  p.steps.reserve(count);
  std::array<bool, hw::kSemaphores> named{};
  auto illegal = [](uint32_t at, const char* why, uint64_t value) {
    Fault f(Status::kIllegalInstruction, "instruction %u: %s (%llu)", at, why, static_cast<unsigned long long>(value));
    f.record.instruction = at, f.record.value = value;
    return f;
  };
  for (uint32_t i = 0; i < count; ++i) {
    const Instruction& x = code[i];
    const hw::OpInfo* op = hw::find_op(x.op);
    if (op == nullptr) throw illegal(i, "unknown opcode", x.op);
    const hw::SubNames subs = hw::sub_names(static_cast<Op>(x.op));
    if (x.sub >= std::max<size_t>(subs.count, 1)) throw illegal(i, "unknown variant", x.sub);
    for (int k = 0; k < 4; ++k) {
      if (x.t[k] != hw::kNone && x.t[k] >= hw::kTiles) throw illegal(i, "tile register out of range", x.t[k]);
      if (x.r[k] != hw::kNone && x.r[k] >= hw::kRegisters) throw illegal(i, "register out of range", x.r[k]);
    }
    for (int k = 0; k < 2; ++k) {
      if (x.wait[k] != hw::kNone && x.wait[k] >= hw::kSemaphores) throw illegal(i, "semaphore out of range", x.wait[k]);
      if (x.signal[k] != hw::kNone && x.signal[k] >= hw::kSemaphores)
        throw illegal(i, "semaphore out of range", x.signal[k]);
    }
    // Operands that must be present. MDRAIN's vectors, VBIN's tile beside a register and its like are optional.
    const uint32_t tiles = op->code == uint8_t(Op::MDRAIN)                                ? 2
                           : op->code == uint8_t(Op::VBIN) && (x.flags & hw::kFlagScalar) ? 2
                                                                                          : op->tiles;
    for (uint32_t k = 0; k < tiles; ++k)
      if (x.t[k] == hw::kNone) throw illegal(i, "missing tile operand", k);
    if (op->engine == hw::EngineClass::Dma && x.queue > 3) throw illegal(i, "DMA queue out of range", x.queue);
    switch (static_cast<Op>(x.op)) {
      case Op::WAIT:
        if (x.wait[0] == hw::kNone || x.queue >= hw::kEngines)
          throw illegal(i, "WAIT without semaphore or engine", x.queue);
        break;
      case Op::SIGNAL:
        if (x.signal[0] == hw::kNone || x.queue >= hw::kEngines)
          throw illegal(i, "SIGNAL without semaphore or engine", x.queue);
        break;
      case Op::BR:
        if (x.imm1 <= i || x.imm1 >= count) throw illegal(i, "branch target not ahead in the program", x.imm1);
        break;
      case Op::LOOP:
        if (x.r[0] == hw::kNone) throw illegal(i, "LOOP without a counter", 0);
        if (x.imm0 <= i || x.imm0 >= count || code[x.imm0].op != uint8_t(Op::ENDL))
          throw illegal(i, "LOOP without its ENDL", x.imm0);
        break;
      case Op::ENDL:
        if (x.imm0 >= i || code[x.imm0].op != uint8_t(Op::LOOP)) throw illegal(i, "ENDL without its LOOP", x.imm0);
        break;
      case Op::MOVI:
      case Op::SALU:
      case Op::SPR:
      case Op::LDARG:
      case Op::LDS:
        if (x.r[0] == hw::kNone) throw illegal(i, "missing destination register", 0);
        break;
      default:
        break;
    }
    for (uint8_t t : x.t)
      if (t != hw::kNone) p.tiles = std::max<uint32_t>(p.tiles, t + 1u);
    for (uint8_t r : x.r)
      if (r != hw::kNone) p.registers = std::max<uint32_t>(p.registers, r + 1u);
    if (op->code == uint8_t(Op::LDS) || op->code == uint8_t(Op::DGATHER) || op->code == uint8_t(Op::DSCATTER) ||
        (op->code == uint8_t(Op::SPR) && x.sub == uint8_t(hw::Special::kCore)))
      p.lowers = false;
    bool plain = op->engine == hw::EngineClass::Control;
    for (uint8_t s : {x.wait[0], x.wait[1], x.signal[0], x.signal[1]})
      if (s != hw::kNone) plain = false, named[s] = true;
    p.steps.push_back({x, hw::engine_of(x), op->engine, plain});
  }
  for (uint32_t s = 0; s < hw::kSemaphores; ++s)
    if (named[s]) p.semaphores.push_back(static_cast<uint8_t>(s));
  return p;
}

Tally& Tally::operator+=(const Tally& o) {
  duration_ns += o.duration_ns, matrix_ns += o.matrix_ns, vector_ns += o.vector_ns, dma_ns += o.dma_ns;
  picojoules += o.picojoules, instructions += o.instructions;
  hbm_read += o.hbm_read, hbm_write += o.hbm_write, host_bytes += o.host_bytes;
  return *this;
}

void Core::Semaphore::give(double at, uint64_t n) {
  for (uint64_t i = 0; i < std::min<uint64_t>(n, 64); ++i) ready[(head + std::min<uint64_t>(count + i, 63)) % 64] = at;
  count += n;
}

double Core::Semaphore::take(uint64_t n) {
  double at = 0;
  for (uint64_t i = 0; i < std::min<uint64_t>(n, 64); ++i) at = std::max(at, ready[(head + i) % 64]);
  head += n, count -= n;
  return at;
}

Core::Core(const ChipConfig& config, const EmulatorOptions& options, uint32_t index)
    : config_(config),
      options_(options),
      host_(kernels_for(options.precise, !options.profile.empty())),
      index_(index),
      cycle_(1 / config.core_clock_ghz),
      spm_(allocate(config.spm_bytes)),
      acc_(allocate(config.acc_bytes)) {
  for (auto& s : scratch_) s = std::make_unique_for_overwrite<float[]>(65536 + 16);
  if (options.check()) checker_ = std::make_unique<Checker>(options, config.spm_bytes, config.acc_bytes);
}

Core::~Core() {
  release(spm_, config_.spm_bytes);
  release(acc_, config_.acc_bytes);
}

void Core::begin(const Launch& launch, std::array<uint32_t, 3> pid) {
  launch_ = &launch, pid_ = pid, pc_ = 0, budget_ = 256, next_look_ns_ = 0;
  memory_ = Memory(launch.map);
  for (PendingLoad& load : pending_) load.rows = 0;
}

void Core::rethrow(Fault& f) const {
  if (f.record.instruction == hw::kNoInstruction) f.record.instruction = pc_;
  std::copy(pid_.begin(), pid_.end(), f.record.pid);
  f.record.core = index_;
  throw f;
}

const Tally& Core::run(const Launch& launch, std::array<uint32_t, 3> pid, CallList* record) {
  begin(launch, pid);
  list_ = record, recorded_ = halted_ = false;
  std::fill_n(registers_.begin(), launch.program->registers, 0);
  std::fill_n(tiles_.begin(), launch.program->tiles, Tile{});
  for (uint8_t s : launch.program->semaphores) semaphores_[s].count = semaphores_[s].head = 0;
  loops_.clear();
  clock_.fill(0);
  finished_ = 0;
  tally_ = {};
  if (checker_) checker_->begin_instance();
  try {
    while (!halted_) execute();
  } catch (Fault& f) {
    list_ = nullptr;
    rethrow(f);
  }
  list_ = nullptr;
  tally_.duration_ns = std::max(finished_, *std::max_element(clock_.begin(), clock_.end()));
  tally_.picojoules += static_cast<double>(tally_.instructions) * config_.pj_per_instruction;
  return tally_;
}

void Core::execute() {
  if (pc_ >= launch_->program->steps.size())
    throw Fault(Status::kIllegalInstruction, "the program ran past its end without HALT");
  const Step& step = launch_->program->steps[pc_];
  const Instruction& i = step.instruction;
  ++tally_.instructions;
  if (--budget_ == 0) look_at_the_clock();
  const uint32_t at = pc_;
  if (step.plain && checker_ == nullptr) {
    ++pc_;
    clock_[0] += cycle_;
    try {
      control(i);
    } catch (...) {
      pc_ = at;
      throw;
    }
    return;
  }
  const size_t e = static_cast<size_t>(step.engine);
  if (checker_) checker_->begin_instruction(step.engine, pc_);

  double start = std::max(clock_[e], clock_[0]);
  const bool is_wait = i.op == uint8_t(Op::WAIT);
  for (int k = 0; k < 2; ++k) {
    if (i.wait[k] == hw::kNone) continue;
    const uint64_t n = is_wait && k == 0 ? i.imm0 : 1;
    Semaphore& s = semaphores_[i.wait[k]];
    if (s.count < n) {
      Fault f(Status::kDeadlock, "%s waits for S%u >= %llu, it is %llu and nothing left can signal it",
              hw::kEngineNames[e].data(), i.wait[k], static_cast<unsigned long long>(n),
              static_cast<unsigned long long>(s.count));
      f.record.value = i.wait[k];
      if (checker_) f.record.other = checker_->last_signaller(i.wait[k]);
      throw f;
    }
    start = std::max(start, s.take(n));
    if (checker_) checker_->wait(i.wait[k], n);
  }

  ++pc_;
  double busy = cycle_, latency = 0;
  try {
    switch (step.unit) {
      case hw::EngineClass::Control:
        control(i);
        break;
      case hw::EngineClass::Dma:
        tally_.dma_ns += busy = dma(i);
        latency = dma_latency_;
        break;
      case hw::EngineClass::Matrix:
        tally_.matrix_ns += busy = matrix(i);
        break;
      case hw::EngineClass::Vector:
        tally_.vector_ns += busy = vector(i);
        break;
    }
  } catch (...) {
    pc_ = at;
    throw;
  }
  if (list_ != nullptr && step.unit != hw::EngineClass::Control) record(step);
  if (e != 0) clock_[0] += cycle_;  // the sequencer's issue slot
  clock_[e] = std::max(start, clock_[e]) + busy;
  const double done = clock_[e] + latency;
  finished_ = std::max(finished_, done);
  for (int k = 0; k < 2; ++k) {
    if (i.signal[k] == hw::kNone) continue;
    const uint64_t n = i.op == uint8_t(Op::SIGNAL) && k == 0 ? i.imm0 : 1;
    Semaphore& s = semaphores_[i.signal[k]];
    if (n > uint64_t{1} << 32 || s.count > uint64_t{1} << 32)
      throw Fault(Status::kTrap, "semaphore S%u overflows", i.signal[k]);
    s.give(done, n);
    if (checker_) checker_->signal(i.signal[k], n);
  }
}

void Core::look_at_the_clock() {
  budget_ = 256;
  const uint64_t now = host_now_ns(), patience = uint64_t{launch_->watchdog_ms} * 1'000'000;
  if (next_look_ns_ == 0) next_look_ns_ = now + patience, began_ns_ = thread_now_ns();
  uint64_t used = 0;
  // A thread that other programs keep from running is not one that hangs. Its own clock is a system call: the host's
  // comes first.
  if (now > next_look_ns_) {
    used = thread_now_ns() - began_ns_;
    next_look_ns_ = now + (patience - std::min(used, patience));
  }
  if (used > patience || launch_->stop->load(std::memory_order_relaxed))
    throw Fault(Status::kWatchdog, "a program instance ran longer than %u ms", launch_->watchdog_ms)
        .value(launch_->watchdog_ms);
}

float Core::reg_f32(uint8_t r) const { return as_float(static_cast<uint64_t>(registers_[r])); }

void Core::define(uint8_t t, const Tile& tile) {
  const uint64_t limit = tile.space == hw::Space::kSpm ? config_.spm_bytes : config_.acc_bytes;
  const hw::DTypeInfo& d = hw::info(tile.dtype);
  const uint64_t bytes = hw::row_bytes(tile.dtype, tile.columns);
  const char* wrong = nullptr;
  if (tile.rows == 0 || tile.columns == 0)
    wrong = "is empty";
  else if (tile.columns % d.block != 0)
    wrong = "has columns that are no whole number of blocks";
  else if (tile.rows > 1 && tile.pitch < bytes)
    wrong = "has rows that overlap";
  else if (tile.offset + uint64_t{tile.pitch} * (tile.rows - 1) + bytes > limit)
    wrong = "ends outside its memory";
  else if (d.block == 1 && (tile.offset % d.bytes != 0 || (tile.rows > 1 && tile.pitch % d.bytes != 0)))
    wrong = "is not aligned to its type";
  else if (tile.space == hw::Space::kAcc && tile.dtype != hw::DType::kF32 && tile.dtype != hw::DType::kI32)
    wrong = "needs f32 or i32 in the accumulators";
  if (wrong != nullptr)
    throw Fault(Status::kTileFault, "T%u %s: %ux%u %s, offset %u, pitch %u, %s of %llu bytes", t, wrong, tile.rows,
                tile.columns, d.name, tile.offset, tile.pitch,
                tile.space == hw::Space::kSpm ? "scratchpad" : "accumulators", static_cast<unsigned long long>(limit))
        .at(tile.offset, bytes, hw::kAccessNone)
        .tile(t);
  tiles_[t] = tile;
  tiles_[t].row_bytes = static_cast<uint32_t>(bytes);
}

const Tile& Core::in(const Instruction& i, int t) {
  const Tile& tile = tiles_[i.t[t]];
  if (tile.rows == 0) throw Fault(Status::kTileFault, "T%u is used before it is defined", i.t[t]).tile(i.t[t]);
  if (checker_) checker_->read(tile, i.t[t]);
  settle(tile);
  return tile;
}

const Tile& Core::out(const Instruction& i, int t) {
  const Tile& tile = tiles_[i.t[t]];
  if (tile.rows == 0) throw Fault(Status::kTileFault, "T%u is used before it is defined", i.t[t]).tile(i.t[t]);
  if (checker_) checker_->write(tile, i.t[t]);
  settle(tile);
  return tile;
}

bool Core::defer_load(const Tile& t, const std::byte* source, uint64_t stride, uint64_t row_bytes) {
  // A short one is copied as fast as remembered, unless what is remembered is used again.
  if (checker_ || t.space != hw::Space::kSpm || (row_bytes * t.rows < 4096 && list_ == nullptr)) return false;
  PendingLoad& slot = pending_[next_pending_++ % pending_.size()];
  settle(slot);
  slot = {t.offset, t.pitch, t.rows, static_cast<uint32_t>(row_bytes), source, stride};
  return true;
}

void Core::settle(PendingLoad& load) {
  if (list_ != nullptr && load.rows != 0)
    list_->add(CopyCall{
        Place::of(load.source), {Place::Base::kSpm, load.offset}, load.stride, load.pitch, load.rows, load.row_bytes});
  for (uint32_t r = 0; r < load.rows; ++r)
    std::memcpy(spm_ + load.offset + size_t{load.pitch} * r, load.source + load.stride * r, load.row_bytes);
  load.rows = 0;
}

void Core::settle(const Tile& t) {
  if (t.space != hw::Space::kSpm) return;
  for (PendingLoad& load : pending_)
    if (load.rows != 0 && t.offset < load.end() && load.offset < t.end()) settle(load);
}

// The whole of `t` is about to be written: a load that it covers need never be carried out.
void Core::forget_overwritten(const Tile& t) {
  for (PendingLoad& load : pending_)
    if (load.rows != 0 && t.space == hw::Space::kSpm && t.offset == load.offset && t.pitch == load.pitch &&
        t.rows >= load.rows && t.row_bytes >= load.row_bytes)
      load.rows = 0;
}

void Core::settle_all() {
  for (PendingLoad& load : pending_) settle(load);
}

// Bytes from `begin` to `end` are about to be written: whoever has yet to read there reads now.
void Core::settle_sources(const std::byte* begin, const std::byte* end) {
  for (PendingLoad& load : pending_)
    if (load.rows != 0 && load.source < end && begin < load.source + load.stride * (load.rows - 1) + load.row_bytes)
      settle(load);
}

Core::Operand Core::multiplicand(const Instruction& i, int t) {
  const Tile& tile = tiles_[i.t[t]];
  for (const PendingLoad& load : pending_)
    if (load.rows >= tile.rows && load.rows != 0 && load.offset == tile.offset && load.pitch == tile.pitch &&
        tile.space == hw::Space::kSpm && tile.row_bytes <= load.row_bytes)
      return {tile, load.source, load.stride, Place::of(load.source)};
  in(i, t);
  return {tile, data(tile), tile.pitch, Place::of(tile)};
}

const float* Core::load_row(const Tile& t, uint32_t row, int scratch) {
  return as_floats(t.dtype, data(t, row), t.columns, scratch);
}

float* Core::row_buffer(const Tile& t, uint32_t row, int scratch) {
  return t.dtype == hw::DType::kF32 ? reinterpret_cast<float*>(data(t, row)) : scratch_[scratch].get();
}

void Core::store_row(const Tile& t, uint32_t row, const float* values) {
  if (t.dtype != hw::DType::kF32)
    host_.store(t.dtype, values, t.columns, data(t, row));
  else if (std::byte* p = data(t, row); reinterpret_cast<const std::byte*>(values) != p)
    std::memcpy(p, values, size_t{t.columns} * 4);
}

void Core::control(const Instruction& i) {
  switch (static_cast<Op>(i.op)) {
    case Op::HALT:
      for (uint8_t s : launch_->program->semaphores)
        if (semaphores_[s].count != 0)
          throw Fault(Status::kSemaphoreLeak, "S%u is %llu at HALT", s,
                      static_cast<unsigned long long>(semaphores_[s].count))
              .value(s);
      halted_ = true;
      return;
    case Op::MOVI:
      set(i.r[0], static_cast<int64_t>(i.imm0));
      return;
    case Op::SALU:
      set(i.r[0], scalar(static_cast<hw::SaluOp>(i.sub), reg(i.r[1]),
                         i.flags & hw::kFlagImmediate ? static_cast<int64_t>(i.imm0) : reg(i.r[2])));
      return;
    case Op::BR:
      if (holds(static_cast<hw::Cond>(i.sub), reg(i.r[0]),
                i.flags & hw::kFlagImmediate ? static_cast<int64_t>(i.imm0) : reg(i.r[1])))
        pc_ = static_cast<uint32_t>(i.imm1);
      return;
    case Op::LOOP: {
      Loop l{pc_, reg(i.r[2]), reg(i.r[3])};
      if (l.step <= 0)
        throw Fault(Status::kIllegalInstruction, "LOOP with step %lld", static_cast<long long>(l.step))
            .value(static_cast<uint64_t>(l.step));
      if (loops_.size() >= hw::kLoopDepth)
        throw Fault(Status::kIllegalInstruction, "loops nested deeper than %u", hw::kLoopDepth);
      set(i.r[0], reg(i.r[1]));
      if (reg(i.r[0]) >= l.end)
        pc_ = static_cast<uint32_t>(i.imm0) + 1;
      else
        loops_.push_back(l);
      return;
    }
    case Op::ENDL: {
      // A branch out of a loop leaves it on the stack: drop what does not end here.
      while (!loops_.empty() && loops_.back().begin != i.imm0 + 1) loops_.pop_back();
      if (loops_.empty()) throw Fault(Status::kIllegalInstruction, "ENDL outside its loop");
      Loop& l = loops_.back();
      const uint8_t counter = launch_->program->steps[l.begin - 1].instruction.r[0];
      int64_t next = scalar(hw::SaluOp::kAdd, reg(counter), l.step);
      set(counter, next);
      if (next < l.end && next > INT64_MIN + l.step)
        pc_ = l.begin;
      else
        loops_.pop_back();
      return;
    }
    case Op::SPR:
      switch (static_cast<hw::Special>(i.sub)) {
        case hw::Special::kPidX:
        case hw::Special::kPidY:
        case hw::Special::kPidZ:
          return set(i.r[0], pid_[i.sub]);
        case hw::Special::kGridX:
        case hw::Special::kGridY:
        case hw::Special::kGridZ:
          return set(i.r[0], launch_->grid[i.sub - 3]);
        case hw::Special::kCore:
          return set(i.r[0], index_);
        case hw::Special::kCores:
          return set(i.r[0], config_.cores);
      }
      return;
    case Op::LDARG: {
      const auto kind = static_cast<hw::LoadKind>(i.sub);
      const uint64_t bytes = kind == hw::LoadKind::kU64 ? 8 : 4;
      if (i.imm0 > launch_->argument_bytes || bytes > launch_->argument_bytes - i.imm0)
        throw Fault(Status::kIllegalInstruction, "argument bytes at %llu, but the launch has %u",
                    static_cast<unsigned long long>(i.imm0), launch_->argument_bytes)
            .value(i.imm0);
      int64_t v = 0;
      std::memcpy(&v, launch_->arguments.data() + i.imm0, bytes);
      set(i.r[0], kind == hw::LoadKind::kI32 ? static_cast<int32_t>(v) : v);
      return;
    }
    case Op::LDS:
    case Op::STS: {
      const bool load = i.op == uint8_t(Op::LDS);
      Tile t = tiles_[i.t[0]];
      const int64_t row = reg(i.r[1]), column = reg(i.r[2]);
      const hw::DTypeInfo& d = hw::info(t.dtype);
      if (row < 0 || column < 0 || row >= t.rows || column >= t.columns || d.block != 1)
        throw Fault(Status::kTileFault, "element (%lld, %lld) of T%u, which is %ux%u %s", static_cast<long long>(row),
                    static_cast<long long>(column), i.t[0], t.rows, t.columns, d.name)
            .tile(i.t[0]);
      t.offset += static_cast<uint32_t>(row) * t.pitch + static_cast<uint32_t>(column) * d.bytes;
      t.rows = t.columns = 1, t.row_bytes = d.bytes;
      if (checker_) load ? checker_->read(t, i.t[0]) : checker_->write(t, i.t[0]);
      settle(t);
      if (!load) {
        if (list_ != nullptr) record(launch_->program->steps[pc_ - 1]);  // pc_ is ahead by one
        int64_t v = reg(i.r[0]);
        std::memcpy(data(t), &v, d.bytes);
        return;
      }
      int64_t v = 0;
      std::memcpy(&v, data(t), d.bytes);
      if (t.dtype == hw::DType::kI32) v = static_cast<int32_t>(v);
      if (t.dtype == hw::DType::kI8) v = static_cast<int8_t>(v);
      set(i.r[0], v);
      return;
    }
    case Op::TDEF: {
      hw::TileDescriptor d;
      std::memcpy(&d, &i.imm0, 8);
      std::memcpy(reinterpret_cast<std::byte*>(&d) + 8, &i.imm1, 8);
      if (!hw::valid(d.dtype) || static_cast<uint8_t>(d.space) > 1)
        throw Fault(Status::kIllegalInstruction, "TDEF with unknown type or space");
      define(i.t[0], Tile{d.offset, d.pitch, d.rows, d.columns, d.dtype, d.space});
      return;
    }
    case Op::TSLICE: {
      Tile t = tiles_[i.t[1]];
      const int64_t row = reg(i.r[0]), column = reg(i.r[1]);
      const int64_t rows = i.r[2] == hw::kNone ? static_cast<int64_t>(i.imm0) : reg(i.r[2]);
      const int64_t columns = i.r[3] == hw::kNone ? static_cast<int64_t>(i.imm1) : reg(i.r[3]);
      const hw::DTypeInfo& d = hw::info(t.dtype);
      if (row < 0 || column < 0 || rows <= 0 || columns <= 0 || rows > t.rows - row || columns > t.columns - column ||
          column % d.block != 0)
        throw Fault(Status::kTileFault, "slice (%lld, %lld) %lldx%lld of T%u, which is %ux%u",
                    static_cast<long long>(row), static_cast<long long>(column), static_cast<long long>(rows),
                    static_cast<long long>(columns), i.t[1], t.rows, t.columns)
            .tile(i.t[1]);
      t.offset += static_cast<uint32_t>(row) * t.pitch +
                  static_cast<uint32_t>(hw::row_bytes(t.dtype, static_cast<uint64_t>(column)));
      t.rows = static_cast<uint32_t>(rows), t.columns = static_cast<uint32_t>(columns);
      define(i.t[0], t);
      return;
    }
    case Op::TSTAGE: {
      Tile t = tiles_[i.t[1]];
      if (i.imm1 == 0) divide_by_zero();
      const uint64_t moved = t.offset + static_cast<uint64_t>(reg(i.r[0])) % i.imm1 * i.imm0;
      t.offset = static_cast<uint32_t>(std::min<uint64_t>(moved, UINT32_MAX));
      define(i.t[0], t);
      return;
    }
    case Op::WAIT:
    case Op::SIGNAL:
      return;  // done by execute()
    case Op::TRAP:
      throw Fault(Status::kTrap, "TRAP %llu", static_cast<unsigned long long>(i.imm0)).value(i.imm0);
    default:
      throw Fault(Status::kIllegalInstruction, "opcode %u on the sequencer", i.op);
  }
}

double Core::matrix(const Instruction& i) {
  switch (static_cast<Op>(i.op)) {
    case Op::MINIT: {
      const Tile& c = out(i, 0);
      for (uint32_t r = 0; r < c.rows; ++r) std::memset(data(c, r), 0, c.row_bytes);
      if (list_ != nullptr) record_instead(ZeroCall{c});
      return cycle_ * c.rows;
    }
    case Op::MMA: {
      const Operand left = multiplicand(i, 1), right = multiplicand(i, 2);
      const Tile &a = left.tile, &b = right.tile;
      const bool accumulate = i.flags & hw::kFlagAccumulate, rows_are_k = i.flags & hw::kFlagRowsAreK;
      if (accumulate) in(i, 0);
      const Tile& c = out(i, 0);
      const uint32_t k = rows_are_k ? b.rows : b.columns, n = rows_are_k ? b.columns : b.rows;
      const bool integer = a.dtype == hw::DType::kI8 && b.dtype == hw::DType::kI8;
      if (a.columns != k || c.rows != a.rows || c.columns != n || c.space != hw::Space::kAcc ||
          a.space != hw::Space::kSpm || b.space != hw::Space::kSpm ||
          c.dtype != (integer ? hw::DType::kI32 : hw::DType::kF32))
        throw Fault(Status::kTileFault, "MMA %ux%u %s = %ux%u %s * %ux%u %s%s", c.rows, c.columns,
                    hw::info(c.dtype).name, a.rows, a.columns, hw::info(a.dtype).name, b.rows, b.columns,
                    hw::info(b.dtype).name, rows_are_k ? " (rows are K)" : "")
            .tile(i.t[0]);
      MultiplyArgs x{left.data,  right.data,  reinterpret_cast<float*>(data(c)),
                     left.pitch, right.pitch, c.pitch,
                     a.rows,     n,           k,
                     a.dtype,    b.dtype,     rows_are_k,
                     accumulate};
      host_.multiply(x);
      if (list_ != nullptr) record_instead(MultiplyCall{x, left.place, right.place, Place::of(c)});
      // A weight-stationary array: each block of B is loaded once (array_rows cycles, hidden behind the
      // previous block) and A streams through, one row a cycle.
      const bool narrow = integer || hw::info(b.dtype).block > 1 || (hw::is_fp8(a.dtype) && hw::is_fp8(b.dtype));
      const bool wide = a.dtype == hw::DType::kF32 || b.dtype == hw::DType::kF32;
      const double rate = wide ? config_.rate_f32 : narrow ? config_.rate_8bit : 1;
      const double blocks = std::ceil(k / static_cast<double>(config_.array_rows)) *
                            std::ceil(n / static_cast<double>(config_.array_columns));
      const double macs = static_cast<double>(a.rows) * n * k;
      tally_.picojoules += macs * (wide     ? config_.pj_per_mac_f32
                                   : narrow ? config_.pj_per_mac_8bit
                                            : config_.pj_per_mac_bf16);
      return cycle_ * (blocks * std::max<double>(a.rows, config_.array_rows) / rate + config_.array_rows);
    }
    case Op::MDRAIN: {
      const Tile& acc = in(i, 1);
      const Tile* row_vector = i.t[2] == hw::kNone ? nullptr : &in(i, 2);
      const Tile* column_vector = i.t[3] == hw::kNone ? nullptr : &in(i, 3);
      const Tile& d = out(i, 0);
      if (d.rows != acc.rows || d.columns != acc.columns || (row_vector && row_vector->columns != d.columns) ||
          (column_vector && column_vector->rows != d.rows))
        throw Fault(Status::kTileFault, "MDRAIN %ux%u into %ux%u with vectors of %u and %u", acc.rows, acc.columns,
                    d.rows, d.columns, row_vector ? row_vector->columns : 0, column_vector ? column_vector->rows : 0)
            .tile(i.t[0]);
      const float* weights = row_vector ? load_row(*row_vector, 0, 2) : nullptr;
      for (uint32_t r = 0; r < d.rows; ++r) {
        const float* s = load_row(acc, r, 0);
        float* o = row_buffer(d, r, 1);
        float factor = i.r[0] == hw::kNone ? 1.f : reg_f32(i.r[0]);
        if (column_vector) factor *= load_row(*column_vector, r, 3)[0];
        if (weights)
          host_.scale_by_row(s, factor, weights, o, d.columns);
        else
          host_.binary_scalar(hw::BinaryOp::kMul, s, factor, false, o, d.columns);
        switch (static_cast<hw::ActOp>(i.sub)) {
          case hw::ActOp::kNone:
            break;
          case hw::ActOp::kRelu:
            host_.unary(hw::UnaryOp::kRelu, o, o, d.columns);
            break;
          case hw::ActOp::kSilu:
            host_.unary(hw::UnaryOp::kSilu, o, o, d.columns);
            break;
          case hw::ActOp::kGelu:
            host_.unary(hw::UnaryOp::kGelu, o, o, d.columns);
            break;
        }
        store_row(d, r, o);
      }
      return cycle_ * (d.rows * std::ceil(d.columns / static_cast<double>(config_.array_columns)));
    }
    default:
      throw Fault(Status::kIllegalInstruction, "opcode %u on the matrix engine", i.op);
  }
}

}  // namespace jalapeno::emu
