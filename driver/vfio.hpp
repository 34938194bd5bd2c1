// A PCI function through the kernel's VFIO (iommu.hpp has the two ways). What the kernel cannot give is an error
// that says what to change. The IOMMU confines the device; without one a device is opened only when told to
// (JAL_UNSAFE_NOIOMMU=1), and then without DMA.
#pragma once
#include <atomic>
#include <jalapeno_hw/registers.hpp>
#include <mutex>
#include <optional>
#include <vector>

#include "iommu.hpp"
#include "transport.hpp"

namespace jalapeno::driver {

// What sysfs says about a PCI function. Opens nothing.
struct PciFunction {
  std::string address;  // "0000:3b:00.0"
  uint16_t vendor = 0, device = 0;
  std::string kernel_driver;  // "" when none is bound
  std::string group;          // IOMMU group's number; "" without one
  std::string file;           // its own, "/dev/vfio/devices/vfio3"; "" when the kernel gives it none
  bool no_iommu = false;      // the group is a stand-in for a missing IOMMU
  int numa_node = -1;
  bool is_jalapeno() const { return hw::is_jalapeno(vendor, device); }
};
std::vector<PciFunction> pci_functions();  // all of this machine, by address
// nullopt when there is no such function. Throws Error when the text is no PCI address.
std::optional<PciFunction> pci_function(const std::string& address);
std::vector<PciFunction> group_members(const std::string& group);

class VfioTransport final : public Transport {
 public:
  explicit VfioTransport(const std::string& address);  // throws Error
  ~VfioTransport() override;

  uint32_t read32(uint32_t offset) override;
  uint64_t read64(uint32_t offset) override;
  void write32(uint32_t offset, uint32_t value) override;
  void write64(uint32_t offset, uint64_t value) override;
  void post32(uint32_t offset, uint32_t value) noexcept override;
  std::span<std::byte> map_bar(uint32_t bar) override;
  void map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) override;
  void unmap_dma(hw::Iova iova, uint64_t bytes) noexcept override;
  void set_interrupt(uint32_t vector, int eventfd) override;
  void reset() override;
  int liveness_fd() const override { return liveness_; }
  std::string gone() override;
  void revoke() noexcept override;
  std::string describe() const override { return name_; }

 private:
  struct Region {
    uint64_t bytes = 0, offset = 0;
    bool mappable = false;
  };
  void open_device();
  void open_config();
  void open_interrupts();
  Region region(uint32_t index);
  uint16_t config16(uint32_t offset);
  int set_irqs(uint32_t index, uint32_t first, std::span<const int> eventfds) const;  // 0 or an errno
  void hot_reset();
  void set_command(bool on);  // memory accesses and bus mastering
  void close_all() noexcept;
  template <class T>
  T read(uint32_t offset);
  template <class T>
  void write(uint32_t offset, T value);
  void check(uint32_t offset, uint32_t bytes) const;
  int call(unsigned long request, void* argument) const { return vfio_call(device_, request, argument); }
  [[noreturn]] void fail(const std::string& attempted, int error) const { vfio_fail(name_, attempted, error); }

  std::string name_;  // "vfio:0000:3b:00.0"
  std::unique_ptr<Iommu> iommu_;
  int device_ = -1;  // its
  int liveness_ = -1, error_event_ = -1, request_event_ = -1;
  bool can_reset_ = false, no_iommu_ = false;
  std::atomic<bool> revoked_{false};
  uint32_t vectors_ = 0, epoch_ = 0;                      // epoch: of the last reset that was ours
  bool vectors_fixed_ = false, vectors_enabled_ = false;  // fixed: the kernel cannot add vectors to enabled ones
  Region registers_{}, config_{};
  std::byte* mmio_ = nullptr;  // the registers; nullptr: the kernel does not map them, read and write instead
  std::vector<std::span<std::byte>> bars_;
  std::mutex mutex_;
};

}  // namespace jalapeno::driver
