#include "vfio.hpp"

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <jalapeno_hw/registers.hpp>

#include "error.hpp"
#include "log.hpp"
#include "mmio.hpp"
#include "os.hpp"

namespace jalapeno::driver {
namespace {

namespace fs = std::filesystem;
namespace pci = hw::pci;

// What cannot be said of a file: "" or 0.
std::string link_name(const fs::path& path) {
  std::error_code none;
  return fs::read_symlink(path, none).filename().string();
}
std::string first_word(const fs::path& path) {
  std::ifstream in(path);
  std::string word;
  in >> word;
  return word;
}

fs::path sys(const std::string& path) { return os().root + ("/sys/" + path); }

std::string hex(uint64_t v, int digits) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%0*llx", digits, static_cast<unsigned long long>(v));
  return text;
}

// dddd:bb:dd.f, lower-case hexadecimal as sysfs has it.
bool is_address(const std::string& text) {
  static constexpr std::string_view kForm = "xxxx:xx:xx.x";
  return text.size() == kForm.size() && std::equal(text.begin(), text.end(), kForm.begin(), [](char c, char form) {
           return form == 'x' ? (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') : c == form;
         });
}

std::string list(const std::vector<PciFunction>& functions) {
  std::string out;
  for (const PciFunction& f : functions) out += (out.empty() ? "" : ", ") + f.address;
  return out;
}

PciFunction describe(const fs::path& folder) {
  PciFunction f;
  f.address = folder.filename().string();
  auto id = [&](const char* file) {
    return static_cast<uint16_t>(std::strtoul(first_word(folder / file).c_str(), nullptr, 16));
  };
  f.vendor = id("vendor"), f.device = id("device");
  f.kernel_driver = link_name(folder / "driver");
  f.group = link_name(folder / "iommu_group");
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder / "vfio-dev", none))
    f.file = "/dev/vfio/devices/" + entry.path().filename().string();
  f.no_iommu = !f.group.empty() && first_word(folder / "iommu_group/name") == "vfio-noiommu";
  if (const std::string node = first_word(folder / "numa_node"); !node.empty()) f.numa_node = std::atoi(node.c_str());
  return f;
}

std::vector<PciFunction> functions_in(const fs::path& folder) {
  std::vector<PciFunction> out;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) out.push_back(describe(entry.path()));
  std::sort(out.begin(), out.end(), [](const PciFunction& a, const PciFunction& b) { return a.address < b.address; });
  return out;
}

std::string identity() {
  return ", a Jalapeno is " + hex(hw::kPciVendorId, 4) + ":" + hex(hw::kPciDeviceId, 4) + ", or " +
         hex(hw::kPciVirtualDeviceId, 4) + " when it is a virtual function";
}

bool told_unsafe() {
  const char* text = std::getenv("JAL_UNSAFE_NOIOMMU");
  return text != nullptr && std::strcmp(text, "1") == 0;
}

}  // namespace

std::vector<PciFunction> pci_functions() { return functions_in(sys("bus/pci/devices")); }
std::vector<PciFunction> group_members(const std::string& group) {
  return functions_in(sys("kernel/iommu_groups/" + group + "/devices"));
}

std::optional<PciFunction> pci_function(const std::string& address) {
  if (!is_address(address))
    throw Error(Code::kInvalidValue, "device URI \"vfio:" + address + "\": expected a PCI address as in 0000:3b:00.0");
  const fs::path folder = sys("bus/pci/devices/" + address);
  std::error_code none;
  if (!fs::exists(folder, none)) return std::nullopt;
  return describe(folder);
}

