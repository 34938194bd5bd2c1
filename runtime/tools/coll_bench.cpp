// jalapeno-coll-bench: the table of nccl-tests for this library's collectives, with verified results. Sizes, times and
// bandwidths are nccl-tests' (size: of the largest buffer a rank holds; busbw: what a link must carry). Beside each row
// stands the machine's own limit, measured in the same run; modelled times are the chip configuration's.
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <jalapeno/jalapeno.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace jalapeno;
using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

// Round trip of a cache line between two threads, in us: nothing that waits for a peer's word is faster than half of
// it.
double line_exchange_us() {
  alignas(64) static std::atomic<uint32_t> ping{0};
  alignas(64) static std::atomic<uint32_t> pong{0};
  constexpr uint32_t kTurns = 20000;
  ping = pong = 0;
  std::thread other([] {
    for (uint32_t k = 1; k <= kTurns; ++k) {
      for (int spins = 0; ping.load(std::memory_order_acquire) != k;)
        if (++spins > 10000) std::this_thread::yield();
      pong.store(k, std::memory_order_release);
    }
  });
  const auto begin = Clock::now();
  for (uint32_t k = 1; k <= kTurns; ++k) {
    ping.store(k, std::memory_order_release);
    for (int spins = 0; pong.load(std::memory_order_acquire) != k;)
      if (++spins > 10000) std::this_thread::yield();
  }
  const double us = us_since(begin) / kTurns;
  other.join();
  return us;
}

// Bytes a nanosecond that all cores together add from two arrays of this size into a third, named once each.
double memory_rate(size_t bytes, unsigned threads, [[maybe_unused]] bool around_caches) {
  const size_t n = std::max<size_t>(bytes / 4 / threads, 1024),
               turns = std::max<size_t>(1, (size_t{64} << 20) / (n * 4 * threads));
  std::vector<std::vector<float>> a(threads, std::vector<float>(n, 1)), b(a), c(a);
  std::atomic<unsigned> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> all;
  for (unsigned t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      ++ready;
      while (!go) std::this_thread::yield();
      for (size_t k = 0; k < turns; ++k) {
        const float *x = a[t].data(), *y = b[t].data();
        float* z = c[t].data();
#if defined(__SSE2__)
        if (around_caches) {
          size_t i = (16 - reinterpret_cast<uintptr_t>(z) % 16) / 4 % 4;
          for (; i + 4 <= n; i += 4) _mm_stream_ps(z + i, _mm_add_ps(_mm_loadu_ps(x + i), _mm_loadu_ps(y + i)));
          continue;
        }
#endif
        for (size_t i = 0; i < n; ++i) z[i] = x[i] + y[i];
        asm volatile("" : : "r"(z) : "memory");
      }
    });
  while (ready != threads) std::this_thread::yield();
  const auto begin = Clock::now();
  go = true;
  for (auto& t : all) t.join();
  return 3.0 * static_cast<double>(n * 4 * threads * turns) / (us_since(begin) * 1e3);
}

enum class Op { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kBroadcast, kReduce, kSendRecv };
struct OpInfo {
  const char* name;
  Op op;
  double (*bus)(double n);    // bus bandwidth over algorithm bandwidth
  double (*moved)(double n);  // bytes through memory for a size of 1 on each of n ranks, at least
};
constexpr OpInfo kOps[] = {
    {"all_reduce", Op::kAllReduce, [](double n) { return 2 * (n - 1) / n; }, [](double n) { return 2 * n; }},
    {"all_gather", Op::kAllGather, [](double n) { return (n - 1) / n; }, [](double n) { return n + 1; }},
    {"reduce_scatter", Op::kReduceScatter, [](double n) { return (n - 1) / n; }, [](double n) { return n + 1; }},
    {"all_to_all", Op::kAllToAll, [](double n) { return (n - 1) / n; }, [](double n) { return 2 * n; }},
    {"broadcast", Op::kBroadcast, [](double) { return 1.0; }, [](double n) { return n; }},
    {"reduce", Op::kReduce, [](double) { return 1.0; }, [](double n) { return n + 1; }},
    {"send_recv", Op::kSendRecv, [](double) { return 1.0; }, [](double n) { return 2 * n; }},
};

