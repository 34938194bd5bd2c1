#include "placement.hpp"

#include <numa.h>
#include <sched.h>

namespace jalapeno::emu {
namespace {

// Nodes that have memory for this process and a CPU it may run on.
std::vector<int> usable_nodes() {
  std::vector<int> nodes;
  cpu_set_t allowed;
  if (numa_available() < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return nodes;
  bitmask* memory = numa_get_mems_allowed();
  bitmask* cpus = numa_allocate_cpumask();
  for (int node = 0; node <= numa_max_node(); ++node) {
    if (!numa_bitmask_isbitset(memory, static_cast<unsigned>(node)) || numa_node_to_cpus(node, cpus) != 0) continue;
    bool any = false;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE && !any; ++cpu)
      any = CPU_ISSET(cpu, &allowed) && numa_bitmask_isbitset(cpus, cpu);
    if (any) nodes.push_back(node);
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
  if (const int node = node_of(thread); node >= 0) (void)numa_run_on_node(node);
}

void Placement::spread(std::byte* memory, uint64_t bytes) const {
  if (nodes_.size() < 2) return;
  bitmask* all = numa_allocate_nodemask();
  for (int node : nodes_) numa_bitmask_setbit(all, static_cast<unsigned>(node));
  numa_interleave_memory(memory, bytes, all);
  numa_bitmask_free(all);
}

}  // namespace jalapeno::emu
