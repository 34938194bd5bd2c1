// How other programs look at a device that a process holds: the holder answers for it. A device has one owner at a time
// (VFIO groups and emulator sockets are exclusive), so who wants its telemetry asks that process, over a socket in the
// abstract namespace that is gone with it. Answers go to the same user and root only; nothing can be changed this way.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace jalapeno::driver {

// Counters never go back; energy and device time are modelled on an emulated chip.
struct Telemetry {
  uint32_t temperature_millicelsius, power_milliwatts;
  uint64_t energy_microjoules, device_ns, busy_cores_ns, busy_matrix_ns, busy_vector_ns, busy_dma_ns, busy_copy_ns;
  uint64_t hbm_read_bytes, hbm_write_bytes, host_bytes, packets, launches, instances, instructions, faults,
      ecc_corrected, ecc_uncorrected, busy_fabric_ns, fabric_read_bytes, fabric_write_bytes, fabric_errors;
  uint32_t links_up;  // a bit for each
};

// Everything about a device at a moment, plain bytes of this machine.
struct Snapshot {
  static constexpr uint32_t kVersion = 3;
  uint32_t version = kVersion, bytes = sizeof(Snapshot);
  int32_t pid = 0;
  int64_t opened_unix_ns = 0;
  char uri[256] = {}, config_name[65] = {};
  char lost[512] = {};  // why, when the device is lost; "" while it is not
  uint32_t interface_version = 0, isa_version = 0, capabilities = 0, cores = 0, queues = 0, queues_used = 0,
           contexts = 0, links = 0, hbm_megabytes_per_second = 0, core_clock_khz = 0, link_megabits_per_second = 0,
           peak_gigaflops_bf16 = 0, power_limit_milliwatts = 0, health = 0, epoch = 0, function = 0,
           virtual_functions = 0;
  uint64_t hbm_bytes = 0, hbm_free_bytes = 0, uuid[2] = {};
  uint64_t interrupts = 0;
  Telemetry telemetry{};
};

// The holder's side: a listening socket, answered whenever it is readable.
class Monitor {
 public:
  Monitor();  // without a socket when none can be had: then nobody can look, and nothing else is wrong
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  int fd() const { return fd_; }  // -1: none
  // Takes one caller and hands it the snapshot, unless it is another user's. Never waits.
  template <class F>
  void answer(F snapshot) {
    if (const int caller = accept_caller(); caller >= 0) send_and_close(caller, snapshot());
  }

 private:
  int accept_caller();
  static void send_and_close(int caller, const Snapshot& snapshot);
  int fd_ = -1;
};

// The asker's side. Processes that answer, and what they say; those that do not answer within a second are left out.
std::vector<Snapshot> held_devices();
// Processes that have the file open, by their descriptors: (pid, name). Only those this user may look at.
struct Process {
  pid_t pid;
  std::string name;
  int64_t started_unix_ns;
};
std::vector<Process> processes_with(const std::string& file);
std::optional<Process> process(pid_t pid);

}  // namespace jalapeno::driver
