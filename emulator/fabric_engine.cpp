// What a chip does with its peers: lines and data put to them, waits for theirs, moves and reductions of what they
// have. A group's exchanges are numbered; lines and slots are used in turn, which is enough: a rank begins exchange i +
// 2 only after everybody began i + 1, and so has read what belonged to i.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "chip.hpp"
#include "kernels/kernels.hpp"
#include "words.hpp"

namespace jalapeno::emu {
namespace {

using hw::Status;

constexpr uint64_t kPiece = 64 << 10;    // bytes of a reduction that one thread takes
constexpr uint64_t kParallel = 1 << 20;  // from so many on, when there are more threads than ranks
constexpr uint64_t kMostBytes = uint64_t{1} << 46;

unsigned long long ull(uint64_t v) { return v; }

}  // namespace

RemoteContext* Chip::remote_of(uint64_t address) {
  if ((address & hw::kHostWindow) || !(address & hw::kFabricWindow)) return nullptr;
  return windows_[(address >> hw::kVaBits) & (kWindowCount - 1)].remote.get();
}

// Bytes that lie together, ready for many accesses.
std::byte* Chip::reach(Memory& memory, uint64_t address, uint64_t bytes, hw::Access access) {
  std::byte* p = memory.span(address, bytes, access);
  if (p == nullptr) {
    memory.require(address, bytes, access);
    throw Fault(Status::kAddressFault, "%llu bytes at 0x%llx are not one block", ull(bytes), ull(address))
        .at(address, bytes, access);
  }
  if (bytes >= hw::kPageBytes / 8) {
    if (RemoteContext* r = remote_of(address))
      r->populate(p, bytes);
    else if (access == hw::kAccessWrite)
      populate(p, bytes);
  }
  return p;
}

// A pair of lines, used in turn.
hw::FabricLine* Chip::lines_at(Memory& memory, hw::DeviceAddr at, hw::Access access) {
  for (uint64_t k : {0, 1})
    memory.word(hw::raw(at) + k * sizeof(hw::FabricLine), sizeof(hw::FabricLine), access);  // throws, aligned or not
  return reinterpret_cast<hw::FabricLine*>(reach(memory, hw::raw(at), 2 * sizeof(hw::FabricLine), access));
}

Chip::Group Chip::group_of(Queue& queue, hw::DeviceAddr address) {
  Memory& memory = context_memory(queue);
  Context& context = contexts_[queue.context];
  if (context.last_group == nullptr || context.last_group_at != hw::raw(address)) {
    context.last_group = nullptr;
    auto* at = memory.word(hw::raw(address), sizeof(hw::FabricGroup), hw::kAccessWrite);
    GroupPlace& place = context.groups[hw::raw(address)];
    place.group = reinterpret_cast<hw::FabricGroup*>(at);
    context.last_group = &place, context.last_group_at = hw::raw(address);
  }
  GroupPlace& place = *context.last_group;
  hw::FabricGroup* group = place.group;
  Group g{&memory, group, nullptr, nullptr, group->ranks, group->rank, group->sequence};
  if (g.ranks == 0 || g.ranks > hw::kMaxFabricRanks || g.rank >= g.ranks)
    throw Fault(Status::kBadPacket, "group at 0x%llx: rank %u of %u", ull(hw::raw(address)), g.rank, g.ranks);
  if (place.routes.size() != g.ranks) {
    place.peers = reinterpret_cast<hw::FabricPeer*>(
        reach(memory, hw::raw(address) + sizeof(hw::FabricGroup), g.ranks * sizeof(hw::FabricPeer), hw::kAccessWrite));
    place.routes.assign(g.ranks, Route{});
  }
  g.peers = place.peers, g.routes = place.routes.data();
  return g;
}

// Looked up apart: a peer whose context is gone has said what it had to say, and that can still be read here.
hw::FabricLine* Chip::line_from(const Group& g, uint32_t rank, uint64_t sequence) {
  const hw::DeviceAddr inbox = g.peers[rank].inbox;
  Route& r = g.routes[rank];
  if (r.from == nullptr || r.inbox != inbox) r.from = lines_at(*g.memory, inbox, hw::kAccessRead), r.inbox = inbox;
  return r.from + (sequence & 1);
}

hw::FabricControl* Chip::control_of(const Group& g) {
  return reinterpret_cast<hw::FabricControl*>(
      g.memory->word(hw::raw(g.group->control), sizeof(hw::FabricControl), hw::kAccessRead));
}

hw::FabricLine* Chip::line_to(const Group& g, uint32_t rank, uint64_t sequence) {
  const hw::DeviceAddr lines = rank == g.rank ? g.peers[rank].inbox : g.peers[rank].lines;
  Route& r = g.routes[rank];
  if (r.to == nullptr || r.lines != lines) {
    r.to = lines_at(*g.memory, lines, hw::kAccessWrite), r.lines = lines;
    r.remote = rank == g.rank ? nullptr : remote_of(hw::raw(lines));
  }
  return r.to + (sequence & 1);
}

double Chip::fabric_rate() {
  const uint32_t down = links_down_.load(std::memory_order_relaxed);
  const uint32_t up = config_.links - std::min(config_.links, static_cast<uint32_t>(__builtin_popcount(down)));
  if (up == 0) throw Fault(Status::kLinkDown, "none of the %u links of the fabric is up", config_.links);
  return up * config_.link_gbits_per_second / 8;
}

void Chip::charge_fabric(Queue& queue, uint64_t read, uint64_t written, double latencies) {
  // While this chip reads, the others read from it, and its links carry that next to what it writes.
  const double duration = latencies * config_.fabric_latency_ns + static_cast<double>(read + written) / fabric_rate();
  add(counters_.fabric_read, read), add(counters_.fabric_write, written);
  add(counters_.fabric_ns, duration);
  add(counters_.picojoules,
      static_cast<double>(read + written) * (config_.pj_per_fabric_byte + 2 * config_.pj_per_hbm_byte));
  engine(queue, fabric_free_ns_, duration);
}

// Its faults name the group; what a peer's chip does not let this one reach is that peer's loss.
template <class F>
void Chip::within(const Group& g, F f) {
  try {
    f();
  } catch (Fault& fault) {
    const hw::FaultRecord r = fault.record;
    if (static_cast<Status>(r.status) == Status::kAddressFault && remote_of(r.address) != nullptr)
      for (uint32_t k = 0; k < g.ranks; ++k)
        if (hw::raw(g.peers[k].window) == r.address >> hw::kVaBits << hw::kVaBits) {
          fault = Fault(Status::kPeerLost, "%llu bytes at 0x%llx of rank %u are out of reach: its memory is gone",
                        ull(r.bytes), ull(r.address), g.peers[k].number)
                      .at(r.address, r.bytes, static_cast<hw::Access>(r.access));
          fault.record.other = g.peers[k].number;
          break;
        }
    fault.record.cookie = g.group->cookie;
    throw;
  }
}

// Line and data of an exchange to everybody, this rank's own inbox included; also when one of them is out of reach.
void Chip::post_lines(Queue& queue, const Group& g, hw::FabricLine line, const std::byte* data, uint64_t bytes,
                      uint64_t stride) {
  Memory& memory = *g.memory;
  const bool in_line = bytes <= hw::kFabricInlineBytes;
  line.bytes = in_line ? 0 : static_cast<uint32_t>(bytes);
  std::optional<Fault> first;
  bool relayed = false;
  const bool same = in_line && stride == 0 && bytes > 0;  // for everybody
  if (same) std::memcpy(line.data, data, bytes);
  for (uint32_t k = 0; k < g.ranks; ++k) try {
      const uint32_t peer = (g.rank + 1 + k) % g.ranks;  // the own one last
      const hw::FabricPeer& p = g.peers[peer];
      if (bytes > 0 && in_line && !same)
        std::memcpy(line.data, data + peer * stride, bytes);
      else if (!in_line && peer != g.rank)
        memory.write(hw::raw(p.slot) + (line.sequence & 1) * g.group->slot_bytes * g.ranks, data + peer * stride,
                     bytes);
      hw::FabricLine* to = line_to(g, peer, line.sequence);
      std::memcpy(&to->signature, &line.signature, sizeof line - offsetof(hw::FabricLine, signature));
      std::atomic_ref(to->sequence).store(line.sequence, std::memory_order_release);
      relayed |= (p.flags & hw::kFabricRelayed) != 0;
    } catch (Fault& f) {
      if (!first) first = f;
    }
  g.group->sequence = line.sequence;
  store_load_fence();  // the lines, then a look at who sleeps
  if (relayed && std::atomic_ref(control_of(g)->watched).load(std::memory_order_relaxed) == 0)
    queue.dirty = queue.interrupt = true;
  for (uint32_t k = 0; k < g.ranks; ++k)
    if (RemoteContext* r = g.routes[k].remote) r->wake();
  if (first) throw Fault(*first);
}

void Chip::post(Queue& queue, const hw::PostPacket& p) {
  const Group g = group_of(queue, p.group);
  within(g, [&] { post(queue, g, p); });
}

void Chip::post(Queue& queue, const Group& g, const hw::PostPacket& p) {
  if (p.bytes > std::max(g.group->slot_bytes, hw::kFabricInlineBytes) || p.stride > kMostBytes / g.ranks)
    throw Fault(Status::kBadPacket, "post of %llu bytes, %llu apart, into slots of %llu", ull(p.bytes), ull(p.stride),
                ull(g.group->slot_bytes));
  add(counters_.puts, 1);
  if (plan_.due(FaultKind::kLinkError, FaultTrigger::kPut, counters_.puts)) add(counters_.fabric_errors, 1);
  if (plan_.due(FaultKind::kLinkDown, FaultTrigger::kPut, counters_.puts)) {
    links_down_.store(links_down_.load() << 1 | 1);
    add(counters_.fabric_errors, 1);
  }
  const std::byte* data =
      p.bytes == 0 ? nullptr : reach(*g.memory, hw::raw(p.source), p.bytes + p.stride * (g.ranks - 1), hw::kAccessRead);
  const uint64_t put = (p.bytes + sizeof(hw::FabricLine)) * (g.ranks - 1);
  charge_fabric(queue, 0, put, 0);
  hw::FabricLine line{};
  line.sequence = g.sequence + 1, line.signature = p.signature;
  line.address[0] = p.address[0], line.address[1] = p.address[1];
  line.device_ns = static_cast<uint64_t>(queue.clock_ns + config_.fabric_latency_ns);
  post_lines(queue, g, line, data, p.bytes, p.stride);
}

// A queue that failed before its exchange says so: nobody may wait for it.
void Chip::poison_group(Queue& queue, const hw::PostPacket& p, Status status) {
  const Group g = group_of(queue, p.group);
  // Once is enough, and more would overwrite lines that a slow peer still reads.
  if (g.sequence > 0) {
    const hw::FabricLine& own = *line_from(g, g.rank, g.sequence);
    if (own.sequence == g.sequence && own.status != 0) return;
  }
  hw::FabricLine line{};
  line.sequence = g.sequence + 1, line.signature = p.signature, line.status = static_cast<uint32_t>(status);
  line.device_ns = static_cast<uint64_t>(queue.clock_ns);
  post_lines(queue, g, line, nullptr, 0, 0);
}

hw::FabricLine Chip::line_of(const Group& g, uint32_t rank) {
  const hw::FabricLine line = *line_from(g, rank, g.sequence);
  if (line.sequence != g.sequence || line.status != 0) {
    Fault f(Status::kDependencyFailed, "the line of rank %u is of exchange %llu with status %u, expected %llu",
            g.peers[rank].number, ull(line.sequence), line.status, ull(g.sequence));
    f.record.cookie = g.group->cookie, f.record.other = g.peers[rank].number, f.record.value = line.status;
    throw f;
  }
  return line;
}

// What a peer says is an address of its own context: nothing outside the window to it.
uint64_t Chip::posted_address(const Group& g, uint32_t rank, hw::DeviceAddr said, uint64_t offset,
                              uint64_t bytes) const {
  constexpr uint64_t kEnd = uint64_t{1} << hw::kVaBits;
  if (hw::raw(said) >= kEnd || offset >= kEnd - hw::raw(said) || bytes > kEnd - hw::raw(said) - offset)
    throw Fault(Status::kBadPacket, "rank %u told of 0x%llx, with %llu bytes at offset %llu: not in its context",
                g.peers[rank].number, ull(hw::raw(said)), ull(bytes), ull(offset));
  return (rank == g.rank ? 0 : hw::raw(g.peers[rank].window)) + hw::raw(said) + offset;
}

bool Chip::await(Queue& queue, const hw::AwaitPacket& p) {
  const Group g = group_of(queue, p.group);
  auto describe = [&](Fault f) {
    f.record.cookie = g.group->cookie;
    return f;
  };
  if (g.sequence == 0) throw Fault(Status::kBadPacket, "an AWAIT without a POST before it");
  const hw::FabricLine* own = line_from(g, g.rank, g.sequence);
  for (; queue.arrived < g.ranks; ++queue.arrived) {
    const uint32_t rank = (g.rank + queue.arrived) % g.ranks;
    hw::FabricLine* line = line_from(g, rank, g.sequence);
    if (std::atomic_ref(line->sequence).load(std::memory_order_acquire) < g.sequence) break;
    if (line->status != 0) {
      Fault f(Status::kDependencyFailed, "rank %u failed before exchange %llu (status %u)", g.peers[rank].number,
              ull(g.sequence), line->status);
      f.record.value = line->status, f.record.other = g.peers[rank].number;
      throw describe(f);
    }
    if (line->signature != own->signature) {
      Fault f(Status::kMismatch, "rank %u called 0x%016llx, this is rank %u with 0x%016llx", g.peers[rank].number,
              ull(line->signature), g.peers[g.rank].number, ull(own->signature));
      f.record.value = line->signature, f.record.bytes = own->signature, f.record.other = g.peers[rank].number;
      throw describe(f);
    }
    if (const auto there = static_cast<double>(line->device_ns); there > queue.clock_ns) {
      add(counters_.fabric_ns, there - queue.clock_ns);  // communication too, as far as the modelled chip is concerned
      queue.clock_ns = there;
    }
    if (queue.blocked_on_ns != 0) {
      hw::FabricPeer& late = g.peers[rank];
      late.waits += 1, late.waited_ns += host_now_ns() - queue.blocked_on_ns;
      std::atomic_ref(late.waiting).store(0, std::memory_order_relaxed);
      queue.blocked_on_ns = 0;
    }
  }
  if (queue.arrived == g.ranks) {
    queue.arrived = 0, queue.blocked_since_ns = 0, queue.looked = false;
    if (queue.clock_ns > counters_.device_ns.load(std::memory_order_relaxed))
      counters_.device_ns.store(queue.clock_ns, std::memory_order_relaxed);
    return true;
  }
  // Chips that take turns on one thread see at the first look what was posted before, at the second the rest: no clock
  // and no control block for those.
  if (!std::exchange(queue.looked, true)) return false;
  hw::FabricControl* control = control_of(g);
  if (const uint32_t status = std::atomic_ref(control->status).load(std::memory_order_acquire); status != 0) {
    const uint32_t rank = std::atomic_ref(control->rank).load(std::memory_order_relaxed);
    Fault f(static_cast<Status>(status), "exchange %llu was ended by the host, for rank %u", ull(g.sequence), rank);
    f.record.other = rank;
    throw describe(f);
  }
  const uint64_t now = host_now_ns();
  if (queue.blocked_on_ns == 0) {
    queue.blocked_on_ns = now;
    std::atomic_ref(g.peers[(g.rank + queue.arrived) % g.ranks].waiting).store(1, std::memory_order_relaxed);
  }
  if (queue.blocked_since_ns == 0) queue.blocked_since_ns = now;
  if (p.deadline_ms != 0) {
    if (now - queue.blocked_since_ns > uint64_t{p.deadline_ms} * 1'000'000) {
      std::string late;
      uint32_t first = hw::kNoInstruction;
      for (uint32_t r = 0; r < g.ranks; ++r) {
        hw::FabricLine* line = line_from(g, r, g.sequence);
        if (std::atomic_ref(line->sequence).load(std::memory_order_acquire) >= g.sequence) continue;
        if (first == hw::kNoInstruction) first = g.peers[r].number;
        if (late.size() < 40) late += (late.empty() ? "" : ", ") + std::to_string(g.peers[r].number);
      }
      Fault f(Status::kNoAnswer, "no word from rank %s of %u in exchange %llu for %u ms", late.c_str(), g.ranks,
              ull(g.sequence), p.deadline_ms);
      f.record.other = first;
      throw describe(f);
    }
  }
  return false;
}

uint64_t Chip::posted_data(const Group& g, uint32_t rank) const {
  return hw::raw(g.group->slots) + ((g.sequence & 1) * g.ranks + rank) * g.group->slot_bytes;
}

void Chip::move(Queue& queue, const hw::MovePacket& p) {
  const Group g = group_of(queue, p.group);
  within(g, [&] { move(queue, g, p); });
}

void Chip::move(Queue& queue, const Group& g, const hw::MovePacket& p) {
  if (p.bytes > kMostBytes || (p.rank != hw::kAllRanks && p.rank >= g.ranks))
    throw Fault(Status::kBadPacket, "move of %llu bytes from rank %u of %u", ull(p.bytes), p.rank, g.ranks);
  Memory& memory = *g.memory;
  uint64_t fetched = 0;
  auto from = [&](uint32_t rank) {
    uint64_t source = hw::raw(p.source) + p.offset, destination = hw::raw(p.destination) + rank * p.stride,
             bytes = p.bytes;
    if (p.flags & hw::kRanges) {  // each side has a table: what it gives to whom, what it gets from whom
      hw::FabricRange get{}, give{};
      const hw::FabricLine line = line_of(g, rank);
      memory.read(p.offset + rank * sizeof get, &get, sizeof get);
      memory.read(posted_address(g, rank, line.address[1], g.rank * sizeof give, sizeof give), &give, sizeof give);
      if (get.bytes != give.bytes || get.bytes > kMostBytes) {
        Fault f(Status::kMismatch, "rank %u gives %llu bytes, rank %u expects %llu", g.peers[rank].number,
                ull(give.bytes), g.peers[g.rank].number, ull(get.bytes));
        f.record.cookie = g.group->cookie, f.record.other = g.peers[rank].number;
        throw f;
      }
      source = posted_address(g, rank, line.address[0], give.offset, give.bytes);
      destination = hw::raw(p.destination) + get.offset, bytes = get.bytes;
    } else if (rank != g.rank) {
      const hw::FabricLine line = line_of(g, rank);
      if (p.flags & hw::kFromSlots) {
        if (bytes <= hw::kFabricInlineBytes) return memory.write(destination, line.data, bytes);
        source = posted_data(g, rank);
      } else {
        source = posted_address(g, rank, line.address[0], p.offset, bytes);
      }
    }
    if (bytes == 0 || source == destination) return;
    if (rank != g.rank && !(p.flags & hw::kFromSlots)) {
      fetched += bytes;
      (void)reach(*g.memory, source, bytes, hw::kAccessRead);  // brings large parts in at once
    }
    copy_bytes(memory, source, destination, bytes, (p.flags & hw::kStream) != 0);
  };
  if (p.rank != hw::kAllRanks)
    from(p.rank);
  else
    for (uint32_t k = 0; k < g.ranks; ++k) from((g.rank + k) % g.ranks);
  charge_fabric(queue, fetched, 0, fetched > 0 ? 2 : 0);
}

void Chip::reduce(Queue& queue, const hw::ReducePacket& p) {
  const Group g = group_of(queue, p.group);
  within(g, [&] { reduce(queue, g, p); });
}

void Chip::reduce(Queue& queue, const Group& g, const hw::ReducePacket& p) {
  if (hw::element_bytes(p.type) == 0)
    throw Fault(Status::kBadPacket, "element type %u of a reduction", static_cast<uint32_t>(p.type));
  if (p.count > kMostBytes || static_cast<uint32_t>(p.op) > 3 || ((p.flags & hw::kToRoot) && p.rank >= g.ranks))
    throw Fault(Status::kBadPacket, "reduction %u of %llu elements to rank %u of %u", static_cast<uint32_t>(p.op),
                ull(p.count), p.rank, g.ranks);
  if ((p.flags & (hw::kPartialIn | hw::kPartialOut)) && (p.flags & (hw::kToAll | hw::kToRoot)))
    throw Fault(Status::kBadPacket, "reduction with flags 0x%x: partial values go to this rank only", p.flags);
  if (p.count == 0) return;
  const hw::FabricType in = p.flags & hw::kPartialIn ? hw::wide_type(p.type) : p.type,
                       out = p.flags & hw::kPartialOut ? hw::wide_type(p.type) : p.type;
  const uint64_t element = hw::element_bytes(in), bytes = p.count * element, result = p.count * hw::element_bytes(out);
  const bool slots = p.flags & hw::kFromSlots;
  std::vector<const std::byte*>& sources = sources_;
  std::vector<std::byte*>& destinations = destinations_;
  sources.resize(g.ranks), destinations.clear(), inline_.resize(g.ranks);
  uint64_t fetched = 0, put = 0;
  for (uint32_t k = 0; k < g.ranks; ++k) {
    if (k == g.rank) {
      sources[k] = reach(*g.memory, hw::raw(p.source) + (slots ? 0 : p.offset), bytes, hw::kAccessRead);
      if (!(p.flags & hw::kToRoot) || p.rank == k)
        destinations.push_back(reach(*g.memory,
                                     hw::raw(p.destination) + (p.flags & (hw::kToAll | hw::kToRoot) ? p.offset : 0),
                                     result, hw::kAccessWrite));
      continue;
    }
    const hw::FabricLine line = line_of(g, k);
    if (slots && bytes <= hw::kFabricInlineBytes) {
      inline_[k] = {line.data[0], line.data[1]};
      sources[k] = reinterpret_cast<const std::byte*>(inline_[k].data());
    } else if (slots) {
      sources[k] = reach(*g.memory, posted_data(g, k), bytes, hw::kAccessRead);
    } else {
      sources[k] = reach(*g.memory, posted_address(g, k, line.address[0], p.offset, bytes), bytes, hw::kAccessRead);
      fetched += bytes;
    }
    if ((p.flags & hw::kToAll) || ((p.flags & hw::kToRoot) && p.rank == k)) {
      destinations.push_back(
          reach(*g.memory, posted_address(g, k, line.address[1], p.offset, bytes), bytes, hw::kAccessWrite));
      put += bytes;
    }
  }
  CombineArgs args{sources.data(),
                   g.ranks,
                   destinations.data(),
                   static_cast<uint32_t>(destinations.size()),
                   p.count,
                   in,
                   out,
                   p.op,
                   !(p.flags & hw::kAverage) ? 1
                   : p.divisor != 0          ? p.divisor
                                             : g.ranks,
                   (p.flags & hw::kStream) != 0};
  const HostKernels& kernels = kernels_for(options_.precise, !options_.profile.empty());
  if (bytes < kParallel || g.ranks >= std::thread::hardware_concurrency()) {
    kernels.combine(args);
  } else {
    const uint64_t piece = kPiece / element, piece_out = piece * hw::element_bytes(out);
    pool_.run(static_cast<uint32_t>((p.count + piece - 1) / piece), [&](Core&, uint32_t n) {
      std::vector<const std::byte*> from = sources;
      std::vector<std::byte*> to = destinations;
      for (auto& s : from) s += n * kPiece;
      for (auto& d : to) d += n * piece_out;
      CombineArgs part = args;
      part.sources = from.data(), part.destinations = to.data();
      part.count = std::min(piece, p.count - n * piece);
      kernels.combine(part);
    });
  }
  add(counters_.hbm_read, bytes), add(counters_.hbm_write, result);
  charge_fabric(queue, fetched, put, (fetched > 0 ? 2 : 0) + (put > 0 ? 1 : 0));
}

}  // namespace jalapeno::emu
