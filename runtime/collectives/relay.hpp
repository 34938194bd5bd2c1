// Carries a group's lines and slots between hosts: what the device posted for a peer that its fabric does not reach
// goes out over the network, what arrives is put into the device's inbox. Two threads, which sleep while nothing
// moves: one waits for the device, the other for the network; while messages follow closely, that one does both, and
// the device raises no interrupt for them. Large messages are cut to
// go over all rails at once, each of which has a thread of its own that waits for it.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_hw/packets.hpp>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "network.hpp"

namespace jalapeno::runtime {

// One direction pair of one peer in one group. Offsets are in the communicator's block of memory, the same on every
// rank but for `remote`, which is the peer's. A message lies in a slot: its line, then the data.
struct Route {
  uint32_t peer;           // in the network
  uint64_t lines;          // of what the device writes for the peer: FabricLine[2]
  uint64_t inbox;          // of what the peer writes: FabricLine[2]
  uint64_t out[2], in[2];  // slots, by parity
  uint64_t remote[2];      // of the peer's `in`
  uint32_t word;           // what the peer calls this route, times two
  uint64_t slot_bytes;     // a message is no longer
  uint64_t sent = 0;       // the last sequence that went out
  uint32_t parts_out = 0;  // of the next one
};

class Relay {
 public:
  static constexpr size_t kMostRails = 4;
  using Failed = std::function<void(int64_t peer, const std::string& text)>;
  // `memory`: the block, as the host sees it; its group's control block is at offset `control`. failed(peer,
  // text): that peer is out of reach, or with -1 the network broke; on a thread of the relay, once for each.
  Relay(driver::Device& device, std::byte* memory, uint64_t control, std::vector<std::unique_ptr<Network>> rails,
        std::vector<Route> routes, Failed failed);
  ~Relay();
  // Returns when all that the device has posted is out, or after so long: false.
  bool drain(uint32_t timeout_ms);
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

 private:
  void send();
  void receive();  // of the first rail, and what the device posts meanwhile
  void receive_only(Network& rail);
  // True: something went out, or not all by `end`.
  bool send_due(std::chrono::steady_clock::time_point end = std::chrono::steady_clock::time_point::max());
  void watch(bool on);
  std::timed_mutex send_mutex_;
  void arrived(uint32_t word);
  uint64_t in_flight() const;
  void repeat(const std::function<void()>& turn);
  void lose(uint32_t peer, const std::string& text);

  driver::Device& device_;
  std::byte* memory_;
  hw::FabricControl& control_;
  std::vector<std::unique_ptr<Network>> rails_;
  std::vector<Route> routes_;
  Failed failed_;
  std::atomic<bool> stop_{false}, broken_{false};
  std::vector<std::atomic<uint32_t>> came_;  // parts of a message, by word
  std::vector<std::thread> threads_;
};

}  // namespace jalapeno::runtime
