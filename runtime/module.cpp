#include "module.hpp"

#include <elf.h>

#include <cstring>
#include <fstream>
#include <set>

#include "stream.hpp"
#include "verifier.hpp"

namespace jalapeno::runtime {
namespace {

constexpr size_t kMaxFile = size_t{256} << 20;
constexpr uint32_t kMaxKernels = 4096, kMaxInstructions = 1u << 20;

// Bounds-checked access to the file. Every offset in it is somebody else's claim.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> file) : file_(file) {}
  [[noreturn]] static void refuse(uint64_t offset, const std::string& rule) {
    fail(jalErrorInvalidImage, "module, byte " + std::to_string(offset) + ": " + rule);
  }
  std::span<const std::byte> slice(uint64_t offset, uint64_t bytes, const char* what) const {
    if (offset > file_.size() || bytes > file_.size() - offset)
      refuse(offset, std::string(what) + " of " + std::to_string(bytes) + " bytes leaves the file of " +
                         std::to_string(file_.size()));
    return file_.subspan(offset, bytes);
  }
  template <class T>
  T at(uint64_t offset, const char* what) const {
    T t;
    std::memcpy(&t, slice(offset, sizeof t, what).data(), sizeof t);
    return t;
  }

 private:
  std::span<const std::byte> file_;
};

struct Section {
  std::span<const std::byte> bytes;
  uint64_t offset = 0;
  bool present = false;
};

template <class T>
std::vector<T> records(const Section& s, const char* name, size_t most) {
  if (s.bytes.size() % sizeof(T) != 0 || s.bytes.size() / sizeof(T) > most)
    Reader::refuse(s.offset, std::string(name) + " has " + std::to_string(s.bytes.size()) + " bytes, expected up to " +
                                 std::to_string(most) + " records of " + std::to_string(sizeof(T)));
  std::vector<T> out(s.bytes.size() / sizeof(T));
  if (!out.empty()) std::memcpy(static_cast<void*>(out.data()), s.bytes.data(), s.bytes.size());
  return out;
}

}  // namespace

