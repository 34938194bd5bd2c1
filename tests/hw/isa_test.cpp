// The tile instruction set and the module file against numbers typed by hand from docs/hardware.md, sections 6
// and 7. Nothing expected here may be taken from include/jalapeno_hw: that is what is under test.
#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <jalapeno_hw/isa.hpp>
#include <jalapeno_hw/module.hpp>
#include <set>
#include <string_view>
#include <type_traits>
#include <vector>

#include "support/golden.hpp"

namespace {

namespace hw = jalapeno::hw;
using hw::DType;
using hw::Engine;
using hw::Instruction;
using hw::Op;

using jalapeno::test::number;
using jalapeno::test::stores;

// An instruction without operands: 0xFF is "absent".
Instruction instruction(Op op) {
  Instruction i{};
  i.op = static_cast<uint8_t>(op);
  for (uint8_t& b : i.wait) b = 0xFF;
  for (uint8_t& b : i.signal) b = 0xFF;
  for (uint8_t& b : i.t) b = 0xFF;
  for (uint8_t& b : i.r) b = 0xFF;
  return i;
}

// ---- Opcodes

// The data sheet's table. Operands: the highest of t0.. and r0.. its meaning column names, plus one; -1 where the
// column does not name them. "Coordinates r0.." are four: a tensor has at most four dimensions.
struct Row {
  uint8_t code;
  const char* name;
  Op op;  // under test
  int tiles, registers;
};
const Row kTable[] = {
    {0, "HALT", Op::HALT, 0, 0},        {1, "MOVI", Op::MOVI, 0, 1},
    {2, "SALU", Op::SALU, 0, 3},        {3, "BR", Op::BR, 0, 2},
    {4, "LOOP", Op::LOOP, 0, 4},        {5, "ENDL", Op::ENDL, 0, -1},
    {6, "SPR", Op::SPR, 0, 1},          {7, "LDARG", Op::LDARG, 0, 1},
    {8, "LDS", Op::LDS, 1, 3},          {9, "STS", Op::STS, 1, 3},
    {10, "TDEF", Op::TDEF, 1, 0},       {11, "TSLICE", Op::TSLICE, 2, 4},
    {12, "TSTAGE", Op::TSTAGE, 2, 1},   {13, "WAIT", Op::WAIT, 0, 0},
    {14, "SIGNAL", Op::SIGNAL, 0, 0},   {15, "TRAP", Op::TRAP, 0, 0},
    {16, "DLD", Op::DLD, 1, 4},         {17, "DST", Op::DST, 1, 4},
    {18, "DGATHER", Op::DGATHER, 2, 1}, {19, "DSCATTER", Op::DSCATTER, 2, 1},
    {20, "DCPY", Op::DCPY, 2, 0},       {24, "MINIT", Op::MINIT, 1, 0},
    {25, "MMA", Op::MMA, 3, 0},         {26, "MDRAIN", Op::MDRAIN, 4, 1},
    {32, "VUNI", Op::VUNI, -1, -1},     {33, "VBIN", Op::VBIN, 3, 1},
    {34, "VTER", Op::VTER, -1, -1},     {35, "VMASK", Op::VMASK, -1, 2},
    {36, "VRED", Op::VRED, -1, -1},     {37, "VNORM", Op::VNORM, 3, 1},
    {38, "VROPE", Op::VROPE, -1, -1},   {39, "VSMX", Op::VSMX, 3, -1},
    {40, "VGLU", Op::VGLU, 3, 0},       {41, "VTOPK", Op::VTOPK, 3, 1},
    {42, "VRNG", Op::VRNG, -1, 2},      {43, "VSCAN", Op::VSCAN, -1, -1},
    {44, "VIOTA", Op::VIOTA, -1, 1},    {45, "VFILL", Op::VFILL, -1, 0},
};

TEST(Opcodes, HaveTheDataSheetsNumbers) {
  for (const Row& row : kTable) EXPECT_EQ(number(row.op), row.code) << row.name;
  EXPECT_EQ(sizeof(Op), 1u);
}

TEST(Opcodes, AreFoundByNumberUnderTheDataSheetsNames) {
  for (const Row& row : kTable) {
    const hw::OpInfo* info = hw::find_op(row.code);
    ASSERT_NE(info, nullptr) << row.name;
    EXPECT_EQ(info->code, row.code);
    EXPECT_EQ(info->name, row.name);
  }
}

TEST(Opcodes, TakeTheOperandsTheDataSheetNames) {
  for (const Row& row : kTable) {
    const hw::OpInfo* info = hw::find_op(row.code);
    ASSERT_NE(info, nullptr) << row.name;
    if (row.tiles >= 0) {
      EXPECT_EQ(int{info->tiles}, row.tiles) << row.name;
    }
    if (row.registers >= 0) {
      EXPECT_EQ(int{info->registers}, row.registers) << row.name;
    }
  }
}

TEST(Opcodes, ThereAre38AndEachOnce) {
  EXPECT_EQ(std::size(kTable), 38u);
  EXPECT_EQ(std::size(hw::kOps), 38u);
  std::set<int> codes;
  std::set<std::string_view> names;
  for (const hw::OpInfo& op : hw::kOps) {
    codes.insert(op.code);
    names.insert(op.name);
  }
  EXPECT_EQ(codes.size(), 38u);
  EXPECT_EQ(names.size(), 38u);
}

TEST(Opcodes, UnknownNumbersAreNotFound) {
  for (int code : {21, 22, 23, 27, 28, 29, 30, 31}) EXPECT_EQ(hw::find_op(static_cast<uint8_t>(code)), nullptr) << code;
  for (int code = 46; code <= 255; ++code) EXPECT_EQ(hw::find_op(static_cast<uint8_t>(code)), nullptr) << code;
}

// ---- Variants

void expect_variants(Op op, const std::vector<std::string_view>& names) {
  const hw::SubNames table = hw::sub_names(op);
  ASSERT_EQ(table.count, names.size()) << "opcode " << number(op);
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(table.names[i], names[i]) << "opcode " << number(op) << ", " << i;
}

TEST(Variants, NamesAreInTheDataSheetsOrder) {
  expect_variants(Op::SALU, {"add", "sub", "mul", "div", "mod", "cdiv", "and", "or", "xor", "shl", "shr", "min", "max",
                             "fadd", "fsub", "fmul", "fdiv", "i2f", "f2i"});
  expect_variants(Op::BR, {"eq", "ne", "lt", "le", "gt", "ge"});
  expect_variants(Op::SPR, {"pid_x", "pid_y", "pid_z", "grid_x", "grid_y", "grid_z", "core", "cores"});
  expect_variants(Op::LDARG, {"u64", "u32", "i32"});
  expect_variants(Op::MDRAIN, {"none", "relu", "silu", "gelu"});
  expect_variants(Op::VGLU, {"none", "relu", "silu", "gelu"});
  expect_variants(Op::VUNI, {"copy", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "rcp", "tanh", "sigmoid", "silu",
                             "gelu", "relu", "sin", "cos", "floor"});
  expect_variants(Op::VBIN, {"add", "sub", "mul", "div", "min", "max", "lt", "le", "eq"});
  expect_variants(Op::VTER, {"fma", "select"});
  expect_variants(Op::VRED, {"sum", "max", "min", "sumsq", "argmax"});
  expect_variants(Op::VROPE, {"interleaved", "halves"});
}

TEST(Variants, DcpyHasTwoAndOtherInstructionsNone) {
  EXPECT_EQ(hw::sub_names(Op::DCPY).count, 2u);
  for (Op op : {Op::HALT,    Op::MOVI,     Op::LOOP,  Op::ENDL, Op::LDS,  Op::STS,   Op::TDEF,  Op::TSLICE, Op::TSTAGE,
                Op::WAIT,    Op::SIGNAL,   Op::TRAP,  Op::DLD,  Op::DST,  Op::MINIT, Op::MMA,   Op::VMASK,  Op::VNORM,
                Op::DGATHER, Op::DSCATTER, Op::VTOPK, Op::VSMX, Op::VRNG, Op::VSCAN, Op::VIOTA, Op::VFILL})
    EXPECT_EQ(hw::sub_names(op).count, 0u) << "opcode " << number(op);
}

TEST(Variants, SaluOperationsAre0To18) {
  EXPECT_EQ(number(hw::SaluOp::kAdd), 0u);
  EXPECT_EQ(number(hw::SaluOp::kSub), 1u);
  EXPECT_EQ(number(hw::SaluOp::kMul), 2u);
  EXPECT_EQ(number(hw::SaluOp::kDiv), 3u);
  EXPECT_EQ(number(hw::SaluOp::kMod), 4u);
  EXPECT_EQ(number(hw::SaluOp::kCeilDiv), 5u);
  EXPECT_EQ(number(hw::SaluOp::kAnd), 6u);
  EXPECT_EQ(number(hw::SaluOp::kOr), 7u);
  EXPECT_EQ(number(hw::SaluOp::kXor), 8u);
  EXPECT_EQ(number(hw::SaluOp::kShl), 9u);
  EXPECT_EQ(number(hw::SaluOp::kShr), 10u);
  EXPECT_EQ(number(hw::SaluOp::kMin), 11u);
  EXPECT_EQ(number(hw::SaluOp::kMax), 12u);
  EXPECT_EQ(number(hw::SaluOp::kFAdd), 13u);
  EXPECT_EQ(number(hw::SaluOp::kFSub), 14u);
  EXPECT_EQ(number(hw::SaluOp::kFMul), 15u);
  EXPECT_EQ(number(hw::SaluOp::kFDiv), 16u);
  EXPECT_EQ(number(hw::SaluOp::kIntToFloat), 17u);
  EXPECT_EQ(number(hw::SaluOp::kFloatToInt), 18u);
}

TEST(Variants, BranchConditionsAre0To5) {
  EXPECT_EQ(number(hw::Cond::kEq), 0u);
  EXPECT_EQ(number(hw::Cond::kNe), 1u);
  EXPECT_EQ(number(hw::Cond::kLt), 2u);
  EXPECT_EQ(number(hw::Cond::kLe), 3u);
  EXPECT_EQ(number(hw::Cond::kGt), 4u);
  EXPECT_EQ(number(hw::Cond::kGe), 5u);
}

TEST(Variants, SpecialRegistersAre0To7) {
  EXPECT_EQ(number(hw::Special::kPidX), 0u);
  EXPECT_EQ(number(hw::Special::kPidY), 1u);
  EXPECT_EQ(number(hw::Special::kPidZ), 2u);
  EXPECT_EQ(number(hw::Special::kGridX), 3u);
  EXPECT_EQ(number(hw::Special::kGridY), 4u);
  EXPECT_EQ(number(hw::Special::kGridZ), 5u);
  EXPECT_EQ(number(hw::Special::kCore), 6u);
  EXPECT_EQ(number(hw::Special::kCores), 7u);
}

TEST(Variants, ArgumentLoadsAre0To2) {
  EXPECT_EQ(number(hw::LoadKind::kU64), 0u);
  EXPECT_EQ(number(hw::LoadKind::kU32), 1u);
  EXPECT_EQ(number(hw::LoadKind::kI32), 2u);
}

TEST(Variants, UnaryOperationsAre0To15) {
  EXPECT_EQ(number(hw::UnaryOp::kCopy), 0u);
  EXPECT_EQ(number(hw::UnaryOp::kNeg), 1u);
  EXPECT_EQ(number(hw::UnaryOp::kAbs), 2u);
  EXPECT_EQ(number(hw::UnaryOp::kExp), 3u);
  EXPECT_EQ(number(hw::UnaryOp::kLog), 4u);
  EXPECT_EQ(number(hw::UnaryOp::kSqrt), 5u);
  EXPECT_EQ(number(hw::UnaryOp::kRsqrt), 6u);
  EXPECT_EQ(number(hw::UnaryOp::kRcp), 7u);
  EXPECT_EQ(number(hw::UnaryOp::kTanh), 8u);
  EXPECT_EQ(number(hw::UnaryOp::kSigmoid), 9u);
  EXPECT_EQ(number(hw::UnaryOp::kSilu), 10u);
  EXPECT_EQ(number(hw::UnaryOp::kGelu), 11u);
  EXPECT_EQ(number(hw::UnaryOp::kRelu), 12u);
  EXPECT_EQ(number(hw::UnaryOp::kSin), 13u);
  EXPECT_EQ(number(hw::UnaryOp::kCos), 14u);
  EXPECT_EQ(number(hw::UnaryOp::kFloor), 15u);
}

TEST(Variants, BinaryOperationsAre0To8) {
  EXPECT_EQ(number(hw::BinaryOp::kAdd), 0u);
  EXPECT_EQ(number(hw::BinaryOp::kSub), 1u);
  EXPECT_EQ(number(hw::BinaryOp::kMul), 2u);
  EXPECT_EQ(number(hw::BinaryOp::kDiv), 3u);
  EXPECT_EQ(number(hw::BinaryOp::kMin), 4u);
  EXPECT_EQ(number(hw::BinaryOp::kMax), 5u);
  EXPECT_EQ(number(hw::BinaryOp::kLt), 6u);
  EXPECT_EQ(number(hw::BinaryOp::kLe), 7u);
  EXPECT_EQ(number(hw::BinaryOp::kEq), 8u);
}

TEST(Variants, TheOtherOperationsAreInTheDataSheetsOrder) {
  EXPECT_EQ(number(hw::TernaryOp::kFma), 0u);
  EXPECT_EQ(number(hw::TernaryOp::kSelect), 1u);
  EXPECT_EQ(number(hw::ReduceOp::kSum), 0u);
  EXPECT_EQ(number(hw::ReduceOp::kMax), 1u);
  EXPECT_EQ(number(hw::ReduceOp::kMin), 2u);
  EXPECT_EQ(number(hw::ReduceOp::kSumSq), 3u);
  EXPECT_EQ(number(hw::ReduceOp::kArgMax), 4u);
  EXPECT_EQ(number(hw::RopeOp::kInterleaved), 0u);
  EXPECT_EQ(number(hw::RopeOp::kHalves), 1u);
  EXPECT_EQ(number(hw::ActOp::kNone), 0u);
  EXPECT_EQ(number(hw::ActOp::kRelu), 1u);
  EXPECT_EQ(number(hw::ActOp::kSilu), 2u);
  EXPECT_EQ(number(hw::ActOp::kGelu), 3u);
  EXPECT_EQ(number(hw::CopyOp::kTransposed), 1u);
}

// ---- Encoding

TEST(Encoding, ACoreHasTheDataSheetsNumbersOfEverything) {
  EXPECT_EQ(hw::kRegisters, 32u);
  EXPECT_EQ(hw::kTiles, 64u);
  EXPECT_EQ(hw::kSemaphores, 64u);
  EXPECT_EQ(hw::kLoopDepth, 4u);
  EXPECT_EQ(hw::kEngines, 7u);
}

TEST(Encoding, AllOnesIsAnAbsentOperand) { EXPECT_EQ(hw::kNone, 0xFF); }

TEST(Encoding, FlagsAreTheDataSheetsBits) {
  EXPECT_EQ(hw::kFlagImmediate, 1);
  EXPECT_EQ(hw::kFlagAccumulate, 2);
  EXPECT_EQ(hw::kFlagRowsAreK, 4);
  EXPECT_EQ(hw::kFlagScalar, 8);
  EXPECT_EQ(hw::kFlagReverse, 16);
}

TEST(Encoding, EveryFieldOfAnInstructionHasItsOwnBytes) {
  Instruction i{};
  i.op = 0xA1;
  i.sub = 0xA2;
  i.flags = 0xA3;
  i.queue = 0xA4;
  i.wait[0] = 0xB1;
  i.wait[1] = 0xB2;
  i.signal[0] = 0xB3;
  i.signal[1] = 0xB4;
  i.t[0] = 0xC1;
  i.t[1] = 0xC2;
  i.t[2] = 0xC3;
  i.t[3] = 0xC4;
  i.r[0] = 0xD1;
  i.r[1] = 0xD2;
  i.r[2] = 0xD3;
  i.r[3] = 0xD4;
  i.imm0 = 0x1112131415161718;
  i.imm1 = 0x2122232425262728;
  EXPECT_TRUE(stores(i, {
                            0xA1, 0xA2, 0xA3, 0xA4,                          // 0: opcode, variant, flags, queue
                            0xB1, 0xB2, 0xB3, 0xB4,                          // 4: wait, signal
                            0xC1, 0xC2, 0xC3, 0xC4,                          // 8: tiles
                            0xD1, 0xD2, 0xD3, 0xD4,                          // 12: registers
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 16: imm0
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21   // 24: imm1
                        }));
}

TEST(Encoding, ShiftingR6By4IntoR5IsThese32Bytes) {
  Instruction i = instruction(Op::SALU);
  i.sub = static_cast<uint8_t>(hw::SaluOp::kShl);
  i.flags = hw::kFlagImmediate;
  i.r[0] = 5;
  i.r[1] = 6;
  i.imm0 = 4;
  EXPECT_TRUE(stores(i, {
                            0x02, 0x09, 0x01, 0x00,                          // SALU, shl, immediate
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no semaphores
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no tiles
                            0x05, 0x06, 0xFF, 0xFF,                          // r0, r1
                            0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // imm0
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // imm1
                        }));
}

TEST(Encoding, ALoadOnDma3PaddedWithMinusInfinityIsThese32Bytes) {
  Instruction i = instruction(Op::DLD);
  i.queue = 3;
  i.wait[0] = 7;
  i.signal[0] = 8;
  i.signal[1] = 9;
  i.t[0] = 21;
  i.r[0] = 1;
  i.r[1] = 2;
  i.imm0 = 0x148;
  i.imm1 = 0xFF800000;
  EXPECT_TRUE(stores(i, {
                            0x10, 0x00, 0x00, 0x03,                          // DLD on DMA 3
                            0x07, 0xFF, 0x08, 0x09,                          // wait 7, signal 8 and 9
                            0x15, 0xFF, 0xFF, 0xFF,                          // t0
                            0x01, 0x02, 0xFF, 0xFF,                          // coordinates
                            0x48, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // the descriptor's offset
                            0x00, 0x00, 0x80, 0xFF, 0x00, 0x00, 0x00, 0x00   // outside
                        }));
}

TEST(Encoding, AnAccumulatingMmaWithBByRowsOfKIsThese32Bytes) {
  Instruction i = instruction(Op::MMA);
  i.flags = hw::kFlagAccumulate | hw::kFlagRowsAreK;
  i.wait[0] = 0;
  i.wait[1] = 63;
  i.signal[0] = 1;
  i.t[0] = 63;
  i.t[1] = 10;
  i.t[2] = 11;
  EXPECT_TRUE(stores(i, {
                            0x19, 0x00, 0x06, 0x00,                          // MMA, accumulate, [K, N]
                            0x00, 0x3F, 0x01, 0xFF,                          // wait 0 and 63, signal 1
                            0x3F, 0x0A, 0x0B, 0xFF,                          // t0, t1, t2
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no registers
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // imm0
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // imm1
                        }));
}

TEST(Encoding, AReversedScalarDivisionIsThese32Bytes) {
  Instruction i = instruction(Op::VBIN);
  i.sub = static_cast<uint8_t>(hw::BinaryOp::kDiv);
  i.flags = hw::kFlagScalar | hw::kFlagReverse;
  i.t[0] = 12;
  i.t[1] = 13;
  i.r[0] = 31;
  EXPECT_TRUE(stores(i, {
                            0x21, 0x03, 0x18, 0x00,                          // VBIN, div, register, swapped
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no semaphores
                            0x0C, 0x0D, 0xFF, 0xFF,                          // t0, t1
                            0x1F, 0xFF, 0xFF, 0xFF,                          // r0
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // imm0
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // imm1
                        }));
}

TEST(Encoding, AWaitInTheVectorQueueIsThese32Bytes) {
  Instruction i = instruction(Op::WAIT);
  i.queue = static_cast<uint8_t>(Engine::kVector);
  i.wait[0] = 62;
  i.imm0 = 2;
  EXPECT_TRUE(stores(i, {
                            0x0D, 0x00, 0x00, 0x06,                          // WAIT in the vector engine's queue
                            0x3E, 0xFF, 0xFF, 0xFF,                          // semaphore 62
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no tiles
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no registers
                            0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // how many to take
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // imm1
                        }));
}

// ---- Tiles and tensors

hw::TileDescriptor distinctive_tile() {
  hw::TileDescriptor t{};
  t.offset = 0x11121340;
  t.pitch = 0x21222324;
  t.rows = 0x3132;
  t.columns = 0x4142;
  t.dtype = DType::kQ4_0;
  t.space = hw::Space::kAcc;
  return t;
}

TEST(Tiles, ATileDescriptorIsThese16Bytes) {
  EXPECT_TRUE(stores(distinctive_tile(), {
                                             0x40, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,  // offset, pitch
                                             0x32, 0x31, 0x42, 0x41,                          // rows, columns
                                             0x06, 0x01, 0x00, 0x00                           // type, space, zero
                                         }));
}

TEST(Tiles, ATileOfEightBitFloatsIsThese16Bytes) {
  hw::TileDescriptor t = distinctive_tile();
  t.dtype = DType::kE5M2;
  EXPECT_TRUE(stores(t, {
                            0x40, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,  // offset, pitch
                            0x32, 0x31, 0x42, 0x41,                          // rows, columns
                            0x08, 0x01, 0x00, 0x00                           // type, space, zero
                        }));
}

TEST(Tiles, SpacesAreScratchpad0AndAccumulators1) {
  EXPECT_EQ(number(hw::Space::kSpm), 0u);
  EXPECT_EQ(number(hw::Space::kAcc), 1u);
}

TEST(Tiles, TdefHoldsADescriptorInItsImmediates) {
  Instruction i = instruction(Op::TDEF);
  i.t[0] = 9;
  const hw::TileDescriptor tile = distinctive_tile();
  std::memcpy(&i.imm0, &tile, 8);
  std::memcpy(&i.imm1, reinterpret_cast<const char*>(&tile) + 8, 8);
  EXPECT_EQ(i.imm0, 0x2122232411121340u);
  EXPECT_EQ(i.imm1, 0x0000010641423132u);
  EXPECT_TRUE(stores(i, {
                            0x0A, 0x00, 0x00, 0x00,                          // TDEF
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no semaphores
                            0x09, 0xFF, 0xFF, 0xFF,                          // t0
                            0xFF, 0xFF, 0xFF, 0xFF,                          // no registers
                            0x40, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,  // offset, pitch
                            0x32, 0x31, 0x42, 0x41, 0x06, 0x01, 0x00, 0x00   // rows, columns, type, space, zero
                        }));
}

TEST(Tensors, ATensorDescriptorIsThese64Bytes) {
  hw::TensorDescriptor t{};
  t.base = hw::DeviceAddr{0x1112131415161718};
  t.dtype = DType::kQ8_0;
  t.rank = 4;
  t.shape[0] = 0x21222324;
  t.shape[1] = 0x31323334;
  t.shape[2] = 0x41424344;
  t.shape[3] = 0x51525354;
  t.stride[0] = 0x6162636465666768;
  t.stride[1] = 0x7172737475767778;
  t.stride[2] = 0x8182838485868788;
  t.stride[3] = 0x9192939495969798;
  EXPECT_TRUE(stores(t, {
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 0: base
                            0x05, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 8: type, rank, reserved
                            0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31,  // 16: shape
                            0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51,  // 24
                            0x68, 0x67, 0x66, 0x65, 0x64, 0x63, 0x62, 0x61,  // 32: stride
                            0x78, 0x77, 0x76, 0x75, 0x74, 0x73, 0x72, 0x71,  // 40
                            0x88, 0x87, 0x86, 0x85, 0x84, 0x83, 0x82, 0x81,  // 48
                            0x98, 0x97, 0x96, 0x95, 0x94, 0x93, 0x92, 0x91   // 56
                        }));
}

// ---- Engines

TEST(Engines, HaveTheDataSheetsNumbers) {
  EXPECT_EQ(number(Engine::kControl), 0u);
  EXPECT_EQ(number(Engine::kDma0), 1u);
  EXPECT_EQ(number(Engine::kDma1), 2u);
  EXPECT_EQ(number(Engine::kDma2), 3u);
  EXPECT_EQ(number(Engine::kDma3), 4u);
  EXPECT_EQ(number(Engine::kMatrix), 5u);
  EXPECT_EQ(number(Engine::kVector), 6u);
}

TEST(Engines, SequencerInstructionsSitInTheSequencer) {
  for (Op op : {Op::HALT, Op::MOVI, Op::SALU, Op::BR, Op::LOOP, Op::ENDL, Op::SPR, Op::LDARG, Op::LDS, Op::STS,
                Op::TDEF, Op::TSLICE, Op::TSTAGE, Op::TRAP})
    EXPECT_EQ(number(hw::engine_of(instruction(op))), 0u) << "opcode " << number(op);
}

TEST(Engines, DmaInstructionsSitInTheQueueTheyName) {
  for (Op op : {Op::DLD, Op::DST, Op::DGATHER, Op::DSCATTER, Op::DCPY})
    for (uint8_t queue = 0; queue < 4; ++queue) {
      Instruction i = instruction(op);
      i.queue = queue;
      EXPECT_EQ(number(hw::engine_of(i)), queue + 1u) << "opcode " << number(op);
    }
}

TEST(Engines, MatrixInstructionsSitInTheMatrixEngine) {
  for (Op op : {Op::MINIT, Op::MMA, Op::MDRAIN})
    EXPECT_EQ(number(hw::engine_of(instruction(op))), 5u) << "opcode " << number(op);
}

TEST(Engines, VectorInstructionsSitInTheVectorEngine) {
  for (Op op : {Op::VUNI, Op::VBIN, Op::VTER, Op::VMASK, Op::VRED, Op::VNORM, Op::VROPE, Op::VSMX, Op::VGLU, Op::VTOPK,
                Op::VRNG, Op::VSCAN, Op::VIOTA, Op::VFILL})
    EXPECT_EQ(number(hw::engine_of(instruction(op))), 6u) << "opcode " << number(op);
}

TEST(Engines, WaitAndSignalSitInTheEngineTheyName) {
  for (Op op : {Op::WAIT, Op::SIGNAL})
    for (uint8_t engine = 0; engine < 7; ++engine) {
      Instruction i = instruction(op);
      i.queue = engine;
      EXPECT_EQ(number(hw::engine_of(i)), engine) << "opcode " << number(op);
    }
}

// ---- Section 7: modules

TEST(Modules, TheMachineNumberIsA1A7) {
  const uint16_t machine = hw::kElfMachine;
  EXPECT_TRUE(stores(machine, {0xA7, 0xA1}));
}

TEST(Modules, TheNoteIsType1AndHoldsIsa11AndModuleVersion1) {
  EXPECT_EQ(hw::kNoteVersion, 1u);
  const uint32_t payload[2] = {hw::kIsaVersion, hw::kModuleVersion};
  EXPECT_TRUE(stores(payload, {0x01, 0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0x00}));
}

TEST(Modules, AKernelRecordIsThese64Bytes) {
  hw::KernelRecord k{};
  k.name = 0x11121314;
  k.first = 0x21222324;
  k.count = 0x31323334;
  k.first_argument = 0x41424344;
  k.arguments = 0x51525354;
  k.argument_bytes = 0x61626364;
  k.spm_bytes = 0x71727374;
  k.acc_bytes = 0x81828384;
  k.source = 0x91929394;
  EXPECT_TRUE(stores(k, {
                            0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,  // 0: name, first
                            0x34, 0x33, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41,  // 8: count, first argument
                            0x54, 0x53, 0x52, 0x51, 0x64, 0x63, 0x62, 0x61,  // 16: arguments, argument bytes
                            0x74, 0x73, 0x72, 0x71, 0x84, 0x83, 0x82, 0x81,  // 24: SPM bytes, ACC bytes
                            0x94, 0x93, 0x92, 0x91, 0x00, 0x00, 0x00, 0x00,  // 32: source, reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Modules, AnArgumentRecordIsThese32Bytes) {
  hw::ArgumentRecord a{};
  a.name = 0x11121314;
  a.kind = hw::ArgumentKind::kTensor;
  a.offset = 0x21222324;
  a.dtype = 0x31323334;
  a.rank = 0x41424344;
  EXPECT_TRUE(stores(a, {
                            0x14, 0x13, 0x12, 0x11, 0x03, 0x00, 0x00, 0x00,  // 0: name, kind
                            0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31,  // 8: offset, type
                            0x44, 0x43, 0x42, 0x41, 0x00, 0x00, 0x00, 0x00,  // 16: rank, reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 24
                        }));
}

TEST(Modules, ArgumentKindsAndTheAnyTypeHaveTheDataSheetsNumbers) {
  EXPECT_EQ(number(hw::ArgumentKind::kI32), 0u);
  EXPECT_EQ(number(hw::ArgumentKind::kI64), 1u);
  EXPECT_EQ(number(hw::ArgumentKind::kF32), 2u);
  EXPECT_EQ(number(hw::ArgumentKind::kTensor), 3u);
  EXPECT_EQ(hw::kAnyDType, 255u);
}

TEST(Modules, ALineRecordIsThese16Bytes) {
  hw::LineRecord l{};
  l.instruction = 0x11121314;
  l.line = 0x21222324;
  l.file = 0x31323334;
  EXPECT_TRUE(stores(l, {
                            0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,  // 0: instruction, line
                            0x34, 0x33, 0x32, 0x31, 0x00, 0x00, 0x00, 0x00   // 8: file, reserved
                        }));
}

}  // namespace
