// A communicator: this rank's view of a group of ranks. Owns the group's memory on the device, the windows to the
// peers, and the record of what was called; fails once, for a cause that it keeps.
#pragma once
#include <atomic>
#include <jalapeno_driver/window.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "context.hpp"
#include "flight.hpp"
#include "mesh.hpp"
#include "plan.hpp"
#include "relay.hpp"
#include "tuning.hpp"

namespace jalapeno::runtime {

class Communicator : public std::enable_shared_from_this<Communicator> {
 public:
  static constexpr uint8_t kHandleTag = 0x59;
  static constexpr const char* kHandleName = "communicator";
  static constexpr uint64_t kCookieBit = uint64_t{1} << 63;  // tells communicators from kernels

  struct Settings {
    uint32_t deadline_ms, init_timeout_ms, grace_ms;
    std::string launcher;
  };
  static Settings settings(const jalCommOptions* options, const std::string& launcher);

  // Blocks until all ranks have come; throws Error. `ranks` are numbers in the mesh's world; this one is among them.
  static std::shared_ptr<Communicator> create(std::shared_ptr<Context> context, std::shared_ptr<Mesh> mesh,
                                              std::vector<uint32_t> ranks, uint64_t channel, const Settings& settings);
  Communicator(std::shared_ptr<Context> context, std::shared_ptr<Mesh> mesh, std::vector<uint32_t> ranks,
               uint64_t channel, const Settings& settings);
  ~Communicator();

  Context& context() const { return *context_; }
  const void* owner() const { return context_.get(); }
  uint32_t rank() const { return rank_; }
  uint32_t ranks() const { return static_cast<uint32_t>(ranks_.size()); }
  uint64_t cookie() const { return cookie_; }

  // A checked call of this communicator's rank; throws Error.
  void run(Stream& stream, const Call& call);
  // Sends and receives that must not wait for each other.
  void run_pairs(std::span<const std::pair<Stream*, Call>> calls);
  bool reaches_all_memory() const { return !topology_.all.slots_only; }
  Algorithm algorithm(const Call& call) const { return algorithm(call.op, call.count * call.element); }
  Algorithm algorithm(CollectiveOp op, uint64_t bytes) const { return tuning_.choose(op, bytes, topology_); }
  // Ranges of jalAllToAllV, put where the device reads them in the stream's order.
  hw::DeviceAddr place_ranges(Stream& stream, const std::vector<hw::FabricRange>& ranges);

  std::shared_ptr<Communicator> split(int color, int key);  // nullptr: color -1
  std::shared_ptr<Communicator> shrink(const std::set<uint32_t>& excluded);
  void abort();
  void finalize();

  jalError_t error();
  std::optional<jalCommErrorRecord> record();
  jalCommInfo info() const;
  std::string dump();
  // What a fault of the device means here, for the stream's error; the communicator has failed then.
  std::string explain(const hw::FaultRecord& fault);
  // A stream was reset: it drops packets of these groups, and perhaps graphs. The other ranks wait for nothing.
  void dropped(const std::vector<hw::DeviceAddr>& groups, bool graphs);

 private:
  struct Layout;
  Layout layout() const;
  template <class F>
  void each_peer(F f) const;
  void connect();
  bool open_windows();
  uint32_t ranks_per_host() const;
  Placement placement(bool network) const;
  std::vector<Mesh::Blob> agree(Mesh::Blob mine, const std::string& trouble);
  void check_usable(const Stream& stream, const Call& call) const;
  void follow_last(Stream& stream);
  void enqueue(Stream& stream, const Packets& packets, const Call& call);
  void note(Stream& stream, const Call& call);
  void fail_with(jalError_t code, int64_t rank, const std::string& evidence, bool tell);
  void notice_streams();
  struct Standing;
  struct Blame {
    jalError_t code;
    int64_t rank;
    std::string evidence;
  };
  Mesh::Blob standing() const;  // how this rank stands, for whoever misses it
  Blame find_culprit(jalError_t code, uint32_t missed, const std::string& evidence);
  void notice_missing();
  std::vector<Fence> last_positions();
  void say_goodbye();
  void wait_for_goodbyes();
  GroupView pair_view(const Call& call) const {
    return topology_.pairs.view(call.root, call.op == CollectiveOp::kSend);
  }
  std::string who(uint32_t rank) const;
  uint32_t index_of(uint32_t world_rank) const;  // ranks() when it is none of this group

  std::shared_ptr<Context> context_;
  std::shared_ptr<Mesh> mesh_;
  std::vector<uint32_t> ranks_;  // in the mesh's world
  uint32_t rank_ = 0;            // this one, in the group
  uint64_t channel_, cookie_;
  Settings settings_;
  Tuning tuning_{};
  driver::HbmBlock block_{};
  std::vector<std::unique_ptr<driver::Window>> windows_;
  Topology topology_;
  uint64_t slot_stride_ = 0;
  std::vector<bool> relayed_;      // by rank: reached over the network
  std::vector<uint32_t> fabrics_;  // by rank: the first one of its fabric; empty where fabrics overlap
  std::string transport_ = "fabric";
  std::unique_ptr<Relay> relay_;
  std::unique_ptr<Flight> flight_;

  std::mutex mutex_;  // one call at a time
  std::weak_ptr<Stream> last_stream_;
  std::vector<Fence> fences_;  // the last position of each stream that was used
  Packets packets_;            // of the call being planned
  struct Ranges {
    std::unique_ptr<driver::DmaMemory> memory;
    Region table;
    Fence used;
    bool captured = false;
  };
  std::vector<Ranges> ranges_;
  std::atomic<uint64_t> calls_{0};     // of operations that take all ranks
  std::atomic<bool> captured_{false};  // some graph has operations of this group
  uint64_t splits_ = 0, shrinks_ = 0;

  mutable std::mutex error_mutex_;
  std::optional<jalCommErrorRecord> error_;
  std::atomic<bool> failed_{false};
  bool keep_quiet_ = false;            // of the error: it is this rank's alone
  std::map<uint32_t, uint64_t> left_;  // group ranks that finalized or destroyed theirs, after so many calls
  bool finalized_ = false;
};

Communicator& communicator_of(jalComm_t comm);

}  // namespace jalapeno::runtime
