#include "communicator.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <jalapeno_driver/log.hpp>
#include <jalapeno_driver/os.hpp>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "interfaces.hpp"
#include "layout.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {
namespace {

uint64_t next_cookie() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1) | Communicator::kCookieBit;
}

uint64_t mix(uint64_t a, uint64_t b) {
  a ^= b + 0x9E3779B97F4A7C15 + (a << 6) + (a >> 2);
  return a * 0xBF58476D1CE4E5B9;
}

uint32_t from_environment(const char* name, uint32_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == 0) return otherwise;
  char* end = nullptr;
  const unsigned long v = std::strtoul(text, &end, 10);
  if (*end != 0 || v == 0 || v > 86'400'000) invalid(std::string(name) + "=" + text + ": expected milliseconds");
  return static_cast<uint32_t>(v);
}

// What a rank tells the others of its memory and its place in the network.
struct ToldMemory {
  uint64_t base;
  uint32_t rails;
  struct {
    Network::Address address;
    Network::Exposed exposed;
  } rail[Relay::kMostRails];
  Tuning tuning;  // rank 0's holds: what is left to each could differ
};

}  // namespace

Communicator::Layout Communicator::layout() const {
  return {ranks(), slot_stride_, topology_.all.slots_only, topology_.hosts ? topology_.hosts->local.ranks : 0};
}