struct Type {
  const char* name;
  jalDType type;
  size_t bytes;
};
constexpr Type kTypes[] = {{"f32", jalF32, 4}, {"bf16", jalBF16, 2}, {"i32", jalI32, 4}};

// Small whole numbers, exact in every type.
uint32_t sample(int rank, size_t i) { return static_cast<uint32_t>((i * 7 + static_cast<size_t>(rank) * 13) % 5); }
void encode(const Type& t, uint32_t v, void* out) {
  const float f = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (t.type == jalI32)
    std::memcpy(out, &v, 4);
  else if (t.type == jalF32)
    std::memcpy(out, &f, 4);
  else
    std::memcpy(out, reinterpret_cast<const char*>(&bits) + 2, 2);
}

struct Rank {
  Device device;
  std::optional<Communicator> comm;
  std::optional<Stream> stream;
  Buffer<char> send, receive;
  int number = 0;
};

class Bench {
 public:
  Bench(std::vector<Rank>& ranks, int world) : ranks_(ranks), world_(world) {}

  struct Row {
    size_t size, count;
    double us, in_place_us, model_us;
    uint64_t wrong;
    std::string algorithm;
  };

  Row run(const OpInfo& op, const Type& type, size_t size, bool graph, bool quick) {
    const bool parts = op.op == Op::kAllGather || op.op == Op::kReduceScatter || op.op == Op::kAllToAll;
    const size_t count = std::max<size_t>(1, size / type.bytes / (parts ? static_cast<size_t>(world_) : 1));
    const size_t total = count * (parts ? static_cast<size_t>(world_) : 1);
    Row row{total * type.bytes, count, 0, 0, 0, 0, ""};
    for (Rank& r : ranks_) {
      r.send = Buffer<char>(r.device, total * type.bytes), r.receive = Buffer<char>(r.device, total * type.bytes);
      std::vector<char> host(total * type.bytes);
      for (size_t i = 0; i < total; ++i) encode(type, sample(r.number, i), host.data() + i * type.bytes);
      check(jalMemcpy(r.send.data(), host.data(), host.size()));
    }
    issue(op, type, count, false);
    synchronize();
    row.wrong = verify(op, type, count);
    const char* name = op.op == Op::kSendRecv ? "send" : op.name;
    char algorithm[32];
    check(jalCommGetAlgorithm(ranks_[0].comm->get(), name, count * type.bytes, algorithm, sizeof algorithm));
    row.algorithm = algorithm;
    const double budget_us = quick ? 30e3 : 150e3;
    row.us = measure(op, type, count, false, graph, budget_us, &row.model_us);
    row.in_place_us = op.op == Op::kAllReduce ? measure(op, type, count, true, graph, budget_us, nullptr) : 0;
    return row;
  }

 private:
  void call(Rank& r, const OpInfo& op, const Type& t, size_t count, bool in_place) {
    const jalComm_t c = r.comm->get();
    const jalStream_t s = r.stream->get();
    char *send = r.send.data(), *receive = in_place ? r.send.data() : r.receive.data();
    switch (op.op) {
      case Op::kAllReduce:
        return check(jalAllReduce(send, receive, count, t.type, jalSum, c, s));
      case Op::kAllGather:
        return check(jalAllGather(send, receive, count, t.type, c, s));
      case Op::kReduceScatter:
        return check(jalReduceScatter(send, receive, count, t.type, jalSum, c, s));
      case Op::kAllToAll:
        return check(jalAllToAll(send, receive, count, t.type, c, s));
      case Op::kBroadcast:
        return check(jalBroadcast(send, receive, count, t.type, 0, c, s));
      case Op::kReduce:
        return check(jalReduce(send, receive, count, t.type, jalSum, 0, c, s));
      case Op::kSendRecv:
        return group([&] {
          check(jalSend(send, count, t.type, (r.number + 1) % world_, c, s));
          check(jalRecv(receive, count, t.type, (r.number + world_ - 1) % world_, c, s));
        });
    }
  }
  void issue(const OpInfo& op, const Type& t, size_t count, bool in_place) {
    for (Rank& r : ranks_) call(r, op, t, count, in_place);
  }
  void synchronize() {
    for (Rank& r : ranks_) r.stream->synchronize();
  }

