#include "coll_measure.hpp"

#include <algorithm>
#include <cstring>

#include "coll_limits.hpp"

namespace jalapeno::tools {
namespace {

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

constexpr OpInfo kOps[] = {
    {"all_reduce", Op::kAllReduce, [](double n) { return 2 * (n - 1) / n; }, [](double n) { return 2 * n; }},
    {"all_gather", Op::kAllGather, [](double n) { return (n - 1) / n; }, [](double n) { return n + 1; }},
    {"reduce_scatter", Op::kReduceScatter, [](double n) { return (n - 1) / n; }, [](double n) { return n + 1; }},
    {"all_to_all", Op::kAllToAll, [](double n) { return (n - 1) / n; }, [](double n) { return 2 * n; }},
    {"broadcast", Op::kBroadcast, [](double) { return 1.0; }, [](double n) { return n; }},
    {"reduce", Op::kReduce, [](double) { return 1.0; }, [](double n) { return n + 1; }},
    {"send_recv", Op::kSendRecv, [](double) { return 1.0; }, [](double n) { return 2 * n; }},
};

constexpr Type kTypes[] = {{"f32", jalF32, 4}, {"bf16", jalBF16, 2}, {"i32", jalI32, 4}};

// Small whole numbers, exact in every type.
uint32_t sample(int rank, size_t i) { return static_cast<uint32_t>((i * 7 + static_cast<size_t>(rank) * 13) % 5); }
void encode(const Type& t, uint32_t v, void* out) {
  const float f = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (t.type == jalI32)
    std::memcpy(out, &v, 4);
  else if (t.type == jalF32)
    std::memcpy(out, &f, 4);
  else
    std::memcpy(out, reinterpret_cast<const char*>(&bits) + 2, 2);
}

}  // namespace

std::span<const OpInfo> operations() { return kOps; }
std::span<const Type> types() { return kTypes; }

size_t Bench::prepare(const OpInfo& op, const Type& type, size_t size) {
  const bool parts = op.op == Op::kAllGather || op.op == Op::kReduceScatter || op.op == Op::kAllToAll;
  const size_t count = std::max<size_t>(1, size / type.bytes / (parts ? static_cast<size_t>(world_) : 1));
  const size_t total = count * (parts ? static_cast<size_t>(world_) : 1);
  for (Rank& r : ranks_) {
    r.send = Buffer<char>(r.device, total * type.bytes), r.receive = Buffer<char>(r.device, total * type.bytes);
    std::vector<char> host(total * type.bytes);
    for (size_t i = 0; i < total; ++i) encode(type, sample(r.number, i), host.data() + i * type.bytes);
    check(jalMemcpy(r.send.data(), host.data(), host.size()));
  }
  return count;
}

double Bench::time(const OpInfo& op, const Type& type, size_t size, bool graph, double budget_us) {
  return measure(op, type, prepare(op, type, size), false, graph, budget_us, nullptr);
}

Bench::Row Bench::run(const OpInfo& op, const Type& type, size_t size, bool graph, bool quick) {
  const size_t count = prepare(op, type, size);
  Row row{ranks_[0].send.size(), count, 0, 0, 0, 0, ""};
  issue(op, type, count, false);
  synchronize();
  row.wrong = verify(op, type, count);
  const char* name = op.op == Op::kSendRecv ? "send" : op.name;
  char algorithm[32];
  check(jalCommGetAlgorithm(ranks_[0].comm->get(), name, count * type.bytes, algorithm, sizeof algorithm));
  row.algorithm = algorithm;
  const double budget_us = quick ? 30e3 : 150e3;
  row.us = measure(op, type, count, false, graph, budget_us, &row.model_us);
  row.in_place_us = op.op == Op::kAllReduce ? measure(op, type, count, true, graph, budget_us, nullptr) : 0;
  return row;
}

void Bench::call(Rank& r, const OpInfo& op, const Type& t, size_t count, bool in_place) {
  const jalComm_t c = r.comm->get();
  const jalStream_t s = r.stream->get();
  char *send = r.send.data(), *receive = in_place ? r.send.data() : r.receive.data();
  switch (op.op) {
    case Op::kAllReduce:
      return check(jalAllReduce(send, receive, count, t.type, jalSum, c, s));
    case Op::kAllGather:
      return check(jalAllGather(send, receive, count, t.type, c, s));
    case Op::kReduceScatter:
      return check(jalReduceScatter(send, receive, count, t.type, jalSum, c, s));
    case Op::kAllToAll:
      return check(jalAllToAll(send, receive, count, t.type, c, s));
    case Op::kBroadcast:
      return check(jalBroadcast(send, receive, count, t.type, 0, c, s));
    case Op::kReduce:
      return check(jalReduce(send, receive, count, t.type, jalSum, 0, c, s));
    case Op::kSendRecv:
      return group([&] {
        check(jalSend(send, count, t.type, (r.number + 1) % world_, c, s));
        check(jalRecv(receive, count, t.type, (r.number + world_ - 1) % world_, c, s));
      });
  }
}
void Bench::issue(const OpInfo& op, const Type& t, size_t count, bool in_place) {
  for (Rank& r : ranks_) call(r, op, t, count, in_place);
}
void Bench::synchronize() {
  for (Rank& r : ranks_) r.stream->synchronize();
}

// us of one operation: as many in a row as the budget allows, several times.
double Bench::measure(const OpInfo& op, const Type& t, size_t count, bool in_place, bool graph, double budget_us,
                      double* model_us) {
  constexpr int kInGraph = 20;
  std::vector<Graph> graphs;
  if (graph)
    for (Rank& r : ranks_)
      graphs.emplace_back(*r.stream, [&] {
        for (int k = 0; k < kInGraph; ++k) call(r, op, t, count, in_place);
      });
  auto batch = [&](int turns) {
    for (int k = 0; k < turns; ++k)
      if (graph)
        for (size_t r = 0; r < ranks_.size(); ++r) graphs[r].launch(*ranks_[r].stream);
      else
        issue(op, t, count, in_place);
    synchronize();
  };
  const int per_turn = graph ? kInGraph : 1;
  batch(1);
  int turns = 1;
  double us = 0;
  // All ranks must take as many: rank 0's clock would say something else, so the size decides.
  const double guess = 2.0 * world_ + static_cast<double>(count * t.bytes * static_cast<size_t>(world_)) / 4000;
  turns = std::clamp(static_cast<int>(budget_us / 5 / guess / per_turn), 1, 200);
  const uint64_t before = ranks_[0].device.telemetry().device_ns;
  std::vector<double> times;
  for (int k = 0; k < 5; ++k) {
    const auto begin = Clock::now();
    batch(turns);
    times.push_back(us_since(begin) / turns / per_turn);
  }
  us = median(times);
  if (model_us != nullptr)
    *model_us = static_cast<double>(ranks_[0].device.telemetry().device_ns - before) * 1e-3 / (5.0 * turns * per_turn);
  return us;
}

uint64_t Bench::verify(const OpInfo& op, const Type& t, size_t count) {
  uint64_t wrong = 0;
  const auto n = static_cast<size_t>(world_);
  for (Rank& r : ranks_) {
    const auto got = r.receive.to_host();
    auto expect = [&](size_t i, uint32_t v) {
      char bytes[4];
      encode(t, v, bytes);
      wrong += std::memcmp(got.data() + i * t.bytes, bytes, t.bytes) != 0;
    };
    auto sum = [&](size_t i) {
      uint32_t v = 0;
      for (int k = 0; k < world_; ++k) v += sample(k, i);
      return v;
    };
    for (size_t i = 0; i < count; ++i) switch (op.op) {
        case Op::kAllReduce:
          expect(i, sum(i));
          break;
        case Op::kReduce:
          if (r.number == 0) expect(i, sum(i));
          break;
        case Op::kReduceScatter:
          expect(i, sum(static_cast<size_t>(r.number) * count + i));
          break;
        case Op::kBroadcast:
          expect(i, sample(0, i));
          break;
        case Op::kSendRecv:
          expect(i, sample((r.number + world_ - 1) % world_, i));
          break;
        case Op::kAllGather:
          for (size_t k = 0; k < n; ++k) expect(k * count + i, sample(static_cast<int>(k), i));
          break;
        case Op::kAllToAll:
          for (size_t k = 0; k < n; ++k)
            expect(k * count + i, sample(static_cast<int>(k), static_cast<size_t>(r.number) * count + i));
      }
  }
  return wrong;
}

}  // namespace jalapeno::tools
