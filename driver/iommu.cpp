#include "iommu.hpp"

#include <fcntl.h>
#include <linux/vfio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "error.hpp"
#include "os.hpp"
#include "vfio.hpp"

namespace jalapeno::driver {
namespace {

namespace fs = std::filesystem;

std::string dev(const std::string& path) { return os().root + ("/dev/" + path); }

[[noreturn]] void forbidden(const std::string& name, const std::string& file) {
  throw Error(Code::kOperatingSystem, name + ": no permission for " + file + " (uid " + std::to_string(geteuid()) +
                                          "): install the udev rule and join its group, or run as root");
}
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) os().close(fd_);
  }
  int get() const { return fd_; }
  void replace(int nothing) const { dup3(nothing, fd_, O_CLOEXEC); }

 private:
  int fd_ = -1;
};

class Group final : public Iommu {
 public:
  Group(const PciFunction& function, const std::string& name) {
    const std::string file = dev("vfio/" + std::string(function.no_iommu ? "noiommu-" : "") + function.group);
    container_ = Descriptor(os().open(dev("vfio/vfio").c_str(), O_RDWR | O_CLOEXEC));
    if (container_.get() < 0) {
      if (errno == ENOENT)
        throw Error(
            Code::kNotSupported,
            name + ": there is no /dev/vfio/vfio: modprobe vfio-pci, and in a container pass /dev/vfio through");
      vfio_fail(name, "opening /dev/vfio/vfio", errno);
    }
    group_ = Descriptor(os().open(file.c_str(), O_RDWR | O_CLOEXEC));
    if (group_.get() < 0) {
      const int error = errno;
      if (error == EBUSY)
        throw Error(Code::kBusy,
                    name + ": another process holds IOMMU group " + function.group + "; jalapeno-smi shows which");
      if (error == EACCES || error == EPERM) forbidden(name, file);
      if (error == ENOENT)
        throw Error(Code::kNoDevice, name + ": there is no " + file + ": in a container pass it through");
      vfio_fail(name, "opening " + file, error);
    }
    vfio_group_status status{};
    status.argsz = sizeof status;
    if (const int e = vfio_call(group_.get(), VFIO_GROUP_GET_STATUS, &status))
      vfio_fail(name, "asking for the group's status", e);
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
      std::string others;
      for (const PciFunction& f : group_members(function.group))
        if (!f.kernel_driver.empty() && f.kernel_driver != "vfio-pci")
          others += (others.empty() ? "" : ", ") + f.address + " (" + f.kernel_driver + ")";
      throw Error(Code::kNotSupported, name + ": IOMMU group " + function.group +
                                           " is not viable: these members have other kernel drivers: " + others +
                                           "; bind them to vfio-pci or unbind them");
    }
    int container = container_.get();
    if (const int e = vfio_call(group_.get(), VFIO_GROUP_SET_CONTAINER, &container))
      vfio_fail(name, "joining a container", e);
    const unsigned long type = function.no_iommu ? VFIO_NOIOMMU_IOMMU : VFIO_TYPE1v2_IOMMU;
    if (const int e = vfio_call(container, VFIO_SET_IOMMU, reinterpret_cast<void*>(type))) {
      if (e == EPERM)
        throw Error(Code::kNotSupported, name +
                                             ": the kernel refuses this IOMMU because it does not remap interrupts; "
                                             "switch interrupt remapping on (intremap)");
      vfio_fail(name, "choosing the type 1 IOMMU", e);
    }
    device_ =
        Descriptor(os().ioctl(group_.get(), VFIO_GROUP_GET_DEVICE_FD, const_cast<char*>(function.address.c_str())));
    if (device_.get() < 0) vfio_fail(name, "opening the device", errno);
  }
  int device() const override { return device_.get(); }
  int map(const Transport::HostMemory& memory, uint64_t iova, bool device_writes) override {
    vfio_iommu_type1_dma_map m{};
    m.argsz = sizeof m;
    m.flags = VFIO_DMA_MAP_FLAG_READ | (device_writes ? VFIO_DMA_MAP_FLAG_WRITE : 0);
    m.vaddr = reinterpret_cast<uint64_t>(memory.data), m.iova = iova, m.size = memory.bytes;
    return vfio_call(container_.get(), VFIO_IOMMU_MAP_DMA, &m);
  }
  int unmap(uint64_t iova, uint64_t bytes) override {
    vfio_iommu_type1_dma_unmap u{};
    u.argsz = sizeof u, u.iova = iova, u.size = bytes;
    return vfio_call(container_.get(), VFIO_IOMMU_UNMAP_DMA, &u);
  }
  std::vector<int> proof() const override { return {group_.get()}; }
  void replace(int nothing) override {
    for (const Descriptor* d : {&device_, &group_, &container_}) d->replace(nothing);
  }

 private:
  Descriptor container_, group_, device_;  // the device closes first
};

