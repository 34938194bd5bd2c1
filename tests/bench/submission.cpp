// What it costs to hand work to the device, and to hear that it is done.
#include <jalapeno/jalapeno.hpp>
#include <jalapeno/tile.hpp>

#include "bench.hpp"
#include "limits.hpp"
#include "peers.hpp"

namespace bench {
namespace {

using jalapeno::check;

// A device with a ring of 4096 entries and a kernel that does nothing.
class Idle {
 public:
  explicit Idle(const Options& options) : device_(device_uri(options.most_threads())), module_(device_, image()) {
    jalStreamOptions o{};
    o.struct_size = sizeof o, o.ring_entries = 4096;
    check(jalStreamCreate(device_.get(), &o, &stream_));
    launch_ = jalapeno::PreparedLaunch({1}, module_.kernel("nothing"), argument_);
    submit(), synchronize();
  }
  Idle(const Idle&) = delete;
  Idle& operator=(const Idle&) = delete;
  ~Idle() { (void)jalStreamDestroy(stream_); }

  // One launch of a prepared launch.
  void submit() { check(jalLaunchPrepared(launch_.get(), stream_)); }
  void synchronize() { check(jalStreamSynchronize(stream_)); }
  jalStream_t stream() const { return stream_; }
  const jalapeno::Device& device() const { return device_; }

 private:
  static std::vector<std::byte> image() {
    jalapeno::tile::Builder k("nothing");
    k.tensor("unused", jalapeno::tile::f32, 1);
    return jalapeno::tile::write_module({k.finish()});
  }
  jalapeno::Device device_;
  jalapeno::Module module_;
  jalStream_t stream_{};
  jalapeno::Buffer<float> argument_{device_, 64};
  jalapeno::PreparedLaunch launch_;
};

// Nanoseconds of one call of f, which is called in batches that fit into the ring; the waits between are not counted.
template <class F>
double host_ns(Idle& idle, int batches, int batch, F f) {
  double total = 0;
  for (int b = 0; b < batches; ++b) {
    total += seconds([&] {
      for (int i = 0; i < batch; ++i) f();
    });
    idle.synchronize();
  }
  return total * 1e9 / (batches * batch);
}

std::optional<Reference> reference(const std::string& name, const std::optional<Spread>& value) {
  return value ? std::optional<Reference>({name, *value}) : std::nullopt;
}

Measurement peer(double (Peers::*measure)(int), int launches) {
  Peers* const all = peers();
  if (all == nullptr || (all->*measure)(launches) < 0) return {};
  return [=] { return (all->*measure)(launches); };
}

// A row of nanoseconds beside the ring write measured with it.
Row at_most(double most, const char* goal, const char* what, const std::vector<std::optional<Spread>>& m) {
  return {"", what, *m[1], "ns", reference("ring write", m[0]), {}, goal, m[1]->median <= most};
}

Row launch_host(const Options& options) {
  Idle idle(options);
  const auto m = interleave(options, {[&] { return host_ns(idle, 10, 500, [&] { idle.submit(); }); }, ring_write_ns});
  return {"",
          "host cost of one launch",
          *m[0],
          "ns",
          reference("ring write", m[1]),
          {},
          "<= 100 ns, <= 4 x ring write",
          m[0]->median <= 100 && m[0]->median <= 4 * m[1]->median};
}

Row null_kernel(const Options& options) {
  Idle idle(options);
  constexpr int kLaunches = 1000;
  auto ours = [&] {
    return seconds([&] {
             for (int i = 0; i < kLaunches; ++i) idle.submit(), idle.synchronize();
           }) *
           1e9 / kLaunches;
  };
  const auto m = interleave(options, {ping_pong_ns, ours, peer(&Peers::round_trip_ns, kLaunches)});
  std::optional<bool> met;
  if (m[2]) met = m[1]->median <= 2 * m[0]->median && m[1]->median * 10 <= m[2]->median;
  return {"",
          "launch and synchronize",
          *m[1],
          "ns",
          reference("ping-pong", m[0]),
          reference("PoCL", m[2]),
          "<= 2 x ping-pong, >= 10 x PoCL",
          met};
}

Row launch_rate(const Options& options) {
  Idle idle(options);
  constexpr int kLaunches = 10000;
  auto ours = [&] {
    return kLaunches / seconds([&] {
             for (int i = 0; i < kLaunches; ++i) idle.submit();
             idle.synchronize();
           });
  };
  Measurement pocl = peer(&Peers::in_a_row_ns, kLaunches);
  const auto m = interleave(options, {[] { return 1e9 / ring_write_ns(); }, ours,
                                      pocl ? Measurement([=] { return 1e9 / pocl(); }) : Measurement()});
  std::optional<bool> met;
  if (m[2]) met = m[1]->median >= 3e6 && m[1]->median >= 10 * m[2]->median;
  return {"",
          "10,000 launches and one wait",
          *m[1],
          "1/s",
          reference("ring writes", m[0]),
          reference("PoCL", m[2]),
          ">= 3e6/s, >= 10 x PoCL",
          met};
}

class ThousandNodes {
 public:
  explicit ThousandNodes(const Options& options) : idle(options) {
    check(jalStreamBeginCapture(idle.stream()));
    for (int i = 0; i < 1000; ++i) idle.submit();
    jalGraph_t graph{};
    check(jalStreamEndCapture(idle.stream(), &graph));
    check(jalGraphInstantiate(graph, &exec_));
    check(jalGraphDestroy(graph));
    launch(), idle.synchronize();
  }
  ThousandNodes(const ThousandNodes&) = delete;
  ThousandNodes& operator=(const ThousandNodes&) = delete;
  ~ThousandNodes() { (void)jalGraphExecDestroy(exec_); }
  void launch() { check(jalGraphLaunch(exec_, idle.stream())); }
  Idle idle;

