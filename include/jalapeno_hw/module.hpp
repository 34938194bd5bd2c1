// The module file: an ELF64 object that readelf can read (docs/hardware.md, section 7).
//   .text.jti        instructions of all kernels
//   .jti.kernels     KernelRecord[]
//   .jti.args        ArgumentRecord[], a kernel's records together
//   .jti.lines       LineRecord[], sorted by instruction
//   .jti.strings     zero-terminated text, first byte zero
//   .note.jalapeno   name "JALAPENO", type kNoteVersion, payload u32 ISA version, u32 module version
//   .symtab .strtab  one STT_FUNC per kernel
#pragma once
#include <jalapeno_hw/types.hpp>
#include <type_traits>

namespace jalapeno::hw {

inline constexpr uint16_t kElfMachine = 0xA1A7;  // unofficial
inline constexpr uint32_t kModuleVersion = 1;
inline constexpr uint32_t kNoteVersion = 1;

struct KernelRecord {
  uint32_t name;   // in .jti.strings
  uint32_t first;  // instruction in .text.jti
  uint32_t count;
  uint32_t first_argument, arguments;
  uint32_t argument_bytes;
  uint32_t spm_bytes, acc_bytes;
  uint32_t source;  // file name in .jti.strings, 0: unknown
  uint32_t reserved[7];
};
static_assert(sizeof(KernelRecord) == 64 && std::is_trivially_copyable_v<KernelRecord>);

enum class ArgumentKind : uint32_t { kI32 = 0, kI64 = 1, kF32 = 2, kTensor = 3 };
inline constexpr uint32_t kAnyDType = 0xFF;

struct ArgumentRecord {
  uint32_t name;
  ArgumentKind kind;
  uint32_t offset;  // in the argument bytes
  uint32_t dtype;   // kTensor: a DType or kAnyDType
  uint32_t rank;    // kTensor: 1..4
  uint32_t reserved[3];
};
static_assert(sizeof(ArgumentRecord) == 32 && std::is_trivially_copyable_v<ArgumentRecord>);

struct LineRecord {
  uint32_t instruction;  // in .text.jti; holds until the next record
  uint32_t line;         // 0: unknown
  uint32_t file;         // in .jti.strings
  uint32_t reserved;
};
static_assert(sizeof(LineRecord) == 16 && std::is_trivially_copyable_v<LineRecord>);

}  // namespace jalapeno::hw
