// The steps that plans are made of: packets of one group.
#pragma once
#include <algorithm>
#include <cstring>

#include "plan.hpp"

namespace jalapeno::runtime::steps {

inline constexpr uint64_t kClosing = uint64_t{1} << 63;  // in a signature: the exchange that ends an operation

template <class P>
P make(hw::PacketOp op) {
  P p{};
  p.header.op = op;
  return p;
}
template <class P>
void put(Packets& out, const P& p) {
  std::memcpy(&out.emplace_back(), &p, sizeof p);
}

uint64_t wide_element(jalDType type);                       // bytes of what it is reduced in
uint64_t whole_lines(uint64_t elements, uint32_t element);  // elements that fill cache lines: no fewer than asked for

// The group for the k-th of several exchanges of which two are under way: the next is posted before one is awaited.
inline GroupView lane(const GroupView& g, uint64_t k) {
  GroupView l = g;
  if (k % 2 != 0 && hw::raw(g.twin) != 0) l.group = g.twin;
  return l;
}
// The parts of a message in turn: begin(k, at, size) posts one, end(k, at, size) awaits and takes it, one behind.
template <class Begin, class End>
void in_lanes(const GroupView& g, uint64_t total, uint64_t most, Begin begin, End end) {
  const uint64_t parts = (total + most - 1) / most, behind = hw::raw(g.twin) != 0 ? 1 : 0;
  auto part = [&](uint64_t k, auto f) { f(lane(g, k), k * most, std::min(most, total - k * most)); };
  for (uint64_t k = 0; k < parts + behind; ++k) {
    if (k < parts) part(k, begin);
    if (k >= behind) part(k - behind, end);
  }
}

// Only lines: where this rank's operands are.
void post_addresses(const GroupView& g, uint64_t signature, hw::DeviceAddr first, hw::DeviceAddr second, Packets& out);
// Data to every peer's slot for this rank: what peer k gets lies k * stride behind `source`.
void post_data(const GroupView& g, uint64_t signature, hw::DeviceAddr source, uint64_t bytes, uint64_t stride,
               Packets& out);
void await(const GroupView& g, Packets& out);
// Nobody goes on before everybody is done with everybody's memory.
void close(const GroupView& g, uint64_t signature, Packets& out);

// From c.send to c.receive.
hw::ReducePacket reduction(const Call& c, const GroupView& g, uint64_t offset, uint64_t count, uint32_t flags);
hw::MovePacket movement(const Call& c, const GroupView& g, uint64_t bytes, uint64_t stride, uint32_t rank,
                        uint32_t flags);

}  // namespace jalapeno::runtime::steps
