// The kernel's refusals: each must name what is wrong and what to do. A small stand-in for the kernel below the table
// of OS calls says no in every way the real one can; that it says yes as the real one does is shown in the virtual
// machine.
#include <gtest/gtest.h>
#include <linux/vfio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/os.hpp>
#include <jalapeno_driver/vfio.hpp>
#include <vector>

#include "support/descriptors.hpp"

namespace jalapeno::driver {
namespace {

namespace fs = std::filesystem;
constexpr const char* kAddress = "0000:3b:00.0";

// What the stand-in says. Region r of the device lies at offset r << 40, as vfio-pci has it.
struct Kernel {
  int open_group_error = 0, set_iommu_error = 0, device_error = 0, map_error = 0, irq_error = 0;
  bool viable = true, msix = true, circle = false, fixed_vectors = false, mappable = true;
  uint64_t bar0 = hw::kBar0Bytes;
  uint32_t vectors = 257;
  size_t config_bytes = 4096;
  std::vector<uint8_t> config = std::vector<uint8_t>(4096);
  // What was asked for
  std::vector<vfio_iommu_type1_dma_map> maps;
  std::vector<std::vector<uint32_t>> irqs;  // index, start, count
  std::vector<std::string> iommufd;         // its requests, as text
  int bind_error = 0, hot_reset_error = 0;
  bool own_reset = true;
  uint32_t hot_reset_groups = 0;
  int device_fd = -1, opened_group = -1;
} kernel;
Os real;
std::string root;

int fake_open(const char* path, int flags) {
  if (std::string(path).find("/dev/vfio/7") != std::string::npos && kernel.open_group_error != 0)
    return errno = kernel.open_group_error, -1;
  const int fd = real.open(path, flags);
  if (std::string(path).find("/dev/vfio/devices/") != std::string::npos) kernel.device_fd = fd;
  return fd;
}

int answer(int error) { return error == 0 ? 0 : (errno = error, -1); }

// Some numbers mean one thing on a container and another on a device.
int fake_hot_reset(unsigned long request, void* argument) {
  if (request == VFIO_DEVICE_PCI_HOT_RESET) {
    kernel.hot_reset_groups = static_cast<vfio_pci_hot_reset*>(argument)->count;
    return answer(kernel.hot_reset_error);
  }
  auto* i = static_cast<vfio_pci_hot_reset_info*>(argument);
  i->count = 2;
  i->devices[0].bus = i->devices[1].bus = 0x3b, i->devices[1].devfn = 1;
  return 0;
}

int fake_ioctl(int fd, unsigned long request, void* argument) {
  if (fd == kernel.device_fd && (request == VFIO_DEVICE_PCI_HOT_RESET || request == VFIO_DEVICE_GET_PCI_HOT_RESET_INFO))
    return fake_hot_reset(request, argument);
  switch (request) {
    case VFIO_GROUP_GET_STATUS:
      static_cast<vfio_group_status*>(argument)->flags = kernel.viable ? VFIO_GROUP_FLAGS_VIABLE : 0;
      return 0;
    case VFIO_GROUP_SET_CONTAINER:
      return 0;
    case VFIO_SET_IOMMU:
      return answer(kernel.set_iommu_error);
    case VFIO_GROUP_GET_DEVICE_FD:
      if (kernel.device_error != 0) return answer(kernel.device_error);
      return kernel.device_fd = real.memfd_create("device", MFD_CLOEXEC);
    case VFIO_DEVICE_GET_INFO: {
      auto* i = static_cast<vfio_device_info*>(argument);
      i->flags = VFIO_DEVICE_FLAGS_PCI | (kernel.own_reset ? VFIO_DEVICE_FLAGS_RESET : 0), i->num_regions = 9,
      i->num_irqs = 5;
      return 0;
    }
    case VFIO_DEVICE_GET_REGION_INFO: {
      auto* r = static_cast<vfio_region_info*>(argument);
      r->size = r->index == VFIO_PCI_CONFIG_REGION_INDEX ? 4096 : r->index == 0 ? kernel.bar0 : 0;
      r->offset = uint64_t{r->index} << 40;
      r->flags = r->index == 0 && kernel.mappable ? VFIO_REGION_INFO_FLAG_MMAP : 0;
      return 0;
    }
    case VFIO_DEVICE_GET_IRQ_INFO: {
      auto* i = static_cast<vfio_irq_info*>(argument);
      i->count = kernel.vectors;
      i->flags = VFIO_IRQ_INFO_EVENTFD | (kernel.fixed_vectors ? VFIO_IRQ_INFO_NORESIZE : 0);
      return 0;
    }
    case VFIO_DEVICE_SET_IRQS: {
      const auto* s = static_cast<vfio_irq_set*>(argument);
      kernel.irqs.push_back({s->index, s->start, s->count});
      return answer(kernel.irq_error);
    }
    case VFIO_IOMMU_MAP_DMA:
      kernel.maps.push_back(*static_cast<vfio_iommu_type1_dma_map*>(argument));
      return answer(kernel.map_error);
    // Numbers and fields typed from the kernel's documentation of iommufd and of VFIO's device files.
    case 0x3B81: {
      auto* a = static_cast<uint32_t*>(argument);
      EXPECT_EQ(a[0], 12u);
      a[2] = 42;
      kernel.iommufd.push_back("alloc");
      return 0;
    }
    case 0x3B85: {
      const auto* a = static_cast<uint32_t*>(argument);
      const auto* w = static_cast<uint64_t*>(argument);
      EXPECT_EQ(a[0], 40u);
      kernel.iommufd.push_back("map in " + std::to_string(a[2]) + " flags " + std::to_string(a[1]) + " bytes " +
                               std::to_string(w[3]) + " at " + std::to_string(w[4]));
      return answer(kernel.map_error);
    }
    case 0x3B86: {
      const auto* w = static_cast<uint64_t*>(argument);
      kernel.iommufd.push_back("unmap " + std::to_string(w[2]) + " at " + std::to_string(w[1]));
      return 0;
    }
    case 0x3B76:
      kernel.iommufd.push_back("bind");
      return answer(kernel.bind_error);
    case 0x3B77:
      kernel.iommufd.push_back("attach " + std::to_string(static_cast<uint32_t*>(argument)[2]));
      return 0;
    case VFIO_IOMMU_UNMAP_DMA:
    case VFIO_DEVICE_RESET:
      return 0;
  }
  return answer(ENOTTY);
}

ssize_t fake_pread(int, void* out, size_t bytes, off_t offset) {
  const auto at = static_cast<size_t>(offset & 0xFFFF'FFFF);
  if (offset >> 40 == VFIO_PCI_CONFIG_REGION_INDEX) {
    if (at + bytes > kernel.config_bytes) return 0;
    std::memcpy(out, &kernel.config[at], bytes);
  } else {
    std::memset(out, 0x11, bytes);
  }
  return static_cast<ssize_t>(bytes);
}
ssize_t fake_pwrite(int, const void* data, size_t bytes, off_t offset) {
  if (offset >> 40 == VFIO_PCI_CONFIG_REGION_INDEX) std::memcpy(&kernel.config[offset & 0xFFF], data, bytes);
  return static_cast<ssize_t>(bytes);
}
void* fake_mmap(void* hint, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (fd >= 0 && fd == kernel.device_fd)
    return real.mmap(hint, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | (flags & MAP_FIXED), -1, 0);
  return real.mmap(hint, bytes, protection, flags, fd, offset);
}

class VfioTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/jalapeno-vfio-XXXXXX";
    root = mkdtemp(name);
    function(kAddress, "0x1da1", "0x4a4c", "vfio-pci");
    put("dev/vfio/vfio", "");
    put("dev/vfio/7", "");
    kernel = Kernel();
    auto config = [](size_t at, uint32_t v) { std::memcpy(&kernel.config[at], &v, 4); };
    config(0, 0x4A4C1DA1);
    kernel.config[0x34] = 0x40;
    config(0x40, 0x0000'4801), config(0x48, 0x0100'6011), config(0x60, 0x0002'0010);
    real = os();
    os().open = fake_open, os().ioctl = fake_ioctl, os().pread = fake_pread, os().pwrite = fake_pwrite;
    os().mmap = fake_mmap, os().root = root.c_str();
    before_ = test::open_descriptors();
  }
  void TearDown() override {
    os() = real;
    EXPECT_EQ(test::open_descriptors(), before_) << "descriptors left open";
    unsetenv("JAL_UNSAFE_NOIOMMU"), unsetenv("JAL_VFIO");
    fs::remove_all(root);
  }
  static void put(const std::string& file, const std::string& text) {
    fs::create_directories((fs::path(root) / file).parent_path());
    std::ofstream(fs::path(root) / file) << text;
  }
  static void function(const std::string& address, const std::string& vendor, const std::string& device,
                       const std::string& driver, const std::string& group = "7") {
    const fs::path folder = fs::path(root) / "sys/bus/pci/devices" / address;
    fs::create_directories(folder);
    put("sys/bus/pci/devices/" + address + "/vendor", vendor + "\n");
    put("sys/bus/pci/devices/" + address + "/device", device + "\n");
    put("sys/bus/pci/devices/" + address + "/numa_node", "1\n");
    fs::remove(folder / "driver");
    if (!driver.empty()) fs::create_symlink("../../drivers/" + driver, folder / "driver");
    if (group.empty()) return;
    const fs::path members = fs::path(root) / "sys/kernel/iommu_groups" / group / "devices";
    fs::create_directories(members);
    if (!fs::is_symlink(folder / "iommu_group")) fs::create_symlink(members.parent_path(), folder / "iommu_group");
    if (!fs::is_symlink(members / address)) fs::create_symlink(folder, members / address);
  }
  // What opening says; "" when it succeeds.
  static std::string said(const std::string& address = kAddress, Code* code = nullptr) {
    try {
      VfioTransport t(address);
      return "";
    } catch (const Error& e) {
      if (code != nullptr) *code = e.code();
      return e.what();
    }
  }
  static void expect(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  }
  int before_ = 0;
};

TEST_F(VfioTest, OpensWithBusMasteringAndClosesWithoutIt) {
  {
    VfioTransport t(kAddress);
    EXPECT_EQ(kernel.config[4] & 6, 6);
    ASSERT_EQ(kernel.irqs.size(), 2u) << "errors and requests";
  }
  EXPECT_EQ(kernel.config[4] & 4, 0);
}

TEST_F(VfioTest, AddressesAndFunctionsAreNamed) {
  expect(said("3b:00.0"), {"3b:00.0", "expected a PCI address as in 0000:3b:00.0"});
  expect(said("0000:3c:00.0"), {"no PCI function has this address", kAddress});
  function("0000:3d:00.0", "0x8086", "0x1533", "igb", "9");
  expect(said("0000:3d:00.0"), {"is 0x8086:0x1533", "a Jalapeno is 0x1da1:0x4a4c"});
}

TEST_F(VfioTest, MissingIommuSaysHowToSwitchItOn) {
  fs::remove(fs::path(root) / "sys/bus/pci/devices" / kAddress / "iommu_group");
  expect(said(), {"no IOMMU group", "intel_iommu=on"});
}

TEST_F(VfioTest, NoIommuModeIsRefusedUnlessAskedForAndGivesNoMemoryAway) {
  put("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n");
  put("dev/vfio/noiommu-7", "");
  expect(said(), {"no IOMMU", "JAL_UNSAFE_NOIOMMU=1"});
  setenv("JAL_UNSAFE_NOIOMMU", "1", 1);
  VfioTransport t(kAddress);
  try {
    t.map_dma({nullptr, -1, 4096}, hw::Iova{4096}, true);
    ADD_FAILURE() << "mapped";
  } catch (const Error& e) {
    expect(e.what(), {"no IOMMU", "no memory is given"});
  }
  EXPECT_TRUE(kernel.maps.empty());
}

TEST_F(VfioTest, OtherKernelDriversAreNamedWithTheCommandsToChangeThem) {
  function(kAddress, "0x1da1", "0x4a4c", "");
  expect(said(), {"no kernel driver is bound", "driver_override", "drivers_probe"});
  function(kAddress, "0x1da1", "0x4a4c", "pci-stub");
  expect(said(), {"the kernel driver pci-stub is bound", "expected vfio-pci"});
}

TEST_F(VfioTest, WhoSharesAGroupIsNamed) {
  kernel.viable = false;
  function("0000:3b:00.1", "0x1da1", "0x0001", "snd_hda_intel");
  expect(said(), {"IOMMU group 7 is not viable", "0000:3b:00.1 (snd_hda_intel)"});
}

TEST_F(VfioTest, BusyForbiddenAndAbsentGroupFilesDiffer) {
  Code code{};
  kernel.open_group_error = EBUSY;
  expect(said(kAddress, &code), {"another process holds IOMMU group 7", "jalapeno-smi"});
  EXPECT_EQ(code, Code::kBusy);
  kernel.open_group_error = EACCES;
  expect(said(), {"no permission", "/dev/vfio/7", "udev rule"});
  kernel.open_group_error = 0;
  fs::remove(fs::path(root) / "dev/vfio/7");
  expect(said(), {"there is no", "/dev/vfio/7", "container"});
  fs::remove(fs::path(root) / "dev/vfio/vfio");
  expect(said(), {"there is no /dev/vfio/vfio", "modprobe vfio-pci"});
}

TEST_F(VfioTest, InterruptRemappingIsAskedFor) {
  kernel.set_iommu_error = EPERM;
  expect(said(), {"does not remap interrupts", "intremap"});
}

TEST_F(VfioTest, DevicesThatAreNoneAreRefused) {
  kernel.bar0 = 4096;
  expect(said(), {"BAR 0 has 4096 bytes, expected 16384"});
  kernel.bar0 = hw::kBar0Bytes, kernel.config_bytes = 64;
  expect(said(), {"configuration space ends before 0x040"});
  kernel.config_bytes = 4096, kernel.config[0x49] = 0x40;
  expect(said(), {"runs in a circle"});
  kernel.config[0x49] = 0x60, kernel.config[0x48] = 0x05;
  expect(said(), {"no MSI-X capability"});
  kernel.config[0x48] = 0x11, kernel.vectors = 0;
  expect(said(), {"no MSI-X vectors"});
  std::fill(kernel.config.begin(), kernel.config.begin() + 64, 0xFF);
  Code code{};
  expect(said(kAddress, &code), {"reads all ones"});
  EXPECT_EQ(code, Code::kDeviceLost);
  kernel.config[0] = 0x86, kernel.config[1] = 0x80;
  expect(said(), {"says 0x8086:0xffff"});
}

TEST_F(VfioTest, MappingsSayWhichLimitTheyHit) {
  VfioTransport t(kAddress);
  auto map = [&]() -> std::string {
    try {
      t.map_dma({nullptr, -1, 1 << 20}, hw::Iova{uint64_t{1} << 32}, false);
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  };
  EXPECT_EQ(map(), "");
  EXPECT_EQ(kernel.maps.back().flags, static_cast<uint32_t>(VFIO_DMA_MAP_FLAG_READ)) << "no more than was asked for";
  kernel.map_error = ENOMEM;
  expect(map(), {"1048576 bytes at iova 0x100000000"});
  kernel.map_error = ENOSPC;
  expect(map(), {"dma_entry_limit"});
}

TEST_F(VfioTest, VectorsThatCannotBeAddedLaterComeAllAtOnce) {
  kernel.fixed_vectors = true, kernel.vectors = 8;
  VfioTransport t(kAddress);
  kernel.irqs.clear();
  t.set_interrupt(3, 0);
  t.set_interrupt(5, 0);
  EXPECT_EQ(kernel.irqs, (std::vector<std::vector<uint32_t>>{{2, 0, 8}, {2, 5, 1}}));
  EXPECT_THROW(t.set_interrupt(8, 0), Error);
}

TEST_F(VfioTest, RegistersThatCannotBeMappedAreReadAndWritten) {
  kernel.mappable = false;
  VfioTransport t(kAddress);
  EXPECT_EQ(t.read32(0x10), 0x11111111u);
  EXPECT_EQ(t.read64(0x10), 0x1111111111111111u);
  EXPECT_THROW(t.read32(0x12), Error) << "not aligned";
  EXPECT_THROW(t.read64(hw::kRegisterBarBytes), Error) << "behind the registers";
  EXPECT_THROW(t.map_bar(2), Error);
}

class IommuFdTest : public VfioTest {
 protected:
  void SetUp() override {
    VfioTest::SetUp();
    put("dev/iommu", "");
    put("dev/vfio/devices/vfio3", "");
    fs::create_directories(fs::path(root) / "sys/bus/pci/devices" / kAddress / "vfio-dev/vfio3");
    setenv("JAL_VFIO", "iommufd", 1);
  }
};

TEST_F(IommuFdTest, OpensTheFunctionsOwnFileAndMapsWhereItIsTold) {
  {
    VfioTransport t(kAddress);
    EXPECT_EQ(kernel.iommufd, (std::vector<std::string>{"bind", "alloc", "attach 42"}));
    kernel.iommufd.clear();
    t.map_dma({nullptr, -1, 1 << 20}, hw::Iova{uint64_t{1} << 32}, false);
    t.map_dma({nullptr, -1, 4096}, hw::Iova{8192}, true);
    t.unmap_dma(hw::Iova{8192}, 4096);
    EXPECT_EQ(kernel.iommufd, (std::vector<std::string>{"map in 42 flags 5 bytes 1048576 at 4294967296",
                                                        "map in 42 flags 7 bytes 4096 at 8192", "unmap 4096 at 8192"}));
    EXPECT_TRUE(kernel.maps.empty()) << "no container takes part";
  }
  EXPECT_EQ(kernel.config[4] & 4, 0) << "bus mastering is off at the end";
}

TEST_F(IommuFdTest, IsUsedWhereTheKernelHasNoGroups) {
  unsetenv("JAL_VFIO");
  EXPECT_EQ(said(), "");
  EXPECT_TRUE(kernel.iommufd.empty()) << "groups work everywhere, so they come first";
  fs::remove(fs::path(root) / "dev/vfio/vfio");
  EXPECT_EQ(said(), "");
  EXPECT_FALSE(kernel.iommufd.empty());
}

TEST_F(IommuFdTest, RefusalsSayWhatIsMissing) {
  Code code{};
  kernel.bind_error = EINVAL;
  expect(said(kAddress, &code), {"another process holds it"});
  EXPECT_EQ(code, Code::kBusy);
  kernel.bind_error = EPERM;
  expect(said(), {"IOMMU group 7", "other owners"});
  kernel.bind_error = 0;
  fs::remove(fs::path(root) / "dev/iommu");
  expect(said(), {"there is no /dev/iommu", "modprobe iommufd"});
  fs::remove_all(fs::path(root) / "sys/bus/pci/devices" / kAddress / "vfio-dev");
  expect(said(), {"no file of its own", "6.6"});
  setenv("JAL_VFIO", "uio", 1);
  expect(said(), {"JAL_VFIO=uio: expected group or iommufd"});
}

TEST_F(VfioTest, WithoutAResetOfItsOwnTheBusIsResetWhenAllOfItIsOurs) {
  kernel.own_reset = false;
  VfioTransport t(kAddress);
  t.reset();
  EXPECT_EQ(kernel.hot_reset_groups, 1u);
  kernel.hot_reset_error = EPERM;
  try {
    t.reset();
    ADD_FAILURE() << "reset";
  } catch (const Error& e) {
    expect(e.what(), {"no reset of its own", "would reset 0000:3b:00.1 too"});
  }
}

TEST_F(VfioTest, ARevokedDeviceReadsAsOneThatIsGone) {
  VfioTransport t(kAddress);
  EXPECT_EQ(t.read32(hw::reg::kMagic), 0u) << "fresh memory behind the stand-in's BAR";
  EXPECT_EQ(t.gone(), "");
  t.revoke();
  t.revoke();
  EXPECT_EQ(t.read32(hw::reg::kMagic), ~0u);
  EXPECT_EQ(t.gone(), "it was given up");
  EXPECT_EQ(kernel.config[4] & 4, 0) << "no DMA any more";
  EXPECT_THROW(t.map_dma({nullptr, -1, 4096}, hw::Iova{4096}, true), Error);
}

}  // namespace
}  // namespace jalapeno::driver
