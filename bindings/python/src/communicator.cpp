// Communicators: one rank's view of a group of ranks.
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>

#include "core.hpp"

namespace jalapeno::python {
namespace {

struct Communicator {
  Communicator(DeviceRef d, jalComm_t h) : device(std::move(d)), handle(h) {}
  ~Communicator() { destroy(); }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  void destroy() {
    if (handle == nullptr || device->handle == nullptr || ending()) return;
    if (told.struct_size == 0) {
      jalCommInfo i{};
      i.struct_size = sizeof i;
      if (jalCommGetInfo(handle, &i) == jalSuccess) told = i;
    }
    without_gil([h = std::exchange(handle, nullptr)] { (void)jalCommDestroy(h); });
  }
  jalComm_t get() const {
    if (handle == nullptr) fail(jalErrorInvalidHandle, "the communicator was destroyed");
    return handle;
  }
  // Asked when it is wanted: what is made in a group is there when the group has ended.
  const jalCommInfo& info() const {
    if (told.struct_size == 0) {
      jalCommInfo i{};
      i.struct_size = sizeof i;
      check(jalCommGetInfo(get(), &i));
      told = i;
    }
    return told;
  }
  DeviceRef device;
  jalComm_t handle;

 private:
  mutable jalCommInfo told{};
};
using CommunicatorRef = std::shared_ptr<Communicator>;

jalCommOptions options_of(const Timeout& deadline, const Timeout& timeout) {
  jalCommOptions o{};
  o.struct_size = sizeof o;
  auto ms = [](const Timeout& t, const char* name) {
    if (!t) return uint32_t{0};
    if (!(*t > 0) || *t > 86400)
      throw py::value_error(std::string(name) + "=" + std::to_string(*t) + ", expected seconds up to a day");
    return static_cast<uint32_t>(std::ceil(*t * 1e3));
  };
  o.deadline_ms = ms(deadline, "deadline"), o.init_timeout_ms = ms(timeout, "timeout");
  return o;
}

template <class F>
jalComm_t join(F f) {
  jalComm_t made{};
  const jalError_t e = without_gil([&] { return f(&made); });
  check(e);
  return made;
}

// A dense operand, and how many elements it has. An array of 64-bit integers only lies in memory, and may be sent too.
struct Operand {
  void* data = nullptr;
  size_t count = 0;
  jalDType type = jalF32;
};
Operand operand(const Tensor& t, const char* name) {
  if (!t.contiguous()) fail(jalErrorInvalidValue, std::string(name) + " is not contiguous; pass array.contiguous()");
  const std::string type = t.dtype->name;
  Operand o{nullptr, static_cast<size_t>(t.size()), jalF32};
  if (t.dtype->code >= 0)
    o.type = static_cast<jalDType>(t.dtype->code);
  else if (type == "int64")
    o.type = jalI64;
  else
    fail(jalErrorInvalidValue, std::string(name) + " is an array of " + type + ", which collectives do not take");
  if (o.count > 0) o.data = t.data();
  return o;
}

jalReduceOp reduce_op(const std::string& name) {
  constexpr const char* kNames[] = {"sum", "prod", "min", "max", "avg"};
  for (int k = 0; k < 5; ++k)
    if (name == kNames[k]) return static_cast<jalReduceOp>(k);
  throw py::value_error("op \"" + name + "\", expected sum, prod, min, max or avg");
}

void same_type(const Operand& a, const Operand& b) {
  if (a.type != b.type) fail(jalErrorInvalidValue, "the two arrays have different element types");
}
void expect_count(const Operand& o, size_t count, const char* what) {
  if (o.count != count)
    fail(jalErrorInvalidValue,
         std::string(what) + " has " + std::to_string(o.count) + " elements, expected " + std::to_string(count));
}

// Enqueues on the stream chosen as for kernels, and keeps the arrays while a graph records.
template <class F>
void run(const Communicator& c, const StreamRef& given, std::initializer_list<const Tensor*> arrays, F f) {
  const StreamRef s = choose_stream(c.device, given);
  enqueue(*s, [&] { return f(c.get(), s->handle); });
  for (const Tensor* t : arrays)
    if (t != nullptr) s->keep(t->memory);
}

}  // namespace

void define_communicator(py::module_& m) {
  py::class_<Communicator, CommunicatorRef>(
      m, "Communicator",
      R"(This rank's view of a group of ranks: NCCL's operations between chips, on streams, in order, in graphs.

Every rank calls the same operations in the same order. A rank that dies, stops or calls for something else ends the
operation on every rank with PeerError; shrink() then goes on with the survivors. Results are the same bits on every
rank and for every size and algorithm. docs/collectives.md tells more.)")
      .def(py::init([](const DeviceRef& device, int ranks, const py::bytes& id, int rank, const Timeout& deadline,
                       const Timeout& timeout) {
             const std::string bytes = id;
             jalUniqueId known{};
             if (bytes.size() != sizeof known)
               throw py::value_error("id of " + std::to_string(bytes.size()) + " bytes, expected unique_id()'s 128");
             std::memcpy(&known, bytes.data(), sizeof known);
             const jalCommOptions o = options_of(deadline, timeout);
             return std::make_shared<Communicator>(
                 device,
                 join([&](jalComm_t* out) { return jalCommInitRank(out, device->get(), ranks, &known, rank, &o); }));
           }),
           py::arg("device"), py::arg("ranks"), py::arg("id"), py::arg("rank"), py::kw_only(),
           py::arg("deadline") = py::none(), py::arg("timeout") = py::none(),
           "Joins as `rank` of `ranks`; blocks without the GIL until all have come, at most `timeout` seconds. "
           "deadline: seconds "
           "an operation may wait for a rank.")
      .def_static(
          "from_launcher",
          [](const DeviceRef& device, const Timeout& deadline, const Timeout& timeout) {
            const jalCommOptions o = options_of(deadline, timeout);
            return std::make_shared<Communicator>(
                device, join([&](jalComm_t* out) { return jalCommInitLauncher(out, device->get(), &o); }));
          },
          py::arg("device"), py::kw_only(), py::arg("deadline") = py::none(), py::arg("timeout") = py::none(),
          "Rank and size from the launcher that started this process: mpirun, srun --mpi=pmix, torchrun. One rank "
          "without one.")
      .def_static(
          "all",
          [](const std::vector<DeviceRef>& devices, const Timeout& deadline, const Timeout& timeout) {
            const jalCommOptions o = options_of(deadline, timeout);
            std::vector<jalDevice_t> handles;
            for (const DeviceRef& d : devices) handles.push_back(d->get());
            std::vector<jalComm_t> made(handles.size());
            check(without_gil(
                [&] { return jalCommInitAll(made.data(), handles.data(), static_cast<int>(handles.size()), &o); }));
            std::vector<CommunicatorRef> out;
            for (size_t k = 0; k < made.size(); ++k) out.push_back(std::make_shared<Communicator>(devices[k], made[k]));
            return out;
          },
          py::arg("devices"), py::kw_only(), py::arg("deadline") = py::none(), py::arg("timeout") = py::none(),
          "All ranks in this process: a list, rank i on devices[i].")
      .def_static(
          "unique_id",
          [] {
            jalUniqueId id;
            check(jalGetUniqueId(&id));
            return py::bytes(id.data, sizeof id.data);
          },
          "An id for a new communicator; tell it to the other ranks. This process serves it until all have come.")
      .def_property_readonly(
          "device", [](const Communicator& c) { return c.device; }, "This rank's Device.")
      .def_property_readonly(
          "rank", [](const Communicator& c) { return c.info().rank; }, "This rank's number, from 0.")
      .def_property_readonly(
          "ranks", [](const Communicator& c) { return c.info().ranks; }, "How many ranks there are.")
      .def_property_readonly(
          "launcher", [](const Communicator& c) { return std::string(c.info().launcher); },
          "Where rank and size came from: \"PMIx\", \"PMI-1\", \"RANK and WORLD_SIZE\", \"explicit\", ...")
      .def_property_readonly(
          "error",
          [](const Communicator& c) -> py::object {
            jalCommErrorRecord r{};
            r.struct_size = sizeof r;
            const jalError_t e = jalCommGetErrorRecord(c.get(), &r);
            if (e == jalErrorNotFound) return py::none();
            check(e);
            py::dict d;
            d["code"] = jalGetErrorName(r.code), d["rank"] = r.rank, d["pid"] = r.pid, d["host"] = r.host;
            d["operation"] = r.operation, d["evidence"] = r.evidence, d["unix_ns"] = r.unix_ns;
            return d;
          },
          "Why it failed, as a dict: code, rank, pid, host, operation, evidence, unix_ns; None while it is well. Never "
          "blocks.")
      .def(
          "all_reduce",
          [](const Communicator& c, const Tensor& send, const std::optional<Tensor>& out, const std::string& op,
             const StreamRef& stream) {
            const Operand a = operand(send, "send"), b = out ? operand(*out, "out") : a;
            same_type(a, b), expect_count(b, a.count, "out");
            run(c, stream, {&send, out ? &*out : nullptr}, [&, o = reduce_op(op)](jalComm_t h, jalStream_t s) {
              return jalAllReduce(a.data, b.data, a.count, a.type, o, h, s);
            });
          },
          py::arg("send"), py::arg("out") = py::none(), py::arg("op") = "sum", py::arg("stream") = py::none(),
          "Element by element over all ranks; in place without out. op: sum, prod, min, max, avg.")
      .def(
          "reduce",
          [](const Communicator& c, const Tensor& send, const std::optional<Tensor>& out, int root,
             const std::string& op, const StreamRef& stream) {
            const Operand a = operand(send, "send"), b = out ? operand(*out, "out") : a;
            same_type(a, b), expect_count(b, a.count, "out");
            run(c, stream, {&send, out ? &*out : nullptr}, [&, o = reduce_op(op)](jalComm_t h, jalStream_t s) {
              return jalReduce(a.data, b.data, a.count, a.type, o, root, h, s);
            });
          },
          py::arg("send"), py::arg("out") = py::none(), py::arg("root") = 0, py::arg("op") = "sum",
          py::arg("stream") = py::none(), "As all_reduce, with the result on the root only.")
      .def(
          "broadcast",
          [](const Communicator& c, const Tensor& array, int root, const StreamRef& stream) {
            const Operand a = operand(array, "array");
            run(c, stream, {&array},
                [&](jalComm_t h, jalStream_t s) { return jalBroadcast(a.data, a.data, a.count, a.type, root, h, s); });
          },
          py::arg("array"), py::arg("root") = 0, py::arg("stream") = py::none(),
          "The root's values to every rank, in place.")
      .def(
          "all_gather",
          [](const Communicator& c, const Tensor& send, const Tensor& out, const StreamRef& stream) {
            const Operand a = operand(send, "send"), b = operand(out, "out");
            same_type(a, b), expect_count(b, a.count * static_cast<size_t>(c.info().ranks), "out");
            run(c, stream, {&send, &out},
                [&](jalComm_t h, jalStream_t s) { return jalAllGather(a.data, b.data, a.count, a.type, h, s); });
          },
          py::arg("send"), py::arg("out"), py::arg("stream") = py::none(),
          "Every rank's array behind each other in out.")
      .def(
          "reduce_scatter",
          [](const Communicator& c, const Tensor& send, const Tensor& out, const std::string& op,
             const StreamRef& stream) {
            const Operand a = operand(send, "send"), b = operand(out, "out");
            same_type(a, b), expect_count(a, b.count * static_cast<size_t>(c.info().ranks), "send");
            run(c, stream, {&send, &out}, [&, o = reduce_op(op)](jalComm_t h, jalStream_t s) {
              return jalReduceScatter(a.data, b.data, b.count, a.type, o, h, s);
            });
          },
          py::arg("send"), py::arg("out"), py::arg("op") = "sum", py::arg("stream") = py::none(),
          "Part r of the reduction to rank r.")
      .def(
          "all_to_all",
          [](const Communicator& c, const Tensor& send, const Tensor& out, const StreamRef& stream) {
            const Operand a = operand(send, "send"), b = operand(out, "out");
            const auto n = static_cast<size_t>(c.info().ranks);
            same_type(a, b), expect_count(b, a.count, "out");
            if (a.count % n != 0)
              fail(jalErrorInvalidValue, "send has " + std::to_string(a.count) + " elements, expected a multiple of " +
                                             std::to_string(n) + " ranks");
            run(c, stream, {&send, &out},
                [&](jalComm_t h, jalStream_t s) { return jalAllToAll(a.data, b.data, a.count / n, a.type, h, s); });
          },
          py::arg("send"), py::arg("out"), py::arg("stream") = py::none(),
          "Part r of send goes to rank r; part r of out comes from it.")
      .def(
          "send",
          [](const Communicator& c, const Tensor& array, int peer, const StreamRef& stream) {
            const Operand a = operand(array, "array");
            run(c, stream, {&array},
                [&](jalComm_t h, jalStream_t s) { return jalSend(a.data, a.count, a.type, peer, h, s); });
          },
          py::arg("array"), py::arg("peer"), py::arg("stream") = py::none(),
          "Meets the peer's receive(), in order; cycles belong into a group().")
      .def(
          "receive",
          [](const Communicator& c, const Tensor& array, int peer, const StreamRef& stream) {
            const Operand a = operand(array, "array");
            run(c, stream, {&array},
                [&](jalComm_t h, jalStream_t s) { return jalRecv(a.data, a.count, a.type, peer, h, s); });
          },
          py::arg("array"), py::arg("peer"), py::arg("stream") = py::none(), "Meets the peer's send().")
      .def(
          "barrier",
          [](const Communicator& c, const StreamRef& stream) {
            run(c, stream, {}, [&](jalComm_t h, jalStream_t s) { return jalBarrier(h, s); });
          },
          py::arg("stream") = py::none(), "The stream goes on when every rank's stream has come so far.")
      .def(
          "split",
          [](const Communicator& c, int color, int key) -> CommunicatorRef {
            jalComm_t made = join([&](jalComm_t* out) { return jalCommSplit(c.get(), color, key, out); });
            return made == nullptr ? nullptr : std::make_shared<Communicator>(c.device, made);
          },
          py::arg("color"), py::arg("key") = 0,
          "New communicators, one a color, ordered by key and rank; None for color -1.")
      .def(
          "shrink",
          [](const Communicator& c, const std::vector<int>& excluded) {
            return std::make_shared<Communicator>(c.device, join([&](jalComm_t* out) {
                                                    return jalCommShrink(c.get(), excluded.data(),
                                                                         static_cast<int>(excluded.size()), out);
                                                  }));
          },
          py::arg("excluded") = std::vector<int>{},
          "The survivors' new communicator, without lost ranks and `excluded`. Every survivor calls it; reset the "
          "stream first.")
      .def(
          "abort", [](const Communicator& c) { check(jalCommAbort(c.get())); },
          "Ends what is in flight, on every rank. Returns at once.")
      .def(
          "finalize", [](const Communicator& c) { check(without_gil([&] { return jalCommFinalize(c.get()); })); },
          "Waits for this rank's operations and raises what they failed with.")
      .def("destroy", &Communicator::destroy, "Gives everything back; done by the last reference too.")
      .def(
          "dump",
          [](const Communicator& c) {
            size_t needed = 0;
            check(jalCommDump(c.get(), nullptr, 0, &needed));
            std::string text(needed + 65536, 0);
            check(jalCommDump(c.get(), text.data(), text.size(), &needed));
            text.resize(needed - 1);
            return text;
          },
          "The last operations with their state, and who was late, as JSON.")
      .def(
          "algorithm",
          [](const Communicator& c, const std::string& operation, size_t bytes) {
            char name[32];
            check(jalCommGetAlgorithm(c.get(), operation.c_str(), bytes, name, sizeof name));
            return std::string(name);
          },
          py::arg("operation"), py::arg("bytes"),
          "What an operation of this size uses: \"one-shot\", \"two-shot\" or \"direct\".")
      .def("__repr__", [](const Communicator& c) {
        return "<jalapeno.Communicator rank " + std::to_string(c.info().rank) + " of " +
               std::to_string(c.info().ranks) + ">";
      });
  m.def(
      "group_start", [] { check(jalGroupStart()); }, "Collects this thread's collective calls; use jalapeno.group().");
  m.def(
      "group_end", [] { check(without_gil([] { return jalGroupEnd(); })); },
      "Issues what was collected; use jalapeno.group().");
  m.def(
      "group_cancel", [] { check(jalGroupCancel()); }, "Forgets what was collected; use jalapeno.group().");
  m.def(
      "launcher_rank",
      [] {
        int rank = 0, ranks = 1, local = 0;
        check(without_gil([&] { return jalLauncherGetRank(&rank, &ranks, &local); }));
        return py::make_tuple(rank, ranks, local);
      },
      "(rank, ranks, rank on this host) as the launcher says.");
}

}  // namespace jalapeno::python
