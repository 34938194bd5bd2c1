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
// The function's own file, under /dev/vfio/devices; "" when the kernel gives it none.
std::string device_file(const PciFunction& function);

// Opens the function. `name` is for errors. Throw Error that says what is missing and how to get it.
std::unique_ptr<Iommu> open_group(const PciFunction& function, const std::string& name);
std::unique_ptr<Iommu> open_iommufd(const PciFunction& function, const std::string& name);
std::unique_ptr<Iommu> open_iommu(const PciFunction& function, const std::string& name);  // the one to use

}  // namespace jalapeno::driver
