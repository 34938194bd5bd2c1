// One chip: registers, doorbells, queues, contexts, and the turns of its command processor.
// What a PCIe slot can see of it is this interface; the vfio-user server is its only caller.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <jalapeno_hw/packets.hpp>
#include <jalapeno_hw/registers.hpp>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "config.hpp"
#include "core.hpp"
#include "fabric.hpp"
#include "faults.hpp"
#include "lowered.hpp"
#include "memory.hpp"
#include "processors.hpp"
#include "worker_pool.hpp"

namespace jalapeno::emu {

inline constexpr uint32_t kQueueCount = 256;
inline constexpr uint32_t kContextCount = kFabricContexts;
inline constexpr uint32_t kWindowCount = 1024;
inline constexpr uint32_t kVectors = kQueueCount + 1;  // the last one: device events

class Chip final : private Processor {
 public:
  explicit Chip(const EmulatorOptions& options);  // throws std::runtime_error on an unusable configuration
  ~Chip();
  Chip(const Chip&) = delete;
  Chip& operator=(const Chip&) = delete;

  // The register BAR: 4- or 8-byte accesses, naturally aligned. An unknown register reads as all ones; false on a bad
  // access.
  bool read_register(uint64_t offset, uint32_t bytes, uint64_t& value);
  bool write_register(uint64_t offset, uint32_t bytes, uint64_t value);

  uint32_t function() const { return options_.function; }
  uint32_t functions() const { return options_.functions; }
  uint64_t serial() const { return options_.serial != 0 ? options_.serial : uuid_[0]; }
  int doorbell_fd() const { return doorbell_fd_; }
  uint64_t doorbell_bytes() const { return doorbell_bytes_; }
  int hbm_fd() const { return memory_.hbm().fd(); }
  uint64_t hbm_bar_bytes() const { return memory_.hbm().aperture_bytes(); }  // a power of two

  void map_host(int fd, uint64_t offset, uint64_t iova, uint64_t bytes, bool read,
                bool write);                           // throws std::runtime_error
  void map_host(const AskedRange& range);              // throws std::runtime_error
  void set_host_link(std::shared_ptr<HostLink> link);  // until unplug(): who is asked
  void unmap_host(uint64_t iova, uint64_t bytes);
  void set_interrupt(uint32_t vector, int eventfd);  // takes the descriptor, -1 detaches
  void set_bus_master(bool on);                      // off: host memory is out of reach
  void reset_function();  // queues and contexts are gone; DMA mappings and interrupts are the slot's and stay
  void unplug();          // whoever held the slot is gone, and its mappings and interrupts with it
  void scrub();           // HBM reads as zero again

 private:
  // Where a group's lines to and from a rank are in this process, as long as its table says the same.
  struct Route {
    hw::DeviceAddr lines{}, inbox{};
    hw::FabricLine *to = nullptr, *from = nullptr;
    RemoteContext* remote = nullptr;
  };
  // Where a group of so many ranks and its peers lie.
  struct GroupPlace {
    hw::FabricGroup* group = nullptr;
    hw::FabricPeer* peers = nullptr;
    std::vector<Route> routes;  // by rank
  };
  struct Context {
    bool enabled = false;
    uint64_t root = 0, epoch = 0;  // epoch of the host map that `map` was built with
    uint64_t token = 0;            // of its export
    struct Seen {
      std::shared_ptr<RemoteContext> remote;
      uint64_t generation;
    };
    std::vector<Seen> seen;  // the chips behind its windows, as they were when `map` was built
    std::shared_ptr<const AddressMap> map;
    Memory memory;                                                          // through `map`
    std::unordered_map<uint64_t, std::unique_ptr<const Program>> programs;  // by code address
    LoweredLaunches lowered;                                                // of them, through `map`
    const Program* last = nullptr;                                          // of them: what ran last
    uint64_t last_code = 0;
    std::unordered_map<uint64_t, GroupPlace> groups;  // by address; through `map`
    GroupPlace* last_group = nullptr;                 // of them: what was used last
    uint64_t last_group_at = 0;
  };
  struct Window {
    uint32_t context = 0, state = hw::kWindowOff;
    uint64_t peer = 0, key = 0;
    std::shared_ptr<RemoteContext> remote;  // while it is up
  };
  // A group as its memory says, checked; pointers into this chip's mappings.
  struct Group {
    Memory* memory;  // its context's, looked up once for the packet
    hw::FabricGroup* group;
    hw::FabricPeer* peers;
    Route* routes;
    uint32_t ranks, rank;
    uint64_t sequence;
  };
  // When a timeline reached its last values, in modelled time: a wait for one of them is over then, however far the
  // emulator has run ahead since.
  class Reached {
   public:
    void add(uint64_t value, double ns) {
      if (value <= last_) *this = Reached();  // another timeline in the same place
      entries_[next_++ % kEntries] = {value, ns}, last_ = value;
    }
    double when(uint64_t value, double otherwise) const {
      for (uint64_t n = next_ > kEntries ? next_ - kEntries : 0; n < next_; ++n)
        if (entries_[n % kEntries].value >= value) return entries_[n % kEntries].ns;
      return otherwise;
    }

