#include "verifier.hpp"

#include <array>
#include <cstring>

namespace jalapeno::runtime {
namespace {

using hw::Instruction;
using hw::Op;

class Verifier {
 public:
  Verifier(const KernelImage& kernel, std::span<const Instruction> code) : kernel_(kernel), code_(code) {}

  void run() {
    if (code_.empty()) fail_at(0, "a kernel needs at least HALT");
    if (code_.back().op != uint8_t(Op::HALT)) fail_at(code_.size() - 1, "the last instruction must be HALT");
    for (at_ = 0; at_ < code_.size(); ++at_) one(code_[at_]);
    const Balance total = region(0, code_.size() - 1, 0);
    for (uint32_t s = 0; s < hw::kSemaphores; ++s)
      if (total[s] != 0)
        fail_at(code_.size() - 1,
                "semaphore S" + std::to_string(s) + " is " + std::to_string(total[s]) + " at HALT, expected 0");
  }

 private:
  using Balance = std::array<int64_t, hw::kSemaphores>;

  [[noreturn]] void fail_at(size_t at, const std::string& rule) {
    std::string where = "kernel " + kernel_.name + ", instruction " + std::to_string(at);
    if (at < code_.size())
      if (const hw::OpInfo* op = hw::find_op(code_[at].op)) where += " (" + std::string(op->name) + ")";
    if (const SourceLine* line = kernel_.line_of(static_cast<uint32_t>(at)); line != nullptr && line->line != 0)
      where += " at " + line->file + ":" + std::to_string(line->line);
    fail(jalErrorInvalidImage, where + ": " + rule);
  }
  [[noreturn]] void bad(const std::string& rule) { fail_at(at_, rule); }

  void one(const Instruction& i) {
    const hw::OpInfo* op = hw::find_op(i.op);
    if (op == nullptr) bad("opcode " + std::to_string(i.op) + " does not exist");
    const auto code = static_cast<Op>(i.op);
    if (const auto subs = hw::sub_names(code); i.sub >= std::max<size_t>(subs.count, 1))
      bad("variant " + std::to_string(i.sub) + " does not exist");
    const uint32_t optional_tiles_from = code == Op::MDRAIN                                ? 2
                                         : code == Op::VBIN && (i.flags & hw::kFlagScalar) ? 2
                                                                                           : op->tiles;
    for (uint32_t k = 0; k < 4; ++k) {
      if (i.t[k] != hw::kNone && (i.t[k] >= hw::kTiles || k >= op->tiles))
        bad("tile operand " + std::to_string(k) + " is " + std::to_string(i.t[k]));
      if (i.t[k] == hw::kNone && k < optional_tiles_from) bad("tile operand " + std::to_string(k) + " is missing");
      if (i.r[k] != hw::kNone && (i.r[k] >= hw::kRegisters || k >= op->registers))
        bad("register operand " + std::to_string(k) + " is " + std::to_string(i.r[k]));
      if (k < 2 && i.wait[k] != hw::kNone && i.wait[k] >= hw::kSemaphores)
        bad("waits for semaphore " + std::to_string(i.wait[k]));
      if (k < 2 && i.signal[k] != hw::kNone && i.signal[k] >= hw::kSemaphores)
        bad("signals semaphore " + std::to_string(i.signal[k]));
    }
    const bool queue_used = op->engine == hw::EngineClass::Dma || code == Op::WAIT || code == Op::SIGNAL;
    if (i.queue != 0 && (!queue_used || i.queue >= (op->engine == hw::EngineClass::Dma ? 4u : hw::kEngines)))
      bad("queue " + std::to_string(i.queue));
    if (i.flags & ~(hw::kFlagImmediate | hw::kFlagAccumulate | hw::kFlagRowsAreK | hw::kFlagScalar | hw::kFlagReverse))
      bad("reserved flag bits are set");
    switch (code) {
      case Op::MOVI:
      case Op::SALU:
      case Op::SPR:
      case Op::LDARG:
      case Op::LDS:
      case Op::LOOP:
        if (i.r[0] == hw::kNone) bad("has no destination register");
        if (code == Op::SALU && (i.flags & hw::kFlagImmediate) && i.imm0 == 0 &&
            (i.sub == uint8_t(hw::SaluOp::kDiv) || i.sub == uint8_t(hw::SaluOp::kMod) ||
             i.sub == uint8_t(hw::SaluOp::kCeilDiv)))
          bad("divides by the constant 0");
        if (code == Op::LDARG) argument_bytes(i.imm0, i.sub == uint8_t(hw::LoadKind::kU64) ? 8 : 4);
        if (code == Op::LOOP && (i.imm0 <= at_ || i.imm0 >= code_.size() || code_[i.imm0].op != uint8_t(Op::ENDL) ||
                                 code_[i.imm0].imm0 != at_))
          bad("has no ENDL of its own");
        break;
      case Op::ENDL:
        if (i.imm0 >= at_ || code_[i.imm0].op != uint8_t(Op::LOOP) || code_[i.imm0].imm0 != at_)
          bad("has no LOOP of its own");
        break;
      case Op::BR:
        if (i.imm1 <= at_ || i.imm1 >= code_.size())
          bad("goes to instruction " + std::to_string(i.imm1) + ", expected one ahead in the kernel");
        break;
      case Op::WAIT:
        if (i.wait[0] == hw::kNone || i.wait[1] != hw::kNone || i.imm0 > UINT32_MAX)
          bad("needs one semaphore and a count");
        break;
      case Op::SIGNAL:
        if (i.signal[0] == hw::kNone || i.signal[1] != hw::kNone || i.imm0 > UINT32_MAX)
          bad("needs one semaphore and a count");
        break;
      case Op::TDEF: {
        hw::TileDescriptor d;
        std::memcpy(&d, &i.imm0, 8);
        std::memcpy(reinterpret_cast<char*>(&d) + 8, &i.imm1, 8);
        if (!hw::valid(d.dtype) || static_cast<uint8_t>(d.space) > 1 || d.reserved != 0)
          bad("unknown type or space, or reserved bits are set");
        if (d.rows == 0 || d.columns == 0 || d.columns % hw::info(d.dtype).block != 0)
          bad("tile of " + std::to_string(d.rows) + " x " + std::to_string(d.columns) + " " + hw::info(d.dtype).name);
        if (d.offset % 64 != 0) bad("offset " + std::to_string(d.offset) + " is not 64-byte aligned");
        const uint64_t bytes = hw::row_bytes(d.dtype, d.columns),
                       end = d.offset + uint64_t{d.pitch} * (d.rows - 1u) + bytes;
        if (d.rows > 1 && d.pitch < bytes)
          bad("pitch " + std::to_string(d.pitch) + " is less than a row of " + std::to_string(bytes) + " bytes");
        const uint64_t limit = d.space == hw::Space::kSpm ? kernel_.spm_bytes : kernel_.acc_bytes;
        if (end > limit)
          bad("ends at byte " + std::to_string(end) + ", the kernel declares " + std::to_string(limit) + " bytes of " +
              (d.space == hw::Space::kSpm ? "scratchpad" : "accumulators"));
        break;
      }
      case Op::TSTAGE:
        if (i.imm1 == 0) bad("has no stages");
        break;
      case Op::DLD:
      case Op::DST:
      case Op::DGATHER:
      case Op::DSCATTER: {
        const Argument* tensor = nullptr;
        for (const Argument& a : kernel_.arguments)
          if (a.kind == hw::ArgumentKind::kTensor && a.offset == i.imm0) tensor = &a;
        if (tensor == nullptr) bad("names no tensor argument at offset " + std::to_string(i.imm0));
        if ((code == Op::DGATHER || code == Op::DSCATTER) && (tensor->rank != 2 || (i.imm1 & UINT32_MAX) == 0))
          bad("needs a tensor of rank 2 and at least one row per index");
        break;
      }
      case Op::HALT:
      case Op::STS:
      case Op::TSLICE:
      case Op::TRAP:
      case Op::DCPY:
      case Op::MINIT:
      case Op::MMA:
      case Op::MDRAIN:
      case Op::VUNI:
      case Op::VBIN:
      case Op::VTER:
      case Op::VMASK:
      case Op::VRED:
      case Op::VNORM:
      case Op::VROPE:
      case Op::VSMX:
      case Op::VGLU:
      case Op::VTOPK:
      case Op::VRNG:
      case Op::VSCAN:
      case Op::VIOTA:
      case Op::VFILL:
        break;
    }
  }

