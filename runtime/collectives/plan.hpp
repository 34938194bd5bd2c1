// What a rank's device does for a collective: a list of packets (post, await, move, reduce). Written once per operation
// and algorithm, for every transport the fabric's windows have. Knows addresses; knows no streams and no sockets.
#pragma once
#include <jalapeno/jalapeno.h>

#include <jalapeno_hw/packets.hpp>
#include <optional>
#include <string>
#include <vector>

namespace jalapeno::runtime {

enum class CollectiveOp : uint8_t {
  kAllReduce,
  kReduce,
  kBroadcast,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kAllToAllRanges,
  kSend,
  kReceive,
  kBarrier
};
inline constexpr int kCollectiveOps = 10;
const char* name_of(CollectiveOp op);

enum class Algorithm : uint8_t {
  kOneShot,       // data goes into the peers' slots with the line: one exchange
  kTwoShot,       // each rank reduces its part from everybody's memory (or slots) into everybody's: two exchanges
  kDirect,        // each rank takes what it needs from its peers' memory: two exchanges
  kSegments,      // one shot after the other: some peers are reached by slots only
  kHierarchical,  // each host does its part over its fabric, and only that crosses the network
  kDoubling,      // in pairs, log2(n) times, with ever more in what is exchanged
  kTree           // from each rank that has it to one that has not, log2(n) times
};
const char* name_of(Algorithm a);

// One rank's call, checked.
struct Call {
  CollectiveOp op;
  hw::DeviceAddr send{}, receive{};
  uint64_t count = 0;    // elements, as the API counts them
  uint32_t element = 1;  // bytes
  jalDType type = jalF32;
  jalReduceOp reduce = jalSum;
  uint32_t root = 0;  // or the peer
  hw::DeviceAddr send_ranges{}, receive_ranges{};
};

// The group that a call runs in.
struct GroupView {
  hw::DeviceAddr group;
  uint32_t ranks, rank;
  uint64_t slot_bytes;  // of data
  uint32_t deadline_ms;
  bool slots_only;        // the memory of some peers is out of reach
  hw::DeviceAddr twin{};  // another group of the same ranks, so that two exchanges can be under way; 0: none
};

// Ranks on several hosts, as many on each, those of a host next to each other: this host's, and of each host the one
// with this one's place.
struct Hosts {
  GroupView local, cross;
  hw::DeviceAddr scratch;
  uint64_t scratch_bytes;  // a slot for each host
};
// The groups of this rank and one peer, each way.
struct Pairs {
  hw::DeviceAddr base{};
  uint64_t stride = 0, slot_bytes = 0;
  uint32_t deadline_ms = 0;
  bool all_by_slots = false;  // no rank shares its fabric with another
  hw::DeviceAddr scratch{};   // a slot
  std::vector<bool> relayed;  // by rank: reached by slots
  GroupView view(uint32_t peer, bool outgoing) const;
};
struct Topology {
  GroupView all{};
  std::optional<Hosts> hosts;
  Pairs pairs;
};

// Bytes from which on, between hosts, two exchanges of a part each beat one of the whole.
inline constexpr uint64_t kOneShotBySlots = 32 << 10;

// What all ranks must agree on, in one word, and back in words.
uint64_t signature_of(const Call& call, Algorithm algorithm);
std::string signature_text(uint64_t signature);

using Packets = std::vector<hw::Packet>;
void plan(const Call& call, const Topology& t, Algorithm algorithm, Packets& out);

// Between hosts (plan_hosts.cpp).
bool plans_hierarchically(CollectiveOp op, const Hosts& h);
void plan_hierarchically(const Call& call, const Hosts& h, Packets& out);
void plan_two_shot_by_slots(const Call& call, const GroupView& g, Packets& out);  // all_reduce

// Between many hosts (plan_pairs.cpp).
bool plans_by_pairs(Algorithm a, CollectiveOp op, const Topology& t);
void plan_by_pairs(const Call& call, const Topology& t, Algorithm a, Packets& out);

// A send or receive in the group of its pair, in three steps, so that those of a group can be interleaved.
enum class PairStep { kOpen, kMove, kClose };
void plan_pair(const Call& call, const GroupView& pair, PairStep step, Packets& out);

}  // namespace jalapeno::runtime