   private:
    static constexpr uint64_t kEntries = 64;
    struct Entry {
      uint64_t value;
      double ns;
    };
    Entry entries_[kEntries];
    uint64_t next_ = 0, last_ = 0;
  };
  struct Queue {
    uint32_t state = hw::kQueueStateOff, context = 0, ring_log2 = 0, priority = 0;
    uint64_t ring = 0, timeline = 0, fault = 0, head = 0;
    double clock_ns = 0;                                      // modelled
    Reached reached;                                          // of its own timeline
    uint64_t block = 0, block_count = 0, block_position = 0;  // a CALL being run
    bool called = false, dirty = false, interrupt = false;
    uint32_t arrived = 0;                              // ranks that an AWAIT has seen
    bool looked = false;                               // at an AWAIT's lines, without success
    uint64_t blocked_since_ns = 0, blocked_on_ns = 0;  // host time: the AWAIT, and its wait for that rank; 0: none
  };
  enum class Step { kIdle, kBlocked, kProgress };

  Turn turn() override;
  Step advance(uint32_t q);
  bool run_packet(Queue& queue, const hw::Packet& packet);  // false: blocked; throws Fault
  void launch(Queue& queue, const hw::LaunchPacket& packet);
  const Program& program_of(Context& context, const hw::LaunchPacket& packet);
  struct Done {
    const Tally* total;  // of the core, the list or the chip that ran them, until the next launch
    double longest;      // ns, in which the cores run all instances
  };
  Done run_instances(LoweredLaunches& lowered, Launch& launch, uint32_t count);
  Done run_untimed(LoweredLaunches& lowered, Launch& launch, uint32_t count);
  void write_profile() const;
  void end_unwanted();
  void inject_faults(const hw::LaunchPacket& packet, uint64_t nth);
  double makespan(uint32_t count);  // ns, of the instances in durations_ on this chip's cores
  void copy(Queue& queue, const hw::CopyPacket& packet);
  void populate(std::byte* at, uint64_t bytes);  // by all threads
  void copy_bytes(Memory& memory, uint64_t source, uint64_t destination, uint64_t bytes, bool around_caches = false);
  void charge_copy(Queue& queue, uint64_t bytes, bool host);
  bool wait(Queue& queue, const hw::TimelinePacket& packet);
  double reached_at(uint64_t address, uint64_t value, hw::Timeline& timeline) const;  // modelled ns
  void signal(Queue& queue, uint64_t timeline, uint64_t value, hw::Status status);
  void fail(uint32_t q, Fault fault);
  void discard(Queue& queue, const hw::Packet& packet);
  void discard_block(Queue& queue, uint64_t block, uint64_t from, uint64_t count, int depth);
  void publish(Queue& queue, uint64_t value, hw::Status status = hw::Status::kOk);
  void raise(uint32_t vector);
  void finish_turn(uint32_t q, Queue& queue);
  bool anything_to_fetch() const;
  void context_command(uint32_t command);
  void queue_command(uint32_t command);
  void disable_queue(uint32_t q);
  Memory& context_memory(Queue& queue);
  // Between chips (fabric_engine.cpp)
  Group group_of(Queue& queue, hw::DeviceAddr address);
  template <class F>
  void within(const Group& g, F f);
  void post(Queue& queue, const hw::PostPacket& packet);
  void post(Queue& queue, const Group& g, const hw::PostPacket& packet);
  void post_lines(Queue& queue, const Group& g, hw::FabricLine line, const std::byte* data, uint64_t bytes,
                  uint64_t stride);
  bool await(Queue& queue, const hw::AwaitPacket& packet);
  static hw::FabricControl* control_of(const Group& g);
  hw::FabricLine* lines_at(Memory& memory, hw::DeviceAddr at, hw::Access access);
  hw::FabricLine* line_from(const Group& g, uint32_t rank, uint64_t sequence);
  hw::FabricLine* line_to(const Group& g, uint32_t rank, uint64_t sequence);
  hw::FabricLine line_of(const Group& g, uint32_t rank);
  uint64_t posted_address(const Group& g, uint32_t rank, hw::DeviceAddr said, uint64_t offset, uint64_t bytes) const;
  uint64_t posted_data(const Group& g, uint32_t rank) const;  // device address of what that rank put here
  void move(Queue& queue, const hw::MovePacket& packet);
  void move(Queue& queue, const Group& g, const hw::MovePacket& packet);
  void reduce(Queue& queue, const hw::ReducePacket& packet);
  void reduce(Queue& queue, const Group& g, const hw::ReducePacket& packet);
  void poison_group(Queue& queue, const hw::PostPacket& packet, hw::Status status);
  RemoteContext* remote_of(uint64_t address);  // nullptr: the address is this chip's own
  std::byte* reach(Memory& memory, uint64_t address, uint64_t bytes, hw::Access access);
  void charge_fabric(Queue& queue, uint64_t read, uint64_t written, double latencies);
  double fabric_rate();  // bytes a nanosecond over the links that are up; throws Fault when there is none
  void window_command(uint32_t command);
  void export_context(uint32_t context);
  void withdraw(uint32_t context);
  std::optional<FabricPort::Export> lookup_export(uint64_t key);
  static bool windows_current(const Context& context);
  void engine(Queue& queue, double& engine_free, double duration);
  hw::DoorbellPage& doorbell(uint32_t q) const { return doorbells_[q]; }
  hw::DevicePage& device_page() const { return *reinterpret_cast<hw::DevicePage*>(doorbells_ + kQueueCount); }
  uint64_t counter(uint32_t offset) const;