ParsedModule parse_module(std::span<const std::byte> file) {
  if (file.size() > kMaxFile) Reader::refuse(0, "larger than " + std::to_string(kMaxFile) + " bytes");
  const Reader in(file);
  const auto header = in.at<Elf64_Ehdr>(0, "the ELF header");
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) Reader::refuse(0, "not an ELF file");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB)
    Reader::refuse(EI_CLASS, "expected 64 bits, little endian");
  if (header.e_machine != hw::kElfMachine)
    Reader::refuse(18, "machine " + std::to_string(header.e_machine) + ", expected " + std::to_string(hw::kElfMachine) +
                           " (Jalapeno)");
  if (header.e_shentsize != sizeof(Elf64_Shdr) || header.e_shnum == 0 || header.e_shnum > 256 ||
      header.e_shstrndx >= header.e_shnum)
    Reader::refuse(58, "no usable section table");
  auto section_header = [&](uint32_t k) {
    return in.at<Elf64_Shdr>(header.e_shoff + uint64_t{k} * sizeof(Elf64_Shdr), "a section header");
  };
  const Elf64_Shdr names_header = section_header(header.e_shstrndx);
  const auto names = in.slice(names_header.sh_offset, names_header.sh_size, "section names");
  auto text_at = [](std::span<const std::byte> table, uint64_t at) -> std::string {
    const char* p = reinterpret_cast<const char*>(table.data());
    if (at >= table.size()) return "";
    return std::string(p + at, strnlen(p + at, table.size() - at));
  };
  Section code, kernels, args, lines, strings, note;
  for (uint32_t k = 0; k < header.e_shnum; ++k) {
    const Elf64_Shdr s = section_header(k);
    if (s.sh_type == SHT_NULL || s.sh_type == SHT_NOBITS) continue;
    const std::string name = text_at(names, s.sh_name);
    Section* out = name == ".text.jti"        ? &code
                   : name == ".jti.kernels"   ? &kernels
                   : name == ".jti.args"      ? &args
                   : name == ".jti.lines"     ? &lines
                   : name == ".jti.strings"   ? &strings
                   : name == ".note.jalapeno" ? &note
                                              : nullptr;
    if (out == nullptr) continue;
    if (out->present) Reader::refuse(s.sh_offset, "a second section " + name);
    *out = {in.slice(s.sh_offset, s.sh_size, name.c_str()), s.sh_offset, true};
  }
  for (const auto& [s, name] : {std::pair{&note, ".note.jalapeno"},
                                {&code, ".text.jti"},
                                {&kernels, ".jti.kernels"},
                                {&strings, ".jti.strings"}})
    if (!s->present) Reader::refuse(header.e_shoff, std::string("section ") + name + " is missing");
  struct Note {
    Elf64_Nhdr header;
    char name[12];
    uint32_t isa, version;
  } n{};
  if (note.bytes.size() < sizeof n) Reader::refuse(note.offset, ".note.jalapeno is too short");
  std::memcpy(&n, note.bytes.data(), sizeof n);
  if (n.header.n_namesz != 9 || std::memcmp(n.name, "JALAPENO", 9) != 0 || n.header.n_type != hw::kNoteVersion ||
      n.header.n_descsz != 8)
    Reader::refuse(note.offset, "not the note of a Jalapeno module");
  if (n.version != hw::kModuleVersion)
    Reader::refuse(note.offset + 24, "module version " + std::to_string(n.version) + ", this library reads " +
                                         std::to_string(hw::kModuleVersion));
  if (n.isa >> 16 != hw::kIsaVersion >> 16 || n.isa > hw::kIsaVersion)
    Reader::refuse(note.offset + 24, "instruction set " + std::to_string(n.isa >> 16) + "." +
                                         std::to_string(n.isa & 0xFFFF) + ", this library runs " +
                                         std::to_string(hw::kIsaVersion >> 16) + "." +
                                         std::to_string(hw::kIsaVersion & 0xFFFF));

  ParsedModule out;
  out.code = records<hw::Instruction>(code, ".text.jti", kMaxInstructions);
  const auto kernel_records = records<hw::KernelRecord>(kernels, ".jti.kernels", kMaxKernels);
  const auto argument_records = records<hw::ArgumentRecord>(args, ".jti.args", kMaxKernels * 64);
  const auto line_records = records<hw::LineRecord>(lines, ".jti.lines", kMaxInstructions);
  std::set<std::string> seen;
  for (size_t k = 0; k < kernel_records.size(); ++k) {
    const hw::KernelRecord& r = kernel_records[k];
    const uint64_t where = kernels.offset + k * sizeof r;
    ParsedKernel p;
    p.first = r.first;
    KernelImage& i = p.image;
    i.name = text_at(strings.bytes, r.name);
    if (i.name.empty() || i.name.size() > 63)
      Reader::refuse(where, "kernel name of " + std::to_string(i.name.size()) + " characters, expected 1 to 63");
    if (!seen.insert(i.name).second) Reader::refuse(where, "a second kernel named " + i.name);
    if (r.first > out.code.size() || r.count == 0 || r.count > out.code.size() - r.first)
      Reader::refuse(where + 4, "kernel " + i.name + ": instructions " + std::to_string(r.first) + " + " +
                                    std::to_string(r.count) + " of " + std::to_string(out.code.size()));
    if (r.argument_bytes > hw::kArgumentBytes || r.argument_bytes % 8 != 0)
      Reader::refuse(where + 20, "kernel " + i.name + ": " + std::to_string(r.argument_bytes) +
                                     " argument bytes, expected a multiple of 8 up to " +
                                     std::to_string(hw::kArgumentBytes));
    if (r.first_argument > argument_records.size() || r.arguments > argument_records.size() - r.first_argument)
      Reader::refuse(where + 12, "kernel " + i.name + ": arguments outside .jti.args");
    i.instructions = r.count, i.argument_bytes = r.argument_bytes, i.spm_bytes = r.spm_bytes, i.acc_bytes = r.acc_bytes;
    uint32_t used = 0;
    for (uint32_t a = 0; a < r.arguments; ++a) {
      const hw::ArgumentRecord& x = argument_records[r.first_argument + a];
      const uint64_t argument_where = args.offset + (r.first_argument + a) * sizeof x;
      if (static_cast<uint32_t>(x.kind) > 3)
        Reader::refuse(argument_where + 4, "argument of unknown kind " + std::to_string(static_cast<uint32_t>(x.kind)));
      const bool tensor = x.kind == hw::ArgumentKind::kTensor;
      const uint32_t bytes = tensor ? sizeof(hw::TensorDescriptor) : 8;
      if (x.offset != used || bytes > r.argument_bytes - std::min(used, r.argument_bytes))
        Reader::refuse(argument_where + 8, "argument at offset " + std::to_string(x.offset) + ", expected " +
                                               std::to_string(used) + " within " + std::to_string(r.argument_bytes));
      if (tensor &&
          (x.rank < 1 || x.rank > 4 ||
           (x.dtype != hw::kAnyDType && (x.dtype >= hw::kDTypes || !hw::valid(static_cast<hw::DType>(x.dtype))))))
        Reader::refuse(argument_where + 12,
                       "tensor of type " + std::to_string(x.dtype) + " and rank " + std::to_string(x.rank));
      used += bytes;
      i.arguments.push_back({text_at(strings.bytes, x.name), x.kind, x.offset, x.dtype, x.rank});
    }
    const std::string source = text_at(strings.bytes, r.source);
    for (const hw::LineRecord& l : line_records)
      if (l.instruction >= r.first && l.instruction - r.first < r.count)
        i.lines.push_back({l.instruction - r.first, l.line, l.file != 0 ? text_at(strings.bytes, l.file) : source});
    verify(i, std::span(out.code).subspan(r.first, r.count));
    out.kernels.push_back(std::move(p));
  }
  return out;
}