 private:
  jalGraphExec_t exec_{};
};

Row graph_host(const Options& options) {
  ThousandNodes graph(options);
  const auto m =
      interleave(options, {ring_write_ns, [&] { return host_ns(graph.idle, 50, 1, [&] { graph.launch(); }); }});
  return at_most(1000, "<= 1000 ns", "host cost of launching 1,000 null launches", m);
}

Row graph_node(const Options& options) {
  ThousandNodes graph(options);
  const auto m = interleave(options, {ring_write_ns, [&] {
                                        return seconds([&] {
                                                 for (int i = 0; i < 10; ++i) graph.launch(), graph.idle.synchronize();
                                               }) *
                                               1e9 / (10 * 1000);
                                      }});
  return at_most(100, "<= 100 ns", "each of 1,000 null launches, until done", m);
}

Row event_record(const Options& options) {
  Idle idle(options);
  const jalapeno::Event event(idle.device());
  const auto m = interleave(
      options, {ring_write_ns,
                [&] { return host_ns(idle, 10, 500, [&] { check(jalEventRecord(event.get(), idle.stream())); }); }});
  return at_most(60, "<= 60 ns", "host cost of one record", m);
}

Row event_query(const Options& options) {
  Idle idle(options);
  const jalapeno::Event event(idle.device());
  check(jalEventRecord(event.get(), idle.stream()));
  idle.synchronize();
  const auto m = interleave(
      options, {ring_write_ns, [&] { return host_ns(idle, 1, 20000, [&] { check(jalEventQuery(event.get())); }); }});
  return at_most(30, "<= 30 ns", "query of an event that is done", m);
}

}  // namespace

std::vector<Case> submission_cases(const Options&) {
  return {{"launch_host", "host cost of one launch, batches of 500, ring of 4096", launch_host},
          {"null_kernel", "launch and synchronize", null_kernel},
          {"launch_rate", "10,000 launches and one wait", launch_rate},
          {"graph_1000/host", "host cost of launching a graph of 1,000", graph_host},
          {"graph_1000/node", "time per node of a graph of 1,000", graph_node},
          {"event_record", "host cost of one record", event_record},
          {"event_query", "query of an event that is done", event_query}};
}

}  // namespace bench
