// The chip's rates, sizes and energies, read from one JSON file; and how this emulator runs on its host.
// Owns every number of the model. Knows nothing of how they are used.
#pragma once
#include <cstdint>
#include <string>

namespace jalapeno::emu {

struct ChipConfig {
  std::string name;
  uint32_t cores, spm_bytes, acc_bytes, array_rows, array_columns, vector_lanes, links;
  double core_clock_ghz, rate_f32, rate_8bit, vector_cycles_special, spm_bytes_per_cycle;
  uint64_t hbm_bytes;  // the chip's; an emulator may map less
  double hbm_gbytes_per_second, hbm_latency_ns, host_gbytes_per_second, host_latency_ns, launch_ns, packet_ns;
  double link_gbits_per_second, fabric_latency_ns, idle_watts, limit_watts;
  double pj_per_mac_bf16, pj_per_mac_8bit, pj_per_mac_f32, pj_per_vector_op, pj_per_hbm_byte, pj_per_spm_byte;
  double pj_per_host_byte, pj_per_fabric_byte, pj_per_instruction, dollars_per_hour;
};

struct EmulatorOptions {
  std::string config_file;                      // empty: the built-in assumed chip
  uint64_t hbm_bytes = uint64_t{8} << 30;       // mapped on demand, not reserved
  uint64_t aperture_bytes = uint64_t{2} << 30;  // of it that the host sees, at most; rounded down to a power of two
  uint32_t threads = 0;                         // 0: one per host CPU
  uint32_t watchdog_ms = 4000;
  std::string faults;  // see faults.hpp
  // The chip is shared by so many functions, and this is which: 0 is the physical one. Each has an equal share.
  uint32_t functions = 1, function = 0;
  uint64_t serial = 0;   // of the chip, the same for all of them; 0: a new one
  bool precise = false;  // the same bits on every host: the portable kernels only
  bool lower = true;     // launches that come again run as lists of calls; not where bits or accesses are watched
  std::string profile;   // file to write at the end: where the host's time went
  bool check_races = false, check_uninitialized = false, check_bounds = false;
  bool check() const { return check_races || check_uninitialized || check_bounds; }
};

// Throws std::runtime_error that names the file, the key and what was expected.
ChipConfig load_config(const std::string& file);

// What one of `functions` equal shares of the chip has. Throws when there is less than a core for each.
ChipConfig share_of(ChipConfig chip, uint32_t functions);

// Reads JAL_EMU_CHECK, JAL_EMU_THREADS, JAL_EMU_WATCHDOG_MS, JAL_EMU_HBM, JAL_EMU_CONFIG, JAL_EMU_FAULT,
// JAL_EMU_PRECISE, JAL_EMU_LOWER and JAL_EMU_PROFILE over `base`.
EmulatorOptions options_from_environment(EmulatorOptions base = {});
// "races,uninit,oob" into the three switches. Throws on an unknown word.
void set_checks(EmulatorOptions& options, const std::string& words);
// "0" or "1". Throws naming `name` when it is neither.
bool parse_switch(const std::string& name, const std::string& text);
// "512M", "8G", "1048576". Throws when it is not a size.
uint64_t parse_size(const std::string& text);

}  // namespace jalapeno::emu
