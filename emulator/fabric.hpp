// A chip's place on the fabric: how chips of this host find each other and reach each other's memory. Chips of one
// process share mappings; a chip of another process hands out descriptors over a socket in the abstract namespace,
// to the same user and to who knows the key. Knows no queues and no packets.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "memory.hpp"

namespace jalapeno::emu {

inline constexpr uint32_t kFabricContexts = 64;

// Shared with every peer that has a window here.
struct FabricPage {
  uint32_t asleep;  // 1: whoever writes a line to this chip adds to `wake` and wakes its futex
  uint32_t wake;
  uint64_t generation;                 // counts changes of page tables and exports
  uint64_t exported[kFabricContexts];  // by context: the token of its export, 0: none
};

// A context of another chip, as a window sees it.
class RemoteContext {
 public:
  RemoteContext(std::shared_ptr<Mapping> hbm, std::shared_ptr<Mapping> page, uint64_t root, uint32_t context,
                uint64_t token);
  const std::shared_ptr<Mapping>& hbm() const { return hbm_; }
  uint64_t root() const { return root_; }
  uint64_t generation() const { return std::atomic_ref(page().generation).load(std::memory_order_acquire); }
  bool exported() const { return std::atomic_ref(page().exported[context_]).load(std::memory_order_acquire) == token_; }
  void wake();  // after a line was written: its chip looks at once
  void populate(std::byte* at, uint64_t bytes) { populated_.range(*hbm_, at, bytes); }  // one thread of a chip

 private:
  FabricPage& page() const { return *reinterpret_cast<FabricPage*>(page_->data()); }
  std::shared_ptr<Mapping> hbm_, page_;
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

  FabricPort(uint64_t address, const MemorySystem& memory, Lookup lookup);
  ~FabricPort();
  FabricPort(const FabricPort&) = delete;
  FabricPort& operator=(const FabricPort&) = delete;

  FabricPage& page() const { return *reinterpret_cast<FabricPage*>(page_->data()); }
  void changed() { std::atomic_ref(page().generation).fetch_add(1, std::memory_order_release); }
  void listen();  // to other processes, from the first export on
  void wake();    // this chip's processor
  // Sleeps until `wake` is no longer `seen`, at most so long.
  void sleep(uint32_t seen, uint64_t timeout_ns);

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
  const MemorySystem& memory_;
  Lookup lookup_;
  int page_fd_ = -1, listener_ = -1, stop_event_ = -1;
  std::shared_ptr<Mapping> page_;
  std::thread thread_;
};

}  // namespace jalapeno::emu