Communicator::Settings Communicator::settings(const jalCommOptions* options, const std::string& launcher) {
  jalCommOptions o{};
  if (options != nullptr) {
    check_struct(*options, "jalCommOptions");
    o = *options;
  }
  return {o.deadline_ms != 0 ? o.deadline_ms : from_environment("JAL_COLL_DEADLINE_MS", 30'000),
          o.init_timeout_ms != 0 ? o.init_timeout_ms : from_environment("JAL_COLL_INIT_TIMEOUT_MS", 60'000),
          o.grace_ms != 0 ? o.grace_ms : from_environment("JAL_COLL_GRACE_MS", 5'000), launcher};
}

std::shared_ptr<Communicator> Communicator::create(std::shared_ptr<Context> context, std::shared_ptr<Mesh> mesh,
                                                   std::vector<uint32_t> ranks, uint64_t channel,
                                                   const Settings& settings) {
  auto c = std::make_shared<Communicator>(std::move(context), std::move(mesh), std::move(ranks), channel, settings);
  c->connect();
  c->context_->add(c);
  // Called on the mesh's thread, never after leave() in the destructor, and without a share in the communicator: its
  // last owner must not be a thread that the destructor waits for.
  c->mesh_->listen(channel, {[self = c.get()](uint32_t rank, const std::string& evidence) {
                               const uint32_t index = self->index_of(rank);
                               if (index == self->ranks()) return;
                               {
                                 std::lock_guard lock(self->error_mutex_);
                                 if (self->left_.count(index) != 0) return;  // it had said goodbye
                               }
                               self->fail_with(jalErrorPeerLost, index, evidence, true);
                             },
                             [self = c.get()](uint32_t rank, jalError_t code, const std::string& evidence) {
                               self->fail_with(code, rank == UINT32_MAX ? -1 : int64_t{rank}, evidence, false);
                             },
                             [self = c.get()](uint32_t rank, uint64_t calls) {
                               {
                                 std::lock_guard lock(self->error_mutex_);
                                 self->left_.emplace(self->index_of(rank), calls);
                               }
                               self->notice_missing();
                             },
                             [self = c.get()] { return self->standing(); }});
  return c;
}

Communicator::Communicator(std::shared_ptr<Context> context, std::shared_ptr<Mesh> mesh, std::vector<uint32_t> ranks,
                           uint64_t channel, const Settings& settings)
    : context_(std::move(context)),
      mesh_(std::move(mesh)),
      ranks_(std::move(ranks)),
      channel_(channel),
      cookie_(next_cookie()),
      settings_(settings) {
  rank_ = index_of(mesh_->rank());
  char name[24];
  std::snprintf(name, sizeof name, "%llx", static_cast<unsigned long long>(channel_));
  flight_ = std::make_unique<Flight>(name, rank_, this->ranks());
}

Communicator::~Communicator() {
  wait_for_goodbyes();
  bool in_flight = false;
  for (const Fence& f : last_positions())
    if (auto s = f.stream.lock(); s != nullptr && !s->failed() && s->completed() < f.value) in_flight = true;
  if (relay_ != nullptr && !failed_ && !in_flight) relay_->drain(200);
  mesh_->leave(channel_);
  say_goodbye();
  bool idle = true;
  try {
    // What is in flight reads and writes the group's memory. After a failure nothing of it waits for long.
    fail_with(jalErrorCommAborted, rank_, "the communicator was destroyed while operations were in flight", in_flight);
    for (const Fence& f : last_positions())
      if (auto s = f.stream.lock();
          s != nullptr && s->queue().wait(f.value, 2'000'000'000) == driver::WaitResult::kTimeout)
        idle = false;
  } catch (const std::exception&) {
    // The device is lost: nothing runs.
  }
  relay_.reset();
  windows_.clear();
  for (Ranges& r : ranges_) give_back(r.table);
  try {
    if (!idle)
      driver::runtime_log().warn("rank {}: a stream still uses its communicator; {} bytes stay allocated", rank_,
                                 block_.bytes);
    else if (block_.bytes != 0)
      context_->space().free(block_);
  } catch (const std::exception& e) {
    driver::runtime_log().debug("memory of a communicator: {}", e.what());
  }
}

// Up to where the streams that were used may still run operations: of graphs, whatever was launched.
std::vector<Fence> Communicator::last_positions() {
  std::lock_guard lock(mutex_);
  std::vector<Fence> all = fences_;
  for (Fence& f : all)
    if (auto s = f.stream.lock(); s != nullptr && captured_ && !s->capturing()) f.value = s->submitted();
  return all;
}

uint32_t Communicator::index_of(uint32_t world_rank) const {
  return static_cast<uint32_t>(std::find(ranks_.begin(), ranks_.end(), world_rank) - ranks_.begin());
}

std::string Communicator::who(uint32_t rank) const {
  const Member& m = mesh_->members()[ranks_[rank]];
  return "rank " + std::to_string(rank) + " (pid " + std::to_string(m.pid) + " on " + m.name + ")";
}

// What every rank says, `mine.size()` bytes each. A rank that cannot go on tells all the others why, and all fail.
std::vector<Mesh::Blob> Communicator::agree(Mesh::Blob mine, const std::string& trouble) {
  const size_t bytes = mine.size();
  const Mesh::Blob text = Mesh::blob(trouble);
  mine.insert(mine.end(), text.begin(), text.end());
  std::vector<Mesh::Blob> all;
  for (auto& said : mesh_->exchange(channel_, ranks_, mine, settings_.init_timeout_ms)) {
    if (said->size() < bytes)
      runtime::fail(jalErrorVersionMismatch, who(static_cast<uint32_t>(all.size())) + " told of " +
                                                 std::to_string(said->size()) + " bytes, expected " +
                                                 std::to_string(bytes));
    if (said->size() > bytes)
      runtime::fail(jalErrorNotSupported,
                    std::string(reinterpret_cast<const char*>(said->data()) + bytes, said->size() - bytes));
    all.push_back(std::move(*said));
  }
  return all;
}

// Windows to the chips that the fabric reaches; true when that is all of them, for every rank.
bool Communicator::open_windows() {
  const uint32_t n = ranks();
  auto& space = context_->space();
  const driver::FabricKey mine{context_->device().identity().fabric_address, space.fabric_key()};
  const auto chips = agree(blob_of(mine), "");
  const char* wanted = std::getenv("JAL_COLL_TRANSPORT");
  const std::string transport = wanted != nullptr ? wanted : "";
  if (!transport.empty() && transport != "fabric" && transport != "network")
    invalid("JAL_COLL_TRANSPORT=" + transport + ": expected fabric, or network for ranks on other hosts");
  std::string trouble;
  windows_.resize(n);
  Mesh::Blob reached(n, std::byte{1});
  const uint64_t host = mesh_->members()[ranks_[rank_]].host;
  for (uint32_t k = 0; k < n && trouble.empty(); ++k) {
    if (k == rank_) continue;
    const bool other_host = mesh_->members()[ranks_[k]].host != host;
    reached[k] = std::byte{0};
    if (other_host && transport == "network") continue;
    try {
      windows_[k] =
          std::make_unique<driver::Window>(context_->device(), space.context(), from_blob<driver::FabricKey>(chips[k]));
      reached[k] = std::byte{1};
    } catch (const driver::Error& e) {
      if (!other_host || transport == "fabric")
        trouble = "rank " + std::to_string(rank_) + " does not reach the chip of " + who(k) + ": " + e.what();
    }
  }
  // Both ends of a pair must see it the same way, and all ranks must choose the same algorithms.
  const auto everywhere = agree(reached, trouble);
  auto reach = [&](uint32_t i, uint32_t k) {
    return everywhere[i][k] != std::byte{0} && everywhere[k][i] != std::byte{0};
  };
  bool all = true, apart = true;  // the fabrics have no rank in common
  fabrics_.resize(n), relayed_.assign(n, false);
  for (uint32_t i = 0; i < n; ++i) {
    uint32_t first = 0;
    while (!reach(i, first)) ++first;
    fabrics_[i] = first;
  }
  for (uint32_t i = 0; i < n; ++i)
    for (uint32_t k = 0; k < n; ++k) {
      all &= reach(i, k), apart &= reach(i, k) == (fabrics_[i] == fabrics_[k]);
      if (i == rank_) relayed_[k] = !reach(i, k);
    }
  if (!apart) fabrics_.clear();
  for (uint32_t k = 0; k < n; ++k)
    if (relayed_[k]) windows_[k].reset();
  return all;
}

// How many ranks each fabric has, those of one next to each other; 0: it is not so, or each has one. The same on all
// ranks, like what it is made of.
uint32_t Communicator::ranks_per_host() const {
  const uint32_t n = ranks();
  if (fabrics_.empty()) return 0;
  const auto same = [&](uint32_t a, uint32_t b) { return fabrics_[a] == fabrics_[b]; };
  uint32_t m = 1;
  while (m < n && same(0, m)) ++m;
  if (m == 1 || m == n || n % m != 0) return 0;
  for (uint32_t k = 0; k < n; ++k)
    if (!same(k, k / m * m) || (k >= m && same(k, k - m))) return 0;
  return m;
}

Placement Communicator::placement(bool network) const {
  if (network) return Placement::kHosts;
  const auto pid = mesh_->members()[ranks_[0]].pid;
  const bool together =
      std::all_of(ranks_.begin(), ranks_.end(), [&](uint32_t world) { return mesh_->members()[world].pid == pid; });
  return together ? Placement::kProcess : Placement::kHost;
}

void Communicator::connect() {
  const uint32_t n = ranks();
  const bool network = !open_windows();
  const uint32_t per_host = network ? ranks_per_host() : 0;
  const uint64_t data = !network ? (n <= 16 ? 32 << 10 : 8 << 10) : n <= 8 ? 256 << 10 : n <= 16 ? 64 << 10 : 16 << 10;
  const Layout layout{n, data + (network ? kHeader : 0), network, per_host};
  slot_stride_ = layout.slot_bytes;
  auto& space = context_->space();
  block_ = context_->pool().pages_for_host(layout.bytes(), hw::pte::kRead | hw::pte::kWrite);
  std::byte* memory = space.aperture(block_).data();
  std::memset(memory, 0, layout.slots());

  ToldMemory mine{};
  mine.base = hw::raw(block_.address);
  std::vector<std::unique_ptr<Network>> rails;
  std::string trouble;
  std::exception_ptr cause;
  try {
    tuning_ = mine.tuning = Tuning::load(n, placement(network));
  } catch (const Error& e) {
    cause = std::current_exception();
    trouble = "rank " + std::to_string(rank_) + ": " + e.what();
  }
  const auto remote = std::find(relayed_.begin(), relayed_.end(), true);
  if (remote != relayed_.end()) {
    try {
      auto sources = rail_addresses();
      if (sources.size() > Relay::kMostRails)
        invalid("JAL_COLL_RAILS: " + std::to_string(sources.size()) + " interfaces, expected at most " +
                std::to_string(Relay::kMostRails));
      if (sources.empty())
        sources.push_back(mesh_->local_address(ranks_[static_cast<size_t>(remote - relayed_.begin())]));
      for (const std::string& source : sources) {
        auto& told_rail = mine.rail[mine.rails++];
        rails.push_back(std::make_unique<Network>(source));
        told_rail = {rails.back()->address(), rails.back()->expose(memory, block_.bytes)};
      }
    } catch (const Error& e) {
      trouble = "rank " + std::to_string(rank_) + ": " + e.what();
    }
  }
  // Whoever has been told of a rank's memory may post there: it is mapped and its inbox is empty by now.
  const auto told = [&] {
    try {
      return agree(blob_of(mine), trouble);
    } catch (const Error&) {
      if (cause) std::rethrow_exception(cause);  // this rank knows better than what it told
      throw;
    }
  }();
  tuning_ = from_blob<ToldMemory>(told[0]).tuning;

  if (!rails.empty()) {
    for (const auto& t : told)
      if (const auto m = from_blob<ToldMemory>(t); m.rails != 0 && m.rails < rails.size()) rails.resize(m.rails);
    const std::string provider = rails[0]->provider();
    transport_ = "fabric and libfabric " + provider;
    if (rails.size() > 1) transport_ += ", " + std::to_string(rails.size()) + " rails";
    driver::runtime_log().info(
        "rank {} of {}: libfabric provider {} between hosts, {} rails, device memory registered in place", rank_, n,
        provider, rails.size());
  }
  auto at = [&](uint64_t offset) { return block_.address + offset; };
  auto there = [&](uint32_t k, uint64_t offset) {
    const uint64_t window = windows_[k] != nullptr ? hw::raw(windows_[k]->base()) : 0;
    return hw::DeviceAddr{window + from_blob<ToldMemory>(told[k]).base + offset};
  };
  const uint64_t header = network ? kHeader : 0;
  std::vector<Route> routes(rails.empty() ? 0 : n * kKinds);
  for (uint32_t k = 0; k < n; ++k) {
    const auto theirs = from_blob<ToldMemory>(told[k]);
    for (size_t r = 0; r < rails.size() && relayed_[k]; ++r)
      rails[r]->connect(k, theirs.rail[r].address, theirs.rail[r].exposed);
  }
  auto begin_group = [&](uint64_t block, uint64_t size, uint32_t self, uint64_t slots, uint64_t slot_bytes) {
    auto* group = new (memory + block) hw::FabricGroup{};
    group->ranks = static_cast<uint32_t>(size), group->rank = self, group->control = at(Layout::kControl);
    group->cookie = cookie_, group->slots = at(slots + header), group->slot_bytes = slot_bytes;
    return reinterpret_cast<hw::FabricPeer*>(group + 1);
  };
  // Of the ranks whose numbers member(0), member(1), ... are; this one is the one with index `self`.
  auto make_group = [&](const Layout::Place& place, uint32_t self, uint64_t kind, auto member) {
    hw::FabricPeer* peers = begin_group(place.block, place.size, self, place.slots, place.slot_bytes);
    for (uint32_t i = 0; i < place.size; ++i) {
      const uint32_t k = member(i);
      hw::FabricPeer& peer = peers[i];
      peer = {};
      peer.number = k, peer.inbox = at(place.inbox(i));
      if (!relayed_[k]) {
        peer.lines = there(k, place.inbox(self)), peer.slot = there(k, place.slot(self, 0) + header);
        peer.window = windows_[k] != nullptr ? windows_[k]->base() : hw::DeviceAddr{};
        continue;
      }
      peer.flags = hw::kFabricRelayed;
      peer.lines = at(layout.outbox(k, kind)), peer.slot = at(place.out_slot(i, 0) + header);
      routes[k * kKinds + kind] = {k,
                                   layout.outbox(k, kind),
                                   place.inbox(i),
                                   {place.out_slot(i, 0), place.out_slot(i, 1)},
                                   {place.slot(i, 0), place.slot(i, 1)},
                                   {place.slot(self, 0), place.slot(self, 1)},
                                   static_cast<uint32_t>((rank_ * kKinds + kind) * 2),
                                   place.slot_bytes};
    }
  };
  auto view = [&](const Layout::Place& place, uint32_t self, bool slots_only) {
    return GroupView{at(place.block), static_cast<uint32_t>(place.size), self, data, settings_.deadline_ms, slots_only};
  };
  const auto itself = [](uint32_t i) { return i; };
  make_group(layout.all(), rank_, kOfAll, itself);
  topology_.all = view(layout.all(), rank_, network);
  if (network) {
    make_group(layout.twin(), rank_, kTwin, itself);
    topology_.all.twin = at(layout.twin().block);
  }
  if (per_host != 0) {
    const uint32_t host = rank_ / per_host, place = rank_ % per_host;
    const auto of_place = [&](uint32_t i) { return i * per_host + place; };
    make_group(layout.local(), place, kOfAll, [&](uint32_t i) { return host * per_host + i; });
    make_group(layout.cross(), host, kOfPlace, of_place);
    make_group(layout.cross_twin(), host, kPlaceTwin, of_place);
    topology_.hosts = Hosts{view(layout.local(), place, false), view(layout.cross(), host, true), at(layout.scratch()),
                            layout.scratch_bytes()};
    topology_.hosts->cross.twin = at(layout.cross_twin().block);
  }
  topology_.pairs = {at(layout.pair(0, true)),
                     kPairBytes,
                     Layout::kPairSlot - kHeader,
                     settings_.deadline_ms,
                     std::set(fabrics_.begin(), fabrics_.end()).size() == n,
                     at(layout.scratch()),
                     relayed_};
  for (uint32_t k = 0; k < n; ++k)
    for (const bool outgoing : {true, false}) {  // rank 0 of a pair sends
      const uint64_t block = layout.pair(k, outgoing), inbox = block + Layout::kPairInbox;
      const uint32_t self = outgoing ? 0 : 1, other = 1 - self;
      const uint64_t kind = outgoing ? kOutgoing : kIncoming, in = layout.pair_slots(k, outgoing, false),
                     out = layout.pair_slots(k, outgoing, true), theirs = layout.pair_slots(rank_, !outgoing, false);
      const bool relayed = relayed_[k];
      hw::FabricPeer* ends = begin_group(block, 2, self, relayed ? in : 0, relayed ? Layout::kPairSlot : 0);
      for (uint32_t end : {self, other}) {
        ends[end] = {};
        ends[end].number = end == self ? rank_ : k;
        ends[end].inbox = at(inbox + end * kLines);
      }
      if (!relayed) {
        ends[other].lines = there(k, layout.pair(rank_, !outgoing) + Layout::kPairInbox + self * kLines);
        ends[other].window = windows_[k] != nullptr ? windows_[k]->base() : hw::DeviceAddr{};
        continue;
      }
      ends[other].flags = hw::kFabricRelayed;
      ends[other].lines = at(layout.outbox(k, kind)), ends[other].slot = at(Layout::pair_slot(out, self, 0) + kHeader);
      routes[k * kKinds + kind] = {k,
                                   layout.outbox(k, kind),
                                   inbox + other * kLines,
                                   {Layout::pair_slot(out, self, 0), Layout::pair_slot(out, self, 1)},
                                   {Layout::pair_slot(in, other, 0), Layout::pair_slot(in, other, 1)},
                                   {Layout::pair_slot(theirs, self, 0), Layout::pair_slot(theirs, self, 1)},
                                   static_cast<uint32_t>((rank_ * kKinds + (kOutgoing + kIncoming - kind)) * 2),
                                   Layout::kPairSlot};
    }
  if (!rails.empty())
    relay_ = std::make_unique<Relay>(context_->device(), memory, Layout::kControl, std::move(rails), std::move(routes),
                                     [this](int64_t peer, const std::string& text) {
                                       {
                                         std::lock_guard lock(error_mutex_);
                                         if (left_.count(static_cast<uint32_t>(peer)) != 0)
                                           return;  // it had said goodbye
                                       }
                                       fail_with(jalErrorPeerLost, peer, text, true);
                                     });
}

void Communicator::check_usable(const Stream& stream, const Call& call) const {
  if (&stream.context() != context_.get())
    runtime::fail(jalErrorInvalidDevice,
                  std::string(name_of(call.op)) + ": the stream belongs to another device than the communicator");
  std::lock_guard lock(error_mutex_);
  if (error_)
    runtime::fail(error_->code, std::string(name_of(call.op)) + ": the communicator has failed: " + error_->evidence);
  if (finalized_)
    runtime::fail(jalErrorIllegalState, std::string(name_of(call.op)) + ": the communicator was finalized");
  // Whoever has left has done as many operations as it called; with graphs nobody knows how many. A message needs its
  // two ranks only.
  auto gone = left_.end();
  if (call.op == CollectiveOp::kSend || call.op == CollectiveOp::kReceive)
    gone = left_.find(call.root);
  else if (!captured_)
    gone = std::find_if(left_.begin(), left_.end(), [&](const auto& l) { return l.second <= calls_; });
  if (gone != left_.end())
    runtime::fail(jalErrorPeerLost,
                  std::string(name_of(call.op)) + ": " + who(gone->first) + " has left the communicator");
}

// A stream that has failed before takes nothing: the other ranks, who wait for this call, are told.
void Communicator::enqueue(Stream& stream, const Packets& packets, const Call& call) {
  try {
    stream.submit(packets, name_of(call.op));
  } catch (const Error& e) {
    if (stream.failed())
      fail_with(jalErrorDependencyFailed, rank_, std::string("its stream failed before this operation: ") + e.what(),
                true);
    throw;
  }
}

// Two streams may not be in two operations at once: the later one waits for the end of the other's last one.
void Communicator::follow_last(Stream& stream) {
  auto last = last_stream_.lock();
  if (last == nullptr || last.get() == &stream || stream.capturing() || last->failed()) return;
  for (const Fence& f : fences_)
    if (f.stream.lock() == last && last->completed() < f.value)
      stream.wait_for(last->queue().timeline_address(), f.value);
}

// The call is enqueued as a whole.
void Communicator::note(Stream& stream, const Call& call) {
  const bool captured = stream.capturing();
  if (captured) captured_ = true;
  if (call.op != CollectiveOp::kSend && call.op != CollectiveOp::kReceive) {
    ++calls_;
    notice_missing();
  }
  if (call.op == CollectiveOp::kAllToAllRanges)
    for (Ranges& r : ranges_)
      if (r.table.address == call.send_ranges || r.table.address == call.receive_ranges)
        r.used.value = stream.submitted();
  flight_->add(signature_of(call, algorithm(call)), call.count * call.element, stream.queue().number(),
               stream.submitted(), captured);
  last_stream_ = stream.weak_from_this();
  keep_last(fences_, {last_stream_, stream.submitted()});
}

void Communicator::run(Stream& stream, const Call& call) {
  check_usable(stream, call);
  if (call.op == CollectiveOp::kSend || call.op == CollectiveOp::kReceive) {
    const std::pair<Stream*, Call> one{&stream, call};
    return run_pairs({&one, 1});
  }
  std::lock_guard lock(mutex_);
  packets_.clear();
  follow_last(stream);
  plan(call, topology_, algorithm(call), packets_);
  enqueue(stream, packets_, call);
  note(stream, call);
}

void Communicator::run_pairs(std::span<const std::pair<Stream*, Call>> calls) {
  for (const auto& [stream, call] : calls) check_usable(*stream, call);
  std::lock_guard lock(mutex_);
  // All posts, then all moves, then all ends; a second message of a pair begins when the first one is over.
  std::vector<std::pair<Stream*, Call>> left, now, later;
  for (const auto& [stream, call] : calls) {
    // What goes by slots is cut to their size, on both sides alike.
    const GroupView pair = pair_view(call);
    const uint64_t most = pair.slots_only ? pair.slot_bytes / 64 * 64 / call.element : call.count;
    Call piece = call;
    for (uint64_t begin = 0; begin == 0 || begin < call.count; begin += std::max<uint64_t>(most, 1)) {
      piece.count = std::min(most, call.count - begin);
      piece.send = call.send + begin * call.element, piece.receive = call.receive + begin * call.element;
      left.emplace_back(stream, piece);
    }
  }
  while (!left.empty()) {
    std::set<std::pair<uint32_t, bool>> used;
    now.clear(), later.clear();
    for (const auto& c : left)
      (used.emplace(c.second.root, c.second.op == CollectiveOp::kSend).second ? now : later).push_back(c);
    for (const auto& [stream, call] : now) follow_last(*stream);
    for (const PairStep step : {PairStep::kOpen, PairStep::kMove, PairStep::kClose}) {
      // A rank's message to itself must be sent before it is awaited, whatever order the calls came in.
      for (const auto& [stream, call] : now) {
        packets_.clear();
        plan_pair(call, pair_view(call), step, packets_);
        enqueue(*stream, packets_, call);
      }
    }
    for (const auto& [stream, call] : now) note(*stream, call);
    left.swap(later);
  }
}

hw::DeviceAddr Communicator::place_ranges(Stream& stream, const std::vector<hw::FabricRange>& ranges) {
  std::lock_guard lock(mutex_);
  const uint64_t bytes = ranges.size() * sizeof(hw::FabricRange);
  auto free =
      std::find_if(ranges_.begin(), ranges_.end(), [](const Ranges& r) { return !r.captured && r.used.passed(); });
  if (free == ranges_.end() || stream.capturing()) {  // a graph's table is read whenever it runs: it is the graph's
    Ranges r;
    r.memory =
        std::make_unique<driver::DmaMemory>(context_->device().transport(), context_->device().iova_space(), bytes);
    r.table = context_->pool().allocate(bytes, nullptr);
    free = ranges_.insert(ranges_.end(), std::move(r));
  }
  std::memcpy(free->memory->data(), ranges.data(), bytes);
  hw::CopyPacket copy{};
  copy.header.op = hw::PacketOp::kCopy;
  copy.source = free->memory->device_address(), copy.destination = free->table.address;
  copy.width_bytes = bytes, copy.height = 1;
  Packets one(1);
  std::memcpy(one.data(), &copy, sizeof copy);
  stream.submit(one, "all_to_all");
  free->captured = stream.capturing();
  free->used = {stream.weak_from_this(), UINT64_MAX};  // until the call that reads it is enqueued, which says more
  return free->table.address;
}

void Communicator::finalize() {
  for (const Fence& f : last_positions())
    if (auto s = f.stream.lock();
        s != nullptr && !s->capturing() &&
        s->queue().wait(f.value, driver_timeout(default_timeout_ns())) == driver::WaitResult::kTimeout)
      runtime::fail(jalErrorWaitTimeout, "jalCommFinalize: operations are still in flight");
  if (const jalError_t e = error(); e != jalSuccess)
    runtime::fail(e, "jalCommFinalize: " + std::string(record()->evidence));
  if (relay_ != nullptr && !relay_->drain(2'000))
    driver::runtime_log().warn("rank {} of {}: what it wrote for other hosts has not gone out yet", rank_, ranks());
  {
    std::lock_guard lock(error_mutex_);
    if (std::exchange(finalized_, true)) return;
  }
  say_goodbye();
}

// A graph may run operations as often as it likes: then nobody can tell how many there were. Whoever was told of a
// failure and leaves for it tells it on: its goodbye may be there before the first one's news.
void Communicator::say_goodbye() {
  std::optional<jalCommErrorRecord> cause;
  {
    std::lock_guard lock(error_mutex_);
    if (!keep_quiet_) cause = error_;
  }
  if (cause)
    mesh_->tell_failure(channel_, ranks_, cause->rank < 0 ? UINT32_MAX : static_cast<uint32_t>(cause->rank),
                        cause->code, cause->evidence);
  mesh_->say_goodbye(channel_, ranks_, captured_ ? UINT64_MAX : calls_.load());
}

// A host that is still to read what this rank wrote had better find it there; but nobody waits long for a slow one.
void Communicator::wait_for_goodbyes() {
  if (relay_ == nullptr) return;
  for (int turn = 0; turn < 1000; ++turn) {
    {
      std::lock_guard lock(error_mutex_);
      if (!finalized_ || error_) return;
      bool all = true;
      for (uint32_t k = 0; k < ranks(); ++k) all &= !relayed_[k] || left_.count(k) != 0;
      if (all) return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::shared_ptr<Communicator> Communicator::split(int color, int key) {
  if (const jalError_t e = error(); e != jalSuccess)
    runtime::fail(e, "jalCommSplit: the communicator has failed: " + std::string(record()->evidence));
  struct Wish {
    int color, key;
  };
  const auto wishes = mesh_->exchange(channel_, ranks_, blob_of(Wish{color, key}), settings_.init_timeout_ms);
  const uint64_t number = ++splits_;
  if (color < 0) return nullptr;
  std::vector<std::pair<int, uint32_t>> mine;
  for (uint32_t k = 0; k < ranks(); ++k)
    if (const Wish w = from_blob<Wish>(*wishes[k]); w.color == color) mine.emplace_back(w.key, ranks_[k]);
  std::stable_sort(mine.begin(), mine.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<uint32_t> members;
  for (const auto& [k, world] : mine) members.push_back(world);
  return create(context_, mesh_, members, mix(mix(channel_, 2 * number), static_cast<uint64_t>(color)), settings_);
}

// Survivors tell each other whom they count as gone, until all say the same.
std::shared_ptr<Communicator> Communicator::shrink(const std::set<uint32_t>& excluded) {
  if (excluded.count(rank_) != 0) invalid("jalCommShrink: rank " + std::to_string(rank_) + " excludes itself");
  const uint64_t channel = mix(channel_, 2 * ++shrinks_ + 1);
  std::set<uint32_t> gone = excluded;
  for (int round = 0;; ++round) {
    for (uint32_t world : mesh_->lost_ranks())
      if (const uint32_t k = index_of(world); k < ranks()) gone.insert(k);
    {
      std::lock_guard lock(error_mutex_);
      for (const auto& l : left_) gone.insert(l.first);
    }
    std::vector<uint32_t> alive;
    for (uint32_t k = 0; k < ranks(); ++k)
      if (gone.count(k) == 0) alive.push_back(ranks_[k]);
    Mesh::Blob mask(ranks());
    for (uint32_t k : gone) mask[k] = std::byte{1};
    const auto said =
        mesh_->exchange(mix(channel, static_cast<uint64_t>(round)), alive, mask, settings_.init_timeout_ms, true);
    const std::set<uint32_t> before = gone;
    bool equal = true;
    for (const auto& theirs : said) {
      if (!theirs) {
        equal = false;  // lost meanwhile
        continue;
      }
      for (uint32_t k = 0; k < ranks() && k < theirs->size(); ++k)
        if ((*theirs)[k] != std::byte{0}) gone.insert(k);
      equal &= *theirs == mask;
    }
    if (!equal || gone != before) {
      if (round > 100) runtime::fail(jalErrorPeerLost, "jalCommShrink: the ranks do not agree on who is left");
      continue;
    }
    uint64_t id = channel;
    for (uint32_t world : alive) id = mix(id, world);
    return create(context_, mesh_, alive, id, settings_);
  }
}

jalCommInfo Communicator::info() const {
  jalCommInfo i{};
  i.struct_size = sizeof i;
  i.rank = static_cast<int>(rank_), i.ranks = static_cast<int>(ranks());
  std::set<uint64_t> hosts;
  for (uint32_t world : ranks_) hosts.insert(mesh_->members()[world].host);
  i.hosts = static_cast<int>(hosts.size());
  i.fabric_ranks = 1;
  for (const auto& w : windows_) i.fabric_ranks += w != nullptr;
  i.operations = flight_->count();
  i.memory_bytes = block_.bytes;
  copy_text(i.launcher, settings_.launcher);
  copy_text(i.transport, transport_);
  return i;
}

std::string Communicator::dump() {
  using nlohmann::json;
  (void)error();
  std::lock_guard lock(mutex_);
  json j;
  j["rank"] = rank_, j["ranks"] = ranks(), j["pid"] = getpid(), j["file"] = flight_->path();
  {
    std::lock_guard error_lock(error_mutex_);
    j["error"] = error_ ? json{{"code", jalGetErrorName(error_->code)},
                               {"rank", error_->rank},
                               {"host", error_->host},
                               {"pid", error_->pid},
                               {"operation", error_->operation},
                               {"evidence", error_->evidence}}
                        : json();
  }
  j["operations"] = json::array();
  flight_->each([&](Flight::Entry& e) {
    const char* state = e.captured ? "captured" : e.done_ns != 0 ? "done" : "enqueued";
    if (e.done_ns == 0 && !e.captured)
      for (const Fence& f : fences_)
        if (auto s = f.stream.lock(); s != nullptr && s->queue().number() == e.queue && s->completed() >= e.position) {
          e.done_ns = static_cast<uint64_t>(driver::monotonic_ns());
          state = s->failed() ? "failed" : "done";
        }
    j["operations"].push_back({{"number", e.sequence},
                               {"call", signature_text(e.signature)},
                               {"bytes", e.bytes},
                               {"queue", e.queue},
                               {"enqueued_ns", e.enqueued_ns},
                               {"state", state}});
  });
  // Whom this rank's device stood still for, by its own count, in whatever group.
  std::vector<uint64_t> times(ranks()), waited(ranks());
  each_peer([&](hw::FabricPeer& p) {
    times[p.number] += std::atomic_ref(p.waits).load(std::memory_order_relaxed);
    waited[p.number] += std::atomic_ref(p.waited_ns).load(std::memory_order_relaxed);
  });
  j["waited_for"] = json::array();
  for (uint32_t k = 0; k < ranks(); ++k) {
    if (times[k] == 0) continue;
    const Member& m = mesh_->members()[ranks_[k]];
    j["waited_for"].push_back(
        {{"rank", k}, {"host", m.name}, {"pid", m.pid}, {"times", times[k]}, {"total_ns", waited[k]}});
  }
  return j.dump(1);
}

Communicator& communicator_of(jalComm_t comm) { return HandleTable<Communicator>::get(comm); }

}  // namespace jalapeno::runtime