  void argument_bytes(uint64_t offset, uint64_t bytes) {
    if (offset % 4 != 0 || offset > kernel_.argument_bytes || bytes > kernel_.argument_bytes - offset)
      bad("reads argument bytes at " + std::to_string(offset) + " of " + std::to_string(kernel_.argument_bytes));
  }

  // What [begin, end) adds to each semaphore. A loop may run any number of times and a branch may be taken or not:
  // both must add nothing. Straight-line code in between is summed.
  Balance region(size_t begin, size_t end, uint32_t depth) {
    Balance sum{};
    for (size_t i = begin; i < end; ++i) {
      const Instruction& x = code_[i];
      const auto op = static_cast<Op>(x.op);
      auto must_be_zero = [&](const Balance& b, const char* what) {
        for (uint32_t s = 0; s < hw::kSemaphores; ++s)
          if (b[s] != 0)
            fail_at(i, std::string(what) + " changes semaphore S" + std::to_string(s) + " by " + std::to_string(b[s]) +
                           ", expected 0");
      };
      if (op == Op::LOOP) {
        if (depth >= hw::kLoopDepth) fail_at(i, "loops nested deeper than " + std::to_string(hw::kLoopDepth));
        if (x.imm0 >= end) fail_at(i, "the loop leaves the block it is in");
        must_be_zero(region(i + 1, x.imm0, depth + 1), "the loop's body");
        i = x.imm0;
        continue;
      }
      if (op == Op::ENDL) fail_at(i, "ends a loop that did not begin in this block");
      if (op == Op::HALT) fail_at(i, "HALT inside the kernel; branch to the last instruction instead");
      if (op == Op::BR) {
        if (x.imm1 > end) fail_at(i, "branches out of its loop or block");
        must_be_zero(region(i + 1, x.imm1, depth), "the branched-over block");
        i = x.imm1 - 1;
        continue;
      }
      const int64_t n = static_cast<int64_t>(x.imm0);
      for (int k = 0; k < 2; ++k) {
        if (x.wait[k] != hw::kNone) sum[x.wait[k]] -= op == Op::WAIT ? n : 1;
        if (x.signal[k] != hw::kNone) sum[x.signal[k]] += op == Op::SIGNAL ? n : 1;
      }
    }
    return sum;
  }

  const KernelImage& kernel_;
  std::span<const Instruction> code_;
  size_t at_ = 0;
};

}  // namespace

void verify(const KernelImage& kernel, std::span<const Instruction> code) { Verifier(kernel, code).run(); }

}  // namespace jalapeno::runtime
