// Launches that come again: a program with the same arguments and grid in the same address space does the same calls,
// unless they depend on data. The second time they are written down, from the third on only they run. Owns the lists;
// knows nothing of cores and threads. Not thread-safe.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "call_list.hpp"
#include "core.hpp"

namespace jalapeno::emu {

struct LoweredLaunch {
  struct Piece {
    uint32_t instance;  // the first of those in it
    CallList list;
  };
  std::vector<Piece> pieces;
  Tally total;
  double longest = 0;  // the modelled time in which the cores run them all
};

class LoweredLaunches {
 public:
  enum class Way { kInterpret, kRecord, kReplay };
  // What to do with a launch of so many instances. Remembers that it was asked.
  Way way(const Launch& launch, uint32_t count);
  // After kRecord: where to write what each instance does. Together they take no more than may be kept.
  static std::vector<CallList> lists(uint32_t count);
  // After kReplay: what was recorded. After kRecord: keeps a list of each instance, where all are usable, joined to
  // pieces for so many threads.
  const LoweredLaunch& found() const { return *found_; }
  void keep(const Launch& launch, std::vector<CallList>&& instances, const Tally& total, double longest,
            uint32_t threads);
  void clear();  // programs or addresses are others now

 private:
  struct Entry {
    const Program* program = nullptr;
    std::vector<std::byte> arguments;
    std::array<uint32_t, 3> grid{};
    std::unique_ptr<const LoweredLaunch> lowered;  // nullptr: it cannot be
    bool is(const Launch& launch) const;
  };
  std::unordered_map<uint64_t, Entry> entries_;  // by hash; of two with the same one the first stays
  std::vector<uint64_t> seen_;                   // hashes of launches that came once, in buckets: the newest of each
  uint32_t next_seen_ = 0;
  uint64_t hash_ = 0, bytes_ = 0;  // of the launch that was asked for last; of all lists
  const LoweredLaunch* found_ = nullptr;
};

}  // namespace jalapeno::emu
