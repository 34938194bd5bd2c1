#include "config.hpp"

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

namespace jalapeno::emu {

extern const char* const kBuiltInConfig;  // generated from configs/assumed-1.json

namespace {
[[noreturn]] void fail(const std::string& text) { throw std::runtime_error(text); }
}  // namespace

ChipConfig load_config(const std::string& file) {
  std::string text = kBuiltInConfig, where = "built-in chip configuration";
  if (!file.empty()) {
    std::ifstream in(file);
    if (!in) fail("chip configuration " + file + ": cannot be read");
    std::stringstream all;
    all << in.rdbuf();
    text = all.str(), where = "chip configuration " + file;
  }
  nlohmann::json j = nlohmann::json::parse(text, nullptr, false);
  if (!j.is_object()) fail(where + ": not a JSON object");
  auto number = [&](const char* key, double low, double high) {
    if (!j.contains(key) || !j[key].is_object() || !j[key].contains("value") || !j[key]["value"].is_number())
      fail(where + ": \"" + key + "\" is missing; expected {\"value\": number, \"source\": text}");
    if (!j[key].contains("source") || !j[key]["source"].is_string() || j[key]["source"].get<std::string>().empty())
      fail(where + ": \"" + key + "\" has no source; give one, or the word \"assumed\"");
    double v = j[key]["value"].get<double>();
    if (!(v >= low && v <= high))
      fail(where + ": \"" + key + "\" is " + std::to_string(v) + "; expected " + std::to_string(low) + " to " +
           std::to_string(high));
    return v;
  };
  auto count = [&](const char* key, double low, double high) { return static_cast<uint32_t>(number(key, low, high)); };
  if (!j.contains("name") || !j["name"].is_string()) fail(where + ": \"name\" is missing");
  ChipConfig c{};
  c.name = j["name"].get<std::string>().substr(0, 63);
  c.cores = count("cores", 1, 4096);
  c.spm_bytes = count("spm_bytes", 65536, 1u << 28) & ~63u;
  c.acc_bytes = count("acc_bytes", 16384, 1u << 26) & ~63u;
  c.array_rows = count("array_rows", 1, 4096);
  c.array_columns = count("array_columns", 1, 4096);
  c.vector_lanes = count("vector_lanes", 1, 65536);
  c.links = count("links", 0, 256);
  c.core_clock_ghz = number("core_clock_ghz", 0.01, 20);
  c.rate_f32 = number("rate_f32", 0.001, 16);
  c.rate_8bit = number("rate_8bit", 0.001, 16);
  c.vector_cycles_special = number("vector_cycles_special", 1, 1000);
  c.spm_bytes_per_cycle = number("spm_bytes_per_cycle", 1, 1e6);
  c.hbm_bytes = static_cast<uint64_t>(number("hbm_bytes", 1 << 26, 1e15));
  c.hbm_gbytes_per_second = number("hbm_gbytes_per_second", 0.1, 1e6);
  c.hbm_latency_ns = number("hbm_latency_ns", 0, 1e6);
  c.host_gbytes_per_second = number("host_gbytes_per_second", 0.01, 1e6);
  c.host_latency_ns = number("host_latency_ns", 0, 1e6);
  c.launch_ns = number("launch_ns", 0, 1e6);
  c.packet_ns = number("packet_ns", 0, 1e6);
  c.link_gbits_per_second = number("link_gbits_per_second", 0, 1e6);
  c.fabric_latency_ns = number("fabric_latency_ns", 0, 1e6);
  c.idle_watts = number("idle_watts", 0, 1e5);
  c.limit_watts = number("limit_watts", 1, 1e5);
  c.pj_per_mac_bf16 = number("pj_per_mac_bf16", 0, 1e3);
  c.pj_per_mac_8bit = number("pj_per_mac_8bit", 0, 1e3);
  c.pj_per_mac_f32 = number("pj_per_mac_f32", 0, 1e3);
  c.pj_per_vector_op = number("pj_per_vector_op", 0, 1e3);
  c.pj_per_hbm_byte = number("pj_per_hbm_byte", 0, 1e4);
  c.pj_per_spm_byte = number("pj_per_spm_byte", 0, 1e3);
  c.pj_per_host_byte = number("pj_per_host_byte", 0, 1e4);
  c.pj_per_fabric_byte = number("pj_per_fabric_byte", 0, 1e4);
  c.pj_per_instruction = number("pj_per_instruction", 0, 1e5);
  c.dollars_per_hour = number("dollars_per_hour", 0, 4000);
  return c;
}

// Cores, memory and its rate, the host link and the power are divided; a link of the fabric serves one function.
ChipConfig share_of(ChipConfig c, uint32_t functions) {
  if (functions > c.cores)
    fail(std::to_string(functions) + " functions on a chip of " + std::to_string(c.cores) +
         " cores: expected at most one a core");
  if (c.links > 0 && functions > c.links)
    fail(std::to_string(functions) + " functions on a chip of " + std::to_string(c.links) +
         " fabric links: expected at most one a link");
  c.cores /= functions, c.links /= functions, c.hbm_bytes /= functions;
  for (double* shared :
       {&c.hbm_gbytes_per_second, &c.host_gbytes_per_second, &c.idle_watts, &c.limit_watts, &c.dollars_per_hour})
    *shared /= functions;
  return c;
}

uint64_t parse_size(const std::string& text) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  int shift = 0;
  if (end != text.c_str()) {
    switch (*end) {
      case 'K':
      case 'k':
        shift = 10, ++end;
        break;
      case 'M':
      case 'm':
        shift = 20, ++end;
        break;
      case 'G':
      case 'g':
        shift = 30, ++end;
        break;
      case 'T':
      case 't':
        shift = 40, ++end;
        break;
      default:
        break;
    }
  }
  if (end == text.c_str() || *end != 0 || !(value > 0) || value * static_cast<double>(uint64_t{1} << shift) > 1e15)
    fail("size \"" + text + "\": expected a number with K, M, G or T, as in 512M");
  return static_cast<uint64_t>(value * static_cast<double>(uint64_t{1} << shift));
}

