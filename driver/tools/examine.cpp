#include "examine.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/os.hpp>
#include <jalapeno_driver/queue.hpp>
#include <jalapeno_driver/vfio.hpp>
#include <thread>

namespace jalapeno::tools {

using driver::PciFunction;
namespace fs = std::filesystem;

namespace {

constexpr uint64_t kLockedBytes = uint64_t{64} << 20;  // rings, staging and a small application's pinned memory

std::string at(const std::string& path) { return driver::os().root + path; }
std::string line(const std::string& path) {
  std::ifstream in(at(path));
  std::string text;
  std::getline(in, text);
  return text;
}
bool exists(const std::string& path) {
  std::error_code none;
  return fs::exists(at(path), none);
}
bool empty(const std::string& folder) {
  std::error_code none;
  return fs::directory_iterator(at(folder), none) == fs::directory_iterator();
}
uint64_t number(const std::string& path) { return std::strtoull(line(path).c_str(), nullptr, 10); }

bool in_container() { return exists("/.dockerenv") || exists("/run/.containerenv"); }

// "0-3,8" as the CPUs it names.
cpu_set_t cpus(const std::string& list) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const char* p = list.c_str();
  while (*p >= '0' && *p <= '9') {
    char* end = nullptr;
    const unsigned long first = std::strtoul(p, &end, 10);
    unsigned long last = first;
    if (*end == '-') last = std::strtoul(end + 1, &end, 10);
    for (unsigned long c = first; c <= last && c < CPU_SETSIZE; ++c) CPU_SET(c, &set);
    p = *end == ',' ? end + 1 : end;
  }
  return set;
}

using Findings = std::vector<Finding>;

void examine_function(const PciFunction& f, Findings& out) {
  const std::string name = "vfio:" + f.address, sys = "/sys/bus/pci/devices/" + f.address + "/";
  auto good = [&](const std::string& what) { out.push_back({Verdict::kGood, name, what, ""}); };
  auto warning = [&](const std::string& what, const std::string& fix) {
    out.push_back({Verdict::kWarning, name, what, fix});
  };
  auto problem = [&](const std::string& what, const std::string& fix) {
    out.push_back({Verdict::kProblem, name, what, fix});
  };
  if (f.group.empty())
    problem("is in no IOMMU group",
            "switch the IOMMU on in the BIOS (VT-d, AMD-Vi) and boot with intel_iommu=on or amd_iommu=on");
  else if (f.no_iommu)
    problem("its group stands in for a missing IOMMU: the device could reach all memory",
            "switch an IOMMU on; JAL_UNSAFE_NOIOMMU=1 reads registers without one, nothing more");
  if (f.kernel_driver == "vfio-pci")
    good("bound to vfio-pci");
  else
    problem(f.kernel_driver.empty() ? "no kernel driver is bound" : "bound to the kernel driver " + f.kernel_driver,
            "modprobe vfio-pci; echo vfio-pci > " + sys + "driver_override; " +
                (f.kernel_driver.empty() ? "" : "echo " + f.address + " > " + sys + "driver/unbind; ") + "echo " +
                f.address + " > /sys/bus/pci/drivers_probe (the udev rule does it at every boot)");
  if (!f.group.empty()) {
    std::string others;
    for (const PciFunction& m : driver::group_members(f.group))
      if (m.address != f.address && !m.kernel_driver.empty() && m.kernel_driver != "vfio-pci")
        others += (others.empty() ? "" : ", ") + m.address + " (" + m.kernel_driver + ")";
    if (others.empty())
      good("IOMMU group " + f.group + " is viable");
    else
      problem("IOMMU group " + f.group + " is shared with devices that have other kernel drivers: " + others,
              "bind them to vfio-pci too, or move the card to a slot whose port isolates it (ACS)");
    std::string node = "/dev/vfio/" + std::string(f.no_iommu ? "noiommu-" : "") + f.group;
    if (!exists(node) && !f.file.empty() && exists("/dev/iommu")) node = f.file;  // a kernel without groups
    if (f.kernel_driver == "vfio-pci") {
      if (!exists(node))
        problem("there is no " + node, in_container()
                                           ? "start the container with --device=" + node + " --device=/dev/vfio/vfio"
                                           : "udev has not made it: udevadm trigger");
      else if (access(at(node).c_str(), R_OK | W_OK) != 0)
        problem(fmt::format("uid {} may not open {}", getuid(), node),
                "install the udev rule (driver/host/60-jalapeno.rules) and join the group jalapeno, or run as root");
      else
        good("may be opened: " + node);
    }
  }
  const std::string speed = line(sys + "current_link_speed"), best = line(sys + "max_link_speed"),
                    width = line(sys + "current_link_width"), most = line(sys + "max_link_width");
  if (!speed.empty() && !best.empty()) {
    if (speed == best && width == most)
      good("PCIe link " + speed + " x" + width);
    else
      warning("PCIe link " + speed + " x" + width + ", the function could " + best + " x" + most,
              "check slot, riser and BIOS setting; a link trains down when its signal is bad");
  }
  cpu_set_t allowed;
  if (const std::string local = line(sys + "local_cpulist");
      !local.empty() && f.numa_node >= 0 && sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    cpu_set_t near = cpus(local), both;
    CPU_AND(&both, &near, &allowed);
    if (CPU_COUNT(&both) == 0)
      warning(fmt::format("sits on NUMA node {} (CPUs {}), where this process may not run", f.numa_node, local),
              fmt::format("numactl --cpunodebind={} --membind={}", f.numa_node, f.numa_node));
    else
      good(fmt::format("NUMA node {}, {} of its CPUs may be used", f.numa_node, CPU_COUNT(&both)));
  }
}

}  // namespace