VfioTransport::VfioTransport(const std::string& address) : name_("vfio:" + address), bars_(6) {
  const auto function = pci_function(address);
  if (!function) {
    std::vector<PciFunction> here = pci_functions();
    std::erase_if(here, [](const PciFunction& f) { return !f.is_jalapeno(); });
    throw Error(Code::kNoDevice, name_ + ": no PCI function has this address; Jalapeno functions here: " +
                                     (here.empty() ? "none" : list(here)));
  }
  if (!function->is_jalapeno())
    throw Error(Code::kNoDevice,
                name_ + ": is " + hex(function->vendor, 4) + ":" + hex(function->device, 4) + identity());
  if (function->group.empty())
    throw Error(Code::kNotSupported, name_ +
                                         ": is in no IOMMU group: switch the IOMMU on in the BIOS and boot with "
                                         "intel_iommu=on or amd_iommu=on");
  if (function->kernel_driver != "vfio-pci")
    throw Error(Code::kNoDevice,
                name_ + ": " +
                    (function->kernel_driver.empty() ? "no kernel driver is bound"
                                                     : "the kernel driver " + function->kernel_driver + " is bound") +
                    ", expected vfio-pci: modprobe vfio-pci; echo vfio-pci > /sys/bus/pci/devices/" + address +
                    "/driver_override; echo " + address + " > /sys/bus/pci/drivers_probe");
  no_iommu_ = function->no_iommu;
  if (no_iommu_ && !told_unsafe())
    throw Error(Code::kNotSupported, name_ +
                                         ": the machine has no IOMMU, so the device could reach all of its memory; "
                                         "switch one on, or set JAL_UNSAFE_NOIOMMU=1 to read registers only");
  try {
    iommu_ = open_iommu(*function, name_);
    device_ = iommu_->device();
    open_device();
    open_config();
    open_interrupts();
  } catch (...) {
    close_all();
    throw;
  }
}

VfioTransport::~VfioTransport() {
  if (!revoked_) set_command(false);
  for (auto& bar : bars_)
    if (!bar.empty()) os().munmap(bar.data(), bar.size());
  close_all();
}

void VfioTransport::close_all() noexcept {
  for (int* fd : {&liveness_, &error_event_, &request_event_}) {
    if (*fd >= 0) os().close(*fd);
    *fd = -1;
  }
  iommu_.reset();
}

void VfioTransport::open_device() {
  vfio_device_info info{};
  info.argsz = sizeof info;
  if (const int e = call(VFIO_DEVICE_GET_INFO, &info)) fail("asking for the device's description", e);
  can_reset_ = info.flags & VFIO_DEVICE_FLAGS_RESET;
  if (!(info.flags & VFIO_DEVICE_FLAGS_PCI) || info.num_regions <= VFIO_PCI_CONFIG_REGION_INDEX ||
      info.num_irqs <= VFIO_PCI_MSIX_IRQ_INDEX)
    throw Error(Code::kNoDevice, name_ + ": not a PCI function: it has " + std::to_string(info.num_regions) +
                                     " regions and " + std::to_string(info.num_irqs) + " interrupt kinds");
  registers_ = region(hw::kBarRegisters);
  config_ = region(VFIO_PCI_CONFIG_REGION_INDEX);
  if (registers_.bytes < hw::kBar0Bytes)
    throw Error(Code::kNoDevice, name_ + ": BAR 0 has " + std::to_string(registers_.bytes) + " bytes, expected " +
                                     std::to_string(hw::kBar0Bytes));
}

VfioTransport::Region VfioTransport::region(uint32_t index) {
  vfio_region_info r{};
  r.argsz = sizeof r, r.index = index;
  if (const int e = call(VFIO_DEVICE_GET_REGION_INFO, &r)) fail("asking for region " + std::to_string(index), e);
  return {r.size, r.offset, (r.flags & VFIO_REGION_INFO_FLAG_MMAP) != 0};
}

uint16_t VfioTransport::config16(uint32_t offset) {
  uint16_t v = 0;
  if (os().pread(device_, &v, sizeof v, static_cast<off_t>(config_.offset + offset)) != sizeof v)
    throw Error(Code::kNoDevice, name_ + ": configuration space ends before " + hex(offset, 3));
  return v;
}

