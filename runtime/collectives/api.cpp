// The C functions of the collectives: checks, groups of calls, handles.
#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "communicator.hpp"
#include "launcher.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {
namespace {

struct Collected {
  std::shared_ptr<Communicator> communicator;
  std::shared_ptr<Stream> stream;
  Call call;
};

// What the calling thread collects between jalGroupStart and jalGroupEnd.
struct Group {
  int depth = 0;
  std::vector<Collected> calls;
  // What blocks until other ranks have come too, and the handle that it fills.
  struct Join {
    void* handle;
    std::function<std::shared_ptr<Communicator>()> make;
  };
  std::vector<Join> joins;
  void forget() {
    for (const Join& j : joins)
      if (j.handle != nullptr) HandleTable<Communicator>::give_up(j.handle);
    calls.clear(), joins.clear();
  }
};
thread_local Group group;

uint32_t element_bytes(jalDType type, const char* name) {
  if (const uint32_t bytes = hw::element_bytes(static_cast<hw::FabricType>(type)); bytes != 0) return bytes;
  invalid(std::string(name) + ": type " + std::to_string(static_cast<int>(type)) +
          ", expected f32, bf16, f16, i8, i32, i64, e4m3 or e5m2");
}

uint64_t bytes_of(uint64_t count, uint64_t parts, uint32_t element, const char* name) {
  const uint64_t each = std::max<uint64_t>(element * parts, 1);
  if (count > (uint64_t{1} << 46) / each)
    invalid(std::string(name) + ": a count of " + std::to_string(count) + " elements is more than any device holds");
  return count * each;
}

// Device memory of the communicator's device.
hw::DeviceAddr operand(const Communicator& c, const void* p, uint64_t bytes, const char* name, const char* which) {
  if (bytes == 0) return {};
  const std::string what = std::string(name) + ": " + which;
  if (p == nullptr) invalid(what + " is NULL");
  const auto r = Registry::get().find(p);
  if (!r || r->kind != MemoryKind::kDevice)
    invalid(what + " " + pointer_text(p) + " is not device memory of jalMalloc" +
            (r ? " (pinned and registered host memory is out of the peers' reach)" : ""));
  if (r->context != &c.context())
    fail(jalErrorInvalidDevice, what + " " + pointer_text(p) + " belongs to another device than the communicator");
  r->require(p, bytes, what);
  return r->at(p);
}

void check_rank(const Communicator& c, int rank, const char* name, const char* which) {
  if (rank < 0 || static_cast<uint32_t>(rank) >= c.ranks())
    invalid(std::string(name) + ": " + which + " " + std::to_string(rank) + " of " + std::to_string(c.ranks()) +
            " ranks");
}

void check_op(jalReduceOp op, const char* name) {
  if (static_cast<unsigned>(op) > jalAvg)
    invalid(std::string(name) + ": operation " + std::to_string(static_cast<int>(op)) +
            ", expected jalSum, jalProd, jalMin, jalMax or jalAvg");
}

// In place or apart.
void check_overlap(const Call& call, uint32_t rank, uint64_t parts_in, uint64_t parts_out) {
  const uint64_t a = hw::raw(call.send), b = hw::raw(call.receive), part = call.count * call.element;
  if (a >= b + part * parts_out || b >= a + part * parts_in) return;
  const bool gathers = call.op == CollectiveOp::kAllGather, scatters = call.op == CollectiveOp::kReduceScatter;
  if (call.op != CollectiveOp::kAllToAll && a + (scatters ? rank * part : 0) == b + (gathers ? rank * part : 0)) return;
  invalid(std::string(name_of(call.op)) + ": send and receive overlap" +
          (call.op == CollectiveOp::kAllToAll ? ""
           : gathers                          ? "; in place, send is this rank's part of receive"
           : scatters                         ? "; in place, receive is this rank's part of send"
                                              : "; in place, they are the same"));
}

void issue(Communicator& c, jalStream_t stream, const Call& call) {
  Stream& s = stream_of(stream);
  if (group.depth > 0)
    group.calls.push_back({c.shared_from_this(), s.shared_from_this(), call});
  else
    c.run(s, call);
}

// `parts_in` and `parts_out`: how many times count elements each side holds on this rank; 0: the side is not used.
jalError_t collective(CollectiveOp op, const void* send, uint64_t parts_in, void* receive, uint64_t parts_out,
                      size_t count, jalDType type, jalReduceOp reduce, int root, jalComm_t comm, jalStream_t stream) {
  return guard([&] {
    Communicator& c = communicator_of(comm);
    const char* name = name_of(op);
    Call call;
    call.op = op, call.count = count, call.type = type, call.reduce = reduce;
    call.element = element_bytes(type, name);
    check_op(reduce, name);
    check_rank(c, root, name, op == CollectiveOp::kSend || op == CollectiveOp::kReceive ? "peer" : "root");
    call.root = static_cast<uint32_t>(root);
    if (op == CollectiveOp::kReduce && call.root != c.rank()) parts_out = 0;
    if (op == CollectiveOp::kBroadcast && call.root != c.rank()) parts_in = 0;
    if (parts_in > 0) call.send = operand(c, send, bytes_of(count, parts_in, call.element, name), name, "send");
    if (parts_out > 0)
      call.receive = operand(c, receive, bytes_of(count, parts_out, call.element, name), name, "receive");
    if (parts_in > 0 && parts_out > 0 && count > 0) check_overlap(call, c.rank(), parts_in, parts_out);
    issue(c, stream, call);
  });
}

uint64_t ranks_of(jalComm_t comm) {
  try {
    return communicator_of(comm).ranks();
  } catch (const Error&) {
    return 1;  // the call itself tells what is wrong with the handle
  }
}

// Of all ranks of the mesh.
std::shared_ptr<Communicator> create(Context& context, std::shared_ptr<Mesh> mesh,
                                     const Communicator::Settings& settings) {
  std::vector<uint32_t> all(mesh->members().size());
  for (size_t k = 0; k < all.size(); ++k) all[k] = static_cast<uint32_t>(k);
  return Communicator::create(context.shared_from_this(), std::move(mesh), std::move(all), 1, settings);
}

std::shared_ptr<Communicator> join(Context& context, const UniqueId& id, int ranks, int rank,
                                   const Communicator::Settings& settings) {
  if (ranks < 1 || ranks > 1024) invalid(std::to_string(ranks) + " ranks, expected 1 to 1024");
  if (rank < 0 || rank >= ranks) invalid("rank " + std::to_string(rank) + " of " + std::to_string(ranks));
  return create(context,
                std::make_shared<Mesh>(id, static_cast<uint32_t>(ranks), static_cast<uint32_t>(rank),
                                       settings.init_timeout_ms, settings.grace_ms),
                settings);
}

jalComm_t handle_of(std::shared_ptr<Communicator> c) {
  return static_cast<jalComm_t>(HandleTable<Communicator>::add(std::move(c)));
}

// Several blocking joins of one thread's ranks: each on a thread. The first failure is told.
void run_together(const std::vector<std::function<void()>>& joins) {
  std::vector<std::exception_ptr> failures(joins.size());
  std::vector<std::thread> threads;
  for (size_t k = 0; k < joins.size(); ++k)
    threads.emplace_back([&, k] {
      try {
        joins[k]();
      } catch (...) {
        failures[k] = std::current_exception();
      }
    });
  for (std::thread& t : threads) t.join();
  for (const auto& f : failures)
    if (f) std::rethrow_exception(f);
}

// In a group the handle is there at once and good when the group has ended: where it was put may be gone by then.
void join_or_collect(jalComm_t* out, bool member, std::function<std::shared_ptr<Communicator>()> make) {
  if (group.depth == 0) {
    auto made = make();
    *out = made != nullptr ? handle_of(std::move(made)) : nullptr;
    return;
  }
  void* handle = member ? HandleTable<Communicator>::reserve() : nullptr;
  *out = static_cast<jalComm_t>(handle);
  group.joins.push_back({handle, std::move(make)});
}

void end_group() {
  Group mine;
  std::swap(mine.calls, group.calls), std::swap(mine.joins, group.joins);
  std::vector<std::function<void()>> joins;
  for (const Group::Join& j : mine.joins)
    joins.push_back([&j] {
      try {
        auto made = j.make();
        if (j.handle != nullptr) HandleTable<Communicator>::fill(j.handle, std::move(made));
      } catch (...) {
        if (j.handle != nullptr) HandleTable<Communicator>::give_up(j.handle);
        throw;
      }
    });
  if (!joins.empty()) run_together(joins);
  // Sends and receives last, those of a communicator together.
  std::vector<std::pair<Communicator*, std::vector<std::pair<Stream*, Call>>>> pairs;
  for (const Collected& k : mine.calls) {
    if (k.call.op != CollectiveOp::kSend && k.call.op != CollectiveOp::kReceive) {
      k.communicator->run(*k.stream, k.call);
      continue;
    }
    auto it = std::find_if(pairs.begin(), pairs.end(), [&](const auto& p) { return p.first == k.communicator.get(); });
    if (it == pairs.end()) it = pairs.insert(pairs.end(), {k.communicator.get(), {}});
    it->second.emplace_back(k.stream.get(), k.call);
  }
  for (const auto& [communicator, calls] : pairs) communicator->run_pairs(calls);
}

}  // namespace
}  // namespace jalapeno::runtime