Findings examine_machine() {
  Findings out;
  utsname system{};
  uname(&system);
  out.push_back({Verdict::kGood, "machine",
                 fmt::format("kernel {}{}", system.release, in_container() ? ", in a container" : ""), ""});
  std::vector<PciFunction> functions = driver::pci_functions();
  std::erase_if(functions, [](const PciFunction& f) { return !f.is_jalapeno(); });
  const bool any = !functions.empty();
  if (!any)
    out.push_back({Verdict::kWarning, "PCI", "no Jalapeno function (1da1:4a4c): programs use an emulated chip",
                   exists("/sys/bus/pci/devices")
                       ? "with a card in the slot: lspci -d 1da1: and dmesg, is the slot powered and "
                         "the link trained? After a hot plug: echo 1 > /sys/bus/pci/rescan"
                       : "there is no /sys/bus/pci: mount sysfs, or pass /sys into the container"});
  // Without a card these are no one's concern yet.
  const Verdict bad = any ? Verdict::kProblem : Verdict::kWarning;
  if (empty("/sys/class/iommu"))
    out.push_back({bad, "IOMMU", "is off",
                   "switch it on in the BIOS (VT-d, AMD-Vi) and boot with intel_iommu=on or amd_iommu=on"});
  else
    out.push_back({Verdict::kGood, "IOMMU", "is on", ""});
  if (!exists("/dev/vfio/vfio") && exists("/dev/iommu"))  // a kernel without containers
    out.push_back({Verdict::kGood, "VFIO", "through iommufd: there is /dev/iommu, and no /dev/vfio/vfio", ""});
  else if (!exists("/dev/vfio/vfio"))
    out.push_back({bad, "VFIO", "there is no /dev/vfio/vfio",
                   in_container()
                       ? "start the container with --device=/dev/vfio/vfio and the group's file"
                       : "modprobe vfio-pci (at every boot: a line vfio-pci in /etc/modules-load.d/jalapeno.conf)"});
  else if (access(at("/dev/vfio/vfio").c_str(), R_OK | W_OK) != 0)
    out.push_back({bad, "VFIO", fmt::format("uid {} may not open /dev/vfio/vfio", getuid()),
                   "chmod 666 /dev/vfio/vfio, as udev does"});
  else
    out.push_back({Verdict::kGood, "VFIO", "/dev/vfio/vfio may be opened", ""});
  rlimit locked{};
  getrlimit(RLIMIT_MEMLOCK, &locked);
  if (locked.rlim_cur != RLIM_INFINITY && locked.rlim_cur < kLockedBytes)
    out.push_back(
        {bad, "locked memory",
         fmt::format("the limit is {} KiB, a device needs {} KiB and more for pinned buffers", locked.rlim_cur >> 10,
                     kLockedBytes >> 10),
         "ulimit -l unlimited; for users: memlock in /etc/security/limits.d; for services: LimitMEMLOCK=infinity; "
         "for containers: --ulimit memlock=-1"});
  else
    out.push_back({Verdict::kGood, "locked memory",
                   locked.rlim_cur == RLIM_INFINITY ? "no limit" : fmt::format("limit {} MiB", locked.rlim_cur >> 20),
                   ""});
  const std::string pages = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  if (const uint64_t all = number(pages + "nr_hugepages"); all == 0)
    out.push_back({Verdict::kWarning, "hugepages", "none reserved: DMA memory is mapped in pages of 4 KiB",
                   "sysctl vm.nr_hugepages=512 (1 GiB)"});
  else
    out.push_back({Verdict::kGood, "hugepages",
                   fmt::format("{} of {} free, 2 MiB each", number(pages + "free_hugepages"), all), ""});
  for (const PciFunction& f : functions) examine_function(f, out);
  return out;
}

