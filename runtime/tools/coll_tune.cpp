#include "coll_tune.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

namespace jalapeno::tools {
namespace {

using nlohmann::json;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr size_t kMostSteps = 3;

// A world for each algorithm: its communicators, by rank of this process.
struct Candidate {
  std::string name;
  std::vector<std::optional<Communicator>> comms;
};

std::vector<Candidate> candidates(std::vector<Rank>& ranks, bool network) {
  std::vector<Candidate> all;
  for (const char* name : network ? std::vector<const char*>{"segments", "two-shot", "hierarchical", "doubling", "tree"}
                                  : std::vector<const char*>{"one-shot", "two-shot"}) {
    setenv("JAL_COLL_ALGO", name, 1);
    std::vector<jalComm_t> made(ranks.size());
    group([&] {
      for (size_t r = 0; r < ranks.size(); ++r) check(jalCommSplit(ranks[r].comm->get(), 0, ranks[r].number, &made[r]));
    });
    Candidate c{name, {}};
    for (const jalComm_t comm : made) c.comms.emplace_back(comm);
    all.push_back(std::move(c));
  }
  unsetenv("JAL_COLL_ALGO");
  return all;
}

// What the communicator does with the wish that it was made with.
std::string algorithm_of(const Communicator& c, const char* op, size_t bytes) {
  char name[32];
  check(jalCommGetAlgorithm(c.get(), op, bytes, name, sizeof name));
  return name;
}

// times[size][candidate] -> for each size a candidate, in so few runs that no noise makes a step of its own: the choice
// that loses least against the fastest, over all sizes.
std::vector<size_t> smooth(const std::vector<std::vector<double>>& times) {
  const size_t sizes = times.size(), choices = times[0].size();
  auto loss = [&](size_t s, size_t c) {
    const double best = *std::min_element(times[s].begin(), times[s].end());
    return times[s][c] == kNever ? kNever : std::log(times[s][c] / best);
  };
  // best[c]: up to size s, ending with c, in k + 1 runs.
  struct Path {
    double loss = kNever;
    std::vector<size_t> choice;
  };
  std::vector<std::vector<Path>> best(kMostSteps, std::vector<Path>(choices));
  for (size_t s = 0; s < sizes; ++s) {
    auto next = std::vector<std::vector<Path>>(kMostSteps, std::vector<Path>(choices));
    for (size_t k = 0; k < kMostSteps; ++k)
      for (size_t c = 0; c < choices; ++c) {
        const Path* from = s == 0 ? nullptr : &best[k][c];
        if (s > 0 && k > 0)
          for (const Path& other : best[k - 1])
            if (other.loss + 0.02 < from->loss) from = &other;  // a step has to be worth it
        if (s == 0 && k > 0) continue;
        Path p;
        p.loss = (from != nullptr ? from->loss : 0) + loss(s, c);
        if (p.loss == kNever) continue;
        if (from != nullptr) p.choice = from->choice;
        p.choice.push_back(c);
        next[k][c] = std::move(p);
      }
    best = std::move(next);
  }
  const Path* found = &best[0][0];
  for (const auto& row : best)
    for (const Path& p : row)
      if (p.loss + 0.02 < found->loss || found->choice.empty()) found = &p;
  return found->choice;
}

}  // namespace

void tune(std::vector<Rank>& ranks, int world, bool graph, bool quick, const std::string& file) {
  const bool writes = ranks[0].number == 0;
  const bool network = std::string(ranks[0].comm->info().transport).find("libfabric") != std::string::npos;
  const std::string where = network ? "hosts" : ranks.size() == static_cast<size_t>(world) ? "process" : "host";
  json all = json::object();
  if (writes)
    if (std::ifstream in(file); in) all = json::parse(in);
  json tables = json::array();
  auto tried = candidates(ranks, network);
  const Type& f32 = types()[0];
  for (const OpInfo& op : operations()) {
    if (op.op == Op::kSendRecv) continue;  // has one way
    const bool parts = op.op == Op::kAllGather || op.op == Op::kReduceScatter || op.op == Op::kAllToAll;
    std::vector<size_t> bytes;
    std::vector<std::vector<double>> times;
    for (size_t size = 64; size <= (4u << 20); size *= quick ? 32 : 4) {
      std::vector<double> row;
      for (Candidate& c : tried) {
        // Two-shot stands for direct where nothing is reduced; a wish that cannot be met is no candidate.
        const std::string does = algorithm_of(*c.comms[0], op.name, size);
        row.push_back(does == c.name || (!network && c.name == "two-shot") ? 0 : kNever);
      }
      for (int round = 0; round < (quick ? 2 : 5); ++round)
        for (size_t c = 0; c < tried.size(); ++c) {
          if (row[c] == kNever) continue;
          for (size_t r = 0; r < ranks.size(); ++r) std::swap(ranks[r].comm, tried[c].comms[r]);
          const double us =
              Bench(ranks, world)
                  .time(op, f32, parts ? size * static_cast<size_t>(world) : size, graph, quick ? 2e3 : 20e3);
          for (size_t r = 0; r < ranks.size(); ++r) std::swap(ranks[r].comm, tried[c].comms[r]);
          row[c] = round == 0 ? us : std::min(row[c], us);
        }
      bytes.push_back(size), times.push_back(std::move(row));
    }
    if (!writes) continue;
    const auto choice = smooth(times);
    json steps = json::array();
    for (size_t s = 0; s < choice.size(); ++s)
      if (s + 1 == choice.size() || choice[s + 1] != choice[s])
        steps.push_back({s + 1 == choice.size() ? json() : json(bytes[s]), tried[choice[s]].name});
    std::printf("# %s of %d ranks (%s)\n#%11s", op.name, world, where.c_str(), "bytes");
    for (const Candidate& c : tried) std::printf(" %13s", c.name.c_str());
    std::printf("  us; chosen\n");
    for (size_t s = 0; s < bytes.size(); ++s) {
      std::printf("%12zu", bytes[s]);
      for (const double us : times[s])
        if (us == kNever)
          std::printf(" %13s", "-");
        else
          std::printf(" %13.2f", us);
      std::printf("  %s\n", tried[choice[s]].name.c_str());
    }
    tables.push_back({{"where", where}, {"ranks", world}, {"operation", op.name}, {"steps", steps}});
  }
  for (Candidate& c : tried)
    for (auto& comm : c.comms) comm->finalize();
  if (!writes) return;
  for (const json& old : all.value("tables", json::array()))
    if (old.at("where") != where || old.at("ranks") != world) tables.push_back(old);
  std::ofstream out(file);
  out << json{{"tables", tables}}.dump(1) << "\n";
  if (!out) throw std::runtime_error(file + ": cannot be written");
}

}  // namespace jalapeno::tools