namespace hw = jalapeno::hw;
using namespace jalapeno::runtime;

jalError_t jalGetUniqueId(jalUniqueId* id) {
  return guard([&] {
    const UniqueId made = make_unique_id();
    std::memcpy(required(id, "id").data, &made, sizeof made);
  });
}

jalError_t jalCommInitRank(jalComm_t* comm, jalDevice_t device, int ranks, const jalUniqueId* id, int rank,
                           const jalCommOptions* options) {
  return guard([&] {
    required(comm, "comm");
    UniqueId known;
    std::memcpy(&known, required(id, "id").data, sizeof known);
    join_or_collect(
        comm, true,
        [=, c = context_of(device).shared_from_this(), settings = Communicator::settings(options, "explicit")] {
          return join(*c, known, ranks, rank, settings);
        });
  });
}

jalError_t jalCommInitAll(jalComm_t* comms, const jalDevice_t* devices, int ranks, const jalCommOptions* options) {
  return guard([&] {
    required(comms, "comms"), required(devices, "devices");
    if (ranks < 1 || ranks > 1024) invalid(std::to_string(ranks) + " ranks, expected 1 to 1024");
    const auto settings = Communicator::settings(options, "one process");
    const auto meshes = Mesh::in_process(static_cast<uint32_t>(ranks), settings.grace_ms);
    std::vector<std::shared_ptr<Communicator>> made(static_cast<size_t>(ranks));
    std::vector<std::function<void()>> joins;
    for (int r = 0; r < ranks; ++r)
      joins.push_back([&, r, c = context_of(devices[r]).shared_from_this()] {
        made[static_cast<size_t>(r)] = create(*c, meshes[static_cast<size_t>(r)], settings);
      });
    run_together(joins);
    for (size_t r = 0; r < made.size(); ++r) comms[r] = handle_of(std::move(made[r]));
  });
}

