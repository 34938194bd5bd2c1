// Modules as hostile input: every prefix and every single-byte change of a good one ends in an error or a module that
// verifies, never in a crash; and the verifier's rules each have a program that breaks them.
#include "module.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <jalapeno/tile.hpp>

namespace jalapeno::runtime {
namespace {

namespace jt = jalapeno::tile;
using hw::Op;

std::vector<std::byte> good() { return build_library_module("rmsnorm"); }

std::string refusal(std::span<const std::byte> bytes) {
  try {
    parse_module(bytes);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), jalErrorInvalidImage);
    return e.what();
  }
  return "";
}

TEST(ModuleParser, ReadsWhatTheBuilderWrites) {
  const auto m = parse_module(good());
  ASSERT_EQ(m.kernels.size(), 1u);
  const KernelImage& k = m.kernels[0].image;
  EXPECT_EQ(k.name, "rmsnorm");
  ASSERT_EQ(k.arguments.size(), 4u);
  EXPECT_EQ(k.arguments[3].name, "eps");
  EXPECT_EQ(k.argument_bytes, 3 * 64 + 8u);
  EXPECT_FALSE(k.lines.empty());
}

TEST(ModuleParser, EveryPrefixIsRefused) {
  const auto bytes = good();
  for (size_t n = 0; n < bytes.size(); n += n < 256 ? 1 : 7) EXPECT_NE(refusal(std::span(bytes).first(n)), "") << n;
}

TEST(ModuleParser, EverySingleByteChangeIsSurvived) {
  auto bytes = good();
  size_t refused = 0;
  for (size_t at = 0; at < bytes.size(); at += 3)
    for (int bit : {0, 3, 7}) {
      bytes[at] ^= std::byte(1 << bit);
      try {
        parse_module(bytes);
      } catch (const Error&) {
        ++refused;
      }
      bytes[at] ^= std::byte(1 << bit);
    }
  EXPECT_GT(refused, bytes.size() / 8);
}

TEST(ModuleParser, VersionsAndMachinesAreNamed) {
  auto bytes = good();
  auto changed = bytes;
  changed[18] = std::byte{0x3E};
  EXPECT_NE(refusal(changed).find("machine"), std::string::npos);
  const char name[] = "JALAPENO";
  const auto note = std::search(bytes.begin(), bytes.end(), reinterpret_cast<const std::byte*>(name),
                                reinterpret_cast<const std::byte*>(name) + 9);
  ASSERT_NE(note, bytes.end());
  changed = bytes;
  changed[static_cast<size_t>(note - bytes.begin()) + 16] = std::byte{9};
  EXPECT_NE(refusal(changed).find("module version 9"), std::string::npos);
  changed = bytes;
  changed[static_cast<size_t>(note - bytes.begin()) + 14] = std::byte{7};
  EXPECT_NE(refusal(changed).find("instruction set 7.1"), std::string::npos);
  EXPECT_NE(refusal({}).find("ELF header"), std::string::npos);
}

// A kernel of hand-made instructions.
class VerifierTest : public ::testing::Test {
 protected:
  static hw::Instruction make(Op op) {
    hw::Instruction i{};
    i.op = static_cast<uint8_t>(op);
    for (int k = 0; k < 4; ++k) i.t[k] = i.r[k] = hw::kNone;
    for (int k = 0; k < 2; ++k) i.wait[k] = i.signal[k] = hw::kNone;
    return i;
  }
  static std::string verdict(std::vector<hw::Instruction> code) {
    jt::KernelCode k;
    k.name = "k", k.code = std::move(code), k.spm_bytes = 4096, k.acc_bytes = 1024;
    k.lines.assign(k.code.size(), 7);
    k.source = "k.cpp";
    return refusal(jt::write_module({k}));
  }
};