bool parse_switch(const std::string& name, const std::string& text) {
  if (text != "0" && text != "1") fail(name + "=" + text + ": expected 0 or 1");
  return text == "1";
}

void set_checks(EmulatorOptions& options, const std::string& words) {
  std::stringstream in(words);
  for (std::string word; std::getline(in, word, ',');) {
    if (word == "races")
      options.check_races = true;
    else if (word == "uninit")
      options.check_uninitialized = true;
    else if (word == "oob")
      options.check_bounds = true;
    else if (!word.empty())
      fail("check \"" + word + "\": expected races, uninit or oob");
  }
}

EmulatorOptions options_from_environment(EmulatorOptions base) {
  auto read = [](const char* name) {
    const char* v = std::getenv(name);
    return std::string(v == nullptr ? "" : v);
  };
  auto number = [&](const char* name, uint32_t& out) {
    std::string text = read(name);
    if (text.empty()) return;
    char* end = nullptr;
    unsigned long v = std::strtoul(text.c_str(), &end, 10);
    if (*end != 0 || v == 0 || v > 100'000'000) fail(std::string(name) + "=" + text + ": expected a positive number");
    out = static_cast<uint32_t>(v);
  };
  if (std::string v = read("JAL_EMU_CONFIG"); !v.empty()) base.config_file = v;
  if (std::string v = read("JAL_EMU_FAULT"); !v.empty()) base.faults = v;
  if (std::string v = read("JAL_EMU_HBM"); !v.empty()) base.hbm_bytes = parse_size(v);
  if (std::string v = read("JAL_EMU_PROFILE"); !v.empty()) base.profile = v;
  if (std::string v = read("JAL_EMU_LOWER"); !v.empty()) base.lower = parse_switch("JAL_EMU_LOWER", v);
  if (std::string v = read("JAL_EMU_PRECISE"); !v.empty()) base.precise = parse_switch("JAL_EMU_PRECISE", v);
  set_checks(base, read("JAL_EMU_CHECK"));
  number("JAL_EMU_THREADS", base.threads);
  number("JAL_EMU_WATCHDOG_MS", base.watchdog_ms);
  return base;
}

}  // namespace jalapeno::emu