void VfioTransport::open_config() {
  const uint16_t vendor = config16(0), device = config16(2);
  if (vendor == 0xFFFF)
    throw Error(Code::kDeviceLost, name_ + ": configuration space reads all ones: the device does not answer");
  if (!hw::is_jalapeno(vendor, device))
    throw Error(Code::kNoDevice,
                name_ + ": configuration space says " + hex(vendor, 4) + ":" + hex(device, 4) + identity());
  bool msix = false;
  int steps = 0;
  for (uint32_t at = config16(pci::kCapabilities) & 0xFC; at != 0; at = config16(at) >> 8 & 0xFC) {
    if (++steps > 48)
      throw Error(Code::kNoDevice, name_ + ": the capability list of configuration space runs in a circle");
    msix |= (config16(at) & 0xFF) == pci::kMsixId;
  }
  if (!msix) throw Error(Code::kNoDevice, name_ + ": configuration space has no MSI-X capability");
  set_command(true);
  if (registers_.mappable) {
    void* p = os().mmap(nullptr, registers_.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device_,
                        static_cast<off_t>(registers_.offset));
    if (p == MAP_FAILED) fail("mapping BAR 0", errno);
    mmio_ = static_cast<std::byte*>(p);
    bars_[hw::kBarRegisters] = {mmio_, registers_.bytes};
  }
  epoch_ = read32(hw::reg::kEpoch);
}

void VfioTransport::set_command(bool on) {
  const uint16_t bits = pci::kCommandMemory | pci::kCommandBusMaster;
  uint16_t v = 0;
  const auto at = static_cast<off_t>(config_.offset + pci::kCommand);
  if (os().pread(device_, &v, sizeof v, at) == sizeof v) {
    v = static_cast<uint16_t>(on ? v | bits : v & ~pci::kCommandBusMaster);
    if (os().pwrite(device_, &v, sizeof v, at) == sizeof v) return;
  }
  if (on) fail("switching memory accesses and bus mastering on", errno);
}

int VfioTransport::set_irqs(uint32_t index, uint32_t first, std::span<const int> eventfds) const {
  std::vector<std::byte> bytes(sizeof(vfio_irq_set) + eventfds.size_bytes());
  const vfio_irq_set header{static_cast<uint32_t>(bytes.size()),
                            VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, first,
                            static_cast<uint32_t>(eventfds.size())};
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + sizeof header, eventfds.data(), eventfds.size_bytes());
  return call(VFIO_DEVICE_SET_IRQS, bytes.data());
}

void VfioTransport::open_interrupts() {
  vfio_irq_info irq{};
  irq.argsz = sizeof irq, irq.index = VFIO_PCI_MSIX_IRQ_INDEX;
  if (const int e = call(VFIO_DEVICE_GET_IRQ_INFO, &irq)) fail("asking for MSI-X vectors", e);
  vectors_ = irq.count;
  vectors_fixed_ = irq.flags & VFIO_IRQ_INFO_NORESIZE;
  if (vectors_ == 0) throw Error(Code::kNoDevice, name_ + ": has no MSI-X vectors");
  liveness_ = epoll_create1(EPOLL_CLOEXEC);
  error_event_ = os().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  request_event_ = os().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (liveness_ < 0 || error_event_ < 0 || request_event_ < 0) fail("epoll and eventfd", errno);
  for (const auto& [index, fd] :
       {std::pair{VFIO_PCI_ERR_IRQ_INDEX, error_event_}, std::pair{VFIO_PCI_REQ_IRQ_INDEX, request_event_}}) {
    if (const int e = set_irqs(static_cast<uint32_t>(index), 0, {&fd, 1}))
      driver_log().debug("{}: interrupt kind {} is not offered: {}", name_, static_cast<int>(index), error_text(e));
    epoll_event event{EPOLLIN, {.fd = fd}};
    epoll_ctl(liveness_, EPOLL_CTL_ADD, fd, &event);
  }
}

void VfioTransport::check(uint32_t offset, uint32_t bytes) const {
  if (offset % bytes != 0 || offset + bytes > hw::kRegisterBarBytes)
    throw Error(Code::kInvalidValue,
                name_ + ": register access of " + std::to_string(bytes) + " bytes at " + hex(offset, 4));
}

