// jalapeno-coll-bench: the table of nccl-tests for this library's collectives, with verified results. Times and
// bandwidths are nccl-tests' (busbw: what a link must carry). Beside each row stands the machine's own limit, measured
// in the same run; modelled times are the chip configuration's.
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "coll_limits.hpp"
#include "coll_measure.hpp"
#include "coll_tune.hpp"

namespace {

using namespace jalapeno;
using namespace jalapeno::tools;

size_t parse_size(const std::string& text) {
  char* end = nullptr;
  const double v = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  const double scale = unit.empty() || unit == "B" ? 1
                       : unit == "K"               ? 1024
                       : unit == "M"               ? 1 << 20
                       : unit == "G"               ? 1 << 30
                                                   : 0;
  if (scale == 0 || !(v > 0)) throw CLI::ValidationError("size \"" + text + "\": expected a number with K, M or G");
  return static_cast<size_t>(v * scale);
}

std::vector<std::string> operation_names() {
  std::vector<std::string> names;
  for (const OpInfo& op : operations()) names.emplace_back(op.name);
  return names;
}

const OpInfo& operation_named(const std::string& name) {
  const auto all = operations();
  const auto found = std::find_if(all.begin(), all.end(), [&](const OpInfo& o) { return name == o.name; });
  return *found;  // names were checked
}

// Prints a row for each operation and size; returns how many elements were wrong. All ranks call it alike.
uint64_t table(std::vector<Rank>& mine, int world, std::vector<std::string> names, const Type& type,
               const std::vector<size_t>& sizes, bool graph, bool quick, const std::string& json_file) {
  nlohmann::json rows = nlohmann::json::array();
  uint64_t wrong = 0;
  const bool assumed = mine[0].device.properties().assumed != 0;
  const bool printing = mine[0].number == 0;
  Bench bench(mine, world);
  const unsigned threads = std::max(1u, std::min(std::thread::hardware_concurrency(), static_cast<unsigned>(world)));
  if (names.empty()) names = operation_names();
  for (const std::string& name : names) {
    const OpInfo* op = &operation_named(name);
    if (printing)
      std::printf("\n# %s%s\n#%11s %10s %5s %9s %9s %9s %9s %9s %9s %7s %6s  %s\n", op->name,
                  graph ? ", in a graph" : "", "size", "count", "type", "us", "algbw", "busbw", "in place", "limit us",
                  "x limit", "model us", "wrong", "algorithm");
    for (const size_t size : sizes) {
      // The limit of this moment: a line there and back, or the bytes that must move through memory.
      const double line = printing ? line_exchange_us() : 0;
      const size_t array = std::clamp<size_t>(size, 64 << 10, 64 << 20);
      const double rate =
          printing ? std::max(memory_rate(array, threads, false), memory_rate(array, threads, true)) : 1;
      const auto row = bench.run(*op, type, size, graph, quick);
      wrong += row.wrong;
      if (!printing) continue;
      const double limit = std::max(line, op->moved(world) * static_cast<double>(row.size) / rate * 1e-3);
      const double algbw = static_cast<double>(row.size) / row.us * 1e-3;
      char in_place[16] = "-";
      if (row.in_place_us > 0) std::snprintf(in_place, sizeof in_place, "%.2f", row.in_place_us);
      std::printf("%12zu %10zu %5s %9.2f %9.2f %9.2f %9s %9.2f %9.1f %8.2f %6llu  %s\n", row.size, row.count, type.name,
                  row.us, algbw, algbw * op->bus(world), in_place, limit, row.us / limit, row.model_us,
                  static_cast<unsigned long long>(row.wrong), row.algorithm.c_str());
      std::fflush(stdout);
      rows.push_back({{"operation", op->name},
                      {"ranks", world},
                      {"processes", mine.size() == static_cast<size_t>(world) ? 1 : world},
                      {"type", type.name},
                      {"size", row.size},
                      {"us", row.us},
                      {"in_place_us", row.in_place_us},
                      {"busbw_gbytes", algbw * op->bus(world)},
                      {"limit_us", limit},
                      {"model_us", row.model_us},
                      {"model_assumed", assumed},
                      {"wrong", row.wrong},
                      {"algorithm", row.algorithm},
                      {"graph", graph}});
    }
  }
  if (printing && !json_file.empty()) {
    if (FILE* f = std::fopen(json_file.c_str(), "w"); f != nullptr) {
      const std::string text = rows.dump(1);
      std::fwrite(text.data(), 1, text.size(), f);
      std::fclose(f);
    } else {
      throw std::runtime_error(json_file + ": cannot be written");
    }
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{
      "Measures collectives: N ranks in this process (--ranks), or one in each process of a launcher (mpirun, srun)."};
  std::vector<std::string> names;
  std::string begin = "8", end = "64M", type_name = "f32", json_file, uri = "emu:";
  int ranks = 2, processes = 0;
  bool quick = false, graph = false, bind = false;
  std::string tune_file;
  std::vector<std::string> chosen;
  app.add_option("operation", names,
                 "all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, reduce, send_recv; all by default")
      ->check(CLI::IsMember(operation_names()));
  app.add_option("-n,--ranks", ranks, "ranks in this process, without a launcher")->check(CLI::Range(1, 64));
  app.add_option("-p,--processes", processes, "start so many processes of this program here, one rank each")
      ->check(CLI::Range(1, 64));
  app.add_option("-b,--begin", begin, "smallest size");
  app.add_option("-e,--end", end, "largest size");
  app.add_option("-s,--sizes", chosen, "these sizes instead, as 8,32K,2M")->delimiter(',')->allow_extra_args(false);
  app.add_option("-t,--type", type_name)->check(CLI::IsMember({"f32", "bf16", "i32"}));
  app.add_option("-d,--device", uri, "URI of the devices");
  app.add_flag("-g,--graph", graph, "time operations inside a graph of 20");
  app.add_flag("--bind", bind, "keep each rank to one core, in turn, as mpirun does; --processes always does");
  app.add_flag("-q,--quick", quick, "fewer sizes, less time for each");
  app.add_option(
      "--tune", tune_file,
      "measure the algorithms of these ranks and put the fastest for each size into this table, for JAL_COLL_TUNING");
  app.add_option("--json", json_file, "write the rows there too");
  CLI11_PARSE(app, argc, argv);

  if (!tune_file.empty() && (!names.empty() || !chosen.empty() || !json_file.empty()))
    throw std::runtime_error("--tune measures all operations and sizes: name none, and no --json");
  if (const size_t slash = tune_file.rfind('/');
      slash != std::string::npos && access(tune_file.substr(0, slash + 1).c_str(), W_OK) != 0)
    throw std::runtime_error("--tune " + tune_file + ": cannot be written: " + std::strerror(errno));
  if (!json_file.empty() && !std::ofstream(json_file, std::ios::app))
    throw std::runtime_error("--json " + json_file + ": cannot be written: " + std::strerror(errno));

  // Children before anything of the library is used. They are ranks as a launcher would start them.
  std::vector<pid_t> children;
  if (processes > 1)
    for (const char* launcher : {"PMI_RANK", "PMI_FD", "PMIX_NAMESPACE", "SLURM_PROCID"})
      if (std::getenv(launcher) != nullptr)
        throw std::runtime_error(std::string("--processes starts ranks itself, but ") + launcher +
                                 " says that a launcher did");
  if (processes > 1 && std::getenv("WORLD_SIZE") == nullptr) {  // a child has it
    setenv("WORLD_SIZE", std::to_string(processes).c_str(), 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    setenv("MASTER_PORT", std::to_string(10000 + getpid() % 22000).c_str(), 1);
    for (int r = 1; r < processes; ++r) {
      const pid_t child = fork();
      if (child < 0) throw std::runtime_error("fork failed");
      if (child == 0) {
        setenv("RANK", std::to_string(r).c_str(), 1);
        execv("/proc/self/exe", argv);
        _exit(127);
      }
      children.push_back(child);
    }
    setenv("RANK", "0", 1);
  }

  int rank = 0, world = 1;
  check(jalLauncherGetRank(&rank, &world, nullptr));
  const bool launched = world > 1;
  if (bind && !launched)
    throw std::runtime_error("--bind: the ranks of one process share its cores; start them with -p or a launcher");
  if (launched && (bind || processes > 1) && !bind_to_core(rank))
    throw std::runtime_error(std::string("--bind: sched_setaffinity: ") + std::strerror(errno));
  std::vector<Rank> mine;
  const std::string device_uri = uri == "emu:" ? "emu:?threads=1" : uri;
  for (int r = 0; r < (launched ? 1 : ranks); ++r) {
    mine.push_back(Rank{Device(device_uri), {}, {}, {}, {}, r});
    mine.back().stream.emplace(mine.back().device);
  }
  const auto joined = Clock::now();
  if (launched) {
    mine[0].comm.emplace(Communicator::from_launcher(mine[0].device));
    mine[0].number = rank;
  } else {
    world = ranks;
    std::vector<jalDevice_t> devices;
    for (Rank& r : mine) devices.push_back(r.device.get());
    std::vector<jalComm_t> comms(devices.size());
    check(jalCommInitAll(comms.data(), devices.data(), ranks, nullptr));
    for (size_t r = 0; r < comms.size(); ++r) mine[r].comm.emplace(comms[r]);
  }
  const double init_ms = us_since(joined) * 1e-3;
  const jalCommInfo info = mine[0].comm->info();
  const jalDeviceProperties properties = mine[0].device.properties();
  if (rank == 0)
    std::printf(
        "# %d ranks %s, launcher: %s, transport: %s, hosts: %d; communicator made in %.1f ms\n"
        "# device %s, configuration %s%s; algbw, busbw as nccl-tests defines them, GB/s\n",
        world, launched ? "in as many processes" : "in one process", info.launcher, info.transport, info.hosts, init_ms,
        device_uri.c_str(), properties.config_name, properties.assumed ? " (modelled times: assumed rates)" : "");

  const auto known_types = types();
  const Type& type =
      *std::find_if(known_types.begin(), known_types.end(), [&](const Type& t) { return type_name == t.name; });
  std::vector<size_t> sizes;
  for (const std::string& s : chosen) sizes.push_back(parse_size(s));
  for (size_t s = parse_size(begin); chosen.empty() && s <= parse_size(end); s *= quick ? 16 : 4) sizes.push_back(s);
  uint64_t wrong = 0;
  if (!tune_file.empty())
    tune(mine, world, graph, quick, tune_file);
  else
    wrong = table(mine, world, names, type, sizes, graph, quick, json_file);
  for (Rank& r : mine) r.comm->finalize();
  mine.clear();
  int bad = wrong != 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    bad |= status != 0;
  }
  return bad;
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-coll-bench: %s\n", e.what());
  return 2;
}
