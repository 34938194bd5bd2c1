// The rules a kernel must keep, checked before it can reach a device: the loader does not trust the builder.
#pragma once
#include <jalapeno_hw/isa.hpp>
#include <span>

#include "kernel.hpp"

namespace jalapeno::runtime {

// Throws Error(jalErrorInvalidImage) that names kernel, instruction and rule.
void verify(const KernelImage& kernel, std::span<const hw::Instruction> code);

}  // namespace jalapeno::runtime
