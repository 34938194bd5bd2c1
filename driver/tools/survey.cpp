#include "survey.hpp"

#include <bit>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/error.hpp>

namespace jalapeno::tools {

using driver::Snapshot;

namespace {

std::string word(const std::string& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// `told`: what a holder says of it; nullptr when none does.
Entry look(const std::string& uri, const Snapshot* told) {
  Entry e{uri, "unreachable", "", std::nullopt, std::nullopt, {}};
  try {
    if (uri.rfind("vfio:", 0) == 0) e.function = driver::pci_function(uri.substr(5));
    if (told != nullptr) {
      e.snapshot = *told;
      if (auto p = driver::process(told->pid)) e.holders.push_back(*p);
      e.state = told->lost[0] != 0 ? "lost" : "held";
      e.problem = told->lost;
      return e;
    }
    driver::Device d(uri);
    e.snapshot = d.snapshot();
    e.snapshot->pid = 0, e.snapshot->opened_unix_ns = 0;
    e.state = "free";
  } catch (const driver::Error& error) {
    e.problem = error.what();
    if (error.code() != driver::Code::kBusy) return e;
    e.state = "held";  // by a process that does not answer us
    if (!e.function) return e;
    e.holders = driver::processes_with("/dev/vfio/" + e.function->group);
    if (e.holders.empty() && !e.function->file.empty()) e.holders = driver::processes_with(e.function->file);
  } catch (const std::exception& error) {
    e.problem = error.what();
  }
  return e;
}

std::string version(uint32_t v) { return fmt::format("{}.{}", v >> 16, v & 0xFFFF); }
double ratio(uint64_t a, double b) { return b > 0 ? std::min(1.0, static_cast<double>(a) / b) : 0; }

}  // namespace

std::vector<Entry> survey(const std::vector<std::string>& uris) {
  const std::vector<Snapshot> held = driver::held_devices();
  std::vector<std::string> all;
  for (const std::string& uri : uris) all.push_back(driver::full_uri(uri));
  if (all.empty()) {
    for (const auto& f : driver::pci_functions())
      if (f.is_jalapeno()) all.push_back("vfio:" + f.address);
    for (const Snapshot& s : held)
      if (std::find(all.begin(), all.end(), s.uri) == all.end()) all.push_back(s.uri);
  }
  std::vector<Entry> out;
  for (const std::string& uri : all) {
    // Embedded chips have no names of their own: several processes may hold an "emu:" each.
    const size_t before = out.size();
    for (const Snapshot& s : held)
      if (uri == s.uri) out.push_back(look(uri, &s));
    if (out.size() == before) out.push_back(look(uri, nullptr));
  }
  return out;
}

std::optional<Utilisation> utilisation(const Snapshot& now, const Snapshot* before) {
  static const driver::Telemetry zero{};
  const driver::Telemetry &a = before != nullptr ? before->telemetry : zero, &b = now.telemetry;
  if (b.device_ns <= a.device_ns) return std::nullopt;
  const auto time = static_cast<double>(b.device_ns - a.device_ns), cores = time * now.cores;
  return Utilisation{
      ratio(b.busy_cores_ns - a.busy_cores_ns, cores),
      ratio(b.busy_matrix_ns - a.busy_matrix_ns, cores),
      ratio(b.busy_vector_ns - a.busy_vector_ns, cores),
      ratio(b.busy_dma_ns - a.busy_dma_ns, cores),
      ratio(b.busy_copy_ns - a.busy_copy_ns, time),
      static_cast<double>(b.energy_microjoules - a.energy_microjoules) * 1e3 / time,
      static_cast<double>(b.hbm_read_bytes + b.hbm_write_bytes - a.hbm_read_bytes - a.hbm_write_bytes) * 1e9 / time};
}

std::string uuid_text(const Snapshot& s) {
  return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", s.uuid[0] >> 32, s.uuid[0] >> 16 & 0xFFFF,
                     s.uuid[0] & 0xFFFF, s.uuid[1] >> 48, s.uuid[1] & 0xFFFF'FFFF'FFFF);
}

nlohmann::json to_json(const std::vector<Entry>& entries) {
  using nlohmann::json;
  json devices = json::array();
  for (const Entry& e : entries) {
    json d{{"uri", e.uri}, {"state", e.state}, {"problem", e.problem.empty() ? json() : json(e.problem)}};
    d["holders"] = json::array();
    for (const auto& p : e.holders) {
      json h{{"pid", p.pid}, {"name", p.name}, {"started", p.started_unix_ns / 1'000'000'000}};
      if (e.snapshot && e.snapshot->pid == p.pid) h["since"] = e.snapshot->opened_unix_ns / 1'000'000'000;
      d["holders"].push_back(h);
    }
    if (e.function) {
      const std::string folder = "/sys/bus/pci/devices/" + e.function->address + "/";
      d["pci"] = {{"address", e.function->address},
                  {"driver", e.function->kernel_driver},
                  {"iommu_group", e.function->group},
                  {"numa_node", e.function->numa_node},
                  {"link_speed", word(folder + "current_link_speed")},
                  {"link_width", word(folder + "current_link_width")}};
    }
    if (e.snapshot) {
      const Snapshot& s = *e.snapshot;
      const driver::Telemetry& t = s.telemetry;
      d["uuid"] = uuid_text(s);
      d["configuration"] = s.config_name;
      d["emulated"] = (s.capabilities & hw::kCapabilityEmulated) != 0;
      d["assumed_rates"] = (s.capabilities & hw::kCapabilityAssumedRates) != 0;
      d["interface_version"] = version(s.interface_version);
      d["isa_version"] = version(s.isa_version);
      d["healthy"] = s.lost[0] == 0 && s.health == hw::kHealthReady;
      d["epoch"] = s.epoch;
      d["function"] = s.function, d["virtual_functions"] = s.virtual_functions;
      d["cores"] = s.cores;
      d["queues"] = {{"used", s.queues_used}, {"total", s.queues}};
      d["links"] = {{"count", s.links}, {"megabits_per_second", s.link_megabits_per_second}};
      d["clock_khz"] = s.core_clock_khz;
      d["memory"] = {{"total_bytes", s.hbm_bytes},
                     {"used_bytes", s.hbm_bytes - s.hbm_free_bytes},
                     {"megabytes_per_second", s.hbm_megabytes_per_second}};
      if (s.lost[0] != 0) {  // nothing is known of it any more
        d["modelled"] = d["counters"] = json();
        devices.push_back(std::move(d));
        continue;
      }
      d["modelled"] = {{"temperature_celsius", t.temperature_millicelsius * 1e-3},
                       {"power_watts", t.power_milliwatts * 1e-3},
                       {"power_limit_watts", s.power_limit_milliwatts * 1e-3},
                       {"energy_joules", static_cast<double>(t.energy_microjoules) * 1e-6},
                       {"device_seconds", static_cast<double>(t.device_ns) * 1e-9}};
      const auto u = utilisation(s, nullptr);
      d["modelled"]["utilisation"] = u ? json{{"cores", u->cores},
                                              {"matrix", u->matrix},
                                              {"vector", u->vector},
                                              {"dma", u->dma},
                                              {"copy", u->copy}}
                                       : json();
      d["counters"] = {{"hbm_read_bytes", t.hbm_read_bytes},
                       {"hbm_write_bytes", t.hbm_write_bytes},
                       {"host_bytes", t.host_bytes},
                       {"packets", t.packets},
                       {"launches", t.launches},
                       {"instances", t.instances},
                       {"instructions", t.instructions},
                       {"interrupts", s.interrupts},
                       {"faults", t.faults},
                       {"ecc_corrected", t.ecc_corrected},
                       {"ecc_uncorrected", t.ecc_uncorrected},
                       {"busy_fabric_ns", t.busy_fabric_ns},
                       {"fabric_read_bytes", t.fabric_read_bytes},
                       {"fabric_write_bytes", t.fabric_write_bytes},
                       {"fabric_errors", t.fabric_errors},
                       {"links_up", std::popcount(t.links_up)}};
    }
    devices.push_back(std::move(d));
  }
  return {{"schema", 1}, {"devices", std::move(devices)}};
}

std::string to_prometheus(const std::vector<Entry>& entries) {
  struct Metric {
    const char *name, *type, *help;
    double (*value)(const Snapshot&);
  };
  static const Metric kMetrics[] = {
      {"healthy", "gauge", "1 while the chip is ready and not lost",
       [](const Snapshot& s) { return s.lost[0] == 0 && s.health == hw::kHealthReady ? 1.0 : 0.0; }},
      {"temperature_celsius", "gauge", "Modelled on an emulated chip",
       [](const Snapshot& s) { return s.telemetry.temperature_millicelsius * 1e-3; }},
      {"power_watts", "gauge", "Modelled on an emulated chip",
       [](const Snapshot& s) { return s.telemetry.power_milliwatts * 1e-3; }},
      {"energy_joules_total", "counter", "Modelled on an emulated chip",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.energy_microjoules) * 1e-6; }},
      {"device_seconds_total", "counter", "The chip's clock: modelled time on an emulated chip",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.device_ns) * 1e-9; }},
      {"busy_core_seconds_total", "counter", "Sum over cores, modelled time on an emulated chip",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.busy_cores_ns) * 1e-9; }},
      {"busy_matrix_seconds_total", "counter", "Sum over cores",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.busy_matrix_ns) * 1e-9; }},
      {"busy_vector_seconds_total", "counter", "Sum over cores",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.busy_vector_ns) * 1e-9; }},
      {"busy_dma_seconds_total", "counter", "Sum over cores",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.busy_dma_ns) * 1e-9; }},
      {"busy_copy_seconds_total", "counter", "Copy engines",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.busy_copy_ns) * 1e-9; }},
      {"memory_bytes", "gauge", "HBM of the device",
       [](const Snapshot& s) { return static_cast<double>(s.hbm_bytes); }},
      {"memory_used_bytes", "gauge", "HBM given out",
       [](const Snapshot& s) { return static_cast<double>(s.hbm_bytes - s.hbm_free_bytes); }},
      {"hbm_read_bytes_total", "counter", "Read from HBM",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.hbm_read_bytes); }},
      {"hbm_write_bytes_total", "counter", "Written to HBM",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.hbm_write_bytes); }},
      {"host_bytes_total", "counter", "Crossed the host link, both directions",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.host_bytes); }},
      {"queues_used", "gauge", "Hardware queues in use", [](const Snapshot& s) { return s.queues_used * 1.0; }},
      {"packets_total", "counter", "Packets done",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.packets); }},
      {"launches_total", "counter", "Kernel launches",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.launches); }},
      {"faults_total", "counter", "Packets that ended in a fault",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.faults); }},
      {"ecc_corrected_total", "counter", "Errors of memory, corrected",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.ecc_corrected); }},
      {"ecc_uncorrected_total", "counter", "Errors of memory, not corrected",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.ecc_uncorrected); }},
      {"fabric_read_bytes_total", "counter", "Bytes fetched from other chips",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.fabric_read_bytes); }},
      {"fabric_write_bytes_total", "counter", "Bytes put to other chips",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.fabric_write_bytes); }},
      {"fabric_errors_total", "counter", "Errors of fabric links",
       [](const Snapshot& s) { return static_cast<double>(s.telemetry.fabric_errors); }},
      {"links_up", "gauge", "Fabric links that are up",
       [](const Snapshot& s) { return static_cast<double>(std::popcount(s.telemetry.links_up)); }},
  };
  auto quoted = [](const std::string& text) {
    std::string out;
    for (char c : text) {
      if (c == '\\' || c == '"') out += '\\';
      c == '\n' ? out += "\\n" : out += c;
    }
    return out;
  };
  std::string out =
      "# HELP jalapeno_device_info What the device is; the value is 1.\n# TYPE jalapeno_device_info gauge\n";
  for (const Entry& e : entries)
    if (e.snapshot)
      out += fmt::format("jalapeno_device_info{{uri=\"{}\",uuid=\"{}\",configuration=\"{}\",emulated=\"{}\"}} 1\n",
                         quoted(e.uri), uuid_text(*e.snapshot), quoted(e.snapshot->config_name),
                         e.snapshot->capabilities & hw::kCapabilityEmulated ? "true" : "false");
  out +=
      "# HELP jalapeno_device_reachable 1 when something can be said of the device.\n"
      "# TYPE jalapeno_device_reachable gauge\n";
  for (const Entry& e : entries)
    out += fmt::format("jalapeno_device_reachable{{uri=\"{}\",uuid=\"{}\"}} {}\n", quoted(e.uri),
                       e.snapshot ? uuid_text(*e.snapshot) : "", e.snapshot ? 1 : 0);
  for (const Metric& m : kMetrics) {
    out += fmt::format("# HELP jalapeno_{0} {2}.\n# TYPE jalapeno_{0} {1}\n", m.name, m.type, m.help);
    for (const Entry& e : entries)
      if (e.snapshot && (e.snapshot->lost[0] == 0 || &m == kMetrics))
        out += fmt::format("jalapeno_{}{{uri=\"{}\",uuid=\"{}\"}} {}\n", m.name, quoted(e.uri), uuid_text(*e.snapshot),
                           m.value(*e.snapshot));
  }
  return out;
}

}  // namespace jalapeno::tools
