// Prepared launches: a launch whose arguments are checked, packed and on the device already. Launching writes a packet.
#include <cstring>
#include <memory>

#include "prepared_launch.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {

PreparedLaunch::PreparedLaunch(const Kernel& kernel, const jalLaunchConfig& config, const jalArg* args, uint32_t count)
    : context_(kernel.context->shared_from_this()), kernel_(kernel.image) {
  packet_ = kernel_->packet(config);
  operation_ = {"launch", config.call_file, config.call_line, 0};
  alignas(8) std::byte packed[hw::kArgumentBytes];
  kernel_->pack(args, count, *context_, packed);
  arguments_.assign(packed, packed + kernel_->argument_bytes);
  if (arguments_.empty()) return;
  region_ = context_->pool().allocate(arguments_.size(), nullptr);
  packet_.arguments = region_.address;
  std::lock_guard lock(context_->transfer_mutex());
  Stream& s = context_->transfer_stream();
  if (s.failed()) s.reset();  // its failures were told to whoever caused them
  s.copy(reinterpret_cast<void*>(region_.base), arguments_.data(), arguments_.size(), 1, arguments_.size(),
         arguments_.size(), "jalLaunchPrepare");
  s.synchronize(default_timeout_ns());
}

PreparedLaunch::~PreparedLaunch() {
  if (region_.bytes != 0) give_back(region_);
}

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

jalError_t jalLaunchPrepare(jalKernel_t kernel, const jalLaunchConfig* config, const jalArg* args, uint32_t arg_count,
                            jalPreparedLaunch_t* launch) {
  return guard([&] {
    Kernel& k = HandleTable<Kernel>::get(kernel);
    check_struct(required(config, "config"), "jalLaunchConfig");
    required(launch, "launch");
    *launch = static_cast<jalPreparedLaunch_t>(
        HandleTable<PreparedLaunch>::add(std::make_shared<PreparedLaunch>(k, *config, args, arg_count)));
  });
}
jalError_t jalLaunchPrepared(jalPreparedLaunch_t launch, jalStream_t stream) {
  return guard([&] { stream_of(stream).launch(HandleTable<PreparedLaunch>::get(launch)); });
}
jalError_t jalPreparedLaunchDestroy(jalPreparedLaunch_t launch) {
  return guard([&] { HandleTable<PreparedLaunch>::remove(launch); });
}
