// Where the threads and the memory of an emulated chip lie on a host with several NUMA nodes. A pool's threads are
// shared out to the nodes, all but the first, which is the caller's; HBM's pages lie on all nodes in turn, so that
// every node's memory gives its rate. With one node nothing is done. Knows no chip.
#pragma once
#include <sched.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace jalapeno::emu {

class Placement {
 public:
  struct Node {
    int number;
    cpu_set_t cpus;  // those of its own that this process may run on
  };
  // The nodes this process may run on and take memory from.
  static const Placement& host();
  explicit Placement(std::vector<Node> nodes) : nodes_(std::move(nodes)) {}

  // The node of a pool's n-th thread; -1: anywhere.
  int node_of(uint32_t thread) const {
    const Node* n = find(thread);
    return n == nullptr ? -1 : n->number;
  }
  // The calling thread runs on that node's CPUs from now on. What the system refuses is left as it was.
  void bind_thread(uint32_t thread) const;
  // Pages not touched yet will come from all nodes in turn.
  void spread(std::byte* memory, uint64_t bytes) const;

 private:
  const Node* find(uint32_t thread) const { return nodes_.size() < 2 ? nullptr : &nodes_[thread % nodes_.size()]; }
  std::vector<Node> nodes_;
};

}  // namespace jalapeno::emu
