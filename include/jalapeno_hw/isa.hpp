// The tile instruction set, JTI 1.0 (docs/hardware.md, section 6): one table of opcodes from which the
// assembler, disassembler, verifier and emulator take names and operands.
#pragma once
#include <jalapeno_hw/types.hpp>
#include <string_view>
#include <type_traits>

namespace jalapeno::hw {

inline constexpr uint32_t kIsaVersion = 1u << 16 | 1;  // major << 16 | minor

inline constexpr uint32_t kRegisters = 32;   // 64-bit, R0 reads as zero
inline constexpr uint32_t kTiles = 64;       // tile descriptors
inline constexpr uint32_t kSemaphores = 64;  // counting, zero at launch and at HALT
inline constexpr uint32_t kLoopDepth = 4;
inline constexpr uint32_t kArgumentBytes = 4096;
inline constexpr uint32_t kMaxTopK = 1024;
inline constexpr uint8_t kNone = 0xFF;  // an operand that is absent

enum class Engine : uint8_t { kControl = 0, kDma0 = 1, kDma1 = 2, kDma2 = 3, kDma3 = 4, kMatrix = 5, kVector = 6 };
inline constexpr uint32_t kEngines = 7;
inline constexpr std::string_view kEngineNames[kEngines] = {"ctrl", "dma0", "dma1", "dma2", "dma3", "mxu", "vec"};

struct alignas(32) Instruction {
  uint8_t op;
  uint8_t sub;                 // variant, see the *Op enums
  uint8_t flags;               // kFlag*
  uint8_t queue;               // DMA: 0..3; WAIT and SIGNAL: the Engine whose queue it sits in; otherwise 0
  uint8_t wait[2], signal[2];  // semaphores: start when each is >= 1 and take 1; add 1 when done
  uint8_t t[4];                // tile registers
  uint8_t r[4];                // scalar registers
  uint64_t imm0, imm1;
};
static_assert(sizeof(Instruction) == 32 && std::is_trivially_copyable_v<Instruction>);
static_assert(offsetof(Instruction, wait) == 4 && offsetof(Instruction, t) == 8 && offsetof(Instruction, r) == 12);
static_assert(offsetof(Instruction, imm0) == 16 && offsetof(Instruction, imm1) == 24);

inline constexpr uint8_t kFlagImmediate = 1;   // SALU, BR: the second operand is imm0
inline constexpr uint8_t kFlagAccumulate = 2;  // MMA: add to the accumulators; DST: add to memory; VTOPK: merge
inline constexpr uint8_t kFlagRowsAreK = 4;    // MMA: B is stored [K, N] instead of [N, K]
inline constexpr uint8_t kFlagScalar = 8;      // VBIN: the second operand is a register holding f32 bits
inline constexpr uint8_t kFlagReverse = 16;    // VBIN: operands swapped

// X(opcode, NAME, engine, tiles, registers, summary). Engine dma: the queue field chooses.
#define JALAPENO_ISA(X)                                                                                        \
  X(0, HALT, Control, 0, 0, "end of the program instance")                                                     \
  X(1, MOVI, Control, 0, 1, "r0 = imm0")                                                                       \
  X(2, SALU, Control, 0, 3, "r0 = r1 op (r2 or imm0)")                                                         \
  X(3, BR, Control, 0, 2, "if r0 cond (r1 or imm0): go forward to instruction imm1")                           \
  X(4, LOOP, Control, 0, 4, "for r0 = r1; r0 < r2; r0 += r3; imm0 = the ENDL")                                 \
  X(5, ENDL, Control, 0, 0, "end of loop; imm0 = its LOOP")                                                    \
  X(6, SPR, Control, 0, 1, "r0 = special register")                                                            \
  X(7, LDARG, Control, 0, 1, "r0 = argument bytes at imm0")                                                    \
  X(8, LDS, Control, 1, 3, "r0 = element (r1, r2) of t0")                                                      \
  X(9, STS, Control, 1, 3, "element (r1, r2) of t0 = r0")                                                      \
  X(10, TDEF, Control, 1, 0, "t0 = the tile in imm0, imm1")                                                    \
  X(11, TSLICE, Control, 2, 4, "t0 = rows r2 (or imm0) and columns r3 (or imm1) of t1 from row r0, column r1") \
  X(12, TSTAGE, Control, 2, 1, "t0 = t1 moved by (r0 mod imm1) * imm0 bytes")                                  \
  X(13, WAIT, Control, 0, 0, "in the queue's order: take imm0 from semaphore wait[0]")                         \
  X(14, SIGNAL, Control, 0, 0, "in the queue's order: add imm0 to semaphore signal[0]")                        \
  X(15, TRAP, Control, 0, 0, "stop with code imm0")                                                            \
  X(16, DLD, Dma, 1, 4, "t0 = box of tensor imm0 at r0.. ; outside reads as imm1 (f32 bits)")                  \
  X(17, DST, Dma, 1, 4, "box of tensor imm0 at r0.. = t0; outside is clipped")                                 \
  X(18, DGATHER, Dma, 2, 1, "rows of t0 = rows of tensor imm0 named by t1, imm1 rows each, from column r0")    \
  X(19, DSCATTER, Dma, 2, 1, "rows of tensor imm0 named by t1, imm1 rows each, from column r0 = rows of t0")   \
  X(20, DCPY, Dma, 2, 0, "t0 = t1, types converted; sub 1: transposed")                                        \
  X(24, MINIT, Matrix, 1, 0, "accumulators t0 = 0")                                                            \
  X(25, MMA, Matrix, 3, 0, "accumulators t0 (+)= t1 * t2")                                                     \
  X(26, MDRAIN, Matrix, 4, 1, "t0 = act(t1 * r0 * row vector t2 * column vector t3)")                          \
  X(32, VUNI, Vector, 2, 0, "t0 = f(t1)")                                                                      \
  X(33, VBIN, Vector, 3, 1, "t0 = t1 op (t2 or r0); t2 may be a row or a column vector")                       \
  X(34, VTER, Vector, 4, 0, "t0 = f(t1, t2, t3)")                                                              \
  X(35, VMASK, Vector, 2, 2, "t0 = t1 where column + r0 < r1 + row * imm0, else imm1 (f32 bits)")              \
  X(36, VRED, Vector, 2, 0, "column vector t0 = reduction of each row of t1")                                  \
  X(37, VNORM, Vector, 3, 1, "t0 = t1 / rms(t1, eps r0) * row vector t2")                                      \
  X(38, VROPE, Vector, 4, 0, "t0 = rotary(t1, cos t2, sin t3); heads of imm0 columns, imm1 of them rotated")   \
  X(39, VSMX, Vector, 3, 1, "online softmax: P t0, scores t1 scaled by r0, state t2 (max, sum, correction)")   \
  X(40, VGLU, Vector, 3, 0, "t0 = f(t1) * t2")                                                                 \
  X(41, VTOPK, Vector, 3, 1, "per row: t0 values, t1 indices of the largest of t2, counted from r0")           \
  X(42, VRNG, Vector, 1, 2, "t0 = uniform [0, 1) from Philox4x32-10, seed r0, counter r1")                     \
  X(43, VSCAN, Vector, 2, 0, "t0 = running sum along each row of t1")                                          \
  X(44, VIOTA, Vector, 1, 1, "t0 = r0 + row * imm0 + column * imm1")                                           \
  X(45, VFILL, Vector, 1, 0, "t0 = imm0 (f32 bits)")

enum class Op : uint8_t {
#define X(code, name, engine, tiles, registers, summary) name = code,
  JALAPENO_ISA(X)
#undef X
};

enum class EngineClass : uint8_t { Control, Dma, Matrix, Vector };
struct OpInfo {
  uint8_t code;
  std::string_view name;
  EngineClass engine;
  uint8_t tiles, registers;
  std::string_view summary;
};
inline constexpr OpInfo kOps[] = {
#define X(code, name, engine, tiles, registers, summary) {code, #name, EngineClass::engine, tiles, registers, summary},
    JALAPENO_ISA(X)
#undef X
};
constexpr const OpInfo* find_op(uint8_t code) {
  for (const OpInfo& op : kOps)
    if (op.code == code) return &op;
  return nullptr;
}

// The variants. The name tables are the assembler's; a value past the table is an illegal instruction.
enum class SaluOp : uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMod,
  kCeilDiv,
  kAnd,
  kOr,
  kXor,
  kShl,
  kShr,
  kMin,
  kMax,
  kFAdd,
  kFSub,
  kFMul,
  kFDiv,
  kIntToFloat,
  kFloatToInt
};
inline constexpr std::string_view kSaluNames[] = {"add",  "sub",  "mul",  "div", "mod", "cdiv", "and",
                                                  "or",   "xor",  "shl",  "shr", "min", "max",  "fadd",
                                                  "fsub", "fmul", "fdiv", "i2f", "f2i"};
