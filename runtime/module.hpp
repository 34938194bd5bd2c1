// A module: an ELF file of kernels, read as hostile input, verified, and its code placed in device memory.
#pragma once
#include <jalapeno_driver/address_space.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "context.hpp"
#include "kernel.hpp"

namespace jalapeno::runtime {

// What the file says, before any device is involved.
struct ParsedKernel {
  KernelImage image;
  uint32_t first;  // instruction in code
};
struct ParsedModule {
  std::vector<hw::Instruction> code;
  std::vector<ParsedKernel> kernels;
};
// Throws Error(jalErrorInvalidImage) naming the offset and the rule.
ParsedModule parse_module(std::span<const std::byte> file);

class Module {
 public:
  static constexpr uint8_t kHandleTag = 0x55;
  static constexpr const char* kHandleName = "module";

  Module(Context& context, const void* image, size_t bytes, std::string name);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  size_t size() const { return kernels_.size(); }
  void* kernel(size_t index) const { return kernels_.at(index).handle; }
  void* kernel(const std::string& name) const;  // throws Error(jalErrorNotFound)
  Context* owner() const { return context_; }

 private:
  struct Entry {
    std::string name;
    void* handle;
  };
  Context* context_;
  std::string name_;
  std::vector<Entry> kernels_;
};

// The bytes of the module that holds a kernel of the built-in library; throws Error(jalErrorNotFound).
std::vector<std::byte> build_library_module(const std::string& kernel);

}  // namespace jalapeno::runtime
