#include "plan.hpp"

#include <algorithm>

#include "plan_steps.hpp"

namespace jalapeno::runtime {
namespace steps {

uint64_t wide_element(jalDType type) { return hw::element_bytes(hw::wide_type(static_cast<hw::FabricType>(type))); }

uint64_t whole_lines(uint64_t elements, uint32_t element) {
  const uint64_t line = 64 / element;
  return (elements + line - 1) / line * line;
}

void post_addresses(const GroupView& g, uint64_t signature, hw::DeviceAddr first, hw::DeviceAddr second, Packets& out) {
  auto p = make<hw::PostPacket>(hw::PacketOp::kPost);
  p.group = g.group, p.signature = signature;
  p.address[0] = first, p.address[1] = second;
  put(out, p);
}

void post_data(const GroupView& g, uint64_t signature, hw::DeviceAddr source, uint64_t bytes, uint64_t stride,
               Packets& out) {
  auto p = make<hw::PostPacket>(hw::PacketOp::kPost);
  p.group = g.group, p.signature = signature, p.source = source;
  p.bytes = bytes, p.stride = stride;
  put(out, p);
}

void await(const GroupView& g, Packets& out) {
  auto p = make<hw::AwaitPacket>(hw::PacketOp::kAwait);
  p.group = g.group, p.deadline_ms = g.deadline_ms;
  put(out, p);
}

void close(const GroupView& g, uint64_t signature, Packets& out) {
  post_addresses(g, signature | kClosing, {}, {}, out);
  await(g, out);
}

hw::ReducePacket reduction(const Call& c, const GroupView& g, uint64_t offset, uint64_t count, uint32_t flags) {
  auto p = make<hw::ReducePacket>(hw::PacketOp::kReduce);
  p.group = g.group, p.source = c.send, p.destination = c.receive;
  p.offset = offset, p.count = count, p.rank = c.root;
  p.type = static_cast<hw::FabricType>(c.type);
  p.op = c.reduce == jalAvg ? hw::FabricOp::kSum : static_cast<hw::FabricOp>(c.reduce);
  p.flags = flags | (c.reduce == jalAvg ? hw::kAverage : 0u);
  return p;
}

hw::MovePacket movement(const Call& c, const GroupView& g, uint64_t bytes, uint64_t stride, uint32_t rank,
                        uint32_t flags) {
  auto p = make<hw::MovePacket>(hw::PacketOp::kMove);
  p.group = g.group, p.destination = c.receive, p.source = c.send;
  p.bytes = bytes, p.stride = stride, p.rank = rank, p.flags = flags;
  return p;
}

}  // namespace steps

namespace {

using namespace steps;

constexpr const char* kNames[kCollectiveOps] = {"all_reduce", "reduce",     "broadcast", "all_gather", "reduce_scatter",
                                                "all_to_all", "all_to_all", "send",      "receive",    "barrier"};
constexpr const char* kReduceNames[] = {"sum", "prod", "min", "max", "avg"};
constexpr uint64_t kStreamBytes = 8 << 20;  // larger results do not stay in a cache anyway

bool reduces(CollectiveOp op) {
  return op == CollectiveOp::kAllReduce || op == CollectiveOp::kReduce || op == CollectiveOp::kReduceScatter;
}
bool rooted(CollectiveOp op) { return op == CollectiveOp::kReduce || op == CollectiveOp::kBroadcast; }
bool by_pieces(CollectiveOp op) { return op == CollectiveOp::kReduceScatter || op == CollectiveOp::kAllToAll; }

// Elements [begin, begin + count) of each rank's part, which has c.count: what a rank gives, ...
void give(const Call& c, const GroupView& g, Algorithm a, uint64_t begin, uint64_t count, Packets& out) {
  const uint64_t bytes = count * c.element, part = c.count * c.element, at = begin * c.element;
  post_data(g, signature_of(c, a), c.send + at, c.op == CollectiveOp::kBroadcast && c.root != g.rank ? 0 : bytes,
            by_pieces(c.op) ? part : 0, out);
}

// ... and what it takes.
void take(const Call& c, const GroupView& g, uint64_t begin, uint64_t count, Packets& out) {
  const uint64_t bytes = count * c.element, part = c.count * c.element, at = begin * c.element;
  await(g, out);
  if (bytes == 0) return;
  Call own = c;
  own.send = c.send + at + (by_pieces(c.op) ? g.rank * part : 0), own.receive = c.receive + at;
  switch (c.op) {
    case CollectiveOp::kAllReduce:
    case CollectiveOp::kReduceScatter:
      return put(out, reduction(own, g, 0, count, hw::kFromSlots));
    case CollectiveOp::kReduce:
      if (c.root == g.rank) put(out, reduction(own, g, 0, count, hw::kFromSlots));
      return;
    case CollectiveOp::kBroadcast:
      return put(out, movement(own, g, bytes, 0, c.root, hw::kFromSlots));
    case CollectiveOp::kAllGather:
    case CollectiveOp::kAllToAll:
      return put(out, movement(own, g, bytes, part, hw::kAllRanks, hw::kFromSlots));
    default:
      return;
  }
}

void one_shot(const Call& c, const GroupView& g, Packets& out) {
  give(c, g, Algorithm::kOneShot, 0, c.count, out);
  take(c, g, 0, c.count, out);
}

void segments(const Call& c, const GroupView& g, Packets& out) {
  const uint64_t most = g.slot_bytes / 64 * 64 / c.element;
  in_lanes(
      g, std::max<uint64_t>(c.count, 1), most,
      [&](const GroupView& l, uint64_t at, uint64_t n) {
        give(c, l, Algorithm::kSegments, at, std::min(n, c.count - at), out);
      },
      [&](const GroupView& l, uint64_t at, uint64_t n) { take(c, l, at, std::min(n, c.count - at), out); });
}

void from_memory(const Call& c, const GroupView& g, Algorithm a, Packets& out) {
  const uint64_t bytes = c.count * c.element;
  const uint32_t stream = bytes >= kStreamBytes ? uint32_t{hw::kStream} : 0;
  const uint64_t signature = signature_of(c, a);
  post_addresses(g, signature, c.send, c.op == CollectiveOp::kAllToAllRanges ? c.send_ranges : c.receive, out);
  await(g, out);
  switch (c.op) {
    case CollectiveOp::kAllReduce:
    case CollectiveOp::kReduce: {
      // Parts begin on cache lines.
      const uint64_t part = whole_lines((c.count + g.ranks - 1) / g.ranks, c.element);
      const uint64_t begin = std::min(c.count, g.rank * part), count = std::min(part, c.count - begin);
      if (count > 0)
        put(out, reduction(c, g, begin * c.element, count,
                           (c.op == CollectiveOp::kAllReduce ? hw::kToAll : hw::kToRoot) | stream));
      break;
    }
    case CollectiveOp::kReduceScatter:
      if (c.count > 0) put(out, reduction(c, g, g.rank * bytes, c.count, stream));
      break;
    case CollectiveOp::kBroadcast:
      put(out, movement(c, g, bytes, 0, c.root, stream));
      break;
    case CollectiveOp::kAllGather:
      put(out, movement(c, g, bytes, bytes, hw::kAllRanks, stream));
      break;
    case CollectiveOp::kAllToAll: {
      auto m = movement(c, g, bytes, bytes, hw::kAllRanks, stream);
      m.offset = g.rank * bytes;
      put(out, m);
      break;
    }
    case CollectiveOp::kAllToAllRanges: {
      auto m = movement(c, g, 0, 0, hw::kAllRanks, hw::kRanges);
      m.offset = hw::raw(c.receive_ranges);
      put(out, m);
      break;
    }
    default:
      break;
  }
  close(g, signature, out);
}

}  // namespace

const char* name_of(CollectiveOp op) { return kNames[static_cast<int>(op)]; }
const char* name_of(Algorithm a) {
  constexpr const char* kAlgorithms[] = {"one-shot",     "two-shot", "direct", "segments",
                                         "hierarchical", "doubling", "tree"};
  return kAlgorithms[static_cast<int>(a)];
}

// Bit 63: the closing exchange. 60: algorithm, 56: operation, 52: type, 48: reduction, 32: root + 1, 0: count, folded.
uint64_t signature_of(const Call& c, Algorithm algorithm) {
  const bool counted = c.op != CollectiveOp::kBarrier && c.op != CollectiveOp::kAllToAllRanges;
  uint64_t s = uint64_t{static_cast<uint8_t>(c.op == CollectiveOp::kReceive ? CollectiveOp::kSend : c.op)} << 56;
  s |= uint64_t{static_cast<uint8_t>(algorithm)} << 60;
  if (counted) s |= uint64_t{static_cast<uint32_t>(c.type) & 15} << 52;
  if (reduces(c.op)) s |= uint64_t{static_cast<uint32_t>(c.reduce) & 15} << 48;
  if (rooted(c.op)) s |= uint64_t{c.root + 1} << 32;
  if (counted) s |= static_cast<uint32_t>(c.count ^ c.count >> 32);
  return s;
}

std::string signature_text(uint64_t s) {
  const auto op = static_cast<CollectiveOp>(s >> 56 & 15);
  if (static_cast<int>(op) >= kCollectiveOps) return "an unknown operation";
  std::string text = name_of(op);
  if (op == CollectiveOp::kBarrier) return text;
  const auto type = static_cast<uint32_t>(s >> 52 & 15);
  if (op != CollectiveOp::kAllToAllRanges)
    text +=
        " of " + std::to_string(s & 0xFFFFFFFF) + " " + (type < hw::kDTypes ? hw::kDTypeInfo[type].name : "unknown");
  if (reduces(op)) text += std::string(" ") + kReduceNames[std::min<uint64_t>(s >> 48 & 15, 4)];
  if (rooted(op)) text += ", root " + std::to_string((s >> 32 & 0xFFFF) - 1);
  text += std::string(", ") + name_of(static_cast<Algorithm>(std::min<uint64_t>(s >> 60 & 7, 6)));
  if (s >> 63) text += " (closing)";
  return text;
}

void plan(const Call& call, const Topology& t, Algorithm algorithm, Packets& out) {
  const GroupView& g = t.all;
  switch (algorithm) {
    case Algorithm::kOneShot:
      return one_shot(call, g, out);
    case Algorithm::kSegments:
      return segments(call, g, out);
    case Algorithm::kTwoShot:
      if (g.slots_only) return plan_two_shot_by_slots(call, g, out);
      return from_memory(call, g, algorithm, out);
    case Algorithm::kDirect:
      return from_memory(call, g, algorithm, out);
    case Algorithm::kHierarchical:
      return plan_hierarchically(call, *t.hosts, out);
    case Algorithm::kDoubling:
    case Algorithm::kTree:
      return plan_by_pairs(call, t, algorithm, out);
  }
}

GroupView Pairs::view(uint32_t peer, bool outgoing) const {
  return {
      base + (2 * peer + (outgoing ? 0 : 1)) * stride, 2, outgoing ? 0u : 1u, slot_bytes, deadline_ms, relayed[peer]};
}

void plan_pair(const Call& c, const GroupView& pair, PairStep step, Packets& out) {
  const uint64_t bytes = c.count * c.element;
  const uint64_t signature = signature_of(c, pair.slots_only ? Algorithm::kSegments : Algorithm::kDirect);
  switch (step) {
    case PairStep::kOpen:
      if (!pair.slots_only) return post_addresses(pair, signature, c.send, c.receive, out);
      return post_data(pair, signature, c.send, c.op == CollectiveOp::kSend ? bytes : 0, 0, out);
    case PairStep::kMove: {
      await(pair, out);
      if (c.op == CollectiveOp::kReceive && bytes > 0)  // rank 0 of a pair sends
        put(out, movement(c, pair, bytes, 0, 0, pair.slots_only ? uint32_t{hw::kFromSlots} : 0));
      if (pair.slots_only) return;  // the slots are in pairs: the sender may go on
      return post_addresses(pair, signature | kClosing, {}, {}, out);
    }
    case PairStep::kClose:
      if (!pair.slots_only) await(pair, out);
      return;
  }
}

}  // namespace jalapeno::runtime
