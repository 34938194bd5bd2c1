#include "placement.hpp"

#include <numa.h>
#include <pthread.h>

namespace jalapeno::emu {
namespace {

// Nodes that have memory for this process and CPUs it may run on.
std::vector<Placement::Node> usable_nodes() {
  std::vector<Placement::Node> nodes;
  cpu_set_t allowed;
  if (numa_available() < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return nodes;
  bitmask* memory = numa_get_mems_allowed();
  bitmask* cpus = numa_allocate_cpumask();
  for (int number = 0; number <= numa_max_node(); ++number) {
    if (!numa_bitmask_isbitset(memory, static_cast<unsigned>(number)) || numa_node_to_cpus(number, cpus) != 0) continue;
    Placement::Node node{number, {}};
    CPU_ZERO(&node.cpus);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed) && numa_bitmask_isbitset(cpus, cpu)) CPU_SET(cpu, &node.cpus);
    if (CPU_COUNT(&node.cpus) > 0) nodes.push_back(node);
  }
  numa_free_cpumask(cpus);
  numa_bitmask_free(memory);
  return nodes;
}

}  // namespace

const Placement& Placement::host() {
  static const Placement p(usable_nodes());
  return p;
}

void Placement::bind_thread(uint32_t thread) const {
  if (const Node* n = find(thread)) (void)pthread_setaffinity_np(pthread_self(), sizeof n->cpus, &n->cpus);
}

void Placement::spread(std::byte* memory, uint64_t bytes) const {
  if (nodes_.size() < 2) return;
  bitmask* all = numa_allocate_nodemask();
  for (const Node& node : nodes_) numa_bitmask_setbit(all, static_cast<unsigned>(node.number));
  numa_interleave_memory(memory, bytes, all);
  numa_bitmask_free(all);
}

}  // namespace jalapeno::emu
