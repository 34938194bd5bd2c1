// jalapeno-smi: the devices of this machine, who holds them and how they are.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/os.hpp>
#include <map>

#include "survey.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

namespace {

using namespace jalapeno;
using driver::Snapshot;

// Exit codes, for scripts.
enum { kGood = 0, kSick = 1, kUsage = 2, kNoDevice = 3, kUnreachable = 4 };

std::string since(int64_t unix_ns) {
  if (unix_ns == 0) return "?";
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const int64_t s = std::max<int64_t>(0, now.tv_sec - unix_ns / 1'000'000'000);
  if (s < 120) return fmt::format("{} s", s);
  if (s < 7200) return fmt::format("{} min", s / 60);
  return s < 172800 ? fmt::format("{} h", s / 3600) : fmt::format("{} days", s / 86400);
}

std::string bar(double share) {
  const int full = static_cast<int>(share * 10 + 0.5);
  return "[" + std::string(static_cast<size_t>(full), '#') + std::string(static_cast<size_t>(10 - full), ' ') + "]";
}

void print(const std::vector<tools::Entry>& entries, const std::map<std::string, Snapshot>* before) {
  bool assumed = false;
  for (const auto& e : entries) {
    fmt::print("{}  {}\n", e.uri, e.state);
    if (!e.problem.empty()) fmt::print("  problem      {}\n", e.problem);
    for (const auto& p : e.holders) {
      const bool exact = e.snapshot && e.snapshot->pid == p.pid;
      fmt::print("  held by      {} (pid {}), {} {}\n", p.name, p.pid, exact ? "for" : "a process that started before",
                 since(exact ? e.snapshot->opened_unix_ns : p.started_unix_ns));
    }
    if (e.function)
      fmt::print("  PCI          {}, driver {}, IOMMU group {}, NUMA node {}\n", e.function->address,
                 e.function->kernel_driver.empty() ? "none" : e.function->kernel_driver,
                 e.function->group.empty() ? "none" : e.function->group, e.function->numa_node);
    if (!e.snapshot) continue;
    const Snapshot& s = *e.snapshot;
    const driver::Telemetry& t = s.telemetry;
    assumed |= (s.capabilities & hw::kCapabilityAssumedRates) != 0;
    fmt::print("  chip         {} cores at {:.2f} GHz, configuration {}{}, {}\n", s.cores, s.core_clock_khz * 1e-6,
               s.config_name, s.capabilities & hw::kCapabilityEmulated ? ", emulated" : "", tools::uuid_text(s));
    if (s.virtual_functions > 0)
      fmt::print("  function     {} of a chip that {} functions share\n",
                 s.function == 0 ? "the physical one" : fmt::format("virtual {}", s.function), s.virtual_functions + 1);
    fmt::print("  health       {}, epoch {}, {} faults, ECC {} corrected, {} not\n",
               s.lost[0] != 0                 ? "lost"
               : s.health == hw::kHealthReady ? "good"
                                              : fmt::format("{:#x}", s.health),
               s.epoch, t.faults, t.ecc_corrected, t.ecc_uncorrected);
    fmt::print("  memory       {:.1f} of {:.1f} MiB HBM used\n",
               static_cast<double>(s.hbm_bytes - s.hbm_free_bytes) / 1048576,
               static_cast<double>(s.hbm_bytes) / 1048576);
    fmt::print("  queues       {} of {} used; {} packets, {} launches, {} interrupts\n", s.queues_used, s.queues,
               t.packets, t.launches, s.interrupts);
    fmt::print("  links        {} of {} Gb/s\n", s.links, s.link_megabits_per_second / 1000);
    fmt::print("  modelled     {:.1f} C, {:.0f} of {:.0f} W, {:.3f} J in {:.6f} s of device time\n",
               t.temperature_millicelsius * 1e-3, t.power_milliwatts * 1e-3, s.power_limit_milliwatts * 1e-3,
               static_cast<double>(t.energy_microjoules) * 1e-6, static_cast<double>(t.device_ns) * 1e-9);
    const Snapshot* last = nullptr;
    if (before != nullptr)
      if (auto found = before->find(tools::uuid_text(s)); found != before->end()) last = &found->second;
    if (const auto u = tools::utilisation(s, last)) {
      fmt::print(
          "  utilisation  cores {} {:3.0f} %  matrix {:3.0f} %  vector {:3.0f} %  dma {:3.0f} %  copy {:3.0f} %  HBM "
          "{:.1f} GB/s"
          "  ({})\n",
          bar(u->cores), u->cores * 100, u->matrix * 100, u->vector * 100, u->dma * 100, u->copy * 100,
          u->hbm_bytes_per_second * 1e-9, last != nullptr ? "since the last look" : "since power-on");
    } else {
      fmt::print("  utilisation  idle{}\n", last != nullptr ? " since the last look" : "");
    }
  }
  if (assumed)
    fmt::print("Rates, power and temperature follow an assumed configuration: no data sheet of the chip is public.\n");
}

int code(const std::vector<tools::Entry>& entries) {
  if (entries.empty()) return kNoDevice;
  int worst = kGood;
  for (const auto& e : entries) {
    if (!e.snapshot && e.state != "held") return kUnreachable;
    if (e.snapshot && (e.snapshot->lost[0] != 0 || e.snapshot->health != hw::kHealthReady)) worst = kSick;
  }
  return worst;
}

int reset(const std::vector<std::string>& uris) {
  for (const std::string& uri : uris) try {
      if (uri == "emu:" || uri.rfind("emu:?", 0) == 0)
        throw driver::Error(driver::Code::kInvalidValue,
                            uri + ": is a chip inside the process that opens it; nobody else can reset it");
      driver::Device d(uri);
      const uint32_t before = d.epoch();
      d.transport().reset();
      const int64_t deadline = driver::monotonic_ns() + 2'000'000'000;
      while (d.health() != hw::kHealthReady && driver::monotonic_ns() < deadline) usleep(1000);
      fmt::print("{}: reset, epoch {} to {}, health {}\n", uri, before, d.epoch(),
                 d.health() == hw::kHealthReady ? "good" : "bad");
      if (d.health() != hw::kHealthReady) return kSick;
    } catch (const driver::Error& e) {
      fmt::print(stderr, "jalapeno-smi: {}\n", e.what());
      return kUnreachable;
    }
  return kGood;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{
      "The Jalapeno devices of this machine: PCI functions, and devices that processes of this user hold, emulated "
      "ones "
      "included.\nExit code: 0 all well, 1 a device is lost or unhealthy, 2 usage, 3 no device, 4 a device cannot be "
      "reached."};
  std::vector<std::string> uris;
  bool json = false, prometheus = false, do_reset = false;
  double watch = 0;
  app.add_option("--device,device", uris, "device URIs (default: all that can be found)");
  auto* json_flag = app.add_flag("--json", json, "print JSON (schema 1: fields are added, never renamed)");
  app.add_flag("--prometheus", prometheus, "print the Prometheus text format")->excludes(json_flag);
  auto* watch_option = app.add_option("--watch", watch, "again every so many seconds, until interrupted")
                           ->check(CLI::Range(0.1, 86400.0));
  app.add_flag("--reset", do_reset, "function level reset of the named devices; nobody may hold them")
      ->excludes(json_flag)
      ->excludes(watch_option);
  try {
    app.parse(argc, argv);
    if (do_reset && uris.empty()) throw CLI::ValidationError("--reset", "name the devices to reset");
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kGood : kUsage;
  }
  install_embedded_emulator();
  if (do_reset) return reset(uris);
  if (watch == 0) {
    const auto entries = tools::survey(uris);
    if (json)
      std::printf("%s\n", tools::to_json(entries).dump(2).c_str());
    else if (prometheus)
      std::printf("%s", tools::to_prometheus(entries).c_str());
    else if (entries.empty())
      std::printf(
          "no Jalapeno device: no PCI function 1da1:4a4c, and no process of this user that answers holds an emulated "
          "one\n");
    else
      print(entries, nullptr);
    return code(entries);
  }
  std::map<std::string, Snapshot> before;
  for (bool first = true;; first = false) {
    const auto entries = tools::survey(uris);
    if (json) {
      std::printf("%s\n", tools::to_json(entries).dump().c_str());
    } else if (prometheus) {
      std::printf("%s", tools::to_prometheus(entries).c_str());
    } else {
      if (isatty(1)) std::printf("\033[H\033[2J");
      if (entries.empty()) std::printf("no Jalapeno device yet\n");
      print(entries, first ? nullptr : &before);
    }
    if (std::fflush(stdout) != 0) return kGood;  // nobody reads any more
    before.clear();
    for (const auto& e : entries)
      if (e.snapshot) before[tools::uuid_text(*e.snapshot)] = *e.snapshot;
    usleep(static_cast<useconds_t>(watch * 1e6));
  }
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-smi: %s\n", e.what());
  return kUnreachable;
}
