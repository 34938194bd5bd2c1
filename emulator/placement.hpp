// Where the threads and the memory of an emulated chip lie on a host with several NUMA nodes. Threads are shared out to
// the nodes, and HBM's pages lie on all of them in turn, so that every node's memory gives its rate. With one node
// nothing is done. Knows no chip.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace jalapeno::emu {

class Placement {
 public:
  // The nodes this process may run on and take memory from.
  static const Placement& host();
  explicit Placement(std::vector<int> nodes) : nodes_(std::move(nodes)) {}

  // The node of a pool's n-th thread; -1: anywhere.
  int node_of(uint32_t thread) const { return nodes_.size() < 2 ? -1 : nodes_[thread % nodes_.size()]; }
  // The calling thread runs on that node from now on. What the system refuses is left as it was.
  void bind_thread(uint32_t thread) const;
  // Pages not touched yet will come from all nodes in turn.
  void spread(std::byte* memory, uint64_t bytes) const;

 private:
  std::vector<int> nodes_;
};

}  // namespace jalapeno::emu