jalError_t jalCommInitLauncher(jalComm_t* comm, jalDevice_t device, const jalCommOptions* options) {
  return guard([&] {
    required(comm, "comm");
    Context& c = context_of(device);
    Launcher& launcher = Launcher::get();
    const auto settings = Communicator::settings(options, launcher.name());
    *comm = handle_of(join(c, launcher.agree(), launcher.ranks, launcher.rank, settings));
  });
}

jalError_t jalLauncherGetRank(int* rank, int* ranks, int* local_rank) {
  return guard([&] {
    const Launcher& launcher = Launcher::get();
    if (rank != nullptr) *rank = launcher.rank;
    if (ranks != nullptr) *ranks = launcher.ranks;
    if (local_rank != nullptr) *local_rank = launcher.local_rank;
  });
}

jalError_t jalCommSplit(jalComm_t comm, int color, int key, jalComm_t* out) {
  return guard([&] {
    required(out, "out");
    if (color < -1) invalid("color " + std::to_string(color) + ", expected -1 or more");
    join_or_collect(out, color >= 0,
                    [=, c = communicator_of(comm).shared_from_this()] { return c->split(color, key); });
  });
}

jalError_t jalCommShrink(jalComm_t comm, const int* excluded, int excluded_count, jalComm_t* out) {
  return guard([&] {
    required(out, "out");
    Communicator& c = communicator_of(comm);
    if (excluded_count < 0 || (excluded_count > 0 && excluded == nullptr))
      invalid("jalCommShrink: " + std::to_string(excluded_count) + " excluded ranks");
    std::set<uint32_t> without;
    for (int k = 0; k < excluded_count; ++k) {
      check_rank(c, excluded[k], "jalCommShrink", "excluded rank");
      without.insert(static_cast<uint32_t>(excluded[k]));
    }
    join_or_collect(out, true, [=, c = c.shared_from_this()] { return c->shrink(without); });
  });
}

jalError_t jalCommGetInfo(jalComm_t comm, jalCommInfo* info) {
  return guard([&] {
    Communicator& c = communicator_of(comm);
    check_struct(required(info, "info"), "jalCommInfo");
    *info = c.info();
  });
}

jalError_t jalCommGetAsyncError(jalComm_t comm, jalError_t* error) {
  return guard([&] { required(error, "error") = communicator_of(comm).error(); });
}