  // us of one operation: as many in a row as the budget allows, several times.
  double measure(const OpInfo& op, const Type& t, size_t count, bool in_place, bool graph, double budget_us,
                 double* model_us) {
    constexpr int kInGraph = 20;
    std::vector<Graph> graphs;
    if (graph)
      for (Rank& r : ranks_)
        graphs.emplace_back(*r.stream, [&] {
          for (int k = 0; k < kInGraph; ++k) call(r, op, t, count, in_place);
        });
    auto batch = [&](int turns) {
      for (int k = 0; k < turns; ++k)
        if (graph)
          for (size_t r = 0; r < ranks_.size(); ++r) graphs[r].launch(*ranks_[r].stream);
        else
          issue(op, t, count, in_place);
      synchronize();
    };
    const int per_turn = graph ? kInGraph : 1;
    batch(1);
    int turns = 1;
    double us = 0;
    // All ranks must take as many: rank 0's clock would say something else, so the size decides.
    const double guess = 2.0 * world_ + static_cast<double>(count * t.bytes * static_cast<size_t>(world_)) / 4000;
    turns = std::clamp(static_cast<int>(budget_us / 5 / guess / per_turn), 1, 200);
    const uint64_t before = ranks_[0].device.telemetry().device_ns;
    std::vector<double> times;
    for (int k = 0; k < 5; ++k) {
      const auto begin = Clock::now();
      batch(turns);
      times.push_back(us_since(begin) / turns / per_turn);
    }
    us = median(times);
    if (model_us != nullptr)
      *model_us =
          static_cast<double>(ranks_[0].device.telemetry().device_ns - before) * 1e-3 / (5.0 * turns * per_turn);
    return us;
  }

  uint64_t verify(const OpInfo& op, const Type& t, size_t count) {
    uint64_t wrong = 0;
    const auto n = static_cast<size_t>(world_);
    for (Rank& r : ranks_) {
      const auto got = r.receive.to_host();
      auto expect = [&](size_t i, uint32_t v) {
        char bytes[4];
        encode(t, v, bytes);
        wrong += std::memcmp(got.data() + i * t.bytes, bytes, t.bytes) != 0;
      };
      auto sum = [&](size_t i) {
        uint32_t v = 0;
        for (int k = 0; k < world_; ++k) v += sample(k, i);
        return v;
      };
      for (size_t i = 0; i < count; ++i) switch (op.op) {
          case Op::kAllReduce:
            expect(i, sum(i));
            break;
          case Op::kReduce:
            if (r.number == 0) expect(i, sum(i));
            break;
          case Op::kReduceScatter:
            expect(i, sum(static_cast<size_t>(r.number) * count + i));
            break;
          case Op::kBroadcast:
            expect(i, sample(0, i));
            break;
          case Op::kSendRecv:
            expect(i, sample((r.number + world_ - 1) % world_, i));
            break;
          case Op::kAllGather:
            for (size_t k = 0; k < n; ++k) expect(k * count + i, sample(static_cast<int>(k), i));
            break;
          case Op::kAllToAll:
            for (size_t k = 0; k < n; ++k)
              expect(k * count + i, sample(static_cast<int>(k), static_cast<size_t>(r.number) * count + i));
        }
    }
    return wrong;
  }

