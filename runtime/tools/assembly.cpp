#include "tools/assembly.hpp"

#include <cstring>
#include <sstream>
#include <stdexcept>

namespace jalapeno::runtime {
namespace {

using hw::Instruction;
using hw::Op;

class Assembler {
 public:
  Assembler(const std::string& text, const std::string& file) : in_(text), file_(file) {}

  std::vector<tile::KernelCode> run() {
    for (std::string line; std::getline(in_, line);) {
      ++number_;
      if (const size_t comment = line.find(';'); comment != std::string::npos) line.resize(comment);
      std::stringstream words(line);
      std::vector<std::string> w;
      for (std::string word; words >> word;) w.push_back(word);
      if (w.empty()) continue;
      if (w[0][0] == '.')
        directive(w);
      else
        instruction(w);
    }
    if (open_) fail("the last kernel has no .end");
    return std::move(kernels_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(file_ + ":" + std::to_string(number_) + ": " + what);
  }
  uint64_t number(const std::string& text, uint64_t most) const {
    char* end = nullptr;
    const bool negative = text[0] == '-';
    const uint64_t v =
        negative ? static_cast<uint64_t>(std::strtoll(text.c_str(), &end, 0)) : std::strtoull(text.c_str(), &end, 0);
    if (text.empty() || *end != 0 || (!negative && v > most) || (negative && most != UINT64_MAX))
      fail("\"" + text + "\" is no number up to " + std::to_string(most));
    return v;
  }
  uint32_t dtype(const std::string& text) const {
    for (uint32_t t = 0; t < hw::kDTypes; ++t)
      if (text == hw::kDTypeInfo[t].name && hw::valid(static_cast<hw::DType>(t))) return t;
    fail("type \"" + text + "\" does not exist");
  }
  uint8_t numbered(const std::string& text, char prefix, uint32_t count) const {
    if (text.size() < 2 || text[0] != prefix)
      fail("\"" + text + "\": expected " + prefix + std::string("0 to ") + prefix + std::to_string(count - 1));
    return static_cast<uint8_t>(number(text.substr(1), count - 1));
  }

  void directive(const std::vector<std::string>& w) {
    if (w[0] == ".kernel") {
      if (open_) fail(".kernel inside a kernel");
      if (w.size() != 2 && !(w.size() == 4 && w[2] == "source")) fail("expected .kernel NAME [source FILE]");
      kernels_.emplace_back();
      kernels_.back().name = w[1];
      kernels_.back().source = w.size() == 4 ? w[3] : file_.substr(file_.find_last_of('/') + 1);
      own_lines_ = w.size() != 4;
      open_ = true;
      return;
    }
    if (!open_) fail(w[0] + " outside a kernel");
    tile::KernelCode& k = kernels_.back();
    if (w[0] == ".end" && w.size() == 1)
      open_ = false;
    else if (w[0] == ".spm" && w.size() == 2)
      k.spm_bytes = static_cast<uint32_t>(number(w[1], UINT32_MAX));
    else if (w[0] == ".acc" && w.size() == 2)
      k.acc_bytes = static_cast<uint32_t>(number(w[1], UINT32_MAX));
    else if (w[0] == ".arg" && (w.size() == 3 || (w.size() == 5 && w[2] == "tensor"))) {
      tile::KernelArgument a{w[1], hw::ArgumentKind::kTensor, k.argument_bytes, 0, 0};
      if (w[2] == "i32")
        a.kind = hw::ArgumentKind::kI32;
      else if (w[2] == "i64")
        a.kind = hw::ArgumentKind::kI64;
      else if (w[2] == "f32")
        a.kind = hw::ArgumentKind::kF32;
      else if (w.size() == 5)
        a.dtype = w[3] == "any" ? hw::kAnyDType : dtype(w[3]), a.rank = static_cast<uint32_t>(number(w[4], 4));
      else
        fail("argument kind \"" + w[2] + "\": expected i32, i64, f32 or tensor TYPE RANK");
      k.argument_bytes += a.kind == hw::ArgumentKind::kTensor ? static_cast<uint32_t>(sizeof(hw::TensorDescriptor)) : 8;
      k.arguments.push_back(a);
    } else {
      fail("directive " + w[0] + ": expected .kernel, .spm, .acc, .arg or .end with its operands");
    }
  }

  void instruction(const std::vector<std::string>& w) {
    if (!open_) fail("an instruction outside a kernel");
    Instruction i{};
    for (int k = 0; k < 4; ++k) i.t[k] = i.r[k] = hw::kNone;
    for (int k = 0; k < 2; ++k) i.wait[k] = i.signal[k] = hw::kNone;
    const size_t dot = w[0].find('.');
    const std::string name = w[0].substr(0, dot), variant = dot == std::string::npos ? "" : w[0].substr(dot + 1);
    const hw::OpInfo* op = nullptr;
    for (const hw::OpInfo& o : hw::kOps)
      if (o.name == name) op = &o;
    if (op == nullptr) fail("opcode \"" + name + "\" does not exist");
    i.op = op->code;
    if (!variant.empty()) {
      const hw::SubNames subs = hw::sub_names(static_cast<Op>(i.op));
      size_t k = 0;
      while (k < subs.count && subs.names[k] != variant) ++k;
      if (k == subs.count) fail(name + " has no variant \"" + variant + "\"");
      i.sub = static_cast<uint8_t>(k);
    }
    uint32_t line = own_lines_ ? number_ : 0;
    for (size_t n = 1; n < w.size(); ++n) {
      const size_t equals = w[n].find('=');
      if (equals == std::string::npos) fail("operand \"" + w[n] + "\": expected NAME=VALUE");
      const std::string key = w[n].substr(0, equals), value = w[n].substr(equals + 1);
      if (key.size() == 2 && (key[0] == 't' || key[0] == 'r') && key[1] >= '0' && key[1] <= '3')
        (key[0] == 't' ? i.t : i.r)[key[1] - '0'] =
            numbered(value, key[0] == 't' ? 'T' : 'R', key[0] == 't' ? hw::kTiles : hw::kRegisters);
      else if (key == "imm0")
        i.imm0 = number(value, UINT64_MAX);
      else if (key == "imm1")
        i.imm1 = number(value, UINT64_MAX);
      else if (key == "q")
        i.queue = static_cast<uint8_t>(number(value, 7));
      else if (key == "flags")
        i.flags = static_cast<uint8_t>(number(value, 255));
      else if (key == "line")
        line = static_cast<uint32_t>(number(value, UINT32_MAX));
      else if (key == "wait" || key == "signal")
        semaphores(value, key == "wait" ? i.wait : i.signal);
      else if (key == "tile")
        tile_descriptor(value, i);
      else
        fail("operand \"" + key + "\" does not exist");
    }
    kernels_.back().code.push_back(i);
    kernels_.back().lines.push_back(line);
  }

  void semaphores(const std::string& value, uint8_t* out) const {
    std::stringstream in(value);
    int n = 0;
    for (std::string s; std::getline(in, s, ','); ++n) {
      if (n == 2) fail("more than two semaphores");
      out[n] = numbered(s, 'S', hw::kSemaphores);
    }
  }

  void tile_descriptor(const std::string& value, Instruction& i) const {
    std::vector<std::string> f;
    std::stringstream in(value);
    for (std::string s; std::getline(in, s, ',');) f.push_back(s);
    if (f.size() != 6 || (f[5] != "spm" && f[5] != "acc")) fail("tile=OFFSET,PITCH,ROWS,COLUMNS,TYPE,spm|acc");
    const hw::TileDescriptor d{static_cast<uint32_t>(number(f[0], UINT32_MAX)),
                               static_cast<uint32_t>(number(f[1], UINT32_MAX)),
                               static_cast<uint16_t>(number(f[2], 65535)),
                               static_cast<uint16_t>(number(f[3], 65535)),
                               static_cast<hw::DType>(dtype(f[4])),
                               f[5] == "spm" ? hw::Space::kSpm : hw::Space::kAcc,
                               0};
    std::memcpy(&i.imm0, &d, 8);
    std::memcpy(&i.imm1, reinterpret_cast<const char*>(&d) + 8, 8);
  }

  std::stringstream in_;
  std::string file_;
  uint32_t number_ = 0;
  bool open_ = false, own_lines_ = true;
  std::vector<tile::KernelCode> kernels_;
};

std::string text_of(const Instruction& i) {
  const hw::OpInfo* op = hw::find_op(i.op);
  const auto code = static_cast<Op>(i.op);
  std::stringstream out;
  out << op->name;
  if (const auto subs = hw::sub_names(code); subs.count > 0) out << "." << subs.names[i.sub];
  for (int k = 0; k < 4; ++k)
    if (i.t[k] != hw::kNone) out << " t" << k << "=T" << int{i.t[k]};
  for (int k = 0; k < 4; ++k)
    if (i.r[k] != hw::kNone) out << " r" << k << "=R" << int{i.r[k]};
  if (code == Op::TDEF) {
    hw::TileDescriptor d;
    std::memcpy(&d, &i.imm0, 8);
    std::memcpy(reinterpret_cast<char*>(&d) + 8, &i.imm1, 8);
    out << " tile=" << d.offset << "," << d.pitch << "," << d.rows << "," << d.columns << "," << hw::info(d.dtype).name
        << "," << (d.space == hw::Space::kSpm ? "spm" : "acc");
  } else {
    if (i.imm0 != 0) out << " imm0=" << i.imm0;
    if (i.imm1 != 0) out << " imm1=" << i.imm1;
  }
  if (i.queue != 0) out << " q=" << int{i.queue};
  if (i.flags != 0) out << " flags=" << int{i.flags};
  auto list = [&](const char* name, const uint8_t* s) {
    if (s[0] == hw::kNone && s[1] == hw::kNone) return;
    out << " " << name << "=";
    for (int k = 0; k < 2; ++k)
      if (s[k] != hw::kNone) out << (k == 1 && s[0] != hw::kNone ? "," : "") << "S" << int{s[k]};
  };
  list("wait", i.wait);
  list("signal", i.signal);
  return out.str();
}

}  // namespace

std::vector<tile::KernelCode> assemble(const std::string& text, const std::string& file_name) {
  return Assembler(text, file_name).run();
}

std::string disassemble(const ParsedModule& module) {
  std::stringstream out;
  for (const ParsedKernel& k : module.kernels) {
    const KernelImage& i = k.image;
    out << ".kernel " << i.name;
    if (!i.lines.empty() && !i.lines[0].file.empty()) out << " source " << i.lines[0].file;
    out << "\n.spm " << i.spm_bytes << "\n.acc " << i.acc_bytes << "\n";
    for (const Argument& a : i.arguments) {
      out << ".arg " << a.name << " ";
      switch (a.kind) {
        case hw::ArgumentKind::kI32:
          out << "i32\n";
          break;
        case hw::ArgumentKind::kI64:
          out << "i64\n";
          break;
        case hw::ArgumentKind::kF32:
          out << "f32\n";
          break;
        case hw::ArgumentKind::kTensor:
          out << "tensor " << (a.dtype == hw::kAnyDType ? "any" : hw::kDTypeInfo[a.dtype].name) << " " << a.rank
              << "\n";
          break;
      }
    }
    for (uint32_t n = 0; n < i.instructions; ++n) {
      const SourceLine* line = i.line_of(n);
      out << "  " << text_of(module.code[k.first + n]);
      if (line != nullptr && line->line != 0) out << " line=" << line->line;
      out << "  ; " << n << "\n";
    }
    out << ".end\n";
  }
  return out.str();
}

}  // namespace jalapeno::runtime

jalError_t jalModuleDisassemble(const void* image, size_t bytes, char* text, size_t size, size_t* needed) {
  using namespace jalapeno::runtime;
  return guard([&] {
    if (size > 0) required(text, "text");
    const std::byte* file = &required(static_cast<const std::byte*>(image), "image");
    const std::string whole = disassemble(parse_module({file, bytes}));
    if (needed != nullptr) *needed = whole.size() + 1;
    if (size == 0) return;
    const size_t count = std::min(size - 1, whole.size());
    std::memcpy(text, whole.data(), count);
    text[count] = 0;
  });
}
