#include "kernel.hpp"

#include <cstring>

#include "context.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {
namespace {

const char* kind_name(hw::ArgumentKind kind) {
  switch (kind) {
    case hw::ArgumentKind::kI32:
      return "i32";
    case hw::ArgumentKind::kI64:
      return "i64";
    case hw::ArgumentKind::kF32:
      return "f32";
    case hw::ArgumentKind::kTensor:
      return "tensor";
  }
  return "unknown";
}

// Bytes from the tensor's first to its last element.
uint64_t extent(const hw::TensorDescriptor& d) {
  uint64_t bytes = hw::row_bytes(d.dtype, d.shape[d.rank - 1]);
  for (uint32_t k = 0; k + 1 < d.rank; ++k) bytes += d.stride[k] * (d.shape[k] - 1);
  return bytes;
}

}  // namespace

const SourceLine* KernelImage::line_of(uint32_t instruction) const {
  const SourceLine* best = nullptr;
  for (const SourceLine& l : lines)
    if (l.instruction <= instruction) best = &l;
  return best;
}

hw::LaunchPacket KernelImage::packet(const jalLaunchConfig& config) const {
  const uint64_t total = uint64_t{config.grid[0]} * config.grid[1] * config.grid[2];
  if (config.grid[0] == 0 || config.grid[1] == 0 || config.grid[2] == 0 || config.grid[0] > 1u << 24 ||
      config.grid[1] > 1u << 16 || config.grid[2] > 1u << 16 || total > 1u << 24)
    invalid("kernel " + name + ": grid " + std::to_string(config.grid[0]) + " x " + std::to_string(config.grid[1]) +
            " x " + std::to_string(config.grid[2]) + ", expected each at least 1 and at most 2^24 instances");
  hw::LaunchPacket p{};
  p.header.op = hw::PacketOp::kLaunch;
  p.code = code;
  p.instructions = instructions, p.argument_bytes = argument_bytes;
  std::copy(config.grid, config.grid + 3, p.grid);
  p.deadline_ms = config.deadline_ms, p.cookie = cookie;
  return p;
}

void KernelImage::pack(const jalArg* args, uint32_t count, Context& context, std::byte* out) const {
  auto refuse = [&](size_t k, const std::string& why) {
    invalid("kernel " + name + ", argument " + std::to_string(k) + " (" + arguments[k].name + "): " + why);
  };
  if (count != arguments.size())
    invalid("kernel " + name + " takes " + std::to_string(arguments.size()) + " arguments, got " +
            std::to_string(count));
  if (count > 0) required(args, "args");
  for (size_t k = 0; k < arguments.size(); ++k) {
    const Argument& want = arguments[k];
    const jalArg& got = args[k];
    if (static_cast<uint32_t>(got.kind) != static_cast<uint32_t>(want.kind)) {
      const bool known = static_cast<uint32_t>(got.kind) <= 3;
      refuse(k, std::string("is ") + (known ? kind_name(static_cast<hw::ArgumentKind>(got.kind)) : "of unknown kind") +
                    ", expected " + kind_name(want.kind));
    }
    switch (want.kind) {
      case hw::ArgumentKind::kI32: {
        int64_t v = got.value.i32;
        std::memcpy(out + want.offset, &v, 8);
        break;
      }
      case hw::ArgumentKind::kI64:
        std::memcpy(out + want.offset, &got.value.i64, 8);
        break;
      case hw::ArgumentKind::kF32: {
        uint64_t v = 0;
        std::memcpy(&v, &got.value.f32, 4);
        std::memcpy(out + want.offset, &v, 8);
        break;
      }
      case hw::ArgumentKind::kTensor: {
        const jalTensor& t = got.value.tensor;
        if (static_cast<uint32_t>(t.dtype) >= hw::kDTypes || !hw::valid(static_cast<hw::DType>(t.dtype)))
          refuse(k, "dtype " + std::to_string(t.dtype) + " does not exist");
        const auto dtype = static_cast<hw::DType>(t.dtype);
        if (want.dtype != hw::kAnyDType && static_cast<uint32_t>(t.dtype) != want.dtype)
          refuse(k, std::string("is ") + hw::info(dtype).name + ", expected " +
                        hw::info(static_cast<hw::DType>(want.dtype)).name);
        if (t.rank != want.rank)
          refuse(k, "has rank " + std::to_string(t.rank) + ", expected " + std::to_string(want.rank));
        hw::TensorDescriptor d{};
        d.dtype = dtype, d.rank = static_cast<uint8_t>(t.rank);
        const hw::DTypeInfo& info = hw::info(dtype);
        if (t.shape[t.rank - 1] % info.block != 0)
          refuse(k, "has " + std::to_string(t.shape[t.rank - 1]) + " columns, expected a multiple of " +
                        std::to_string(info.block));
        uint64_t dense = hw::row_bytes(dtype, t.shape[t.rank - 1]);
        bool empty = t.shape[t.rank - 1] == 0;
        for (uint32_t i = t.rank - 1; i-- > 0;) {
          d.stride[i] = t.stride[i] != 0 ? t.stride[i] : dense;
          if (info.block == 1 && d.stride[i] % info.bytes != 0)
            refuse(k, "stride " + std::to_string(d.stride[i]) + " is not a multiple of the element size");
          if (d.stride[i] > uint64_t{1} << 47) refuse(k, "stride " + std::to_string(d.stride[i]) + " is too large");
          dense = d.stride[i] * t.shape[i];
          empty |= t.shape[i] == 0;
        }
        std::memcpy(d.shape, t.shape, sizeof d.shape);
        if (!empty) {
          if (t.data == nullptr) refuse(k, "data is NULL");
          const uint64_t align = info.block == 1 ? info.bytes : info.bytes % 2 == 0 ? 2 : 1;  // a block's f16 scale
          if (reinterpret_cast<uint64_t>(t.data) % align != 0)
            fail(jalErrorMisalignedAddress, "kernel " + name + ", argument " + std::to_string(k) + " (" + want.name +
                                                "): data is not aligned to " + std::to_string(align) + " bytes");
          const auto region = Registry::get().find(t.data);
          if (!region || region->kind == MemoryKind::kRegistered) refuse(k, "data is neither device nor pinned memory");
          if (region->context != &context)
            fail(jalErrorInvalidDevice, "kernel " + name + ", argument " + std::to_string(k) + " (" + want.name +
                                            "): the memory belongs to another device");
          if (const uint64_t bytes = extent(d); !region->contains(t.data, bytes))
            refuse(k, "needs " + std::to_string(bytes) + " bytes, its allocation has " +
                          std::to_string(region->base + region->bytes - reinterpret_cast<uint64_t>(t.data)) +
                          " from there on");
          d.base = region->at(t.data);
        }
        std::memcpy(out + want.offset, &d, sizeof d);
        break;
      }
    }
  }
}

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

