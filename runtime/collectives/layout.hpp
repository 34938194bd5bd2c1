// Where the groups of a communicator lie in the device's memory: the same on every rank.
#pragma once
#include <cstdint>
#include <jalapeno_hw/packets.hpp>

#include "communicator.hpp"

namespace jalapeno::runtime {

inline constexpr uint64_t kPairBytes = 512;  // a group of two, and its inbox
inline constexpr uint64_t kLines = 2 * sizeof(hw::FabricLine);
inline constexpr uint64_t kHeader = sizeof(hw::FabricLine);  // in front of what goes between hosts
// Routes of a peer: the group, what goes to it, what comes from it, the ranks of this place; the first and the last
// twice.
inline constexpr uint64_t kKinds = 6, kOfAll = 0, kOutgoing = 1, kIncoming = 2, kOfPlace = 3, kTwin = 4, kPlaceTwin = 5;

struct Communicator::Layout {
  uint64_t ranks, slot_bytes;  // stride of slots
  bool network;                // between hosts every slot begins with its line, and there is a set of them to send from
  uint64_t per_host;           // ranks of each host, if they have several and as many; otherwise 0
  static constexpr uint64_t kControl = 0, kGroup = 64, kPairSlot = (64 << 10) + kHeader;
  static constexpr uint64_t kPairInbox = sizeof(hw::FabricGroup) + 2 * sizeof(hw::FabricPeer);

  // A group of `size` ranks: its block, with the peers and their inboxes behind it, and its slots.
  struct Place {
    uint64_t block, slots, size, slot_bytes;
    uint64_t inbox(uint64_t from) const { return inbox_of(block, size, from); }
    uint64_t slot(uint64_t rank, uint64_t parity) const { return slots + (parity * size + rank) * slot_bytes; }
    uint64_t out_slot(uint64_t peer, uint64_t parity) const { return slot(peer, 2 + parity); }
    uint64_t slots_end(bool out) const { return slot(0, out ? 4 : 2); }
  };
  static uint64_t inbox_of(uint64_t block, uint64_t size, uint64_t from) {
    return block + sizeof(hw::FabricGroup) + size * sizeof(hw::FabricPeer) + from * kLines;
  }
  uint64_t hosts() const { return per_host != 0 ? ranks / per_host : 0; }
  uint64_t twins() const { return network ? ranks : 0; }
  // First the blocks of all groups, one behind the other, ...
  uint64_t local_block() const { return inbox_of(kGroup, ranks, ranks); }
  uint64_t cross_block() const { return inbox_of(local_block(), per_host, per_host); }
  uint64_t cross_twin_block() const { return inbox_of(cross_block(), hosts(), hosts()); }
  uint64_t twin_block() const { return inbox_of(cross_twin_block(), hosts(), hosts()); }
  // The group of this rank and `peer` that carries what goes to the peer, or comes from it.
  uint64_t pair(uint64_t peer, bool outgoing) const {
    return inbox_of(twin_block(), twins(), twins()) + (2 * peer + (outgoing ? 0 : 1)) * kPairBytes;
  }
  // What this rank's device writes for a peer of another host: a pair of lines for each kind of route.
  uint64_t outbox(uint64_t peer, uint64_t kind) const { return pair(ranks, true) + (peer * kKinds + kind) * kLines; }
  // ... then their slots.
  uint64_t slots() const { return (outbox(network ? ranks : 0, 0) + 4095) & ~uint64_t{4095}; }
  Place all() const { return {kGroup, slots(), ranks, slot_bytes}; }
  Place local() const { return {local_block(), all().slots_end(network), per_host, slot_bytes}; }
  Place cross() const { return {cross_block(), local().slots_end(false), hosts(), slot_bytes}; }
  // What goes by the network goes in two lanes.
  Place cross_twin() const { return {cross_twin_block(), cross().slots_end(true), hosts(), slot_bytes}; }
  Place twin() const { return {twin_block(), cross_twin().slots_end(true), twins(), slot_bytes}; }
  uint64_t scratch() const { return twin().slots_end(true); }
  uint64_t scratch_bytes() const { return network ? std::max(hosts() * slot_bytes, kPairSlot) : 0; }
  uint64_t pair_slots(uint64_t peer, bool outgoing, bool out) const {
    return scratch() + scratch_bytes() + ((2 * peer + (outgoing ? 0 : 1)) * 2 + (out ? 1 : 0)) * 4 * kPairSlot;
  }
  static constexpr uint64_t pair_slot(uint64_t slots, uint64_t end, uint64_t parity) {
    return slots + (2 * parity + end) * kPairSlot;
  }
  uint64_t bytes() const { return pair_slots(network ? ranks : 0, true, false); }
};

// What the device knows of a rank, in each group that it is in.
template <class F>
void Communicator::each_peer(F f) const {
  if (block_.bytes == 0) return;  // it was never connected
  const Layout layout = this->layout();
  std::byte* memory = context_->space().aperture(block_).data();
  auto visit = [&](uint64_t block, uint64_t size) {
    auto* peers = reinterpret_cast<hw::FabricPeer*>(memory + block + sizeof(hw::FabricGroup));
    for (uint64_t i = 0; i < size; ++i)
      if (peers[i].number < ranks()) f(peers[i]);
  };
  visit(Layout::kGroup, ranks());
  visit(layout.local_block(), layout.per_host), visit(layout.cross_block(), layout.hosts());
  visit(layout.cross_twin_block(), layout.hosts()), visit(layout.twin_block(), layout.twins());
  for (uint32_t k = 0; k < ranks(); ++k) visit(layout.pair(k, true), 2), visit(layout.pair(k, false), 2);
}

}  // namespace jalapeno::runtime
