// A core alone: traps, the checked level, and modelled time. Programs are typed as instructions, not built.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <jalapeno/tile.hpp>

#include "core.hpp"

namespace jalapeno::emu {
namespace {

using hw::Instruction;
using hw::Op;
using hw::Status;

Instruction make(Op op) {
  Instruction i{};
  i.op = static_cast<uint8_t>(op);
  for (int k = 0; k < 4; ++k) i.t[k] = i.r[k] = hw::kNone;
  for (int k = 0; k < 2; ++k) i.wait[k] = i.signal[k] = hw::kNone;
  return i;
}
Instruction movi(uint8_t r, uint64_t v) {
  Instruction i = make(Op::MOVI);
  i.r[0] = r, i.imm0 = v;
  return i;
}
Instruction tdef(uint8_t t, uint32_t offset, uint16_t rows, uint16_t columns) {
  const hw::TileDescriptor d{offset, columns * 4u, rows, columns, hw::DType::kF32, hw::Space::kSpm, 0};
  Instruction i = make(Op::TDEF);
  i.t[0] = t;
  std::memcpy(&i.imm0, &d, 8);
  std::memcpy(&i.imm1, reinterpret_cast<const char*>(&d) + 8, 8);
  return i;
}

class CoreTest : public ::testing::Test {
 protected:
  // One instance over `memory` at device address 0x200000, which is also the tensor at argument 0.
  // A list: the instance is written down there and run again from it, with `stop_after` as the flag that ends it.
  Tally run(const std::vector<Instruction>& code, EmulatorOptions options = {}, uint32_t watchdog_ms = 10000,
            CallList* list = nullptr, bool stop_after = false) {
    Core core(config_, options, 0);
    Launch launch;
    const Program program = prepare(code.data(), static_cast<uint32_t>(code.size()));
    launch.program = &program;
    const AddressMap map(
        {.extents = {{0x200000, memory_.size() * 4, reinterpret_cast<std::byte*>(memory_.data()), true, true, false}},
         .keep = {},
         .asked = {},
         .link = nullptr});
    launch.map = &map;
    hw::TensorDescriptor t{};
    t.base = hw::DeviceAddr{0x200000}, t.dtype = hw::DType::kF32, t.rank = 2;
    t.shape[0] = rows_, t.shape[1] = 64, t.stride[0] = stride_;
    std::memcpy(launch.arguments.data(), &t, sizeof t);
    launch.argument_bytes = sizeof t;
    launch.grid = {1, 1, 1};
    launch.stop = &stop_, launch.watchdog_ms = watchdog_ms;
    const Tally tally = core.run(launch, {0, 0, 0}, list);
    if (list != nullptr) {
      stop_ = stop_after;
      core.replay(launch, {0, 0, 0}, *list);
    }
    return tally;
  }
  hw::FaultRecord fault(const std::vector<Instruction>& code, EmulatorOptions options = {},
                        uint32_t watchdog_ms = 10000) {
    try {
      run(code, options, watchdog_ms);
    } catch (Fault& f) {
      return f.record;
    }
    return {};
  }
  static Status status(const hw::FaultRecord& r) { return static_cast<Status>(r.status); }

