// Plans for ranks on several hosts: data crosses the network by slots, and where hosts have several ranks each, every
// host does its part over its fabric first, so that each byte crosses once.
#include <algorithm>

#include "plan_steps.hpp"

namespace jalapeno::runtime {
namespace {

using namespace steps;

constexpr uint64_t kWhole = 4 << 10;  // bytes that every rank carries over the network rather than its share

// Of a reduction that goes on in `g` with what lies at `from`: `count` elements, partial ones, or of the call's type.
struct Operand {
  hw::DeviceAddr from, to;
  bool partial;
  uint32_t divisor;  // for jalAvg
};

hw::ReducePacket by_slots(const Call& c, const GroupView& g, const Operand& x, uint64_t at_from, uint64_t at_to,
                          uint64_t count) {
  Call part = c;
  part.send = x.from + at_from, part.receive = x.to + at_to;
  auto p = reduction(part, g, 0, count, hw::kFromSlots | (x.partial ? uint32_t{hw::kPartialIn} : 0));
  p.divisor = x.divisor;
  return p;
}

// All ranks of g end with the reduction of `count` elements, a slot at a time.
void all_reduce_by_slots(const Call& c, const GroupView& g, uint64_t signature, const Operand& x, uint64_t count,
                         Packets& out) {
  const uint64_t in = x.partial ? wide_element(c.type) : c.element, most = g.slot_bytes / 64 * 64 / in;
  // Each rank reduces a part, then all take the parts; what does not part is left.
  const uint64_t parted = g.ranks > 2 && count * in > kOneShotBySlots ? count / g.ranks * g.ranks : 0;
  in_lanes(
      g, parted, most * g.ranks,
      [&](const GroupView& l, uint64_t at, uint64_t n) {
        post_data(l, signature, x.from + at * in, n / g.ranks * in, n / g.ranks * in, out);
      },
      [&](const GroupView& l, uint64_t at, uint64_t n) {
        const uint64_t each = n / g.ranks, own = at + g.rank * each;
        await(l, out);
        put(out, by_slots(c, l, x, own * in, own * c.element, each));
        post_data(l, signature, x.to + own * c.element, each * c.element, 0, out);
        await(l, out);
        Call taking = c;
        taking.send = x.to + own * c.element, taking.receive = x.to + at * c.element;
        put(out, movement(taking, l, each * c.element, each * c.element, hw::kAllRanks, hw::kFromSlots));
      });
  in_lanes(
      g, count - parted, most,
      [&](const GroupView& l, uint64_t at, uint64_t n) {
        post_data(l, signature, x.from + (parted + at) * in, n * in, 0, out);
      },
      [&](const GroupView& l, uint64_t at, uint64_t n) {
        await(l, out);
        put(out, by_slots(c, l, x, (parted + at) * in, (parted + at) * c.element, n));
      });
}

// What a rank of this host has at `offset` goes to the same offset of `base` here.
void take(const GroupView& local, uint32_t from, hw::DeviceAddr base, uint64_t offset, uint64_t bytes, Packets& out) {
  auto m = make<hw::MovePacket>(hw::PacketOp::kMove);
  m.group = local.group, m.destination = base + offset, m.source = base, m.offset = offset;
  m.bytes = bytes, m.rank = from;
  put(out, m);
}

// What the ranks of this host have, reduced, but neither rounded nor divided.
hw::ReducePacket of_host(const Call& c, const Hosts& h, hw::DeviceAddr to, uint64_t offset, uint64_t count,
                         uint32_t flags) {
  Call part = c;
  part.receive = to, part.reduce = c.reduce == jalAvg ? jalSum : c.reduce;
  return reduction(part, h.local, offset, count, flags | hw::kPartialOut);
}

void all_reduce(const Call& c, const Hosts& h, uint64_t signature, Packets& out) {
  const GroupView &local = h.local, &cross = h.cross;
  const uint64_t wide = wide_element(c.type), most = std::min(h.scratch_bytes, local.slot_bytes) / wide;
  const uint32_t divisor = local.ranks * cross.ranks;
  if (c.count * c.element <= kWhole && c.count <= most) {
    post_data(local, signature, c.send, c.count * c.element, 0, out);
    await(local, out);
    put(out, of_host(c, h, h.scratch, 0, c.count, hw::kFromSlots));
    return all_reduce_by_slots(c, cross, signature, {h.scratch, c.receive, true, divisor}, c.count, out);
  }
  const uint64_t part = whole_lines((c.count + local.ranks - 1) / local.ranks, c.element),
                 begin = std::min(c.count, local.rank * part), end = std::min(c.count, begin + part);
  post_addresses(local, signature, c.send, c.receive, out);
  await(local, out);
  for (uint64_t at = begin, n; at < end; at += n) {
    n = std::min(h.scratch_bytes / wide, end - at);
    put(out, of_host(c, h, h.scratch, at * c.element, n, 0));
    all_reduce_by_slots(c, cross, signature, {h.scratch, c.receive + at * c.element, true, divisor}, n, out);
  }
  post_addresses(local, signature, c.receive, c.receive, out);
  await(local, out);
  for (uint32_t k = 1; k < local.ranks; ++k) {
    const uint32_t from = (local.rank + k) % local.ranks;
    const uint64_t at = std::min(c.count, from * part), n = std::min(c.count, at + part) - at;
    if (n > 0) take(local, from, c.receive, at * c.element, n * c.element, out);
  }
  close(local, signature, out);
}

// The ranks with the root's place reduce what their hosts have, the root what they have.
void reduce(const Call& c, const Hosts& h, uint64_t signature, Packets& out) {
  const GroupView &local = h.local, &cross = h.cross;
  const uint64_t wide = wide_element(c.type), most = cross.slot_bytes / 64 * 64 / wide;
  const uint32_t host = c.root / local.ranks, place = c.root % local.ranks;
  post_addresses(local, signature, c.send, {}, out);
  await(local, out);
  if (local.rank == place)
    for (uint64_t at = 0, n; at < c.count; at += n) {
      n = std::min(most, c.count - at);
      put(out, of_host(c, h, h.scratch, at * c.element, n, 0));
      post_data(cross, signature, h.scratch, cross.rank == host ? 0 : n * wide, 0, out);
      await(cross, out);
      if (cross.rank == host)
        put(out, by_slots(c, cross, {h.scratch, c.receive, true, local.ranks * cross.ranks}, 0, at * c.element, n));
    }
  close(local, signature, out);
}

void reduce_scatter(const Call& c, const Hosts& h, uint64_t signature, Packets& out) {
  const GroupView &local = h.local, &cross = h.cross;
  const uint64_t wide = wide_element(c.type), most = cross.slot_bytes / 64 * 64 / wide;
  post_addresses(local, signature, c.send, c.receive, out);
  await(local, out);
  for (uint64_t at = 0, n; at < c.count; at += n) {
    n = std::min(most, c.count - at);
    for (uint32_t host = 0; host < cross.ranks; ++host) {  // what its rank of this rank's place is to have
      const uint64_t offset = ((host * local.ranks + local.rank) * c.count + at) * c.element;
      put(out, of_host(c, h, h.scratch + host * n * wide, offset, n, 0));
    }
    post_data(cross, signature, h.scratch, n * wide, n * wide, out);
    await(cross, out);
    put(out, by_slots(c, cross, {h.scratch, c.receive, true, local.ranks * cross.ranks}, cross.rank * n * wide,
                      at * c.element, n));
  }
  close(local, signature, out);
}

void all_gather(const Call& c, const Hosts& h, uint64_t signature, Packets& out) {
  const GroupView &local = h.local, &cross = h.cross;
  const uint64_t bytes = c.count * c.element, most = cross.slot_bytes / 64 * 64;
  in_lanes(
      cross, bytes, most,
      [&](const GroupView& l, uint64_t at, uint64_t n) { post_data(l, signature, c.send + at, n, 0, out); },
      [&](const GroupView& l, uint64_t at, uint64_t n) {
        await(l, out);
        Call taking = c;
        taking.send = c.send + at, taking.receive = c.receive + (local.rank * bytes + at);
        put(out, movement(taking, l, n, local.ranks * bytes, hw::kAllRanks, hw::kFromSlots));
      });
  post_addresses(local, signature, c.receive, c.receive, out);
  await(local, out);
  for (uint32_t host = 0; host < cross.ranks && bytes > 0; ++host)
    for (uint32_t k = 1; k < local.ranks; ++k) {
      const uint32_t from = (local.rank + k) % local.ranks;
      take(local, from, c.receive, (host * local.ranks + from) * bytes, bytes, out);
    }
  close(local, signature, out);
}

void broadcast(const Call& c, const Hosts& h, uint64_t signature, Packets& out) {
  const GroupView &local = h.local, &cross = h.cross;
  const uint64_t bytes = c.count * c.element, most = cross.slot_bytes / 64 * 64;
  const uint32_t host = c.root / local.ranks, place = c.root % local.ranks;
  if (local.rank == place)
    in_lanes(
        cross, bytes, most,
        [&](const GroupView& l, uint64_t at, uint64_t n) {
          post_data(l, signature, c.send + at, host == cross.rank ? n : 0, 0, out);
        },
        [&](const GroupView& l, uint64_t at, uint64_t n) {
          await(l, out);
          Call taking = c;
          taking.send = c.send + at, taking.receive = c.receive + at;
          put(out, movement(taking, l, n, 0, host, hw::kFromSlots));
        });
  post_addresses(local, signature, c.receive, c.receive, out);
  await(local, out);
  if (local.rank != place && bytes > 0) take(local, place, c.receive, 0, bytes, out);
  close(local, signature, out);
}

}  // namespace

void plan_two_shot_by_slots(const Call& c, const GroupView& g, Packets& out) {
  const uint64_t signature = signature_of(c, Algorithm::kTwoShot);
  if (c.count == 0) return close(g, signature, out);
  all_reduce_by_slots(c, g, signature, {c.send, c.receive, false, g.ranks}, c.count, out);
}

bool plans_hierarchically(CollectiveOp op, const Hosts& h) {
  switch (op) {
    case CollectiveOp::kAllReduce:
    case CollectiveOp::kReduce:
    case CollectiveOp::kReduceScatter:
      // The tree of a reduction is cut at powers of two: only then is a host's part of it a tree of its own.
      return (h.local.ranks & (h.local.ranks - 1)) == 0;
    case CollectiveOp::kAllGather:
    case CollectiveOp::kBroadcast:
      return true;
    default:
      return false;
  }
}

void plan_hierarchically(const Call& c, const Hosts& h, Packets& out) {
  const uint64_t signature = signature_of(c, Algorithm::kHierarchical);
  switch (c.op) {
    case CollectiveOp::kAllReduce:
      return all_reduce(c, h, signature, out);
    case CollectiveOp::kReduce:
      return reduce(c, h, signature, out);
    case CollectiveOp::kReduceScatter:
      return reduce_scatter(c, h, signature, out);
    case CollectiveOp::kAllGather:
      return all_gather(c, h, signature, out);
    default:
      return broadcast(c, h, signature, out);
  }
}

}  // namespace jalapeno::runtime
