// One libfabric endpoint: writes from registered memory here to registered memory of peers, each with 32 bits that
// arrive with the data. Any provider with reliable datagrams and remote writes does. Knows addresses; knows no groups.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace jalapeno::runtime {

class Network {
 public:
  struct Address {
    uint8_t bytes[60];
    uint32_t size;
  };
  // Memory of a peer: what its expose() returned.
  struct Exposed {
    uint64_t address, key;
  };

  // `source`: an IPv4 address of this host in text; the traffic goes over its interface. The provider is the first of
  // efa, cxi, verbs, net and tcp that has what is needed, or the one JAL_COLL_PROVIDER names. Throws Error that lists
  // what was found and why it does not do.
  explicit Network(const std::string& source);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const std::string& provider() const { return provider_; }
  Address address() const;
  // All that is written from and to; once. It must outlive this object.
  Exposed expose(void* data, size_t bytes);
  void connect(uint32_t peer, const Address& address, const Exposed& memory);
  // What write() and progress() throw when it is one peer that fails. The others can be written to as before.
  struct Lost : std::runtime_error {
    Lost(uint32_t p, const std::string& text) : std::runtime_error(text), peer(p) {}
    uint32_t peer;
  };
  // `bytes` at `data`, which lies in exposed memory, to `offset` of the peer's. False: the provider is busy, try again.
  bool write(uint32_t peer, const void* data, size_t bytes, uint64_t offset, uint32_t word);
  // Runs what is due; arrived(word) for each write of a peer that is complete here. Returns how many events there were,
  // and throws Error or Lost for one that failed. Waits for the first one at most so long.
  size_t progress(int timeout_ms, const std::function<void(uint32_t word)>& arrived);

  // Writes that have begun and are not known to be out. By any thread.
  uint64_t in_flight() const { return begun_.load(std::memory_order_relaxed) - out_.load(std::memory_order_relaxed); }

 private:
  struct Handles;
  std::unique_ptr<Handles> h_;
  std::string provider_;
  std::vector<uint64_t> peers_;  // fi_addr_t, by peer
  std::vector<Exposed> memory_;
  std::atomic<uint64_t> begun_{0}, out_{0};
};

}  // namespace jalapeno::runtime
