// Graphs: what a stream recorded, and its executable form: a block of packets with their arguments in device memory,
// run by one CALL. New arguments are written over the old ones.
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "stream.hpp"

namespace jalapeno::runtime {

class Graph {
 public:
  static constexpr uint8_t kHandleTag = 0x57;
  static constexpr const char* kHandleName = "graph";
  std::shared_ptr<Context> context;
  std::vector<Node> nodes;
  Context* owner() const { return context.get(); }
};

class GraphExec {
 public:
  static constexpr uint8_t kHandleTag = 0x58;
  static constexpr const char* kHandleName = "graph executable";

  explicit GraphExec(const Graph& graph) : context_(graph.context), nodes_(graph.nodes) {
    uint64_t bytes = nodes_.size() * sizeof(hw::Packet);
    for (const Node& n : nodes_) bytes += (n.arguments.size() + 63) & ~uint64_t{63};
    if (nodes_.empty()) return;
    std::vector<std::byte> image(bytes);
    block_ = context_->pool().allocate_for_host(bytes, hw::pte::kRead);
    uint64_t at = nodes_.size() * sizeof(hw::Packet);
    for (size_t k = 0; k < nodes_.size(); ++k) {
      Node& n = nodes_[k];
      n.packet.header.sequence = static_cast<uint32_t>(k);
      if (n.kernel != nullptr && !n.arguments.empty()) {
        hw::LaunchPacket p;
        std::memcpy(&p, &n.packet, sizeof p);
        p.arguments = block_.address + at;
        std::memcpy(&n.packet, &p, sizeof p);
        std::memcpy(image.data() + at, n.arguments.data(), n.arguments.size());
        at += (n.arguments.size() + 63) & ~uint64_t{63};
      }
      std::memcpy(image.data() + k * sizeof(hw::Packet), &n.packet, sizeof(hw::Packet));
    }
    context_->space().write(block_, image);
    told_of_block({reinterpret_cast<const hw::Packet*>(image.data()), nodes_.size()});
  }
  ~GraphExec() {
    try {
      drain();
    } catch (const std::exception&) {  // whatever still runs keeps the block, and the code, until it is done
    }
    if (block_.bytes == 0) return;
    told_of_block({});
    context_->pool().free_for_host(block_);
  }

  void set_arguments(uint32_t node, const jalArg* args, uint32_t count) {
    if (node >= nodes_.size() || nodes_[node].kernel == nullptr)
      invalid("node " + std::to_string(node) +
              (node < nodes_.size() ? std::string(" is a ") + nodes_[node].operation.kind + ", not a launch"
                                    : ", the graph has " + std::to_string(nodes_.size())));
    alignas(8) std::byte packed[hw::kArgumentBytes];
    nodes_[node].kernel->pack(args, count, *context_, packed);
    drain();
    hw::LaunchPacket p;
    std::memcpy(&p, &nodes_[node].packet, sizeof p);
    if (p.argument_bytes == 0) return;
    const uint64_t at = hw::raw(p.arguments) - hw::raw(block_.address);
    context_->space().write({p.arguments, p.argument_bytes, block_.physical + at}, {packed, p.argument_bytes});
  }

  void launch(Stream& stream) {
    if (&stream.context() != context_.get())
      fail(jalErrorInvalidDevice, "jalGraphLaunch: graph and stream belong to different devices");
    stream.refuse_capture("jalGraphLaunch");
    if (nodes_.empty()) return;
    std::lock_guard lock(mutex_);
    stream.call(block_.address, nodes_.size());
    keep_last(launches_, stream.fence());
  }
  Context* owner() const { return context_.get(); }

 private:
  // Until no launch can still read the block.
  void drain() {
    std::vector<Fence> launches;
    {
      std::lock_guard lock(mutex_);
      launches = launches_;
    }
    for (const Fence& last : launches)
      if (auto s = last.stream.lock();
          s != nullptr &&
          s->queue().wait(last.value, driver_timeout(default_timeout_ns())) == driver::WaitResult::kTimeout)
        fail(jalErrorWaitTimeout, "the graph is still running");
  }

  void told_of_block(std::span<const hw::Packet> packets) {
    if (driver::Trace* t = context_->device().trace()) t->block(block_.address, packets);
  }

  std::shared_ptr<Context> context_;
  std::vector<Node> nodes_;
  driver::HbmBlock block_{};
  std::mutex mutex_;
  std::vector<Fence> launches_;  // the last one on each stream
};

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

jalError_t jalStreamEndCapture(jalStream_t stream, jalGraph_t* graph) {
  return guard([&] {
    required(graph, "graph");
    Stream& s = stream_of(stream);
    auto g = std::make_shared<Graph>();
    g->nodes = s.end_capture().nodes;
    g->context = s.shared_context();
    *graph = static_cast<jalGraph_t>(HandleTable<Graph>::add(std::move(g)));
  });
}
jalError_t jalGraphDestroy(jalGraph_t graph) {
  return guard([&] { HandleTable<Graph>::remove(graph); });
}
jalError_t jalGraphGetNodeCount(jalGraph_t graph, uint32_t* count) {
  return guard([&] { required(count, "count") = static_cast<uint32_t>(HandleTable<Graph>::get(graph).nodes.size()); });
}
jalError_t jalGraphInstantiate(jalGraph_t graph, jalGraphExec_t* exec) {
  return guard([&] {
    required(exec, "exec");
    *exec = static_cast<jalGraphExec_t>(
        HandleTable<GraphExec>::add(std::make_shared<GraphExec>(HandleTable<Graph>::get(graph))));
  });
}
jalError_t jalGraphExecSetKernelArgs(jalGraphExec_t exec, uint32_t node, const jalArg* args, uint32_t arg_count) {
  return guard([&] { HandleTable<GraphExec>::get(exec).set_arguments(node, args, arg_count); });
}
jalError_t jalGraphLaunch(jalGraphExec_t exec, jalStream_t stream) {
  return guard([&] { HandleTable<GraphExec>::get(exec).launch(stream_of(stream)); });
}
jalError_t jalGraphExecDestroy(jalGraphExec_t exec) {
  return guard([&] { HandleTable<GraphExec>::remove(exec); });
}