  std::vector<Rank>& ranks_;
  int world_;
};

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

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{
      "Measures collectives: N ranks in this process (--ranks), or one in each process of a launcher (mpirun, srun)."};
  std::vector<std::string> names;
  std::string begin = "8", end = "64M", type_name = "f32", json_file, uri = "emu:";
  int ranks = 2, processes = 0;
  bool quick = false, graph = false;
  app.add_option("operation", names,
                 "all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, reduce, send_recv; all by default");
  app.add_option("-n,--ranks", ranks, "ranks in this process, without a launcher")->check(CLI::Range(1, 64));
  app.add_option("-p,--processes", processes, "start so many processes of this program here, one rank each")
      ->check(CLI::Range(1, 64));
  app.add_option("-b,--begin", begin, "smallest size");
  app.add_option("-e,--end", end, "largest size");
  app.add_option("-t,--type", type_name)->check(CLI::IsMember({"f32", "bf16", "i32"}));
  app.add_option("-d,--device", uri, "URI of the devices");
  app.add_flag("-g,--graph", graph, "time operations inside a graph of 20");
  app.add_flag("-q,--quick", quick, "fewer sizes, less time for each");
  app.add_option("--json", json_file, "write the rows there too");
  CLI11_PARSE(app, argc, argv);

  // Children before anything of the library is used. They are ranks as a launcher would start them.
  std::vector<pid_t> children;
  if (processes > 1 && std::getenv("WORLD_SIZE") == nullptr) {
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

  const Type& type =
      *std::find_if(std::begin(kTypes), std::end(kTypes), [&](const Type& t) { return type_name == t.name; });
  std::vector<size_t> sizes;
  for (size_t s = parse_size(begin); s <= parse_size(end); s *= quick ? 16 : 4) sizes.push_back(s);
  Bench bench(mine, world);
  nlohmann::json rows = nlohmann::json::array();
  uint64_t wrong = 0;
  const unsigned threads = std::max(1u, std::min(std::thread::hardware_concurrency(), static_cast<unsigned>(world)));
  if (names.empty())
    for (const OpInfo& op : kOps) names.emplace_back(op.name);
  for (const std::string& name : names) {
    const OpInfo* op = std::find_if(std::begin(kOps), std::end(kOps), [&](const OpInfo& o) { return name == o.name; });
    if (op == std::end(kOps)) throw std::runtime_error("operation \"" + name + "\" is unknown; see --help");
    if (rank == 0)
      std::printf("\n# %s%s\n#%11s %10s %5s %9s %9s %9s %9s %9s %9s %7s %6s  %s\n", op->name,
                  graph ? ", in a graph" : "", "size", "count", "type", "us", "algbw", "busbw", "in place", "limit us",
                  "x limit", "model us", "wrong", "algorithm");
    for (const size_t size : sizes) {
      // The limit of this moment: a line there and back, or the bytes that must move through memory.
      const double line = rank == 0 ? line_exchange_us() : 0;
      const size_t array = std::clamp<size_t>(size, 64 << 10, 64 << 20);
      const double rate =
          rank == 0 ? std::max(memory_rate(array, threads, false), memory_rate(array, threads, true)) : 1;
      const auto row = bench.run(*op, type, size, graph, quick);
      wrong += row.wrong;
      if (rank != 0) continue;
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
                      {"processes", launched ? world : 1},
                      {"type", type.name},
                      {"size", row.size},
                      {"us", row.us},
                      {"in_place_us", row.in_place_us},
                      {"busbw_gbytes", algbw * op->bus(world)},
                      {"limit_us", limit},
                      {"model_us", row.model_us},
                      {"model_assumed", properties.assumed != 0},
                      {"wrong", row.wrong},
                      {"algorithm", row.algorithm},
                      {"graph", graph}});
    }
  }
  if (rank == 0 && !json_file.empty()) {
    if (FILE* f = std::fopen(json_file.c_str(), "w"); f != nullptr) {
      const std::string text = rows.dump(1);
      std::fwrite(text.data(), 1, text.size(), f);
      std::fclose(f);
    } else {
      throw std::runtime_error(json_file + ": cannot be written");
    }
  }
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
