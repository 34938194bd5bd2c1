// From a name to a kernel: the catalogue of the library.
#include <cstdlib>

#include "kernels/kernels.hpp"
#include "module.hpp"

namespace jalapeno::runtime {
namespace {

using tile::DType;
using tile::KernelCode;

bool starts(const std::string& text, const std::string& head) { return text.rfind(head, 0) == 0; }

// "_d64" and its like: the number behind `key`, 0 when it is not there.
uint32_t number(const std::string& name, const std::string& key) {
  const size_t at = name.rfind(key);
  if (at == std::string::npos) return 0;
  return static_cast<uint32_t>(std::strtoul(name.c_str() + at + key.size(), nullptr, 10));
}

DType dtype_in(const std::string& name, const std::string& after) {
  const std::string rest = name.substr(after.size());
  for (int t = 0; t < hw::kDTypes; ++t)
    if (starts(rest, hw::kDTypeInfo[static_cast<size_t>(t)].name)) return static_cast<DType>(t);
  return DType::kI32;
}

KernelCode make(const std::string& name) {
  namespace k = kernels;
  if (name == "embed") return k::embed();
  if (name == "rmsnorm") return k::rmsnorm();
  if (name == "swiglu") return k::swiglu();
  if (name == "add") return k::add();
  if (name == "softmax") return k::softmax();
  if (name == "argmax") return k::argmax();
  if (name == "sample_greedy") return k::sample_greedy();
  if (name == "matmul_i8") return k::matmul_i8();
  for (DType t :
       {tile::f32, tile::bf16, tile::f16, tile::q8_0, tile::q4_0, tile::mxfp4, tile::mxfp8, tile::e4m3, tile::e5m2})
    for (bool add : {false, true})
      if (name == std::string("matmul_") + hw::info(t).name + (add ? "_add" : ""))
        return k::matmul(t, add);
      else if (name == std::string("matvec_") + hw::info(t).name + (add ? "_add" : ""))
        return k::matvec(t, add);
  if (const uint32_t count = number(name, "_k"); count >= 1 && count <= hw::kMaxTopK) {
    if (starts(name, "topk_k")) return k::topk(count);
    if (starts(name, "sample_k")) return k::sample(count);
  }
  const uint32_t head = number(name, "_d"), rotated = number(name, "_r");
  if (head >= 2 && head <= 1024) {
    for (auto mode : {tile::RopeOp::kInterleaved, tile::RopeOp::kHalves}) {
      const std::string mode_name(hw::kRopeNames[static_cast<int>(mode)]);
      if (rotated < 2 || rotated > head || rotated % 2 != 0) continue;
      if (starts(name, "rope_kv_" + mode_name + "_d")) return k::rope_kv(mode, head, rotated);
      if (starts(name, "rope_" + mode_name + "_d")) return k::rope(mode, head, rotated);
    }
    for (const char* base : {"attention_causal_", "attention_paged_", "attention_decode_", "attention_split_"}) {
      if (!starts(name, base)) continue;
      const DType kv = dtype_in(name, base);
      const bool whole_blocks = kv == tile::q8_0 && head % 32 == 0;
      if (kv != tile::f32 && kv != tile::bf16 && kv != tile::f16 && !whole_blocks) continue;
      const char kind = base[10];
      return kind == 'd' || kind == 's' ? k::attention_decode(kv, head, kind == 's')
                                        : k::attention(kv, head, kind == 'p');
    }
    if (starts(name, "attention_merge_")) return k::attention_merge(head);
  }
  fail(jalErrorNotFound, "the kernel library has no \"" + name + "\"; docs/kernels.md lists its names");
}

}  // namespace

std::vector<std::byte> build_library_module(const std::string& name) {
  KernelCode code = make(name);
  if (code.name != name)
    fail(jalErrorNotFound, "the kernel library has no \"" + name + "\"; did you mean \"" + code.name + "\"?");
  return tile::write_module({std::move(code)});
}

}  // namespace jalapeno::runtime
