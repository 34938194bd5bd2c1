// From finished kernels to the bytes of a module: what Builder::finish() returns and jalModuleLoadData reads.
// Owns the file's layout (jalapeno_hw/module.hpp); knows nothing of how kernels are made.
#pragma once
#include <cstring>
#include <jalapeno_hw/isa.hpp>
#include <jalapeno_hw/module.hpp>
#include <map>
#include <string>
#include <vector>

namespace jalapeno::tile {

using hw::Instruction;

struct KernelArgument {
  std::string name;
  hw::ArgumentKind kind;
  uint32_t offset, dtype, rank;
};

// A finished kernel, before it becomes part of a module.
struct KernelCode {
  std::string name, source;
  std::vector<Instruction> code;
  std::vector<uint32_t> lines;  // of each instruction, 0: unknown
  std::vector<KernelArgument> arguments;
  uint32_t argument_bytes = 0, spm_bytes = 0, acc_bytes = 0;
};

namespace detail {

// ELF64 with nothing but what the module format needs (jalapeno_hw/module.hpp).
class ElfWriter {
 public:
  ElfWriter() { names_.push_back('\0'); }
  uint16_t section(const std::string& name, uint32_t type, const void* data, size_t bytes, uint32_t link = 0,
                   uint32_t info = 0, uint64_t entry = 0, uint64_t flags = 0, uint64_t align = 64) {
    while (body_.size() % 64 != 0) body_.push_back(std::byte{0});
    headers_.push_back({static_cast<uint32_t>(names_.size()), type, flags, 0, kHeader + body_.size(), bytes, link, info,
                        align, entry});
    names_.insert(names_.end(), name.c_str(), name.c_str() + name.size() + 1);
    body_.insert(body_.end(), static_cast<const std::byte*>(data), static_cast<const std::byte*>(data) + bytes);
    return static_cast<uint16_t>(headers_.size());  // index 0 is the null section
  }
  std::vector<std::byte> finish() {
    const uint32_t own = static_cast<uint32_t>(names_.size());
    const std::string own_name = ".shstrtab";
    names_.insert(names_.end(), own_name.c_str(), own_name.c_str() + own_name.size() + 1);
    headers_.push_back({own, 3, 0, 0, kHeader + body_.size(), names_.size(), 0, 0, 1, 0});
    body_.insert(body_.end(), reinterpret_cast<const std::byte*>(names_.data()),
                 reinterpret_cast<const std::byte*>(names_.data()) + names_.size());
    while (body_.size() % 64 != 0) body_.push_back(std::byte{0});
    struct {
      uint8_t ident[16] = {0x7F, 'E', 'L', 'F', 2, 1, 1};
      uint16_t type = 3, machine = hw::kElfMachine;
      uint32_t version = 1;
      uint64_t entry = 0, program = 0, sections = 0;
      uint32_t flags = 0;
      uint16_t header_size = 64, program_size = 0, programs = 0, section_size = 64, section_count = 0, names = 0;
    } h;
    static_assert(sizeof h == 64);
    h.sections = kHeader + body_.size();
    h.section_count = static_cast<uint16_t>(headers_.size() + 1),
    h.names = static_cast<uint16_t>(headers_.size());  // the null section comes first
    headers_.insert(headers_.begin(), Header{});
    const size_t table = headers_.size() * sizeof(Header);
    std::vector<std::byte> out(h.sections + table);
    std::memcpy(out.data(), &h, sizeof h);
    std::memcpy(out.data() + kHeader, body_.data(), body_.size());
    std::memcpy(out.data() + h.sections, headers_.data(), table);
    return out;
  }

 private:
  static constexpr uint64_t kHeader = 64;
  struct Header {
    uint32_t name, type;
    uint64_t flags, address, offset, size;
    uint32_t link, info;
    uint64_t align, entry;
  };
  static_assert(sizeof(Header) == 64);
  std::vector<Header> headers_;
  std::vector<std::byte> body_;
  std::vector<char> names_;
};

}  // namespace detail

// The bytes of a module with these kernels.
inline std::vector<std::byte> write_module(const std::vector<KernelCode>& kernels) {
  std::string strings(1, '\0');
  std::map<std::string, uint32_t> known;
  auto text = [&](const std::string& s) -> uint32_t {
    if (s.empty()) return 0;
    auto [it, fresh] = known.try_emplace(s, static_cast<uint32_t>(strings.size()));
    if (fresh) strings += s + '\0';
    return it->second;
  };
  std::vector<Instruction> code;
  std::vector<hw::KernelRecord> records;
  std::vector<hw::ArgumentRecord> arguments;
  std::vector<hw::LineRecord> lines;
  for (const KernelCode& k : kernels) {
    hw::KernelRecord r{};
    r.name = text(k.name), r.source = text(k.source);
    r.first = static_cast<uint32_t>(code.size()), r.count = static_cast<uint32_t>(k.code.size());
    r.first_argument = static_cast<uint32_t>(arguments.size()), r.arguments = static_cast<uint32_t>(k.arguments.size());
    r.argument_bytes = k.argument_bytes, r.spm_bytes = k.spm_bytes, r.acc_bytes = k.acc_bytes;
    for (const KernelArgument& a : k.arguments)
      arguments.push_back({text(a.name), a.kind, a.offset, a.dtype, a.rank, {}});
    uint32_t last = ~0u;
    for (size_t i = 0; i < k.code.size(); ++i) {
      const uint32_t line = i < k.lines.size() ? k.lines[i] : 0;
      if (line != last) lines.push_back({static_cast<uint32_t>(code.size() + i), line, r.source, 0});
      last = line;
    }
    code.insert(code.end(), k.code.begin(), k.code.end());
    records.push_back(r);
  }
  struct {
    uint32_t name_size = 9, data_size = 8, type = hw::kNoteVersion;
    char name[12] = "JALAPENO";
    uint32_t isa = hw::kIsaVersion, version = hw::kModuleVersion;
  } note;
  struct Symbol {
    uint32_t name;
    uint8_t info, other;
    uint16_t section;
    uint64_t value, size;
  };
  detail::ElfWriter elf;
  const uint16_t text_section =
      elf.section(".text.jti", 1, code.data(), code.size() * sizeof(Instruction), 0, 0, sizeof(Instruction), 6);
  elf.section(".jti.kernels", 1, records.data(), records.size() * sizeof records[0]);
  elf.section(".jti.args", 1, arguments.data(), arguments.size() * sizeof arguments[0]);
  elf.section(".jti.lines", 1, lines.data(), lines.size() * sizeof lines[0]);
  elf.section(".jti.strings", 1, strings.data(), strings.size());
  elf.section(".note.jalapeno", 7, &note, sizeof note, 0, 0, 0, 0, 4);
  std::vector<Symbol> symbols{Symbol{}};
  for (const hw::KernelRecord& r : records)
    symbols.push_back({r.name, 0x12, 0, text_section, r.first * sizeof(Instruction), r.count * sizeof(Instruction)});
  const uint16_t string_section = elf.section(".strtab", 3, strings.data(), strings.size());
  elf.section(".symtab", 2, symbols.data(), symbols.size() * sizeof symbols[0], string_section, 1, sizeof(Symbol));
  return elf.finish();
}

}  // namespace jalapeno::tile
