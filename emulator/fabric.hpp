// A chip's place on the fabric: how chips of this host find each other and reach each other's memory. Chips of one
// process share mappings; a chip of another process hands out descriptors over a socket in the abstract namespace,
// to the same user and to who knows the key. Knows no queues and no packets.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "hbm.hpp"

namespace jalapeno::emu {

inline constexpr uint32_t kFabricContexts = 64;

inline constexpr uint32_t kMostChips = 1024;  // of a process, at a time

// What a process shares with every peer that has a window to one of its chips.
struct FabricPages {
  alignas(64) uint32_t asleep;  // 1: whoever writes a line to one of its chips adds to `wake` and wakes its futex
  uint32_t wake;
  struct Chip {
    alignas(64) uint64_t generation;     // counts changes of page tables and exports
    uint64_t exported[kFabricContexts];  // by context: the token of its export, 0: none
  } chips[kMostChips];
};

class FabricProcess {
 public:
  static FabricProcess& get();
  FabricProcess(const FabricProcess&) = delete;
  FabricProcess& operator=(const FabricProcess&) = delete;

  uint32_t take();  // a chip's place; throws std::runtime_error when there are too many
  void give_back(uint32_t place);
  FabricPages& pages() const { return *reinterpret_cast<FabricPages*>(pages_->data()); }
  const std::shared_ptr<Mapping>& mapping() const { return pages_; }
  int fd() const { return fd_; }

  bool asleep() const { return std::atomic_ref(pages().asleep).load(std::memory_order_relaxed) != 0; }
  void announce_sleep(bool on) { std::atomic_ref(pages().asleep).store(on ? 1 : 0, std::memory_order_relaxed); }
  uint32_t wakes() const { return std::atomic_ref(pages().wake).load(std::memory_order_acquire); }
  void wake();
  void sleep(uint32_t seen, uint64_t timeout_ns);  // until wakes() is no longer `seen`, at most so long

 private:
  FabricProcess() = default;
  int fd_ = -1;
  std::shared_ptr<Mapping> pages_;  // as long as there are chips
  std::mutex mutex_;
  std::vector<bool> taken_;
};

// A context of another chip, as a window sees it.
class RemoteContext {
 public:
  RemoteContext(std::shared_ptr<Mapping> hbm, std::shared_ptr<Mapping> pages, uint32_t place, uint64_t root,
                uint32_t context, uint64_t token);
  const std::shared_ptr<Mapping>& hbm() const { return hbm_; }
  uint64_t root() const { return root_; }
  uint64_t generation() const { return std::atomic_ref(chip().generation).load(std::memory_order_acquire); }
  bool exported() const { return std::atomic_ref(chip().exported[context_]).load(std::memory_order_acquire) == token_; }
  void wake();  // after a line was written: its chip looks at once
  void populate(std::byte* at, uint64_t bytes) { populated_.range(*hbm_, at, bytes); }  // one thread of a chip

 private:
  FabricPages& pages() const { return *reinterpret_cast<FabricPages*>(pages_->data()); }
  FabricPages::Chip& chip() const { return pages().chips[place_]; }
  std::shared_ptr<Mapping> hbm_, pages_;
  uint32_t place_;
  uint64_t root_;
  uint32_t context_;
  uint64_t token_;
  Populated populated_;
};

class FabricPort {
 public:
  struct Export {
    uint32_t context;
    uint64_t root, token;
  };
  // The export that the key opens, by whichever thread asks.
  using Lookup = std::function<std::optional<Export>(uint64_t key)>;

  FabricPort(uint64_t address, const Hbm& hbm, Lookup lookup);
  ~FabricPort();
  FabricPort(const FabricPort&) = delete;
  FabricPort& operator=(const FabricPort&) = delete;

  FabricPages::Chip& page() const { return FabricProcess::get().pages().chips[place_]; }
  void changed() { std::atomic_ref(page().generation).fetch_add(1, std::memory_order_release); }
  void listen();  // to other processes, once HBM is shared

  // A window's state, and what it reaches when that is hw::kWindowUp. Asks the other chip: up to a second.
  struct Reached {
    uint32_t state;
    std::shared_ptr<RemoteContext> remote;
  };
  static Reached reach(uint64_t address, uint64_t key);

 private:
  void serve();
  void answer(int socket);

  uint64_t address_;
  const Hbm& hbm_;
  Lookup lookup_;
  uint32_t place_;
  int listener_ = -1, stop_event_ = -1;
  std::thread thread_;
};

}  // namespace jalapeno::emu