TEST_F(VerifierTest, RulesNameKernelInstructionAndLine) {
  const auto halt = make(Op::HALT);
  auto signal = make(Op::SIGNAL);
  signal.signal[0] = 5, signal.imm0 = 1;
  EXPECT_NE(verdict({signal, halt}).find("semaphore S5 is 1 at HALT"), std::string::npos);
  EXPECT_NE(verdict({signal, halt}).find("kernel k"), std::string::npos);
  EXPECT_NE(verdict({signal}).find("last instruction must be HALT"), std::string::npos);
  EXPECT_NE(verdict({halt, halt}).find("HALT inside"), std::string::npos);
  auto movi = make(Op::MOVI);
  EXPECT_NE(verdict({movi, halt}).find("no destination"), std::string::npos);
  movi.r[0] = 32;
  EXPECT_NE(verdict({movi, halt}).find("register operand 0 is 32"), std::string::npos);
  auto unknown = make(Op::HALT);
  unknown.op = 99;
  EXPECT_NE(verdict({unknown, halt}).find("opcode 99"), std::string::npos);
  EXPECT_NE(verdict({unknown, halt}).find("k.cpp:7"), std::string::npos);
  auto back = make(Op::BR);
  back.r[0] = back.r[1] = 0, back.imm1 = 0;
  EXPECT_NE(verdict({back, halt}).find("ahead in the kernel"), std::string::npos);
  auto load = make(Op::DLD);
  load.t[0] = 0;
  EXPECT_NE(verdict({load, halt}).find("no tensor argument"), std::string::npos);
  auto tdef = make(Op::TDEF);
  tdef.t[0] = 0;
  const hw::TileDescriptor d{4096, 4, 1, 1, hw::DType::kF32, hw::Space::kSpm, 0};
  std::memcpy(&tdef.imm0, &d, 8);
  std::memcpy(&tdef.imm1, reinterpret_cast<const char*>(&d) + 8, 8);
  EXPECT_NE(verdict({tdef, halt}).find("ends at byte 4100"), std::string::npos);
  auto loop = make(Op::LOOP), end = make(Op::ENDL);
  loop.r[0] = 1, loop.r[1] = loop.r[2] = loop.r[3] = 0, loop.imm0 = 2, end.imm0 = 0;
  EXPECT_NE(verdict({loop, signal, end, halt}).find("loop's body changes semaphore S5"), std::string::npos);
  auto by_zero = make(Op::SALU);
  by_zero.sub = 3, by_zero.flags = hw::kFlagImmediate, by_zero.r[0] = by_zero.r[1] = 1;
  EXPECT_NE(verdict({by_zero, halt}).find("constant 0"), std::string::npos);
}

TEST(Builder, ErrorsNameTheKernelAndTheLine) {
  jt::Builder k("big");
  try {
    std::vector<jt::Reg> all;
    for (int i = 0; i < 40; ++i) all.push_back(k.constant(i));
    ADD_FAILURE();
  } catch (const jt::BuildError& e) {
    EXPECT_NE(std::string(e.what()).find("kernel big, module_test.cpp:"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("31 registers"), std::string::npos);
  }
  jt::Builder t("tile");
  EXPECT_THROW(t.spm(jt::q8_0, 1, 33), jt::BuildError);
}

TEST(Library, EveryKernelVerifies) {
  for (const char* name : {"embed",
                           "rmsnorm",
                           "swiglu",
                           "add",
                           "softmax",
                           "argmax",
                           "sample_greedy",
                           "matmul_i8",
                           "matmul_f32",
                           "matmul_bf16_add",
                           "matmul_f16",
                           "matmul_q8_0",
                           "matmul_q4_0_add",
                           "matmul_e4m3",
                           "matmul_e5m2_add",
                           "matvec_e4m3_add",
                           "matvec_e5m2",
                           "topk_k40",
                           "sample_k1024",
                           "rope_interleaved_d64_r64",
                           "rope_halves_d128_r64",
                           "rope_kv_interleaved_d64_r64",
                           "attention_causal_f32_d32",
                           "attention_paged_bf16_d64",
                           "attention_decode_f16_d128"})
    EXPECT_EQ(refusal(build_library_module(name)), "") << name;
}

}  // namespace
}  // namespace jalapeno::runtime