// Of linux/iommufd.h and the newer linux/vfio.h: the headers here may be older than the kernel.
namespace uapi {
constexpr unsigned long request(char type, unsigned number) { return static_cast<unsigned long>(type) << 8 | number; }
constexpr unsigned long kIoasAlloc = request(';', 0x81), kIoasMap = request(';', 0x85), kIoasUnmap = request(';', 0x86);
constexpr unsigned long kBind = request(';', 100 + 18), kAttach = request(';', 100 + 19);
struct IoasAlloc {
  uint32_t size, flags, out_ioas_id;
};
struct IoasMap {
  uint32_t size, flags, ioas_id, reserved;
  uint64_t user_va, length, iova;
};
constexpr uint32_t kFixedIova = 1, kWriteable = 2, kReadable = 4;
struct IoasUnmap {
  uint32_t size, ioas_id;
  uint64_t iova, length;
};
struct Bind {
  uint32_t argsz, flags;
  int32_t iommufd;
  uint32_t out_devid;
};
struct Attach {
  uint32_t argsz, flags, pt_id;
};
static_assert(sizeof(IoasAlloc) == 12 && sizeof(IoasMap) == 40 && sizeof(IoasUnmap) == 24 && sizeof(Bind) == 16);
}  // namespace uapi

class IommuFd final : public Iommu {
 public:
  IommuFd(const PciFunction& function, const std::string& name) {
    if (function.file.empty())
      throw Error(Code::kNotSupported,
                  name +
                      ": the kernel gives the function no file of its own (/dev/vfio/devices): it "
                      "needs 6.6 or newer with CONFIG_VFIO_DEVICE_CDEV; JAL_VFIO=group does without");
    iommu_ = Descriptor(os().open(dev("iommu").c_str(), O_RDWR | O_CLOEXEC));
    if (iommu_.get() < 0) {
      if (errno == ENOENT)
        throw Error(Code::kNotSupported, name +
                                             ": there is no /dev/iommu: modprobe iommufd, in a container pass it "
                                             "through, or use JAL_VFIO=group");
      if (errno == EACCES || errno == EPERM) forbidden(name, dev("iommu"));
      vfio_fail(name, "opening /dev/iommu", errno);
    }
    const std::string file = os().root + function.file;
    device_ = Descriptor(os().open(file.c_str(), O_RDWR | O_CLOEXEC));
    if (device_.get() < 0) {
      if (errno == EACCES || errno == EPERM) forbidden(name, file);
      if (errno == ENOENT)
        throw Error(Code::kNoDevice, name + ": there is no " + file + ": in a container pass it through");
      vfio_fail(name, "opening " + file, errno);
    }
    uapi::Bind bind{sizeof bind, 0, iommu_.get(), 0};
    if (const int e = vfio_call(device_.get(), uapi::kBind, &bind)) {
      if (e == EBUSY || e == EINVAL)  // opened twice: the kernel calls the second bind invalid
        throw Error(Code::kBusy,
                    name + ": another process holds it (jalapeno-smi shows which), or iommufd refuses this IOMMU");
      if (e == EPERM)
        throw Error(Code::kNotSupported, name + ": members of IOMMU group " + function.group +
                                             " have other owners or kernel drivers, or the IOMMU does not remap "
                                             "interrupts");
      vfio_fail(name, "binding the function to iommufd", e);
    }
    uapi::IoasAlloc alloc{sizeof alloc, 0, 0};
    if (const int e = vfio_call(iommu_.get(), uapi::kIoasAlloc, &alloc))
      vfio_fail(name, "making an I/O address space", e);
    ioas_ = alloc.out_ioas_id;
    uapi::Attach attach{sizeof attach, 0, ioas_};
    if (const int e = vfio_call(device_.get(), uapi::kAttach, &attach))
      vfio_fail(name, "attaching the I/O address space", e);
  }
  int device() const override { return device_.get(); }
  int map(const Transport::HostMemory& memory, uint64_t iova, bool device_writes) override {
    uapi::IoasMap m{sizeof m,
                    uapi::kFixedIova | uapi::kReadable | (device_writes ? uapi::kWriteable : 0),
                    ioas_,
                    0,
                    reinterpret_cast<uint64_t>(memory.data),
                    memory.bytes,
                    iova};
    return vfio_call(iommu_.get(), uapi::kIoasMap, &m);
  }
  int unmap(uint64_t iova, uint64_t bytes) override {
    uapi::IoasUnmap u{sizeof u, ioas_, iova, bytes};
    return vfio_call(iommu_.get(), uapi::kIoasUnmap, &u);
  }
  std::vector<int> proof() const override { return {}; }  // the kernel knows what the iommufd holds
  void replace(int nothing) override {
    for (const Descriptor* d : {&device_, &iommu_}) d->replace(nothing);
  }

 private:
  Descriptor iommu_, device_;  // the device closes first
  uint32_t ioas_ = 0;
};

}  // namespace

int vfio_call(int fd, unsigned long request, void* argument) {
  return os().ioctl(fd, request, argument) < 0 ? errno : 0;
}

void vfio_fail(const std::string& name, const std::string& attempted, int error) {
  throw Error(error == EBUSY ? Code::kBusy : Code::kOperatingSystem,
              name + ": " + attempted + ": " + error_text(error));
}

// Groups first: every kernel has them, unless it was built without.
std::unique_ptr<Iommu> open_iommu(const PciFunction& function, const std::string& name) {
  const char* text = std::getenv("JAL_VFIO");
  const std::string wish = text != nullptr ? text : "";
  if (!wish.empty() && wish != "group" && wish != "iommufd")
    throw Error(Code::kInvalidValue, "JAL_VFIO=" + wish + ": expected group or iommufd");
  std::error_code none;
  const bool groups = fs::exists(dev("vfio/vfio"), none) || function.file.empty();
  if (wish == "iommufd" || (wish.empty() && !groups)) return std::make_unique<IommuFd>(function, name);
  return std::make_unique<Group>(function, name);
}

}  // namespace jalapeno::driver
