// The command processor: fetches packets, runs them in the order of their queue, publishes timelines.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <queue>

#include "chip.hpp"
#include "kernels/kernels.hpp"
#include "words.hpp"

namespace jalapeno::emu {
namespace {

using hw::PacketOp;
using hw::Status;

constexpr int kPacketsPerTurn = 64;
constexpr uint64_t kLarge = 256 << 10;  // bytes, of a copy or fill
constexpr int kCallDepth = 1;           // a block may not call

template <class P>
P as(const hw::Packet& packet) {
  P p;
  std::memcpy(&p, &packet, sizeof p);
  return p;
}

// Keeps the first failure, unless its owner has said that it goes on after it.
void poison(hw::Timeline& t, uint64_t value, Status status) {
  std::atomic_ref resume(t.resume_value);
  if (std::atomic_ref(t.status).load(std::memory_order_relaxed) != 0 && resume.load(std::memory_order_relaxed) == 0)
    return;
  std::atomic_ref(t.failed_value).store(value, std::memory_order_relaxed);
  std::atomic_ref(t.status).store(static_cast<uint32_t>(status), std::memory_order_relaxed);
  resume.store(0, std::memory_order_relaxed);
}

}  // namespace

bool Chip::anything_to_fetch() const {
  for (uint32_t q : order_)
    if (std::atomic_ref(doorbell(q).tail).load(std::memory_order_acquire) != queues_[q].head) return true;
  return false;
}

Processor::Turn Chip::turn() {
  Turn t;
  while (control_waiting_.load(std::memory_order_relaxed) != 0) sched_yield();  // the mutex is not fair
  {
    std::lock_guard lock(mutex_);
    if (uint64_t now = host_epoch_.load(); now != host_memory_epoch_) {
      host_map_ = memory_.host_map(), host_memory_ = Memory(host_map_.get());
      host_memory_epoch_ = now;
    }
    for (size_t k = 0; k < order_.size(); ++k) {
      if (k > 0 && control_waiting_.load() != 0) {
        t.progress = true;  // those behind have their turn next
        break;
      }
      const uint32_t q = order_[k];
      const Step step = advance(q);
      t.progress |= step == Step::kProgress, t.blocked |= step == Step::kBlocked;
      if (queues_[q].dirty) finish_turn(q, queues_[q]);
    }
  }
  heartbeat_.fetch_add(1, std::memory_order_relaxed);
  return t;
}

Chip::Step Chip::advance(uint32_t q) {
  Queue& queue = queues_[q];
  const uint64_t tail = std::atomic_ref(doorbell(q).tail).load(std::memory_order_acquire);
  if (tail == queue.head) return Step::kIdle;
  const uint64_t entries = uint64_t{1} << queue.ring_log2;
  queue.clock_ns = std::max(queue.clock_ns, idle_floor_ns_);
  // Once for up to kPacketsPerTurn packets: a peer that withdraws its memory keeps it mapped as long.
  if (Context& c = contexts_[queue.context]; c.map != nullptr && !windows_current(c)) c.map = nullptr;
  try {
    if (tail - queue.head > entries)
      throw Fault(Status::kBadPacket, "doorbell %llu is more than %llu packets ahead of %llu",
                  static_cast<unsigned long long>(tail), static_cast<unsigned long long>(entries),
                  static_cast<unsigned long long>(queue.head));
    for (int turn = 0; turn < kPacketsPerTurn && queue.head != tail; ++turn) {
      if (turn > 0 && control_waiting_.load() != 0) return Step::kProgress;
      hw::Packet packet;  // a private copy: what was checked is what runs
      if (queue.called) {
        context_memory(queue).read(queue.block + queue.block_position * sizeof packet, &packet, sizeof packet);
        if (packet.header.sequence != static_cast<uint32_t>(queue.block_position))
          throw Fault(Status::kBadPacket, "packet %llu of the block has sequence %u",
                      static_cast<unsigned long long>(queue.block_position), packet.header.sequence);
      } else {
        host_memory_.read((queue.ring + (queue.head & (entries - 1)) * sizeof packet) | hw::kHostWindow, &packet,
                          sizeof packet);
        if (packet.header.sequence != static_cast<uint32_t>(queue.head))
          throw Fault(Status::kBadPacket, "packet %llu has sequence %u", static_cast<unsigned long long>(queue.head),
                      packet.header.sequence);
      }
      if (queue.state == hw::kQueueStateFailed) {
        discard(queue, packet);
      } else {
        if (!run_packet(queue, packet)) return turn > 0 ? Step::kProgress : Step::kBlocked;
        add(counters_.packets, 1);
        if (packet.header.flags & hw::kPacketInterrupt) queue.interrupt = true;
        if (queue.called && packet.header.op == PacketOp::kCall) continue;  // just entered: its packets come first
        if (queue.called) {
          if (++queue.block_position < queue.block_count) continue;
          queue.called = false;
        }
      }
      ++queue.head;
      // The last packet of all: whoever submits after this has seen, or could have seen, everything that is done, so
      // that its work starts later in modelled time too. Looked at before the host can see it and submit more.
      if (queue.head == tail && !anything_to_fetch())
        idle_floor_ns_ = counters_.device_ns.load(std::memory_order_relaxed);
      publish(queue, queue.head);
    }
  } catch (Fault& f) {
    fail(q, f);
  }
  return Step::kProgress;
}

Memory& Chip::context_memory(Queue& queue) {
  Context& c = contexts_[queue.context];
  if (!c.enabled) throw Fault(Status::kBadPacket, "context %u of the queue is not enabled", queue.context);
  if (std::atomic<bool>& stale = stale_[queue.context];
      stale.load(std::memory_order_relaxed) && stale.exchange(false, std::memory_order_acquire)) {
    c.map.reset();
    c.programs.clear(), c.last = nullptr;
    c.lowered.clear();
  }
  const uint64_t epoch = host_epoch_.load();
  if (c.map == nullptr || c.epoch != epoch) {
    std::vector<MemorySystem::Window> windows;
    c.seen.clear();
    for (uint32_t w = 0; w < kWindowCount; ++w) {
      const auto& remote = windows_[w].remote;
      if (remote == nullptr || windows_[w].context != queue.context) continue;
      c.seen.push_back({remote, remote->generation()});  // before the table is walked: a later change shows
      if (remote->exported()) windows.push_back({hw::raw(hw::window_base(w)), remote->hbm(), remote->root()});
    }
    c.map = memory_.build(c.root, windows), c.epoch = epoch;
    c.memory = Memory(c.map.get());
    c.lowered.clear();
    c.groups.clear();
    c.last_group = nullptr;
  }
  return c.memory;
}

void Chip::engine(Queue& queue, double& engine_free, double duration) {
  queue.clock_ns = engine_free = std::max(queue.clock_ns, engine_free) + duration;
  if (queue.clock_ns > counters_.device_ns.load(std::memory_order_relaxed))
    counters_.device_ns.store(queue.clock_ns, std::memory_order_relaxed);
}

bool Chip::run_packet(Queue& queue, const hw::Packet& packet) {
  if (!plan_.empty()) {
    const uint64_t nth = counters_.packets + 1;
    if (plan_.due(FaultKind::kEccCorrected, FaultTrigger::kPacket, nth)) add(counters_.ecc_corrected, 1);
    if (plan_.due(FaultKind::kFatal, FaultTrigger::kPacket, nth)) {
      health_.store(hw::kHealthFatal);
      raise(kQueueCount);
    }
  }
  if (health_.load(std::memory_order_relaxed) & hw::kHealthFatal) return false;  // a dead chip does nothing
  if (packet.header.op != PacketOp::kLaunch && packet.header.op != PacketOp::kCopy &&
      packet.header.op != PacketOp::kWait && packet.header.op != PacketOp::kAwait)
    queue.clock_ns += config_.packet_ns;
  switch (packet.header.op) {
    case PacketOp::kNop:
    case PacketOp::kBarrier:
      return true;  // one queue runs in order: what is before is done
    case PacketOp::kLaunch:
      launch(queue, as<hw::LaunchPacket>(packet));
      return true;
    case PacketOp::kCopy:
      copy(queue, as<hw::CopyPacket>(packet));
      return true;
    case PacketOp::kCopyBatch: {
      const auto p = as<hw::CopyBatchPacket>(packet);
      if (p.count > 1u << 20)
        throw Fault(Status::kBadPacket, "a batch of %llu copies", static_cast<unsigned long long>(p.count));
      for (uint64_t k = 0; k < p.count; ++k) {
        hw::CopyDescriptor d;
        context_memory(queue).read(hw::raw(p.list) + k * sizeof d, &d, sizeof d);
        copy_bytes(context_memory(queue), hw::raw(d.source), hw::raw(d.destination), d.bytes);
        charge_copy(queue, d.bytes, hw::is_host(d.source) || hw::is_host(d.destination));
      }
      return true;
    }
    case PacketOp::kFill: {
      const auto p = as<hw::FillPacket>(packet);
      const uint64_t n = p.pattern_bytes;
      if ((n != 1 && n != 2 && n != 4) || hw::raw(p.destination) % n != 0 || p.bytes % n != 0)
        throw Fault(Status::kBadPacket, "fill of %llu bytes at 0x%llx with a pattern of %u",
                    static_cast<unsigned long long>(p.bytes), static_cast<unsigned long long>(hw::raw(p.destination)),
                    p.pattern_bytes);
      context_memory(queue).each(
          hw::raw(p.destination), p.bytes, hw::kAccessWrite, [&](std::byte* at, uint64_t bytes, uint64_t) {
            if (bytes >= kLarge) populate(at, bytes);
            if (n == 1)
              std::memset(at, static_cast<int>(p.pattern & 255), bytes);
            else if (n == 2)
              std::fill_n(reinterpret_cast<uint16_t*>(at), bytes / 2, static_cast<uint16_t>(p.pattern));
            else
              std::fill_n(reinterpret_cast<uint32_t*>(at), bytes / 4, p.pattern);
          });
      charge_copy(queue, p.bytes, hw::is_host(p.destination));
      return true;
    }
    case PacketOp::kWait:
      return wait(queue, as<hw::TimelinePacket>(packet));
    case PacketOp::kSignal: {
      const auto p = as<hw::TimelinePacket>(packet);
      signal(queue, hw::raw(p.timeline), p.value, Status::kOk);
      return true;
    }
    case PacketOp::kTimestamp: {
      hw::Timestamp t{static_cast<uint64_t>(queue.clock_ns), host_now_ns()};
      context_memory(queue).write(hw::raw(as<hw::TimestampPacket>(packet).destination), &t, sizeof t);
      return true;
    }
    case PacketOp::kCall: {
      const auto p = as<hw::CallPacket>(packet);
      if (queue.called) throw Fault(Status::kBadPacket, "CALL inside a called block");
      if (p.count == 0) return true;
      if (p.count > 1u << 20 || hw::raw(p.block) % 64 != 0)
        throw Fault(Status::kBadPacket, "CALL of %llu packets at 0x%llx", static_cast<unsigned long long>(p.count),
                    static_cast<unsigned long long>(hw::raw(p.block)));
      queue.called = true;
      queue.block = hw::raw(p.block), queue.block_count = p.count, queue.block_position = 0;
      return true;
    }
    case PacketOp::kPost:
      post(queue, as<hw::PostPacket>(packet));
      return true;
    case PacketOp::kAwait:
      return await(queue, as<hw::AwaitPacket>(packet));
    case PacketOp::kMove:
      move(queue, as<hw::MovePacket>(packet));
      return true;
    case PacketOp::kReduce:
      reduce(queue, as<hw::ReducePacket>(packet));
      return true;
  }
  throw Fault(Status::kBadPacket, "unknown packet opcode %u", static_cast<uint32_t>(packet.header.op))
      .value(static_cast<uint64_t>(packet.header.op));
}

// What the plan has for the nth launch. Throws Fault.
void Chip::inject_faults(const hw::LaunchPacket& packet, uint64_t nth) {
  const uint32_t watchdog_ms = launch_.watchdog_ms;
  if (plan_.due(FaultKind::kEccUncorrectable, FaultTrigger::kLaunch, nth)) {
    add(counters_.ecc_uncorrected, 1);
    throw Fault(Status::kEccUncorrectable, "uncorrectable ECC error while launch %llu read HBM",
                static_cast<unsigned long long>(nth))
        .at(hw::raw(packet.code), 32, hw::kAccessRead);
  }
  if (plan_.due(FaultKind::kEccCorrected, FaultTrigger::kLaunch, nth)) add(counters_.ecc_corrected, 1);
  if (plan_.due(FaultKind::kHang, FaultTrigger::kLaunch, nth)) {
    const uint64_t end = host_now_ns() + uint64_t{watchdog_ms} * 1'000'000;
    while (host_now_ns() < end && !stop_.load()) usleep(1000);
    throw Fault(Status::kWatchdog, "the core made no progress for %u ms", watchdog_ms).value(watchdog_ms);
  }
}

void Chip::launch(Queue& queue, const hw::LaunchPacket& packet) {
  auto annotate = [&](Fault f) {
    f.record.cookie = packet.cookie;
    return f;
  };
  const uint64_t nth = counters_.launches + 1;
  add(counters_.launches, 1);
  try {
    const uint64_t count = uint64_t{packet.grid[0]} * packet.grid[1] * packet.grid[2];
    if (packet.grid[0] == 0 || packet.grid[1] == 0 || packet.grid[2] == 0 || packet.grid[0] > 1u << 24 ||
        packet.grid[1] > 1u << 16 || packet.grid[2] > 1u << 16 || count > 1u << 24)
      throw Fault(Status::kBadPacket, "grid %u x %u x %u", packet.grid[0], packet.grid[1], packet.grid[2]);
    if (packet.argument_bytes > hw::kArgumentBytes || packet.instructions == 0 || packet.instructions > 1u << 20)
      throw Fault(Status::kBadPacket, "launch with %u argument bytes and %u instructions", packet.argument_bytes,
                  packet.instructions);

    Launch& l = launch_;  // 4 KiB of arguments: reused
    Memory& memory = context_memory(queue);
    Context& context = contexts_[queue.context];
    l.map = context.map.get();
    if (packet.argument_bytes > 0) memory.read(hw::raw(packet.arguments), l.arguments.data(), packet.argument_bytes);
    l.argument_bytes = packet.argument_bytes;
    const Program& program = program_of(context, packet);
    l.program = &program;
    std::copy(packet.grid, packet.grid + 3, l.grid.begin());
    l.watchdog_ms = packet.deadline_ms != 0 ? packet.deadline_ms : options_.watchdog_ms;
    stop_.store(false, std::memory_order_relaxed);
    struct Running {
      std::atomic<uint32_t>& queue;
      ~Running() { queue.store(kQueueCount); }
    } running{running_queue_};
    running_queue_.store(static_cast<uint32_t>(&queue - queues_.data()));
    end_unwanted();
    l.stop = &stop_;
    l.active_cores = static_cast<uint32_t>(std::min<uint64_t>(count, config_.cores));

    if (!plan_.empty()) inject_faults(packet, nth);
    const Done done = run_instances(context.lowered, l, static_cast<uint32_t>(count));
    const Tally& total = *done.total;
    add(counters_.instances, count);
    add(counters_.instructions, total.instructions);
    add(counters_.hbm_read, total.hbm_read), add(counters_.hbm_write, total.hbm_write),
        add(counters_.host_bytes, total.host_bytes);
    add(counters_.matrix_ns, total.matrix_ns), add(counters_.vector_ns, total.vector_ns),
        add(counters_.dma_ns, total.dma_ns);
    add(counters_.cores_ns, total.duration_ns), add(counters_.picojoules, total.picojoules);
    // HBM's rate bounds the instances all together.
    const uint64_t moved = total.hbm_read + total.hbm_write;
    const double bandwidth = moved == 0 ? 0 : static_cast<double>(moved) / config_.hbm_gbytes_per_second;
    engine(queue, compute_free_ns_, config_.launch_ns + std::max(done.longest, bandwidth));
  } catch (Fault& f) {
    throw annotate(f);
  }
}

const Program& Chip::program_of(Context& context, const hw::LaunchPacket& packet) {
  if (context.last != nullptr && context.last_code == hw::raw(packet.code) &&
      context.last->steps.size() == packet.instructions)
    return *context.last;
  auto& program = context.programs[hw::raw(packet.code)];
  if (program == nullptr || program->steps.size() != packet.instructions) {
    if (program != nullptr) context.lowered.clear();  // it names the old one
    std::vector<hw::Instruction> code(packet.instructions);
    context.memory.read(hw::raw(packet.code), code.data(), code.size() * sizeof(hw::Instruction), hw::kAccessExecute);
    program = std::make_unique<const Program>(prepare(code.data(), packet.instructions));
  }
  context.last = program.get(), context.last_code = hw::raw(packet.code);
  return *program;
}

Chip::Done Chip::run_instances(LoweredLaunches& lowered, Launch& l, uint32_t count) {
  if (options_.profile.empty()) return run_untimed(lowered, l, count);
  const uint64_t begin = host_now_ns();
  const Done done = run_untimed(lowered, l, count);
  count_launch(host_now_ns() - begin);
  return done;
}

Chip::Done Chip::run_untimed(LoweredLaunches& lowered, Launch& l, uint32_t count) {
  using Way = LoweredLaunches::Way;
  const Way way = lowers_ ? lowered.way(l, count) : Way::kInterpret;
  if (count == 1 && way == Way::kInterpret) {  // nothing to share: no lock, no clock
    const Tally& t = pool_.first().run(l, {0, 0, 0});
    return {&t, t.duration_ns};
  }
  const auto pid = [&l](uint32_t index) {
    const uint32_t gx = l.grid[0], gy = l.grid[1];
    return std::array<uint32_t, 3>{index % gx, index / gx % gy, index / gx / gy};
  };
  std::mutex merge;
  std::atomic<uint64_t> failed_index{~uint64_t{0}};
  std::unique_ptr<Fault> first;
  const auto failed = [&](uint32_t index, const Fault& f) {
    std::lock_guard lock(merge);
    if (index < failed_index.load()) failed_index.store(index), first = std::make_unique<Fault>(f);
  };
  // All turns on all threads. Those of one x stay on one thread, whose caches have their weights; the last ones are
  // given out singly, so that the threads end together.
  const auto each_turn = [&](const auto& work) {
    const uint32_t column = l.grid[1], columns = count / column, singly = 2 * pool_.threads(),
                   together = column > 1 && columns > singly ? columns - singly : 0;
    pool_.run(together + (count - together * column), [&](Core& core, uint32_t k) {
      const uint32_t begin = k < together ? k * column : together * (column - 1) + k;
      for (uint32_t turn = begin; turn < begin + (k < together ? column : 1); ++turn) work(core, turn);
    });
  };
  if (way == Way::kReplay) {
    const LoweredLaunch& known = lowered.found();
    const auto work = [&](Core& core, uint32_t k) {
      const LoweredLaunch::Piece& piece = known.pieces[k];
      if (piece.instance < failed_index.load(std::memory_order_relaxed)) try {
          core.replay(l, pid(piece.instance), piece.list);
        } catch (Fault& f) {
          failed(piece.instance, f);
        }
    };
    const auto pieces = static_cast<uint32_t>(known.pieces.size());
    pieces == count ? each_turn(work) : pool_.run(pieces, work);
    if (first != nullptr) throw Fault(*first);
    return {&known.total, known.longest};
  }
  durations_.resize(count);
  std::vector<CallList> lists = way == Way::kRecord ? LoweredLaunches::lists(count) : std::vector<CallList>();
  total_ = {};
  each_turn([&](Core& core, uint32_t turn) {
    const uint32_t index = l.instance_at(turn);
    if (index > failed_index.load(std::memory_order_relaxed)) return;  // the launch failed before this instance
    try {
      const Tally& t = core.run(l, pid(index), lists.empty() ? nullptr : &lists[index]);
      durations_[index] = t.duration_ns;
      std::lock_guard lock(merge);
      total_ += t;
    } catch (Fault& f) {
      failed(index, f);
    }
  });
  if (first != nullptr) throw Fault(*first);
  const Done done{&total_, makespan(count)};
  if (way == Way::kRecord) lowered.keep(l, std::move(lists), total_, done.longest, pool_.threads());
  return done;
}

// Instances go to the core that is free first.
double Chip::makespan(uint32_t count) {
  if (count <= config_.cores) return *std::max_element(durations_.begin(), durations_.end());
  std::priority_queue<double, std::vector<double>, std::greater<>> cores(std::greater<>{},
                                                                         std::vector<double>(config_.cores, 0.0));
  double longest = 0;
  for (double d : durations_) {
    const double end = cores.top() + d;
    cores.pop();
    cores.push(end);
    longest = std::max(longest, end);
  }
  return longest;
}

void Chip::populate(std::byte* at, uint64_t bytes) {
  const auto pages = memory_.hbm().missing_pages(at, bytes);
  if (pages.empty()) return;
  pool_.run(static_cast<uint32_t>(pages.size()), [&](Core&, uint32_t k) { Populated::bring_in(pages[k]); });
}

void Chip::copy_bytes(Memory& memory, uint64_t source, uint64_t destination, uint64_t bytes, bool around_caches) {
  if (bytes == 0) return;
  const auto large = around_caches ? host_kernels().copy_around_caches
                                   : [](const std::byte* from, size_t n, std::byte* to) { std::memcpy(to, from, n); };
  Memory other = memory;
  memory.each(source, bytes, hw::kAccessRead, [&](std::byte* from, uint64_t n, uint64_t at) {
    other.each(destination + at, n, hw::kAccessWrite, [&](std::byte* to, uint64_t m, uint64_t inner) {
      constexpr uint64_t kPiece = 1 << 20;
      const std::byte* begin = from + inner;
      if (m >= kLarge) populate(to, m);
      if ((m < 2 * kPiece && !around_caches) || (begin < to + m && to < begin + m)) {
        std::memmove(to, begin, m);
        return;
      }
      pool_.run(static_cast<uint32_t>((m + kPiece - 1) / kPiece), [&](Core&, uint32_t k) {
        large(begin + k * kPiece, std::min(kPiece, m - k * kPiece), to + k * kPiece);
      });
    });
  });
}

void Chip::charge_copy(Queue& queue, uint64_t bytes, bool host) {
  const double rate = host ? std::min(config_.host_gbytes_per_second, config_.hbm_gbytes_per_second)
                           : config_.hbm_gbytes_per_second / 2;
  const double duration = (host ? config_.host_latency_ns : config_.hbm_latency_ns) + static_cast<double>(bytes) / rate;
  add(host ? counters_.host_bytes : counters_.hbm_read, bytes);
  add(counters_.hbm_write, bytes);
  add(counters_.copy_ns, duration);
  add(counters_.picojoules, static_cast<double>(bytes) * (host ? config_.pj_per_host_byte + config_.pj_per_hbm_byte
                                                               : 2 * config_.pj_per_hbm_byte));
  engine(queue, copy_free_ns_, duration);
}

void Chip::copy(Queue& queue, const hw::CopyPacket& p) {
  if (p.height > 1u << 24 || (p.height > 1 && (p.source_pitch < p.width_bytes || p.destination_pitch < p.width_bytes)))
    throw Fault(Status::kBadPacket, "copy of %llu rows of %llu bytes with pitches %llu and %llu",
                static_cast<unsigned long long>(p.height), static_cast<unsigned long long>(p.width_bytes),
                static_cast<unsigned long long>(p.source_pitch), static_cast<unsigned long long>(p.destination_pitch));
  Memory& memory = context_memory(queue);
  for (uint64_t r = 0; r < p.height; ++r)
    copy_bytes(memory, hw::raw(p.source) + r * p.source_pitch, hw::raw(p.destination) + r * p.destination_pitch,
               p.width_bytes);
  const bool fetch = remote_of(hw::raw(p.source)) != nullptr, put = remote_of(hw::raw(p.destination)) != nullptr;
  const uint64_t bytes = p.width_bytes * p.height;
  if (fetch || put) return charge_fabric(queue, fetch ? bytes : 0, put ? bytes : 0, fetch ? 2 : 1);
  charge_copy(queue, bytes, hw::is_host(p.source) || hw::is_host(p.destination));
}

bool Chip::wait(Queue& queue, const hw::TimelinePacket& p) {
  auto* t = reinterpret_cast<hw::Timeline*>(
      context_memory(queue).word(hw::raw(p.timeline), sizeof(hw::Timeline), hw::kAccessRead));
  if (std::atomic_ref(t->value).load(std::memory_order_acquire) < p.value) return false;
  const uint32_t status = std::atomic_ref(t->status).load(std::memory_order_relaxed);
  const uint64_t resume = std::atomic_ref(t->resume_value).load(std::memory_order_relaxed);
  if (status != 0 && std::atomic_ref(t->failed_value).load(std::memory_order_relaxed) <= p.value &&
      (resume == 0 || p.value < resume)) {
    Fault f(Status::kDependencyFailed, "the timeline at 0x%llx reached %llu by failing (status %u)",
            static_cast<unsigned long long>(hw::raw(p.timeline)), static_cast<unsigned long long>(p.value), status);
    f.record.address = hw::raw(p.timeline), f.record.value = status;
    throw f;
  }
  queue.clock_ns = std::max(queue.clock_ns, reached_at(hw::raw(p.timeline), p.value, *t));
  return true;
}

double Chip::reached_at(uint64_t address, uint64_t value, hw::Timeline& t) const {
  const auto latest = static_cast<double>(std::atomic_ref(t.device_ns).load(std::memory_order_relaxed));
  for (const Queue& q : queues_)
    if (q.state != hw::kQueueStateOff && (q.timeline | hw::kHostWindow) == address)
      return q.reached.when(value, latest);
  const auto found = reached_.find(address);
  return found == reached_.end() ? latest : found->second.when(value, latest);
}

void Chip::signal(Queue& queue, uint64_t address, uint64_t value, Status status) {
  auto* t =
      reinterpret_cast<hw::Timeline*>(context_memory(queue).word(address, sizeof(hw::Timeline), hw::kAccessWrite));
  if (status != Status::kOk) poison(*t, value, status);
  std::atomic_ref(t->device_ns).store(static_cast<uint64_t>(queue.clock_ns), std::memory_order_relaxed);
  std::atomic_ref(t->host_ns).store(host_now_ns(), std::memory_order_relaxed);
  // Monotonic: a late signal of a smaller value changes nothing.
  std::atomic_ref word(t->value);
  uint64_t old = word.load(std::memory_order_relaxed);
  while (old < value && !word.compare_exchange_weak(old, value, std::memory_order_release, std::memory_order_relaxed)) {
  }
  if (reached_.size() >= 4096) reached_.clear();
  reached_[address].add(value, queue.clock_ns);
  queue.dirty = queue.interrupt = true;
}

void Chip::publish(Queue& queue, uint64_t value, Status status) {
  auto* t = reinterpret_cast<hw::Timeline*>(
      host_memory_.word(queue.timeline | hw::kHostWindow, sizeof(hw::Timeline), hw::kAccessWrite));
  if (status != Status::kOk) poison(*t, value, status);
  std::atomic_ref(t->device_ns).store(static_cast<uint64_t>(queue.clock_ns), std::memory_order_relaxed);
  queue.reached.add(value, queue.clock_ns);
  std::atomic_ref(t->value).store(value, std::memory_order_release);
  queue.dirty = true;
}

void Chip::finish_turn(uint32_t q, Queue& queue) {
  queue.dirty = false;
  store_load_fence();
  std::atomic_ref arm(doorbell(q).interrupt_arm);
  const uint64_t wanted = arm.load(std::memory_order_relaxed);
  bool due = queue.interrupt;
  queue.interrupt = false;
  if (wanted != hw::kNotArmed && wanted <= queue.head) {
    uint64_t expected = wanted;
    arm.compare_exchange_strong(expected, hw::kNotArmed, std::memory_order_relaxed);
    due = true;
  }
  if (due) raise(q);
}

void Chip::raise(uint32_t vector) {
  std::lock_guard lock(interrupt_mutex_);
  add(counters_.interrupts, 1);
  if (plan_.due(FaultKind::kDropInterrupt, FaultTrigger::kInterrupt, counters_.interrupts)) return;
  const uint64_t one = 1;
  if (interrupts_[vector] >= 0 && write(interrupts_[vector], &one, sizeof one) < 0) {
    // The counter is full: the driver has not looked for 2^64 - 2 interrupts, and one is pending anyway.
  }
}

void Chip::fail(uint32_t q, Fault fault) {
  Queue& queue = queues_[q];
  add(counters_.faults, 1);
  queue.state = hw::kQueueStateFailed;
  queue.arrived = 0, queue.blocked_since_ns = queue.blocked_on_ns = 0, queue.looked = false;
  hw::FaultRecord& r = fault.record;
  r.queue = q, r.packet = queue.head;
  r.block = queue.called ? static_cast<uint32_t>(queue.block_position) : hw::kNoInstruction;
  r.device_ns = static_cast<uint64_t>(queue.clock_ns), r.host_ns = host_now_ns();
  try {
    const uint32_t status = r.status;
    r.status = 0;
    host_memory_.write(queue.fault | hw::kHostWindow, &r, sizeof r);
    host_memory_.each(queue.fault | hw::kHostWindow, 4, hw::kAccessWrite, [&](std::byte* p, uint64_t, uint64_t) {
      std::atomic_ref(*reinterpret_cast<uint32_t*>(p)).store(status, std::memory_order_release);
    });
    r.status = status;
    if (queue.called) try {
        discard_block(queue, queue.block, queue.block_position, queue.block_count, 0);
      } catch (Fault&) {
        // It cannot be read, which may be why this fails: nobody waits for what stands there.
      }
    else if (const uint64_t tail = std::atomic_ref(doorbell(q).tail).load();
             tail - queue.head <= uint64_t{1} << queue.ring_log2) {
      hw::Packet packet;
      host_memory_.read(
          (queue.ring + (queue.head & ((uint64_t{1} << queue.ring_log2) - 1)) * sizeof packet) | hw::kHostWindow,
          &packet, sizeof packet);
      discard(queue, packet);
    } else {
      queue.head = tail - 1;  // the index itself was wrong: nothing between can be trusted
    }
    queue.called = false;
    ++queue.head;
    publish(queue, queue.head, static_cast<Status>(status));
    queue.interrupt = true;
  } catch (Fault&) {
    // Its timeline or fault record is no longer mapped: nobody can be told, so the queue stops.
    disable_queue(q);
  }
}

// What a packet would have signalled is poisoned, so that whoever waits for it ends.
void Chip::discard(Queue& queue, const hw::Packet& packet) {
  try {
    if (packet.header.op == PacketOp::kSignal) {
      const auto p = as<hw::TimelinePacket>(packet);
      signal(queue, hw::raw(p.timeline), p.value, Status::kDiscarded);
    } else if (packet.header.op == PacketOp::kPost) {
      poison_group(queue, as<hw::PostPacket>(packet), Status::kDiscarded);
    } else if (packet.header.op == PacketOp::kCall) {
      const auto p = as<hw::CallPacket>(packet);
      if (p.count <= 1u << 20) discard_block(queue, hw::raw(p.block), 0, p.count, 1);
    }
  } catch (Fault&) {
    // Its timeline is not mapped: nobody waits there.
  }
}

void Chip::discard_block(Queue& queue, uint64_t block, uint64_t from, uint64_t count, int depth) {
  if (depth > kCallDepth) return;
  for (uint64_t k = from; k < count; ++k) {
    hw::Packet packet;
    context_memory(queue).read(block + k * sizeof packet, &packet, sizeof packet);
    if (packet.header.op == PacketOp::kSignal || packet.header.op == PacketOp::kPost) discard(queue, packet);
  }
}

}  // namespace jalapeno::emu
