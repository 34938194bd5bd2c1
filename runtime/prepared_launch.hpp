// A launch that is ready: its packet, and its arguments in device memory. Immutable; any stream of its device runs it.
#pragma once
#include <memory>
#include <vector>

#include "context.hpp"
#include "kernel.hpp"
#include "memory.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {

class PreparedLaunch {
 public:
  static constexpr uint8_t kHandleTag = 0x59;
  static constexpr const char* kHandleName = "prepared launch";

  PreparedLaunch(const Kernel& kernel, const jalLaunchConfig& config, const jalArg* args, uint32_t count);
  ~PreparedLaunch();
  PreparedLaunch(const PreparedLaunch&) = delete;
  PreparedLaunch& operator=(const PreparedLaunch&) = delete;

  Context& context() const { return *context_; }
  const void* owner() const { return context_.get(); }
  const std::shared_ptr<const KernelImage>& kernel() const { return kernel_; }
  const hw::LaunchPacket& packet() const { return packet_; }
  const Operation& operation() const { return operation_; }
  const std::vector<std::byte>& arguments() const { return arguments_; }

 private:
  std::shared_ptr<Context> context_;
  std::shared_ptr<const KernelImage> kernel_;
  hw::LaunchPacket packet_{};
  Operation operation_;
  std::vector<std::byte> arguments_;
  Region region_{};
};

}  // namespace jalapeno::runtime
