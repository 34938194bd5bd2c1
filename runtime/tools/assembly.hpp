// The text form of modules, and back: what jalapeno-as reads is what jalapeno-objdump writes.
//
//   .kernel NAME [source FILE]
//   .spm BYTES
//   .acc BYTES
//   .arg NAME i32|i64|f32
//   .arg NAME tensor TYPE|any RANK
//     OPCODE[.VARIANT] [operands]          one instruction a line; ';' begins a comment
//   .end
//
// Operands: t0=T3 (tile), r0=R4 (register), imm0=..., imm1=... (decimal or 0x), q=2 (queue), flags=..., wait=S1,S2,
// signal=S3, line=12 (source line). TDEF takes tile=OFFSET,PITCH,ROWS,COLUMNS,TYPE,spm|acc instead of immediates.
#pragma once
#include <jalapeno/tile.hpp>
#include <string>
#include <vector>

#include "module.hpp"

namespace jalapeno::runtime {

// Throws std::runtime_error naming the line and what was expected.
std::vector<tile::KernelCode> assemble(const std::string& text, const std::string& file_name);
std::string disassemble(const ParsedModule& module);

}  // namespace jalapeno::runtime