template <class T>
T VfioTransport::read(uint32_t offset) {
  check(offset, sizeof(T));
  if (mmio_ != nullptr) return mmio_read<T>(mmio_, offset);
  T v = static_cast<T>(~T{0});
  if (os().pread(device_, &v, sizeof v, static_cast<off_t>(registers_.offset + offset)) != sizeof v)
    throw Error(Code::kDeviceLost, name_ + ": reading register " + hex(offset, 4) + ": " + error_text(errno));
  return v;
}
template <class T>
void VfioTransport::write(uint32_t offset, T value) {
  check(offset, sizeof(T));
  if (mmio_ != nullptr) return mmio_write<T>(mmio_, offset, value);
  if (os().pwrite(device_, &value, sizeof value, static_cast<off_t>(registers_.offset + offset)) != sizeof value)
    throw Error(Code::kDeviceLost, name_ + ": writing register " + hex(offset, 4) + ": " + error_text(errno));
}

uint32_t VfioTransport::read32(uint32_t offset) { return read<uint32_t>(offset); }
uint64_t VfioTransport::read64(uint32_t offset) { return read<uint64_t>(offset); }
void VfioTransport::write32(uint32_t offset, uint32_t value) { write(offset, value); }
void VfioTransport::write64(uint32_t offset, uint64_t value) { write(offset, value); }
void VfioTransport::post32(uint32_t offset, uint32_t value) noexcept {
  try {
    write(offset, value);
  } catch (const std::exception& e) {
    driver_log().debug("posted write lost: {}", e.what());  // the waits find out
  }
}

std::span<std::byte> VfioTransport::map_bar(uint32_t bar) {
  std::lock_guard lock(mutex_);
  if (!bars_.at(bar).empty()) return bars_[bar];
  const Region r = region(bar);
  if (r.bytes == 0 || !r.mappable)
    throw Error(Code::kNoDevice,
                name_ + ": BAR " + std::to_string(bar) + " of " + std::to_string(r.bytes) + " bytes cannot be mapped");
  void* p = os().mmap(nullptr, r.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device_, static_cast<off_t>(r.offset));
  if (p == MAP_FAILED) fail("mapping BAR " + std::to_string(bar) + " of " + std::to_string(r.bytes) + " bytes", errno);
  return bars_[bar] = {static_cast<std::byte*>(p), r.bytes};
}

void VfioTransport::map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) {
  if (no_iommu_) throw Error(Code::kNotSupported, name_ + ": there is no IOMMU, so no memory is given to the device");
  if (revoked_) throw Error(Code::kDeviceLost, name_ + ": the device was given up");
  const int error = iommu_->map(memory, hw::raw(iova), device_writes);
  if (error == 0) return;
  const std::string what = name_ + ": DMA map of " + std::to_string(memory.bytes) + " bytes at iova " +
                           hex(hw::raw(iova), 9) + ": " + error_text(error);
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (error == ENOMEM && limit.rlim_cur != RLIM_INFINITY)
    throw Error(Code::kOutOfHostMemory, what + "; the limit of locked memory is " + std::to_string(limit.rlim_cur) +
                                            " bytes: raise it (ulimit -l, LimitMEMLOCK= of a systemd unit)");
  if (error == ENOSPC)
    throw Error(Code::kOutOfHostMemory,
                what + "; the kernel has no mappings left (dma_entry_limit of vfio_iommu_type1)");
  throw Error(error == ENOMEM ? Code::kOutOfHostMemory : Code::kOperatingSystem, what);
}

void VfioTransport::unmap_dma(hw::Iova iova, uint64_t bytes) noexcept {
  if (const int e = iommu_->unmap(hw::raw(iova), bytes))
    driver_log().debug("{}: unmap of {} bytes: {}", name_, bytes, error_text(e));
}

void VfioTransport::set_interrupt(uint32_t vector, int eventfd) {
  std::lock_guard lock(mutex_);
  if (vector >= vectors_)
    throw Error(Code::kNotSupported,
                name_ + ": MSI-X vector " + std::to_string(vector) + ", the function has " + std::to_string(vectors_));
  // Where vectors cannot be added later, the first one brings all, the others without a receiver.
  const uint32_t first = vectors_fixed_ && !vectors_enabled_ ? 0 : vector;
  const uint32_t count = vectors_fixed_ && !vectors_enabled_ ? vectors_ : 1;
  std::vector<int> receivers(count, -1);
  receivers[vector - first] = eventfd;
  if (const int e = set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, first, receivers))
    fail("setting MSI-X vector " + std::to_string(vector), e);
  vectors_enabled_ = true;
}

