// jalapeno-bench: what the emulator costs on this machine, each figure beside a limit measured in the same run.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench.hpp"

namespace bench {

std::vector<std::optional<Spread>> interleave(const Options& options, const std::vector<Measurement>& measurements,
                                              int rounds, double budget_s) {
  const int least = options.quick ? 1 : 3;
  if (options.quick) rounds = std::min(rounds, 3), budget_s = 1;
  std::vector<std::vector<double>> found(measurements.size());
  const auto begin = Clock::now();
  for (int r = 0; r < rounds && (r < least || seconds_since(begin) < budget_s); ++r)
    for (size_t i = 0; i < measurements.size(); ++i)
      if (measurements[i]) found[i].push_back(measurements[i]());
  std::vector<std::optional<Spread>> out;
  for (auto& f : found) {
    std::sort(f.begin(), f.end());
    const size_t half = f.size() / 2;
    if (f.empty())
      out.push_back(std::nullopt);
    else
      out.push_back(Spread{f.size() % 2 != 0 ? f[half] : (f[half - 1] + f[half]) / 2, f.front(), f.back()});
  }
  return out;
}

}  // namespace bench

namespace {

constexpr const char* kNote = "host time of the emulator on this machine; nothing about the chip";

void put(nlohmann::json& row, const std::string& prefix, const std::optional<bench::Reference>& r) {
  row[prefix + "_name"] = r ? nlohmann::json(r->name) : nlohmann::json();
  row[prefix + "_value"] = r ? nlohmann::json(r->value.median) : nlohmann::json();
  row[prefix + "_spread"] = r ? nlohmann::json({r->value.low, r->value.high}) : nlohmann::json();
}

nlohmann::json to_json(const bench::Row& r) {
  nlohmann::json row = {{"id", r.id},
                        {"what", r.what},
                        {"value", r.value.median},
                        {"spread", {r.value.low, r.value.high}},
                        {"unit", r.unit},
                        {"goal", r.goal.empty() ? nlohmann::json() : nlohmann::json(r.goal)},
                        {"met", r.met ? nlohmann::json(*r.met) : nlohmann::json()}};
  put(row, "limit", r.limit), put(row, "peer", r.peer);
  row["ratio"] = r.limit ? nlohmann::json(r.value.median / r.limit->value.median) : nlohmann::json();
  return row;
}

void print(const bench::Row& r) {
  const char* verdict = r.goal.empty() ? "" : !r.met ? "cannot be judged" : *r.met ? "met" : "not met";
  std::printf("%-26s %10.4g %-5s (%.4g..%.4g)", r.id.c_str(), r.value.median, r.unit.c_str(), r.value.low,
              r.value.high);
  for (const auto& reference : {r.limit, r.peer})
    if (reference) std::printf("  %s %.4g", reference->name.c_str(), reference->value.median);
  std::printf("%s%s  %s\n", r.goal.empty() ? "" : "  goal ", r.goal.c_str(), verdict);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{std::string("Measures libjalapeno: ") + kNote + "."};
  std::string json_path;
  std::vector<std::string> filters;
  bench::Options options;
  bool list = false, probe = false;
  app.add_option("--json", json_path, "write the report to this file");
  app.add_option("--filter", filters, "only cases whose id contains one of these")->delimiter(',');
  app.add_option("--threads", options.threads, "threads of the emulator, as in 1,2")
      ->delimiter(',')
      ->check(CLI::Range(1, 64));
  app.add_flag("--quick", options.quick, "fewer repetitions, no cube above 2048");
  app.add_flag("--list", list, "print the ids of the cases and end");
  app.add_flag("--start-probe", probe)->group("");
  CLI11_PARSE(app, argc, argv);
  if (probe) return bench::start_probe();
  std::sort(options.threads.begin(), options.threads.end());

  std::vector<bench::Case> cases;
  for (auto group :
       {bench::limit_cases, bench::submission_cases, bench::copy_cases, bench::start_cases, bench::multiply_cases})
    for (bench::Case& c : group(options))
      if (filters.empty() || std::any_of(filters.begin(), filters.end(),
                                         [&](const std::string& f) { return c.id.find(f) != std::string::npos; }))
        cases.push_back(std::move(c));
  if (list) {
    for (const bench::Case& c : cases) std::printf("%-26s %s\n", c.id.c_str(), c.what.c_str());
    return 0;
  }
  std::printf("%s\n", kNote);
  bool good = true;
  nlohmann::json rows = nlohmann::json::array();
  for (const bench::Case& c : cases) {
    try {
      bench::Row row = c.run(options);
      row.id = c.id, row.what = c.what;
      print(row);
      rows.push_back(to_json(row));
    } catch (const std::exception& e) {  // the other cases still run
      good = false;
      std::fprintf(stderr, "jalapeno-bench: %s: %s\n", c.id.c_str(), e.what());
      rows.push_back({{"id", c.id},
                      {"what", c.what},
                      {"value", nullptr},
                      {"unit", ""},
                      {"ratio", nullptr},
                      {"goal", "runs"},
                      {"met", nullptr},
                      {"why", e.what()}});
    }
  }
  if (!json_path.empty()) {
    std::ofstream out(json_path);
    out << nlohmann::json{{"note", kNote}, {"quick", options.quick}, {"threads", options.threads}, {"rows", rows}}.dump(
               1)
        << "\n";
    if (!out.flush()) throw std::runtime_error(json_path + ": write error");
  }
  return good ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-bench: %s\n", e.what());
  return 1;
}
