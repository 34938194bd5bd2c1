// jalapeno-doctor: why does it not work here, and what to do about it.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <jalapeno_driver/os.hpp>
#include <jalapeno_driver/vfio.hpp>

#include "examine.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

int main(int argc, char** argv) try {
  using namespace jalapeno;
  CLI::App app{
      "Examines this machine for each known reason why a Jalapeno device cannot be used, and says what to do. Opens "
      "the devices "
      "and moves a megabyte through each.\nExit code: 0 no problem, 1 problems, 2 usage."};
  std::vector<std::string> uris;
  std::string root;
  bool look_only = false;
  int latency = 0;
  app.add_option("--device,device", uris,
                 "also these device URIs (default: the PCI functions, and an embedded emulator)");
  app.add_flag("--look-only", look_only, "open no device");
  app.add_option("--latency", latency,
                 "measure with so many tries what a register access, a doorbell and an interrupt take")
      ->expected(0, 1)
      ->default_str("1000")
      ->check(CLI::Range(1, 1000000));
  app.add_option("--root", root, "look at /sys and /dev below this folder, as of another system");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  driver::os().root = root.c_str();
  install_embedded_emulator();
  std::vector<tools::Finding> findings = tools::examine_machine();
  if (uris.empty()) {
    for (const auto& f : driver::pci_functions())
      if (f.is_jalapeno() && f.kernel_driver == "vfio-pci") uris.push_back("vfio:" + f.address);
    uris.push_back("emu:?hbm=64M");
  }
  if (!look_only)
    for (const std::string& uri : uris) findings.push_back(tools::exercise(uri));
  int problems = 0;
  const bool colour = isatty(1) != 0;
  for (const auto& f : findings) {
    static const char* const kMark[] = {"ok     ", "warning", "PROBLEM"};
    static const char* const kColour[] = {"\033[32m", "\033[33m", "\033[31m"};
    const auto v = static_cast<size_t>(f.verdict);
    fmt::print("{}{}{}  {}: {}\n", colour ? kColour[v] : "", kMark[v], colour ? "\033[0m" : "", f.subject, f.what);
    if (!f.fix.empty() && f.verdict != tools::Verdict::kGood) fmt::print("         -> {}\n", f.fix);
    problems += f.verdict == tools::Verdict::kProblem;
  }
  if (latency > 0 && !look_only)
    for (const std::string& uri : uris) {
      const tools::Latencies t = tools::measure_latencies(uri, latency);
      fmt::print("\n{}, medians of {} on this machine (microseconds; a reading of the clock, {:.2f}, is in each)\n",
                 uri, latency, t.clock_read * 1e-3);
      fmt::print("  eventfd, to another thread and back        {:8.2f}\n", t.eventfd_round_trip * 1e-3);
      fmt::print("  register read                              {:8.2f}\n", t.register_read * 1e-3);
      fmt::print("  register write                             {:8.2f}\n", t.register_write * 1e-3);
      fmt::print("  doorbell to completion, watched            {:8.2f}\n", t.doorbell_to_completion * 1e-3);
      fmt::print("  signal to sleeping waiter, by interrupt    {:8.2f}   {:.2f} x the eventfd\n",
                 t.doorbell_to_interrupted_waiter * 1e-3, t.doorbell_to_interrupted_waiter / t.eventfd_round_trip);
    }
  if (problems > 0) fmt::print("{} problem{}\n", problems, problems == 1 ? "" : "s");
  return problems > 0 ? 1 : 0;
} catch (const std::exception& e) {
  fmt::print(stderr, "jalapeno-doctor: {}\n", e.what());
  return 1;
}