namespace {

hw::TimelinePacket wait_packet(hw::DeviceAddr timeline, uint64_t value) {
  hw::TimelinePacket p{};
  p.header.op = hw::PacketOp::kWait, p.timeline = timeline, p.value = value;
  return p;
}

// A queue whose waiter is asleep when `gate` is opened; nanoseconds from there to the waiter's return.
double interrupted_waiter(driver::Device& d, driver::Queue& q, hw::Timeline& gate, hw::DeviceAddr gate_address) {
  const uint64_t value = std::atomic_ref(gate.value).load() + 1;
  if (!q.push(wait_packet(gate_address, value))) throw driver::Error(driver::Code::kTimeout, "the ring is full");
  q.ring();
  int64_t opened = 0;
  std::thread opener([&] {
    usleep(300);  // the waiter spins for 20 us
    opened = driver::monotonic_ns();
    std::atomic_ref(gate.value).store(value, std::memory_order_release);
    d.wake();
  });
  const driver::WaitResult result = q.wait(q.next(), 5'000'000'000);
  const int64_t back = driver::monotonic_ns();
  opener.join();
  if (result != driver::WaitResult::kReached)
    throw driver::Error(driver::Code::kTimeout, "the device did not do its work within 5 s");
  return static_cast<double>(back - opened);
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

}  // namespace

Finding exercise(const std::string& uri) try {
  constexpr uint64_t kBytes = uint64_t{1} << 20;
  driver::Device d(uri);
  driver::AddressSpace space(d);
  driver::Queue q(d, space.context(), 0, 6, 0);
  driver::DmaMemory from(d.transport(), d.iova_space(), kBytes), to(d.transport(), d.iova_space(), kBytes),
      page(d.transport(), d.iova_space(), 4096);
  for (uint64_t k = 0; k < kBytes; ++k) from.data()[k] = static_cast<std::byte>(k * 2654435761u >> 11);
  const driver::HbmBlock block = space.allocate(kBytes);
  for (const auto& [source, destination] :
       {std::pair{from.device_address(), block.address}, std::pair{block.address, to.device_address()}}) {
    hw::CopyPacket copy{};
    copy.header.op = hw::PacketOp::kCopy;
    copy.source = source, copy.destination = destination, copy.width_bytes = kBytes, copy.height = 1;
    q.push(copy);
  }
  q.ring();
  if (q.wait(q.next(), 5'000'000'000) != driver::WaitResult::kReached)
    return {Verdict::kProblem, uri, "a copy of 1 MiB did not end within 5 s", "jalapeno-smi --reset " + uri};
  if (q.status() != hw::Status::kOk)
    return {Verdict::kProblem, uri, fmt::format("a copy of 1 MiB failed: {}", q.fault().detail),
            "dmesg has IOMMU faults (DMAR, AMD-Vi)"};
  if (std::memcmp(from.data(), to.data(), kBytes) != 0)
    return {Verdict::kProblem, uri, "1 MiB through HBM came back changed",
            "jalapeno-smi shows ECC counters; do not use the device"};
  auto* gate = new (page.data()) hw::Timeline{};
  interrupted_waiter(d, q, *gate, page.device_address());
  // Without interrupts the waiter is back after a poll of the timeline; the counter tells the difference.
  for (int k = 0; k < 200 && d.interrupts(q.number()) == 0; ++k) usleep(1000);
  if (d.interrupts(q.number()) == 0)
    return {Verdict::kProblem, uri, "no interrupt came",
            "is MSI-X routed? cat /proc/interrupts; interrupt remapping must be on"};
  const driver::Identity& i = d.identity();
  return {
      Verdict::kGood, uri,
      fmt::format("works: interface {}.{}, instruction set {}.{}, 1 MiB through HBM and back, interrupts arrive",
                  i.interface_version >> 16, i.interface_version & 0xFFFF, i.isa_version >> 16, i.isa_version & 0xFFFF),
      ""};
} catch (const std::exception& e) {
  return {Verdict::kProblem, uri, e.what(), ""};
}

Latencies measure_latencies(const std::string& uri, int tries) {
  driver::Device d(uri);
  driver::AddressSpace space(d);
  driver::Queue q(d, space.context(), 0, 10, 0);
  driver::DmaMemory page(d.transport(), d.iova_space(), 4096);
  auto* gate = new (page.data()) hw::Timeline{};
  auto timed = [&](auto f) {
    std::vector<double> all;
    for (int k = 0; k < tries; ++k) {
      const int64_t begin = driver::monotonic_ns();
      f();
      all.push_back(static_cast<double>(driver::monotonic_ns() - begin));
    }
    return median(std::move(all));
  };
  Latencies out{};
  out.clock_read = timed([] {});
  // Two threads, two eventfds: there and back.
  const int ping = eventfd(0, EFD_CLOEXEC), pong = eventfd(0, EFD_CLOEXEC);
  std::thread other([&] {
    for (uint64_t v = 0; read(ping, &v, sizeof v) == sizeof v && v == 1;) (void)!write(pong, &v, sizeof v);
  });
  uint64_t one = 1, two = 2;
  out.eventfd_round_trip = timed([&] {
    (void)!write(ping, &one, sizeof one);
    uint64_t v;
    (void)!read(pong, &v, sizeof v);
  });
  (void)!write(ping, &two, sizeof two);
  other.join();
  close(ping), close(pong);
  out.register_read = timed([&] { (void)d.transport().read32(hw::reg::kHealth); });
  out.register_write = timed([&] { d.transport().write32(hw::reg::kQueueSelect, q.number()); });
  out.doorbell_to_completion = timed([&] {
    q.push(hw::Packet{});
    q.ring();
    (void)q.wait(q.next(), 5'000'000'000);
  });
  std::vector<double> slept;
  for (int k = 0; k < tries / 4 + 1; ++k) slept.push_back(interrupted_waiter(d, q, *gate, page.device_address()));
  out.doorbell_to_interrupted_waiter = median(std::move(slept));
  return out;
}

}  // namespace jalapeno::tools
