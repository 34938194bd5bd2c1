// A small harness: named cases, interleaved repetitions, medians beside limits and peers of the same run.
// Every figure is host time of the emulator on this machine; nothing about the chip.
#pragma once
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace bench {

struct Options {
  bool quick = false;
  std::vector<int> threads{1, 2};
  int most_threads() const { return threads.back(); }
};

struct Spread {
  double median = 0, low = 0, high = 0;
};

struct Reference {
  std::string name;
  Spread value;
};

// What a case found. The goal is a text, met its verdict; without a verdict something the goal names is absent.
struct Row {
  std::string id, what;
  Spread value;
  std::string unit;
  std::optional<Reference> limit = {}, peer = {};
  std::string goal = {};
  std::optional<bool> met = {};
};

struct Case {
  std::string id, what;
  std::function<Row(const Options&)> run;
};

std::vector<Case> limit_cases(const Options& options);
std::vector<Case> submission_cases(const Options& options);
std::vector<Case> copy_cases(const Options& options);
std::vector<Case> multiply_cases(const Options& options);
std::vector<Case> start_cases(const Options& options);
// The other side of the start case: opens a device, runs one launch, says so on descriptor 1.
int start_probe();

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
template <class F>
double seconds(F f) {
  const auto begin = Clock::now();
  f();
  return seconds_since(begin);
}

// Calls the measurements in turn, one round after the other, so that a noisy moment of the machine meets all of them.
// An empty measurement gives no spread. After `budget` seconds it stops, not before three rounds (one in a quick run).
using Measurement = std::function<double()>;
std::vector<std::optional<Spread>> interleave(const Options& options, const std::vector<Measurement>& measurements,
                                              int rounds = 9, double budget_s = 3);

inline std::string device_uri(int threads) { return "emu:?threads=" + std::to_string(threads); }

}  // namespace bench