  ChipConfig config_ = load_config("");
  std::vector<float> memory_ = std::vector<float>(64 * 64, 1.f);
  uint32_t rows_ = 64;
  uint64_t stride_ = 256;
  std::atomic<bool> stop_{false};
};

TEST_F(CoreTest, HaltEndsCleanly) {
  const Tally t = run({make(Op::HALT)});
  EXPECT_EQ(t.instructions, 1u);
  EXPECT_GT(t.duration_ns, 0);
}

TEST_F(CoreTest, DivisionByZeroTrapsAtItsInstruction) {
  Instruction d = make(Op::SALU);
  d.sub = static_cast<uint8_t>(hw::SaluOp::kDiv), d.r[0] = 1, d.r[1] = 1, d.r[2] = 2;
  const auto r = fault({movi(1, 5), d, make(Op::HALT)});
  EXPECT_EQ(status(r), Status::kDivideByZero);
  EXPECT_EQ(r.instruction, 1u);
}

TEST_F(CoreTest, WaitThatNothingSatisfiesIsADeadlockAndNamesTheSemaphore) {
  Instruction w = make(Op::WAIT);
  w.wait[0] = 7, w.imm0 = 1;
  const auto r = fault({w, make(Op::HALT)});
  EXPECT_EQ(status(r), Status::kDeadlock);
  EXPECT_EQ(r.value, 7u);
}

TEST_F(CoreTest, SemaphoreLeftSetIsALeak) {
  Instruction s = make(Op::SIGNAL);
  s.signal[0] = 3, s.imm0 = 2;
  const auto r = fault({s, make(Op::HALT)});
  EXPECT_EQ(status(r), Status::kSemaphoreLeak);
  EXPECT_EQ(r.value, 3u);
}

TEST_F(CoreTest, EndlessLoopMeetsTheWatchdog) {
  Instruction loop = make(Op::LOOP), end = make(Op::ENDL);
  loop.r[0] = 1, loop.r[1] = 0, loop.r[2] = 2, loop.r[3] = 3, loop.imm0 = 3;
  end.imm0 = 2;
  EXPECT_EQ(status(fault({movi(2, INT64_MAX), movi(3, 1), loop, end, make(Op::HALT)}, {}, 30)), Status::kWatchdog);
}

TEST_F(CoreTest, TileOutsideTheScratchpadIsRefusedWhenItIsDefined) {
  const auto r = fault({tdef(0, config_.spm_bytes - 64, 2, 16), make(Op::HALT)});
  EXPECT_EQ(status(r), Status::kTileFault);
  EXPECT_EQ(r.tile, 0u);
}

TEST_F(CoreTest, ProgramWithoutHaltIsStoppedAtItsEnd) {
  EXPECT_EQ(status(fault({movi(1, 1)})), Status::kIllegalInstruction);
}

TEST_F(CoreTest, UnknownOpcodesVariantsAndOperandsAreRefused) {
  Instruction bad = make(Op::MOVI);
  bad.op = 200;
  EXPECT_EQ(status(fault({bad})), Status::kIllegalInstruction);
  bad = make(Op::SALU);
  bad.r[0] = bad.r[1] = 1, bad.sub = 99;
  EXPECT_EQ(status(fault({bad})), Status::kIllegalInstruction);
  bad = movi(40, 1);
  EXPECT_EQ(status(fault({bad})), Status::kIllegalInstruction);
  bad = make(Op::LOOP);  // without a counter
  bad.r[2] = 2, bad.r[3] = 3, bad.imm0 = 3;
  Instruction end = make(Op::ENDL);
  end.imm0 = 2;
  EXPECT_EQ(status(fault({movi(2, 4), movi(3, 1), bad, end, make(Op::HALT)})), Status::kIllegalInstruction);
}

TEST_F(CoreTest, DmaOutsideEveryMappingNamesTheAddress) {
  rows_ = 100000;  // the descriptor lies: the memory behind it ends after 64 rows
  Instruction load = make(Op::DLD);
  load.t[0] = 0, load.r[0] = 1, load.r[1] = 0;
  const auto r = fault({movi(1, 70), tdef(0, 0, 1, 64), load, make(Op::HALT)});
  EXPECT_EQ(status(r), Status::kAddressFault);
  EXPECT_EQ(r.address, 0x200000u + 70 * 256);
  EXPECT_EQ(r.access, hw::kAccessRead);
}

// The second row lies before the first, outside the mapping: rows' addresses wrap, and so would their reach.
TEST_F(CoreTest, StridesThatWrapReachNothingOutside) {
  stride_ = uint64_t{0} - 256;
  Instruction load = make(Op::DLD), store = make(Op::DST), gather = make(Op::DGATHER), index = tdef(1, 4096, 1, 1);
  for (Instruction* i : {&load, &store}) i->t[0] = 0, i->r[0] = 1, i->r[1] = 1;
  gather.t[0] = 0, gather.t[1] = 1, gather.r[0] = 1, gather.imm1 = 2;
  hw::TileDescriptor d{4096, 4, 1, 1, hw::DType::kI32, hw::Space::kSpm, 0};
  std::memcpy(&index.imm0, &d, 8);
  std::memcpy(&index.imm1, reinterpret_cast<const char*>(&d) + 8, 8);
  for (const Instruction& i : {load, store, gather}) {
    const auto r = fault({movi(1, 0), tdef(0, 0, 2, 64), index, i, make(Op::HALT)});
    EXPECT_EQ(status(r), Status::kAddressFault) << static_cast<int>(i.op);
    EXPECT_EQ(r.address, 0x200000u - 256) << static_cast<int>(i.op);
  }
}

TEST_F(CoreTest, AListDoesWhatTheProgramDidAndEndsWhenItIsTold) {
  Instruction load = make(Op::DLD), add = make(Op::VBIN), store = make(Op::DST);
  for (Instruction* i : {&load, &store}) i->t[0] = 0, i->r[0] = 1, i->r[1] = 1;
  add.sub = static_cast<uint8_t>(hw::BinaryOp::kAdd), add.flags = hw::kFlagScalar;
  add.t[0] = add.t[1] = 0, add.imm0 = std::bit_cast<uint32_t>(2.f);
  const std::vector<Instruction> code{movi(1, 0), tdef(0, 0, 4, 64), load, add, store, make(Op::HALT)};
  CallList list(100);
  run(code, {}, 10000, &list);
  EXPECT_TRUE(list.usable());
  EXPECT_EQ(memory_[0], 5.f);  // twice
  EXPECT_EQ(memory_[4 * 64 - 1], 5.f);
  EXPECT_EQ(memory_[4 * 64], 1.f);
  CallList again(100), few(2);
  EXPECT_THROW(run(code, {}, 10000, &again, true), Fault);
  EXPECT_EQ(memory_[0], 7.f);  // the program did, the list did not
  stop_ = false;
  run(code, {}, 10000, &few);
  EXPECT_FALSE(few.usable());
  EXPECT_TRUE(few.calls().empty());
}

TEST_F(CoreTest, ReadsOutsideATensorFillAndStoresAreClipped) {
  Instruction load = make(Op::DLD), store = make(Op::DST);
  load.t[0] = store.t[0] = 0;
  load.r[0] = store.r[0] = 1, load.r[1] = store.r[1] = 2;
  load.imm1 = std::bit_cast<uint32_t>(9.f);
  memory_.assign(64 * 64, 1.f);
  // A box over the right edge: columns 60..67 of row 63. Then it is written one row up and four to the left.
  run({movi(1, 63), movi(2, 60), tdef(0, 0, 1, 8), load, movi(1, 62), movi(2, 62), store, make(Op::HALT)});
  EXPECT_EQ(memory_[62 * 64 + 62], 1.f);
  EXPECT_EQ(memory_[63 * 64], 1.f) << "a clipped store must not run into the next row";
  run({movi(1, 63), movi(2, 60), tdef(0, 0, 1, 8), load, movi(1, 0), movi(2, 0), store, make(Op::HALT)});
  EXPECT_EQ(memory_[3], 1.f);
  EXPECT_EQ(memory_[4], 9.f);
}

// f32 to e4m3 on the way in, e5m2 on the vector engine, one by the other on the matrix engine; LDS and STS see codes.
TEST_F(CoreTest, EightBitFloatsPassThroughEveryEngine) {
  tile::Builder k("fp8");
  auto x = k.tensor("x", tile::f32, 2);
  auto a = k.spm(tile::e4m3, 4, 64), b = k.spm(tile::e5m2, 4, 64), t = k.spm(tile::e4m3, 1, 64);
  auto acc = k.acc(4, 4), out = k.spm(tile::f32, 4, 4), code = k.spm(tile::f32, 1, 1);
  auto whole = k.spm(tile::i32, 1, 1);
  k.load(a, x, {0, 0});
  k.convert(b, a);
  k.mma(acc, a, b);
  k.drain(out, acc);
  k.store(x, {8, 0}, out);
  k.write(whole, 0, 0, k.read(a, 0, 1));
  k.convert(code, whole);
  k.store(x, {9, 63}, code);
  k.fill(t, 1);
  k.write(t, 0, 5, 0xFE);  // -448
  k.store(x, {12, 0}, t);
  for (size_t i = 0; i < 64; ++i) memory_[i] = i % 2 == 0 ? 17.f : -500.f;
  for (size_t i = 64; i < 256; ++i) memory_[i] = 19.f;
  run(k.finish().code);
  EXPECT_EQ(memory_[8 * 64], 32 * (16 * 16 + 448 * 448));
  EXPECT_EQ(memory_[8 * 64 + 1], 32 * 20 * (16 - 448));
  EXPECT_EQ(memory_[9 * 64 + 1], 64 * 20 * 20);
  EXPECT_EQ(memory_[9 * 64 + 63], 0xFE);
  EXPECT_EQ(memory_[12 * 64 + 4], 1);
  EXPECT_EQ(memory_[12 * 64 + 5], -448);
}

// fp8 by fp8 runs at the rate of eight bits, beside bf16 it runs at bf16's.
TEST_F(CoreTest, EightBitFloatsMultiplyAtTheirModelledRate) {
  auto time = [&](tile::DType left, tile::DType right) {
    tile::Builder k("rate");
    (void)k.tensor("x", tile::f32, 2);
    auto a = k.spm(left, 256, 256), b = k.spm(right, 256, 256);
    auto acc = k.acc(256, 256);
    k.mma(acc, a, b);
    return run(k.finish().code).matrix_ns;
  };
  const double bf16 = time(tile::bf16, tile::bf16), fp8 = time(tile::e4m3, tile::e5m2);
  EXPECT_EQ(time(tile::bf16, tile::e4m3), bf16);
  EXPECT_NEAR(bf16 / fp8, config_.rate_8bit, 0.3);
}

// Without a semaphore between them, the vector engine may read before the DMA engine has written.
TEST_F(CoreTest, CheckedLevelFindsTheRaceThatAMissingSemaphoreLeaves) {
  EmulatorOptions checked;
  checked.check_races = true;
  Instruction load = make(Op::DLD), neg = make(Op::VUNI);
  load.t[0] = 0, load.r[0] = load.r[1] = 0;
  neg.sub = static_cast<uint8_t>(hw::UnaryOp::kNeg), neg.t[0] = 1, neg.t[1] = 0;
  const std::vector<Instruction> racy{tdef(0, 0, 1, 64), tdef(1, 256, 1, 64), load, neg, make(Op::HALT)};
  const auto r = fault(racy, checked);
  EXPECT_EQ(status(r), Status::kRace);
  EXPECT_EQ(r.instruction, 3u);
  EXPECT_EQ(r.tile, 0u);
  std::vector<Instruction> ordered = racy;
  ordered[2].signal[0] = 1, ordered[3].wait[0] = 1;
  EXPECT_EQ(status(fault(ordered, checked)), Status::kOk);
}

TEST_F(CoreTest, CheckedLevelFindsUninitializedReadsAndBoxesOutside) {
  EmulatorOptions checked;
  checked.check_uninitialized = checked.check_bounds = true;
  Instruction neg = make(Op::VUNI), load = make(Op::DLD);
  neg.t[0] = neg.t[1] = 0, neg.sub = 1;
  EXPECT_EQ(status(fault({tdef(0, 0, 1, 64), neg, make(Op::HALT)}, checked)), Status::kUninitialized);
  load.t[0] = 0, load.r[0] = 1, load.r[1] = 0;
  EXPECT_EQ(status(fault({movi(1, 64), tdef(0, 0, 1, 64), load, make(Op::HALT)}, checked)), Status::kOutOfBounds);
}

// Two engines that do not depend on each other overlap in modelled time; with a semaphore they do not.
TEST_F(CoreTest, SemaphoresJoinEngineClocks) {
  Instruction load = make(Op::DLD), fill = make(Op::VFILL);
  load.t[0] = 0, load.r[0] = load.r[1] = 0;
  fill.t[0] = 1;
  auto program = [&](bool joined) {
    Instruction l = load, f = fill;
    if (joined) l.signal[0] = 0, f.wait[0] = 0;
    return std::vector<Instruction>{tdef(0, 0, 64, 64), tdef(1, 65536, 256, 1024), l, f, make(Op::HALT)};
  };
  const Tally apart = run(program(false)), joined = run(program(true));
  EXPECT_NEAR(joined.duration_ns - apart.duration_ns, joined.dma_ns + config_.hbm_latency_ns, 5);
}

}  // namespace
}  // namespace jalapeno::emu
