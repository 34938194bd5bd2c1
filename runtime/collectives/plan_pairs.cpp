// Plans that go from pair to pair, for many hosts: recursive doubling and a binomial tree. Each rank writes to one peer
// at a time, log2(n) times, where the exchanges of a group write to all n - 1. Slots carry the data, a slot at a time.
#include <algorithm>

#include "plan_steps.hpp"

namespace jalapeno::runtime {
namespace {

using namespace steps;

// One exchange of a pair: this rank's `bytes` go to the peer's slot, the peer's come into this rank's.
void swap_slots(const GroupView& pair, uint64_t signature, hw::DeviceAddr source, uint64_t bytes, Packets& out) {
  post_data(pair, signature, source, bytes, 0, out);
  await(pair, out);
}

void tree_broadcast(const Call& c, const Topology& t, uint64_t signature, Packets& out) {
  const uint32_t n = t.all.ranks, place = (t.all.rank + n - c.root) % n;
  const uint64_t bytes = c.count * c.element, most = t.pairs.slot_bytes / 64 * 64;
  uint32_t mask = 1;
  while (mask < n && !(place & mask)) mask *= 2;
  hw::DeviceAddr have = c.root == t.all.rank ? c.send : c.receive;
  for (uint64_t at = 0, m; at < bytes; at += m) {
    m = std::min(most, bytes - at);
    if (place != 0) {
      const GroupView from = t.pairs.view((place - mask + c.root) % n, false);
      swap_slots(from, signature, {}, 0, out);
      Call taking = c;
      taking.receive = c.receive + at;
      put(out, movement(taking, from, m, 0, 0, hw::kFromSlots));
    }
    for (uint32_t step = mask / 2; step > 0; step /= 2)
      if (place + step < n) swap_slots(t.pairs.view((place + step + c.root) % n, true), signature, have + at, m, out);
  }
  if (c.root == t.all.rank && c.send != c.receive && bytes > 0) {
    hw::CopyPacket copy = make<hw::CopyPacket>(hw::PacketOp::kCopy);
    copy.source = c.send, copy.destination = c.receive, copy.width_bytes = bytes, copy.height = 1;
    put(out, copy);
  }
}

// Neighbours first, then ever farther: the tree that the numbers follow. n is a power of two.
void doubling(const Call& c, const Topology& t, uint64_t signature, Packets& out) {
  const uint32_t n = t.all.ranks, rank = t.all.rank;
  const uint64_t wide = wide_element(c.type), most = t.pairs.slot_bytes / 64 * 64 / wide;
  for (uint64_t at = 0, m; at < c.count; at += m) {
    m = std::min(most, c.count - at);
    for (uint32_t mask = 1; mask < n; mask *= 2) {
      const bool first = mask == 1, last = 2 * mask == n;
      const GroupView pair = t.pairs.view(rank ^ mask, !(rank & mask));
      Call part = c;
      part.send = first ? c.send + at * c.element : t.pairs.scratch;
      part.receive = last ? c.receive + at * c.element : t.pairs.scratch;
      if (!last && c.reduce == jalAvg) part.reduce = jalSum;
      swap_slots(pair, signature, part.send, m * (first ? c.element : wide), out);
      auto p =
          reduction(part, pair, 0, m,
                    hw::kFromSlots | (first ? 0 : uint32_t{hw::kPartialIn}) | (last ? 0 : uint32_t{hw::kPartialOut}));
      p.divisor = n;
      put(out, p);
    }
  }
}

}  // namespace

bool plans_by_pairs(Algorithm a, CollectiveOp op, const Topology& t) {
  if (!t.pairs.all_by_slots) return false;
  if (a == Algorithm::kTree) return op == CollectiveOp::kBroadcast;
  return op == CollectiveOp::kAllReduce && (t.all.ranks & (t.all.ranks - 1)) == 0;
}

void plan_by_pairs(const Call& c, const Topology& t, Algorithm a, Packets& out) {
  const uint64_t signature = signature_of(c, a);
  a == Algorithm::kTree ? tree_broadcast(c, t, signature, out) : doubling(c, t, signature, out);
}

}  // namespace jalapeno::runtime
