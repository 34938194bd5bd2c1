#include <pybind11/stl.h>

#include <array>
#include <map>

#include "core.hpp"

namespace jalapeno::python {
namespace {

// Records what a stream is given, then replays it with one packet. Keeps every array and kernel it names alive.
struct Graph {
  ~Graph() {
    if (exec != nullptr && device->handle != nullptr && !ending())
      without_gil([&] { (void)jalGraphExecDestroy(exec); });
  }
  DeviceRef device;
  jalGraphExec_t exec = nullptr;
  uint32_t nodes = 0;
  std::vector<std::shared_ptr<void>> kept;
  std::map<uint32_t, std::vector<std::shared_ptr<void>>> replaced;  // by node
  void launch(const StreamRef& stream) const {
    if (exec == nullptr)
      fail(jalErrorIllegalState,
           "the graph has no recording; use \"with stream.capture() as graph:\" and leave the block first");
    const StreamRef s = choose_stream(device, stream);
    enqueue(*s, [&] { return jalGraphLaunch(exec, s->handle); });
  }
};

struct Capture {
  StreamRef stream;
  std::shared_ptr<Graph> graph;
};

}  // namespace

void define_graph(py::module_& m) {
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph",
                                            "Work recorded once with Stream.capture(), replayed with launch().")
      .def("launch", &Graph::launch, py::arg("stream") = py::none(), "Enqueues the whole recording. Never blocks.")
      .def_property_readonly(
          "nodes", [](const Graph& g) { return g.nodes; }, "How many operations were recorded.")
      .def(
          "set_arguments",
          [](const std::shared_ptr<Graph>& g, uint32_t node, const std::shared_ptr<Kernel>& kernel,
             const py::args& args) {
            if (g->exec == nullptr) fail(jalErrorIllegalState, "the graph has no recording");
            std::array<jalArg, Kernel::kMaxArguments> list;
            std::vector<py::handle> handles;
            for (const auto& a : args) handles.push_back(a);
            std::vector<std::shared_ptr<void>> kept;
            kernel->convert(handles.data(), handles.size(), list.data(), &kept);
            check(without_gil([&] {
              return jalGraphExecSetKernelArgs(g->exec, node, list.data(), static_cast<uint32_t>(handles.size()));
            }));
            g->replaced[node] = std::move(kept);
          },
          py::arg("node"), py::arg("kernel"),
          "Replaces the arguments of launch node `node` (counted in capture order), which launches `kernel`. Waits for "
          "launches in flight.")
      .def("__repr__", [](const Graph& g) { return "<jalapeno.Graph of " + std::to_string(g.nodes) + " nodes>"; });
  py::class_<Capture>(m, "Capture", "The context manager of Stream.capture().")
      .def("__enter__",
           [](Capture& c) {
             check(jalStreamBeginCapture(c.stream->handle), c.stream->handle);
             c.stream->recorded = std::make_shared<std::vector<std::shared_ptr<void>>>();
             c.graph = std::make_shared<Graph>();
             c.graph->device = c.stream->device;
             return c.graph;
           })
      .def("__exit__", [](Capture& c, const py::object& type, const py::object&, const py::object&) {
        const auto recorded = std::move(c.stream->recorded);
        c.stream->recorded = nullptr;
        jalGraph_t graph = nullptr;
        const jalError_t e = jalStreamEndCapture(c.stream->handle, &graph);
        if (!type.is_none()) {  // the block's own exception is the story
          if (e == jalSuccess) (void)jalGraphDestroy(graph);
          return;
        }
        check(e);
        c.graph->kept = std::move(*recorded);
        (void)jalGraphGetNodeCount(graph, &c.graph->nodes);
        const jalError_t made = without_gil([&] { return jalGraphInstantiate(graph, &c.graph->exec); });
        (void)jalGraphDestroy(graph);
        check(made);
      });
  py::reinterpret_borrow<py::class_<Stream, StreamRef>>(m.attr("Stream"))
      .def(
          "capture",
          [](const StreamRef& s) {
            return Capture{s, nullptr};
          },
          R"(with stream.capture() as graph: what the block enqueues on this stream is recorded instead of run, then replayed with
graph.launch(). Launches, device and pinned copies, fills, timeline waits and signals; anything else raises CaptureError.
Make the stream current ("with stream, stream.capture() as graph:") for calls that take no stream.)");
}

}  // namespace jalapeno::python
