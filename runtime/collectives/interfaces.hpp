// This host's network interfaces: which there are, and which have lost their link. Knows no ranks.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rendezvous.hpp"

namespace jalapeno::runtime {

struct Interface {
  std::string name;
  uint32_t address;  // IPv4, network order
  bool loopback;
};
std::vector<Interface> interfaces();  // that are up and have IPv4. Throws Error.
std::string text_of(uint32_t address);

// IPv4 in text of the interfaces that JAL_COLL_RAILS names (eth0,eth1); none without it. Throws Error naming the one.
std::vector<std::string> rail_addresses();

// The kernel's news (netlink) of the links that were there at the start. Where it gives none, nothing is known and
// nothing fails. One thread.
class LinkWatch {
 public:
  LinkWatch();
  int fd() const { return socket_.fd; }  // readable: call update(). -1: no news here
  void update();
  std::string cuts() const;  // "interface eth0 lost its link 812 ms ago", for each that has none; empty: none

 private:
  Socket socket_;
  std::map<int, std::string> names_;  // by index
  std::map<int, int64_t> down_;       // since when
};

}  // namespace jalapeno::runtime
