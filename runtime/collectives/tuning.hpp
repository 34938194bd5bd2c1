// Which algorithm an operation of a size takes: a table, of this library or measured on the machine
// (jalapeno-coll-bench --tune), and what the user demands. Rank 0's holds for all.
#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "plan.hpp"

namespace jalapeno::runtime {

// Where a communicator's ranks are.
enum class Placement : uint8_t { kProcess, kHost, kHosts };
const char* name_of(Placement p);  // "process", "host", "hosts"

// Plain: ranks tell it each other.
class Tuning {
 public:
  // JAL_COLL_ALGO ("two-shot", or "all_reduce:one-shot,broadcast:direct") before the table of the file that
  // JAL_COLL_TUNING names before the library's own. Throws Error naming the word, or the file and the entry.
  static Tuning load(uint32_t ranks, Placement placement);
  // `bytes`: of what one rank sends to one peer.
  Algorithm choose(CollectiveOp op, uint64_t bytes, const Topology& t) const;

 private:
  static constexpr size_t kSteps = 8, kTableSteps = 4;
  struct Step {
    uint64_t up_to;  // bytes
    Algorithm algorithm;
  };
  struct Row {
    uint32_t steps, demanded;  // the first ones are the user's
    Step step[kSteps];
    void add(uint64_t up_to, Algorithm a);
  };
  void demand(const char* words);
  static void check_table(const nlohmann::json& table, const std::function<void(const std::string&)>& wrong);
  void read(const char* file, uint32_t ranks, Placement placement);

  Row rows_[kCollectiveOps]{};
};

}  // namespace jalapeno::runtime
