// Text and back: every kernel of the library survives the round trip to the byte, and mistakes are named by line.
#include "tools/assembly.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace jalapeno::runtime {
namespace {

TEST(Assembly, LibraryKernelsSurviveTheRoundTrip) {
  for (const char* name :
       {"embed", "rmsnorm", "softmax", "sample_k40", "matmul_q4_0_add", "matmul_i8", "matmul_e4m3", "matvec_e5m2_add",
        "attention_paged_bf16_d64", "attention_decode_f32_d32", "rope_kv_halves_d64_r32"}) {
    const ParsedModule once = parse_module(build_library_module(name));
    const std::string text = disassemble(once);
    const auto bytes = tile::write_module(assemble(text, "round.jts"));
    const ParsedModule twice = parse_module(bytes);
    ASSERT_EQ(once.code.size(), twice.code.size());
    for (size_t i = 0; i < once.code.size(); ++i)
      EXPECT_EQ(std::memcmp(&once.code[i], &twice.code[i], sizeof once.code[i]), 0) << name << " " << i;
    EXPECT_EQ(disassemble(twice), text);
  }
}

TEST(Assembly, MistakesAreNamedByLine) {
  auto error = [](const std::string& text) -> std::string {
    try {
      assemble(text, "x.jts");
    } catch (const std::exception& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error(".kernel k\n  HALT\n.end\n"), "");
  EXPECT_NE(error(".kernel k\n  JUMP\n.end\n").find("x.jts:2: opcode \"JUMP\""), std::string::npos);
  EXPECT_NE(error(".kernel k\n  SALU.plus r0=R1\n").find("no variant \"plus\""), std::string::npos);
  EXPECT_NE(error(".kernel k\n  MOVI r0=R32\n").find("x.jts:2"), std::string::npos);
  EXPECT_NE(error(".kernel k\n  MOVI r0=R1 imm0=12q\n").find("\"12q\""), std::string::npos);
  EXPECT_NE(error("  HALT\n").find("outside a kernel"), std::string::npos);
  EXPECT_NE(error(".kernel k\n.arg x matrix\n").find("matrix"), std::string::npos);
  EXPECT_NE(error(".kernel k\n  HALT\n").find("no .end"), std::string::npos);
}

}  // namespace
}  // namespace jalapeno::runtime
