// How a PCI function comes into this process, and host memory into its reach: through its IOMMU group and a container
// (type 1), which every kernel with VFIO has, or through its own file and iommufd (kernels from 6.6 on). VfioTransport
// chooses at open; JAL_VFIO=group or iommufd demands one.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transport.hpp"

namespace jalapeno::driver {

struct PciFunction;

class Iommu {
 public:
  virtual ~Iommu() = default;
  virtual int device() const = 0;  // the function's descriptor, this object's
  // 0 or an errno.
  virtual int map(const Transport::HostMemory& memory, uint64_t iova, bool device_writes) = 0;
  virtual int unmap(uint64_t iova, uint64_t bytes) = 0;
  // What a reset of the whole bus wants as proof that all of it is ours.
  virtual std::vector<int> proof() const = 0;
  // Every descriptor becomes `nothing`, under the same number.
  virtual void replace(int nothing) = 0;
};
// Opens the function; `name` is for errors. Throws Error that says what is missing and how to get it.
std::unique_ptr<Iommu> open_iommu(const PciFunction& function, const std::string& name);

// For whoever talks to VFIO. 0 or an errno; and what an errno means, with what was attempted.
int vfio_call(int fd, unsigned long request, void* argument);
[[noreturn]] void vfio_fail(const std::string& name, const std::string& attempted, int error);

}  // namespace jalapeno::driver
