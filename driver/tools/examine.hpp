// What jalapeno-doctor finds: each known reason why a device cannot be used, probed, with what to do about it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace jalapeno::tools {

enum class Verdict { kGood, kWarning, kProblem };
struct Finding {
  Verdict verdict;
  std::string subject, what, fix;  // fix: "" when there is nothing to do
};

// Looks at the machine and, without touching them, at its PCI functions.
std::vector<Finding> examine_machine();
// Opens the device, moves bytes through it both ways and waits for an interrupt.
Finding exercise(const std::string& uri);

// Medians over many tries, in nanoseconds, all from one run.
struct Latencies {
  double clock_read, eventfd_round_trip, register_read, register_write, doorbell_to_completion,
      doorbell_to_interrupted_waiter;
};
Latencies measure_latencies(const std::string& uri, int tries);  // throws driver::Error

}  // namespace jalapeno::tools