Module::Module(Context& context, const void* image, size_t bytes, std::string name)
    : context_(&context), name_(std::move(name)) {
  ParsedModule parsed = parse_module({static_cast<const std::byte*>(image), bytes});
  const auto& identity = context.device().identity();
  for (const ParsedKernel& k : parsed.kernels)
    if (k.image.spm_bytes > identity.spm_bytes || k.image.acc_bytes > identity.acc_bytes)
      fail(jalErrorInvalidImage, "kernel " + k.image.name + " needs " + std::to_string(k.image.spm_bytes) +
                                     " bytes of scratchpad and " + std::to_string(k.image.acc_bytes) +
                                     " of accumulators, a core has " + std::to_string(identity.spm_bytes) + " and " +
                                     std::to_string(identity.acc_bytes));
  const uint64_t code_bytes = parsed.code.size() * sizeof(hw::Instruction);
  const driver::HbmBlock block =
      context.pool().allocate_for_host(std::max<uint64_t>(code_bytes, 1), hw::pte::kRead | hw::pte::kExecute);
  context.space().write(block, std::as_bytes(std::span(parsed.code)));
  context.space().invalidate();
  std::shared_ptr<void> memory(nullptr, [pool = &context.pool(), block](void*) { pool->free_for_host(block); });
  for (ParsedKernel& k : parsed.kernels) {
    auto shared = std::make_shared<KernelImage>(std::move(k.image));
    shared->memory = memory;
    shared->code = block.address + uint64_t{k.first} * sizeof(hw::Instruction);
    shared->cookie = context.add_kernel(shared);
    auto handle = std::make_shared<Kernel>();
    handle->image = shared, handle->context = &context;
    kernels_.push_back({shared->name, HandleTable<Kernel>::add(std::move(handle))});
  }
}

Module::~Module() {
  for (const Entry& e : kernels_) try {
      HandleTable<Kernel>::remove(e.handle);
    } catch (const Error&) {  // its device was closed first
    }
}

void* Module::kernel(const std::string& name) const {
  std::string have;
  for (const Entry& e : kernels_) {
    if (e.name == name) return e.handle;
    have += (have.empty() ? "" : ", ") + e.name;
  }
  fail(jalErrorNotFound, "module " + name_ + " has no kernel \"" + name + "\"; it has " + have);
}

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

namespace {
jalModule_t load(jalDevice_t device, const void* image, size_t bytes, const std::string& name) {
  Context& c = context_of(device);
  return static_cast<jalModule_t>(HandleTable<Module>::add(std::make_shared<Module>(c, image, bytes, name)));
}
}  // namespace

jalError_t jalModuleLoadData(jalDevice_t device, const void* image, size_t bytes, jalModule_t* module) {
  return guard([&] {
    required(module, "module"), required(static_cast<const char*>(image), "image");
    *module = load(device, image, bytes, "(memory)");
  });
}

jalError_t jalModuleLoad(jalDevice_t device, const char* path, jalModule_t* module) {
  return guard([&] {
    required(module, "module");
    std::ifstream in(&required(path, "path"), std::ios::binary | std::ios::ate);
    if (!in) fail(jalErrorNotFound, std::string("module ") + path + ": cannot be read");
    const std::streamoff size = in.tellg();
    if (size < 0 || static_cast<size_t>(size) > kMaxFile)
      fail(jalErrorInvalidImage, std::string("module ") + path + ": " + std::to_string(size) +
                                     " bytes, expected up to " + std::to_string(kMaxFile));
    std::vector<char> bytes(static_cast<size_t>(size));
    in.seekg(0);
    if (!in.read(bytes.data(), size)) fail(jalErrorOperatingSystem, std::string("module ") + path + ": read error");
    *module = load(device, bytes.data(), bytes.size(), path);
  });
}

jalError_t jalModuleUnload(jalModule_t module) {
  return guard([&] {
    Module& m = HandleTable<Module>::get(module);
    for (auto& s : m.owner()->streams())
      if (!s->capturing() && !s->context().device().lost()) s->synchronize(default_timeout_ns(), false);
    HandleTable<Module>::remove(module);
  });
}
jalError_t jalModuleGetKernelCount(jalModule_t module, uint32_t* count) {
  return guard([&] { required(count, "count") = static_cast<uint32_t>(HandleTable<Module>::get(module).size()); });
}
jalError_t jalModuleGetKernelByIndex(jalModule_t module, uint32_t index, jalKernel_t* kernel) {
  return guard([&] {
    Module& m = HandleTable<Module>::get(module);
    if (index >= m.size())
      fail(jalErrorNotFound, "kernel " + std::to_string(index) + ", the module has " + std::to_string(m.size()));
    required(kernel, "kernel") = static_cast<jalKernel_t>(m.kernel(index));
  });
}
jalError_t jalModuleGetKernel(jalModule_t module, const char* name, jalKernel_t* kernel) {
  return guard([&] {
    Module& m = HandleTable<Module>::get(module);
    required(kernel, "kernel") = static_cast<jalKernel_t>(m.kernel(std::string(&required(name, "name"))));
  });
}