enum class Cond : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe };
inline constexpr std::string_view kCondNames[] = {"eq", "ne", "lt", "le", "gt", "ge"};
enum class Special : uint8_t { kPidX, kPidY, kPidZ, kGridX, kGridY, kGridZ, kCore, kCores };
inline constexpr std::string_view kSpecialNames[] = {"pid_x",  "pid_y",  "pid_z", "grid_x",
                                                     "grid_y", "grid_z", "core",  "cores"};
enum class LoadKind : uint8_t { kU64, kU32, kI32 };
inline constexpr std::string_view kLoadKindNames[] = {"u64", "u32", "i32"};
enum class UnaryOp : uint8_t {
  kCopy,
  kNeg,
  kAbs,
  kExp,
  kLog,
  kSqrt,
  kRsqrt,
  kRcp,
  kTanh,
  kSigmoid,
  kSilu,
  kGelu,
  kRelu,
  kSin,
  kCos,
  kFloor
};
inline constexpr std::string_view kUnaryNames[] = {"copy", "neg",     "abs",  "exp",  "log",  "sqrt", "rsqrt", "rcp",
                                                   "tanh", "sigmoid", "silu", "gelu", "relu", "sin",  "cos",   "floor"};
enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kMin, kMax, kLt, kLe, kEq };
inline constexpr std::string_view kBinaryNames[] = {"add", "sub", "mul", "div", "min", "max", "lt", "le", "eq"};
enum class TernaryOp : uint8_t { kFma, kSelect };
inline constexpr std::string_view kTernaryNames[] = {"fma", "select"};
enum class ReduceOp : uint8_t { kSum, kMax, kMin, kSumSq, kArgMax };
inline constexpr std::string_view kReduceNames[] = {"sum", "max", "min", "sumsq", "argmax"};
enum class RopeOp : uint8_t { kInterleaved, kHalves };  // pairs (2i, 2i+1), or (i, i + rotated/2)
inline constexpr std::string_view kRopeNames[] = {"interleaved", "halves"};
enum class ActOp : uint8_t { kNone, kRelu, kSilu, kGelu };  // MDRAIN and VGLU
inline constexpr std::string_view kActNames[] = {"none", "relu", "silu", "gelu"};
enum class CopyOp : uint8_t { kPlain, kTransposed };
inline constexpr std::string_view kCopyNames[] = {"plain", "transposed"};