jalError_t jalCommGetErrorRecord(jalComm_t comm, jalCommErrorRecord* record) {
  return guard([&] {
    Communicator& c = communicator_of(comm);
    check_struct(required(record, "record"), "jalCommErrorRecord");
    const auto found = c.record();
    if (!found) fail(jalErrorNotFound, "the communicator has not failed");
    *record = *found;
  });
}

jalError_t jalCommAbort(jalComm_t comm) {
  return guard([&] { communicator_of(comm).abort(); });
}
jalError_t jalCommFinalize(jalComm_t comm) {
  return guard([&] { communicator_of(comm).finalize(); });
}
jalError_t jalCommDestroy(jalComm_t comm) {
  return guard([&] { HandleTable<Communicator>::remove(comm); });
}

jalError_t jalCommRegister(jalComm_t comm, void* buffer, size_t bytes) {
  return guard(
      [&] { (void)operand(communicator_of(comm), buffer, bytes == 0 ? 1 : bytes, "jalCommRegister", "buffer"); });
}
jalError_t jalCommDeregister(jalComm_t comm, void* buffer) {
  return guard([&] { (void)operand(communicator_of(comm), buffer, 1, "jalCommDeregister", "buffer"); });
}

jalError_t jalCommDump(jalComm_t comm, char* text, size_t size, size_t* needed) {
  return guard([&] {
    const std::string all = communicator_of(comm).dump();
    if (needed != nullptr) *needed = all.size() + 1;
    if (text == nullptr && size == 0) return;
    if (size <= all.size())
      invalid("jalCommDump: text needs " + std::to_string(all.size() + 1) + " bytes, got " + std::to_string(size));
    std::memcpy(&required(text, "text"), all.c_str(), all.size() + 1);
  });
}

jalError_t jalCommGetAlgorithm(jalComm_t comm, const char* operation, size_t bytes, char* name, size_t size) {
  return guard([&] {
    Communicator& c = communicator_of(comm);
    const std::string wanted = &required(operation, "operation");
    for (int k = 0; k < kCollectiveOps; ++k) {
      if (wanted != name_of(static_cast<CollectiveOp>(k))) continue;
      const std::string found = name_of(c.algorithm(static_cast<CollectiveOp>(k), bytes));
      if (size <= found.size()) invalid("name needs " + std::to_string(found.size() + 1) + " bytes");
      std::memcpy(&required(name, "name"), found.c_str(), found.size() + 1);
      return;
    }
    invalid(
        "operation \"" + wanted +
        "\", expected all_reduce, reduce, broadcast, all_gather, reduce_scatter, all_to_all, send, receive or barrier");
  });
}

jalError_t jalAllReduce(const void* send, void* receive, size_t count, jalDType type, jalReduceOp op, jalComm_t comm,
                        jalStream_t stream) {
  return collective(CollectiveOp::kAllReduce, send, 1, receive, 1, count, type, op, 0, comm, stream);
}
jalError_t jalReduce(const void* send, void* receive, size_t count, jalDType type, jalReduceOp op, int root,
                     jalComm_t comm, jalStream_t stream) {
  return collective(CollectiveOp::kReduce, send, 1, receive, 1, count, type, op, root, comm, stream);
}
jalError_t jalBroadcast(const void* send, void* receive, size_t count, jalDType type, int root, jalComm_t comm,
                        jalStream_t stream) {
  return collective(CollectiveOp::kBroadcast, send, 1, receive, 1, count, type, jalSum, root, comm, stream);
}
jalError_t jalAllGather(const void* send, void* receive, size_t count, jalDType type, jalComm_t comm,
                        jalStream_t stream) {
  return collective(CollectiveOp::kAllGather, send, 1, receive, ranks_of(comm), count, type, jalSum, 0, comm, stream);
}
jalError_t jalReduceScatter(const void* send, void* receive, size_t count, jalDType type, jalReduceOp op,
                            jalComm_t comm, jalStream_t stream) {
  return collective(CollectiveOp::kReduceScatter, send, ranks_of(comm), receive, 1, count, type, op, 0, comm, stream);
}
jalError_t jalAllToAll(const void* send, void* receive, size_t count, jalDType type, jalComm_t comm,
                       jalStream_t stream) {
  return collective(CollectiveOp::kAllToAll, send, ranks_of(comm), receive, ranks_of(comm), count, type, jalSum, 0,
                    comm, stream);
}