jalError_t jalKernelGetInfo(jalKernel_t kernel, jalKernelInfo* info) {
  return guard([&] {
    const KernelImage& k = *HandleTable<Kernel>::get(kernel).image;
    check_struct(required(info, "info"), "jalKernelInfo");
    copy_text(info->name, k.name);
    info->arguments = static_cast<uint32_t>(k.arguments.size());
    info->argument_bytes = k.argument_bytes, info->instructions = k.instructions, info->spm_bytes = k.spm_bytes,
    info->acc_bytes = k.acc_bytes;
  });
}

jalError_t jalKernelGetArgumentInfo(jalKernel_t kernel, uint32_t index, jalArgInfo* info) {
  return guard([&] {
    const KernelImage& k = *HandleTable<Kernel>::get(kernel).image;
    check_struct(required(info, "info"), "jalArgInfo");
    if (index >= k.arguments.size())
      fail(jalErrorNotFound, "kernel " + k.name + " has " + std::to_string(k.arguments.size()) +
                                 " arguments, index is " + std::to_string(index));
    const Argument& a = k.arguments[index];
    const bool tensor = a.kind == jalapeno::hw::ArgumentKind::kTensor;
    copy_text(info->name, a.name);
    info->kind = static_cast<jalArgKind>(a.kind);
    info->dtype = tensor && a.dtype != jalapeno::hw::kAnyDType ? static_cast<int>(a.dtype) : -1;
    info->rank = tensor ? a.rank : 0;
  });
}

jalError_t jalLibraryGetKernel(jalDevice_t device, const char* name, jalKernel_t* kernel) {
  return guard([&] {
    required(kernel, "kernel");
    *kernel = static_cast<jalKernel_t>(context_of(device).library_kernel(&required(name, "name")));
  });
}

jalError_t jalLaunchKernelEx(jalKernel_t kernel, const jalLaunchConfig* config, const jalArg* args, uint32_t arg_count,
                             jalStream_t stream) {
  return guard([&] {
    Kernel& k = HandleTable<Kernel>::get(kernel);
    Stream& s = stream_of(stream);
    check_struct(required(config, "config"), "jalLaunchConfig");
    if (k.context != &s.context())
      fail(jalErrorInvalidDevice, "kernel " + k.image->name + " is loaded on another device than the stream's");
    s.launch(k.image, *config, args, arg_count);
  });
}

jalError_t jalLaunchKernel(jalKernel_t kernel, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, const jalArg* args,
                           uint32_t arg_count, jalStream_t stream) {
  jalLaunchConfig config{};
  config.struct_size = sizeof config;
  config.grid[0] = grid_x, config.grid[1] = grid_y, config.grid[2] = grid_z;
  return jalLaunchKernelEx(kernel, &config, args, arg_count, stream);
}
