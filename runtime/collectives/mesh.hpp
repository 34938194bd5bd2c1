// The control plane of a set of ranks: a connection between every two of them, TCP or, inside a process, a pair of
// sockets. Carries small blobs while
// communicators are made, and says who is gone: a connection that ends, or one to another host that is silent too long.
// Knows ranks of its world and numbered channels (one for each communicator); knows no devices.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "rendezvous.hpp"

namespace jalapeno::runtime {

class Mesh {
 public:
  using Blob = std::vector<std::byte>;
  static Blob blob(const std::string& text) {
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    return {begin, begin + text.size()};
  }
  struct Listener {  // of one channel; called on the mesh's thread
    std::function<void(uint32_t rank, const std::string& evidence)> lost;
    std::function<void(uint32_t rank, jalError_t code, const std::string& evidence)> failed;  // that rank says so
    std::function<void(uint32_t rank, uint64_t calls)> left;  // after so many calls of its own
    std::function<Blob()> asked;                              // by whoever wants to know how this rank stands
  };

  // Meets all ranks at the id's root and connects to each. Throws Error.
  Mesh(const UniqueId& id, uint32_t ranks, uint32_t rank, uint32_t timeout_ms, uint32_t grace_ms);
  // All ranks are in this process: nobody to look for.
  static std::vector<std::shared_ptr<Mesh>> in_process(uint32_t ranks, uint32_t grace_ms);
  ~Mesh();
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  uint32_t rank() const { return rank_; }
  const std::vector<Member>& members() const { return members_; }
  std::string local_address(uint32_t rank) const;  // IPv4, of the interface that leads to that rank
  std::set<uint32_t> lost_ranks() const;

  void listen(uint64_t channel, Listener listener);  // what came before is told at once
  // The end of this rank is no loss to them: it has made so many calls, and makes no more.
  void say_goodbye(uint64_t channel, const std::vector<uint32_t>& ranks, uint64_t calls);
  void leave(uint64_t channel);  // returns when no call of the listener is under way
  void tell_failure(uint64_t channel, const std::vector<uint32_t>& ranks, uint32_t culprit, jalError_t code,
                    const std::string& evidence);

  // How that rank stands, by its own word: an empty blob when nobody listens to the channel there, nothing when it does
  // not answer in time, is lost, or `ended` became true. Not on the mesh's thread.
  std::optional<Blob> ask(uint64_t channel, uint32_t rank, uint32_t timeout_ms, const std::atomic<bool>& ended);

  // Everybody's blob, in the order of `ranks` (this one among them). Throws Error naming who is missing at the deadline
  // or lost; with `survivors`, lost ranks are left out (an empty optional) instead.
  std::vector<std::optional<Blob>> exchange(uint64_t channel, const std::vector<uint32_t>& ranks, const Blob& mine,
                                            uint32_t timeout_ms, bool survivors = false);

 private:
  Mesh(uint32_t rank, uint32_t grace_ms, std::vector<Member> members);
  void start();  // once every peer has its socket
  struct Peer {
    Socket socket;
    bool lost = false, local = true;
    std::string evidence;
    std::vector<std::byte> input;
    int64_t heard_ns = 0;
    std::mutex send_mutex;
  };
  struct Message;
  void serve();
  void receive(uint32_t rank);
  void handle(uint32_t rank, const Message& m, Blob body);
  void declare_lost(uint32_t rank, const std::string& evidence);
  void send(uint32_t rank, uint32_t type, uint64_t channel, uint64_t word, const Blob& body);
  void wake();
  std::shared_ptr<Listener> listener_of(uint64_t channel) const;  // the caller holds mutex_; nullptr: nobody's

  uint32_t rank_;
  uint32_t grace_ms_;
  std::vector<Member> members_;
  std::vector<std::unique_ptr<Peer>> peers_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::tuple<uint64_t, uint64_t, uint32_t>, Blob> blobs_;  // channel, round, from
  std::map<uint64_t, uint64_t> rounds_;                             // of this rank, by channel
  std::map<uint64_t, std::shared_ptr<Listener>> listeners_;
  std::map<uint64_t, std::optional<Blob>> questions_;  // under way, by number
  uint64_t asked_ = 0;
  struct Early {
    uint32_t rank, culprit;
    jalError_t code;
    std::string evidence;
    bool left;
    uint64_t calls;
  };
  std::multimap<uint64_t, Early> early_;  // for channels that nobody listens to yet
  std::recursive_mutex calls_;            // held while a listener is called
  int wake_event_ = -1;
  bool stop_ = false, news_ = false;  // blobs came since changed_ was notified
  std::thread thread_;
};

template <class T>
Mesh::Blob blob_of(const T& value) {
  Mesh::Blob b(sizeof value);
  std::memcpy(b.data(), &value, sizeof value);
  return b;
}
template <class T>
T from_blob(const Mesh::Blob& b) {
  T value{};
  std::memcpy(&value, b.data(), std::min(b.size(), sizeof value));
  return value;
}

}  // namespace jalapeno::runtime