  EmulatorOptions options_;
  ChipConfig config_;
  FaultPlan plan_;
  uint64_t uuid_[2];
  MemorySystem memory_;
  uint64_t doorbell_bytes_;
  int doorbell_fd_;
  std::shared_ptr<Mapping> doorbell_mapping_;
  hw::DoorbellPage* doorbells_;

  std::mutex mutex_;          // queues, contexts and registers; the processor holds it while it runs a packet
  std::mutex control_mutex_;  // what registers select and hold; taken before mutex_
  std::atomic<uint32_t> control_waiting_{0};
  std::atomic<uint32_t> running_queue_{kQueueCount};  // whose program runs; kQueueCount: none
  std::mutex exports_mutex_;
  std::unordered_map<uint64_t, FabricPort::Export> exports_;  // by key
  std::vector<Queue> queues_;
  std::vector<Context> contexts_;
  std::vector<std::atomic<bool>> stale_;  // by context: its page table or code changed
  std::vector<uint32_t> order_;           // enabled queues, highest priority first
  uint32_t context_select_ = 0, queue_select_ = 0;
  uint64_t context_root_ = 0, context_key_ = 0;
  std::vector<Window> windows_;
  uint32_t window_select_ = 0;
  Window staged_window_;
  Queue staged_;  // what the queue registers hold before kQueueEnable
  std::atomic<uint64_t> host_epoch_{1};
  uint64_t host_memory_epoch_ = 0;
  std::shared_ptr<const AddressMap> host_map_;
  Memory host_memory_;                            // through `host_map_`
  std::atomic<bool> stop_{false};                 // of the running program
  std::atomic<bool> resetting_{false};            // whatever runs is to end
  std::atomic<uint32_t> disabling_{kQueueCount};  // the queue whose program is to end
  Launch launch_;                                 // the one being run
  std::vector<double> durations_;                 // of its instances
  Tally total_;                                   // of them together
  // Of the reduction being run: reused
  std::vector<const std::byte*> sources_;
  std::vector<std::byte*> destinations_;
  std::vector<std::array<uint64_t, 2>> inline_;
  std::atomic<uint32_t> epoch_{0}, heartbeat_{0}, health_{hw::kHealthReady};

  std::mutex interrupt_mutex_;
  std::vector<int> interrupts_;

  // Telemetry; written by the processor only
  struct Counters {
    std::atomic<uint64_t> packets{0}, launches{0}, instances{0}, instructions{0}, faults{0}, ecc_corrected{0},
        ecc_uncorrected{0}, fabric_read{0}, fabric_write{0}, fabric_errors{0}, puts{0};
    std::atomic<uint64_t> hbm_read{0}, hbm_write{0}, host_bytes{0}, interrupts{0};
    std::atomic<double> device_ns{0}, cores_ns{0}, matrix_ns{0}, vector_ns{0}, dma_ns{0}, copy_ns{0}, fabric_ns{0},
        picojoules{0};
  } counters_;
  double compute_free_ns_ = 0, copy_free_ns_ = 0, fabric_free_ns_ = 0;
  std::atomic<uint32_t> links_down_{0};
  std::unordered_map<uint64_t, Reached> reached_;  // of signalled timelines, by address; emptied when there are many
  double idle_floor_ns_ = 0;                       // modelled time when every queue was last empty
  double power_energy_ = 0, power_time_ = 0, power_watts_ = 0;

  WorkerPool pool_;
  const bool lowers_;  // launches that come again
  FabricPort port_;
};

}  // namespace jalapeno::emu