jalError_t jalAllToAllV(const void* send, const size_t* send_counts, const size_t* send_offsets, void* receive,
                        const size_t* receive_counts, const size_t* receive_offsets, jalDType type, jalComm_t comm,
                        jalStream_t stream) {
  return guard([&] {
    Communicator& c = communicator_of(comm);
    Stream& s = stream_of(stream);
    const uint32_t element = element_bytes(type, "all_to_all");
    required(send_counts, "send_counts"), required(send_offsets, "send_offsets");
    required(receive_counts, "receive_counts"), required(receive_offsets, "receive_offsets");
    auto table = [&](const void* base, const size_t* counts, const size_t* offsets, const char* which,
                     hw::DeviceAddr& at) {
      std::vector<hw::FabricRange> ranges(c.ranks());
      uint64_t end = 0;
      for (uint32_t k = 0; k < c.ranks(); ++k) {
        ranges[k] = {bytes_of(offsets[k], 1, element, "all_to_all"), bytes_of(counts[k], 1, element, "all_to_all")};
        if (counts[k] > 0) end = std::max(end, ranges[k].offset + ranges[k].bytes);
      }
      at = operand(c, base, end, "all_to_all", which);
      return ranges;
    };
    Call call;
    call.op = CollectiveOp::kAllToAllRanges;
    const auto give = table(send, send_counts, send_offsets, "send", call.send);
    const auto get = table(receive, receive_counts, receive_offsets, "receive", call.receive);
    if (c.reaches_all_memory()) {
      call.send_ranges = c.place_ranges(s, give), call.receive_ranges = c.place_ranges(s, get);
      return issue(c, stream, call);
    }
    // Between hosts: as messages, which are all under way at once.
    std::vector<std::pair<Stream*, Call>> messages;
    for (uint32_t k = 0; k < c.ranks(); ++k) {
      Call one;
      one.type = type, one.element = element, one.root = k;
      one.op = CollectiveOp::kSend, one.send = call.send + give[k].offset, one.count = send_counts[k];
      messages.emplace_back(&s, one);
      one.op = CollectiveOp::kReceive, one.receive = call.receive + get[k].offset, one.count = receive_counts[k];
      messages.emplace_back(&s, one);
    }
    if (group.depth == 0) return c.run_pairs(messages);
    for (const auto& m : messages) issue(c, stream, m.second);
  });
}

jalError_t jalAllToAllRanges(const void* send, const void* send_ranges, void* receive, const void* receive_ranges,
                             jalComm_t comm, jalStream_t stream) {
  return guard([&] {
    Communicator& c = communicator_of(comm);
    if (!c.reaches_all_memory())
      fail(jalErrorNotSupported,
           "all_to_all with tables on the device: some ranks are on other hosts; use jalAllToAllV");
    const uint64_t bytes = c.ranks() * sizeof(hw::FabricRange);
    Call call;
    call.op = CollectiveOp::kAllToAllRanges;
    call.send = operand(c, send, 1, "all_to_all", "send"),
    call.receive = operand(c, receive, 1, "all_to_all", "receive");
    call.send_ranges = operand(c, send_ranges, bytes, "all_to_all", "send_ranges");
    call.receive_ranges = operand(c, receive_ranges, bytes, "all_to_all", "receive_ranges");
    issue(c, stream, call);
  });
}

jalError_t jalSend(const void* send, size_t count, jalDType type, int peer, jalComm_t comm, jalStream_t stream) {
  return collective(CollectiveOp::kSend, send, 1, nullptr, 0, count, type, jalSum, peer, comm, stream);
}
jalError_t jalRecv(void* receive, size_t count, jalDType type, int peer, jalComm_t comm, jalStream_t stream) {
  return collective(CollectiveOp::kReceive, nullptr, 0, receive, 1, count, type, jalSum, peer, comm, stream);
}

jalError_t jalBarrier(jalComm_t comm, jalStream_t stream) {
  return guard([&] {
    Call call;
    call.op = CollectiveOp::kBarrier;
    issue(communicator_of(comm), stream, call);
  });
}

jalError_t jalGroupStart(void) {
  return guard([&] { ++group.depth; });
}
jalError_t jalGroupEnd(void) {
  return guard([&] {
    if (group.depth == 0) fail(jalErrorIllegalState, "jalGroupEnd without jalGroupStart");
    if (--group.depth == 0) end_group();
  });
}
jalError_t jalGroupCancel(void) {
  return guard([&] {
    if (group.depth == 0) fail(jalErrorIllegalState, "jalGroupCancel without jalGroupStart");
    --group.depth;
    group.forget();
  });
}