struct SubNames {
  const std::string_view* names = nullptr;
  size_t count = 0;
};
constexpr SubNames sub_names(Op op) {
  switch (op) {
    case Op::SALU:
      return {kSaluNames, std::size(kSaluNames)};
    case Op::BR:
      return {kCondNames, std::size(kCondNames)};
    case Op::SPR:
      return {kSpecialNames, std::size(kSpecialNames)};
    case Op::LDARG:
      return {kLoadKindNames, std::size(kLoadKindNames)};
    case Op::DCPY:
      return {kCopyNames, std::size(kCopyNames)};
    case Op::MDRAIN:
    case Op::VGLU:
      return {kActNames, std::size(kActNames)};
    case Op::VUNI:
      return {kUnaryNames, std::size(kUnaryNames)};
    case Op::VBIN:
      return {kBinaryNames, std::size(kBinaryNames)};
    case Op::VTER:
      return {kTernaryNames, std::size(kTernaryNames)};
    case Op::VRED:
      return {kReduceNames, std::size(kReduceNames)};
    case Op::VROPE:
      return {kRopeNames, std::size(kRopeNames)};
    case Op::HALT:
    case Op::MOVI:
    case Op::LOOP:
    case Op::ENDL:
    case Op::LDS:
    case Op::STS:
    case Op::TDEF:
    case Op::TSLICE:
    case Op::TSTAGE:
    case Op::WAIT:
    case Op::SIGNAL:
    case Op::TRAP:
    case Op::DLD:
    case Op::DST:
    case Op::DGATHER:
    case Op::DSCATTER:
    case Op::MINIT:
    case Op::MMA:
    case Op::VMASK:
    case Op::VNORM:
    case Op::VSMX:
    case Op::VTOPK:
    case Op::VRNG:
    case Op::VSCAN:
    case Op::VIOTA:
    case Op::VFILL:
      return {};
  }
  return {};
}

// The engine whose queue an instruction sits in.
constexpr Engine engine_of(const Instruction& i) {
  const OpInfo* op = find_op(i.op);
  if (op == nullptr) return Engine::kControl;
  switch (op->engine) {
    case EngineClass::Control:
      return i.op == uint8_t(Op::WAIT) || i.op == uint8_t(Op::SIGNAL) ? Engine{i.queue} : Engine::kControl;
    case EngineClass::Dma:
      return Engine(1 + (i.queue & 3));
    case EngineClass::Matrix:
      return Engine::kMatrix;
    case EngineClass::Vector:
      return Engine::kVector;
  }
  return Engine::kControl;
}

enum class Space : uint8_t { kSpm = 0, kAcc = 1 };

// A tile: TDEF's imm0 and imm1.
struct TileDescriptor {
  uint32_t offset;  // bytes, 64-byte aligned in TDEF
  uint32_t pitch;   // bytes from row to row
  uint16_t rows, columns;
  DType dtype;
  Space space;
  uint16_t reserved;
};
static_assert(sizeof(TileDescriptor) == 16);

// A tensor argument, 64 bytes, built by the runtime; DMA instructions name its offset in the arguments.
struct alignas(8) TensorDescriptor {
  DeviceAddr base;
  DType dtype;
  uint8_t rank;  // 1..4
  uint8_t reserved[6];
  uint32_t shape[4];   // elements; shape[rank - 1] is contiguous
  uint64_t stride[4];  // bytes; stride[rank - 1] is not used
};
static_assert(sizeof(TensorDescriptor) == 64 && offsetof(TensorDescriptor, shape) == 16 &&
              offsetof(TensorDescriptor, stride) == 32);

}  // namespace jalapeno::hw
