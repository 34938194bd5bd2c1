// A kernel: its code on the device and the arguments it takes. Immutable once loaded.
#pragma once
#include <jalapeno/jalapeno.h>
#include <jalapeno_driver/address_space.hpp>
#include <jalapeno_hw/isa.hpp>
#include <jalapeno_hw/module.hpp>
#include <jalapeno_hw/packets.hpp>
#include <memory>
#include <string>
#include <vector>

#include "handle.hpp"

namespace jalapeno::runtime {

class Context;

struct Argument {
  std::string name;
  hw::ArgumentKind kind;
  uint32_t offset, dtype, rank;
};

struct SourceLine {
  uint32_t instruction, line;
  std::string file;
};

struct KernelImage {
  std::string name;
  uint32_t instructions, argument_bytes, spm_bytes, acc_bytes;
  std::vector<Argument> arguments;
  std::vector<SourceLine> lines;  // by instruction of the kernel
  hw::DeviceAddr code{};
  std::shared_ptr<void> memory;  // of the code: lives as long as a module, graph or launch record needs it
  uint64_t cookie = 0;

  // Checks the arguments and writes them as the kernel reads them. Throws Error naming the argument.
  void pack(const jalArg* args, uint32_t count, Context& context, std::byte* out) const;
  // Without arguments. Throws Error naming a grid that is not allowed.
  hw::LaunchPacket packet(const jalLaunchConfig& config) const;
  const SourceLine* line_of(uint32_t instruction) const;
};

class Kernel {
 public:
  static constexpr uint8_t kHandleTag = 0x56;
  static constexpr const char* kHandleName = "kernel";
  std::shared_ptr<const KernelImage> image;
  Context* context;
  const void* owner() const { return context; }
};

}  // namespace jalapeno::runtime