void VfioTransport::reset() {
  if (!can_reset_)
    hot_reset();
  else if (const int e = call(VFIO_DEVICE_RESET, nullptr))
    fail("resetting the function", e);
  set_command(true);
  epoch_ = read32(hw::reg::kEpoch);
}

// Of the bus or slot, for a function without a reset of its own: the kernel does it when all that hangs there is ours.
void VfioTransport::hot_reset() {
  const std::vector<int> proof = iommu_->proof();
  std::vector<std::byte> bytes(sizeof(vfio_pci_hot_reset) + proof.size() * sizeof(int32_t));
  auto* r = reinterpret_cast<vfio_pci_hot_reset*>(bytes.data());
  r->argsz = static_cast<uint32_t>(bytes.size()), r->count = static_cast<uint32_t>(proof.size());
  for (size_t k = 0; k < proof.size(); ++k) r->group_fds[k] = proof[k];
  const int error = call(VFIO_DEVICE_PCI_HOT_RESET, r);
  if (error == 0) return;
  if (error != EPERM && error != EINVAL) fail("resetting the function's bus", error);
  constexpr size_t kMost = 64;
  std::vector<std::byte> told(sizeof(vfio_pci_hot_reset_info) + kMost * sizeof(vfio_pci_dependent_device));
  auto* info = reinterpret_cast<vfio_pci_hot_reset_info*>(told.data());
  info->argsz = static_cast<uint32_t>(told.size());
  std::string others;
  if (call(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, info) == 0)
    for (uint32_t k = 0; k < std::min<uint32_t>(info->count, kMost); ++k) {
      const vfio_pci_dependent_device& d = info->devices[k];
      char text[32];
      std::snprintf(text, sizeof text, "%04x:%02x:%02x.%x", d.segment, d.bus, d.devfn >> 3, d.devfn & 7u);
      if ("vfio:" + std::string(text) != name_) others += (others.empty() ? "" : ", ") + std::string(text);
    }
  throw Error(Code::kNotSupported,
              name_ + ": has no reset of its own, and that of its bus is not allowed: it would reset " +
                  (others.empty() ? "functions that are not this process's" : others) + " too");
}

std::string VfioTransport::gone() {
  std::lock_guard lock(mutex_);
  if (revoked_) return "it was given up";
  uint64_t count = 0;
  if (os().read(request_event_, &count, sizeof count) == sizeof count)
    return "the kernel takes the device back (it is being unbound or unplugged)";
  if (os().read(error_event_, &count, sizeof count) == sizeof count)
    return "PCI Express reports an uncorrectable error (AER); the kernel's log has the details";
  uint32_t epoch = ~0u;
  try {
    epoch = read32(hw::reg::kEpoch);
  } catch (const Error& e) {
    return e.what();
  }
  if (epoch == ~0u) return "registers read all ones: it does not answer";
  if (epoch != epoch_)  // while the reset goes on registers read something else
    return "it was reset by someone else" +
           (epoch > epoch_ ? " (epoch " + std::to_string(epoch_) + ", now " + std::to_string(epoch) + ")" : "") +
           "; close it and open it again";
  return "";
}

void VfioTransport::revoke() noexcept {
  std::lock_guard lock(mutex_);
  if (revoked_.exchange(true)) return;
  set_command(false);
  // The kernel waits until nobody has the device: nothing of it stays mapped or open. Other threads may be in the
  // middle of an access, so addresses and descriptor numbers stay valid, with nothing behind them.
  for (auto& bar : bars_) {
    if (bar.empty()) continue;
    void* p = os().mmap(bar.data(), bar.size(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (p != MAP_FAILED && bar.data() == mmio_) std::memset(p, 0xFF, bar.size());  // as a device reads that is gone
  }
  const int nothing = os().open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nothing < 0) return;
  iommu_->replace(nothing);
  os().close(nothing);
}

}  // namespace jalapeno::driver
