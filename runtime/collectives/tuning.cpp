#include "tuning.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <jalapeno_driver/log.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "error.hpp"

namespace jalapeno::runtime {
namespace {

constexpr Algorithm kAll[] = {Algorithm::kOneShot,      Algorithm::kTwoShot,  Algorithm::kDirect, Algorithm::kSegments,
                              Algorithm::kHierarchical, Algorithm::kDoubling, Algorithm::kTree};

std::optional<Algorithm> algorithm_named(const std::string& name) {
  for (const Algorithm a : kAll)
    if (name == name_of(a)) return a;
  return std::nullopt;
}

std::string algorithms() {
  std::string all;
  for (const Algorithm a : kAll) all += std::string(all.empty() ? "" : ", ") + name_of(a);
  return all;
}

bool named(CollectiveOp op, const std::string& name) { return name.empty() || name == name_of(op); }

// What the wish means for this operation and these ranks; nothing when it cannot be done.
std::optional<Algorithm> possible(Algorithm wish, CollectiveOp op, uint64_t bytes, const Topology& t) {
  const bool reduces_to_all = op == CollectiveOp::kAllReduce,
             message = op == CollectiveOp::kSend || op == CollectiveOp::kReceive;
  if (t.all.slots_only) {
    switch (wish) {
      case Algorithm::kOneShot:
      case Algorithm::kSegments:
        return Algorithm::kSegments;
      case Algorithm::kTwoShot:
        if (reduces_to_all) return wish;
        return std::nullopt;
      case Algorithm::kHierarchical:
        if (t.hosts && plans_hierarchically(op, *t.hosts)) return wish;
        return std::nullopt;
      case Algorithm::kDoubling:
      case Algorithm::kTree:
        if (plans_by_pairs(wish, op, t)) return wish;
        return std::nullopt;
      case Algorithm::kDirect:
        return std::nullopt;
    }
  }
  const Algorithm from_memory =
      reduces_to_all || op == CollectiveOp::kReduce ? Algorithm::kTwoShot : Algorithm::kDirect;
  switch (wish) {
    case Algorithm::kOneShot:
      if (bytes <= t.all.slot_bytes && !message && op != CollectiveOp::kAllToAllRanges) return wish;
      return std::nullopt;
    case Algorithm::kTwoShot:
    case Algorithm::kDirect:
      if (op != CollectiveOp::kBarrier) return from_memory;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

}  // namespace

const char* name_of(Placement p) {
  constexpr const char* kNames[] = {"process", "host", "hosts"};
  return kNames[static_cast<int>(p)];
}

void Tuning::Row::add(uint64_t up_to, Algorithm a) {
  if (steps < kSteps) step[steps++] = {up_to, a};
}

Tuning Tuning::load(uint32_t ranks, Placement placement) {
  Tuning t;
  if (const char* words = std::getenv("JAL_COLL_ALGO"); words != nullptr) t.demand(words);
  if (const char* file = std::getenv("JAL_COLL_TUNING"); file != nullptr && *file != 0) t.read(file, ranks, placement);
  // Measured on two cores, see docs/collectives.md. With more ranks than cores it is the number of exchanges that
  // counts.
  for (Row& row : t.rows_) {
    if (placement == Placement::kHosts) {
      row.add(UINT64_MAX, Algorithm::kHierarchical);
      if (ranks > 2) row.add(kOneShotBySlots, Algorithm::kSegments), row.add(UINT64_MAX, Algorithm::kTwoShot);
      row.add(UINT64_MAX, Algorithm::kSegments);
    } else {
      row.add(ranks <= 2 ? 4 << 10 : 16 << 10, Algorithm::kOneShot);
      row.add(UINT64_MAX, Algorithm::kTwoShot);
      row.add(UINT64_MAX, Algorithm::kOneShot);
    }
  }
  return t;
}

void Tuning::demand(const char* text) {
  std::stringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    if (word.empty()) continue;
    const size_t colon = word.find(':');
    const std::string op = colon == std::string::npos ? "" : word.substr(0, colon);
    const auto wish = algorithm_named(word.substr(colon == std::string::npos ? 0 : colon + 1));
    bool known = false;
    for (int k = 0; k < kCollectiveOps && wish; ++k)
      if (named(static_cast<CollectiveOp>(k), op))
        rows_[k].add(UINT64_MAX, *wish), rows_[k].demanded = rows_[k].steps, known = true;
    if (!known)
      invalid("JAL_COLL_ALGO: \"" + word + "\": expected ALGORITHM or OPERATION:ALGORITHM with " + algorithms() +
              ", and all_reduce, reduce, broadcast, all_gather, reduce_scatter or all_to_all");
  }
}

// An entry, used here or not.
void Tuning::check_table(const nlohmann::json& table, const std::function<void(const std::string&)>& wrong) {
  const auto op = table.at("operation").get<std::string>(), where = table.at("where").get<std::string>();
  bool known = false;
  for (int k = 0; k < kCollectiveOps; ++k) known |= op == name_of(static_cast<CollectiveOp>(k));
  if (!known)
    wrong("operation \"" + op + "\": expected all_reduce, reduce, broadcast, all_gather, reduce_scatter or all_to_all");
  if (where != "process" && where != "host" && where != "hosts")
    wrong("where \"" + where + "\": expected process, host or hosts");
  if (!(table.at("ranks").get<double>() >= 1)) wrong("a table for " + table.at("ranks").dump() + " ranks");
  const auto& steps = table.at("steps");
  if (steps.empty() || steps.size() > kTableSteps)
    wrong(std::to_string(steps.size()) + " steps of " + op + ", expected 1 to " + std::to_string(kTableSteps));
  for (const auto& step : steps) {
    const auto name = step.at(1).get<std::string>();
    if (!algorithm_named(name)) wrong("\"" + name + "\": expected " + algorithms());
    if (!step.at(0).is_null() && !step.at(0).is_number_unsigned())
      wrong(step.at(0).dump() + ": expected bytes, or null");
  }
}

// {"tables": [{"where": "host", "ranks": 2, "operation": "all_reduce", "steps": [[4096, "one-shot"], [null,
// "two-shot"]]}]}: of those for this operation and placement the one whose number of ranks is nearest.
void Tuning::read(const char* file, uint32_t ranks, Placement placement) {
  using nlohmann::json;
  std::ifstream in(file);
  if (!in) invalid(std::string("JAL_COLL_TUNING=") + file + ": " + std::strerror(errno));
  auto wrong = [&](const std::string& what) { invalid(std::string("JAL_COLL_TUNING=") + file + ": " + what); };
  json all;
  try {
    all = json::parse(in);
    bool found = false;
    for (const json& table : all.at("tables")) check_table(table, wrong);
    for (int k = 0; k < kCollectiveOps; ++k) {
      const json* best = nullptr;
      double distance = 0;
      for (const json& table : all.at("tables")) {
        if (table.at("operation") != name_of(static_cast<CollectiveOp>(k)) || table.at("where") != name_of(placement))
          continue;
        const auto measured = table.at("ranks").get<double>();
        const double d = std::abs(std::log2(measured / ranks));
        if (best == nullptr || d < distance) best = &table, distance = d;
      }
      if (best == nullptr) continue;
      found = true;
      for (const json& step : best->at("steps")) {
        const auto a = algorithm_named(step.at(1).get<std::string>());
        rows_[k].add(step.at(0).is_null() ? UINT64_MAX : step.at(0).get<uint64_t>(), *a);
      }
    }
    if (!found)
      driver::runtime_log().warn("JAL_COLL_TUNING={}: no table for ranks of one {}; it changes nothing here", file,
                                 placement == Placement::kHosts ? "network of hosts" : name_of(placement));
  } catch (const json::exception& e) {
    wrong(e.what());
  }
}

Algorithm Tuning::choose(CollectiveOp op, uint64_t bytes, const Topology& t) const {
  const Row& row = rows_[static_cast<int>(op)];
  for (size_t k = 0; k < std::min<size_t>(row.steps, kSteps); ++k) {
    if (bytes > row.step[k].up_to) continue;
    if (const auto a = possible(row.step[k].algorithm, op, bytes, t)) return *a;
    static std::atomic<uint32_t> told{0};  // once for each operation
    if (k < row.demanded && !(told.fetch_or(1u << static_cast<int>(op)) & 1u << static_cast<int>(op)))
      driver::runtime_log().info(
          "JAL_COLL_ALGO: {} of {} bytes among {} ranks cannot be done by {} here; it goes by the table", name_of(op),
          bytes, t.all.ranks, name_of(row.step[k].algorithm));
  }
  return t.all.slots_only ? Algorithm::kSegments : Algorithm::kDirect;
}

}  // namespace jalapeno::runtime
