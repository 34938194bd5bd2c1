#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/kernels.hpp"

namespace jalapeno::emu {
namespace {

bool host_runs(const HostKernels& k) {
#if defined(__x86_64__)
  if (&k == &kAvx512Kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (&k == &kAvx2Kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &k == &kPortableKernels;
}

const HostKernels* const kBestFirst[] = {
#if defined(__x86_64__)
    &kAvx512Kernels, &kAvx2Kernels,
#endif
    &kPortableKernels};

const HostKernels& choose() {
  if (const char* wanted = std::getenv("JAL_EMU_ISA"); wanted != nullptr && *wanted != 0) {
    if (const HostKernels* k = host_kernels_named(wanted)) return *k;
    throw std::runtime_error(std::string("JAL_EMU_ISA=") + wanted +
                             ": expected portable, avx2 or avx512, and a host that runs it");
  }
  for (const HostKernels* k : kBestFirst)
    if (host_runs(*k)) return *k;
  return kPortableKernels;
}

}  // namespace

const HostKernels* host_kernels_named(const char* name) {
  for (const HostKernels* k : kBestFirst)
    if (std::strcmp(k->name, name) == 0) return host_runs(*k) ? k : nullptr;
  return nullptr;
}

const HostKernels& host_kernels() {
  static const HostKernels& chosen = choose();
  return chosen;
}

}  // namespace jalapeno::emu
