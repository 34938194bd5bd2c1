#include <pybind11/stl.h>

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "core.hpp"

namespace jalapeno::python {

namespace {

// The current stream of this thread or task: (stream, the one before) or unset.
PyObject* current_variable() {
  static PyObject* const variable = PyContextVar_New("jalapeno.stream", Py_None);
  return variable;
}
py::object current_entry() {
  PyObject* value = nullptr;
  if (PyContextVar_Get(current_variable(), nullptr, &value) < 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}
void set_current(const py::object& entry) {
  PyObject* token = PyContextVar_Set(current_variable(), entry.ptr());
  if (token == nullptr) throw py::error_already_set();
  Py_DECREF(token);
}

// The functions of Stream.call that are in Python now, on threads of the library. A thread that asks for the GIL while
// Python ends is ended inside that call, through frames that may not be unwound: so Python's end first waits for those
// that have begun, and lets no other begin.
class Calls {
 public:
  bool begin() {
    const std::lock_guard lock(mutex_);
    if (!ended_) ++running_;
    return !ended_;
  }
  void finish() {
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) idle_.notify_all();
  }
  void end() {
    std::unique_lock lock(mutex_);
    ended_ = true;
    // One that never returns must not keep the process; it is left where it is.
    idle_.wait_for(lock, std::chrono::seconds(10), [this] { return running_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable idle_;
  int running_ = 0;
  bool ended_ = false;
};
Calls& calls() {
  static auto* const instance = new Calls;  // threads of the library outlive static destructors
  return *instance;
}

}  // namespace

Stream::Stream(DeviceRef d, int priority, uint32_t ring_entries) : device(std::move(d)) {
  jalStreamOptions o{};
  o.struct_size = sizeof o, o.priority = priority, o.ring_entries = ring_entries;
  ring = ring_entries != 0 ? ring_entries : 1024;
  check(jalStreamCreate(device->get(), &o, &handle));
  device->enlist(handle);
}
Stream::~Stream() {
  device->dismiss(handle);
  if (device->handle != nullptr && !ending()) without_gil([&] { (void)jalStreamDestroy(handle); });
}
void Stream::synchronize(const Timeout& timeout) {
  check(wait(timeout, [h = handle](uint64_t ns) { return jalStreamSynchronizeUntil(h, ns); }), handle);
}

// A full ring makes enqueuing block where Ctrl-C is not heard: wait for room here.
void Stream::wait_for_room() const {
  for (;;) {
    uint64_t submitted = 0, completed = 0;
    if (jalStreamGetPosition(handle, &submitted, &completed) != jalSuccess || submitted - completed + 8 < ring) return;
    if (const jalError_t e = jalStreamQuery(handle); e != jalErrorNotReady) return;
    without_gil([] { std::this_thread::sleep_for(std::chrono::microseconds(20)); });
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

StreamRef Device::stream() {
  if (!default_stream_) {
    (void)get();
    // The device owns it, so it may not own the device ...
    default_stream_ = std::make_shared<Stream>(DeviceRef(DeviceRef(), this), 0, 0);
  }
  // ... but who holds the stream holds both.
  const auto both = std::make_shared<std::pair<DeviceRef, StreamRef>>(shared_from_this(), default_stream_);
  return {both, default_stream_.get()};
}

StreamRef choose_stream(const DeviceRef& device, const StreamRef& given) {
  if (given) return given;
  const py::object entry = current_entry();
  if (!entry.is_none()) {
    auto stream = py::reinterpret_borrow<py::tuple>(entry)[0].cast<StreamRef>();
    if (stream->device.get() == device.get()) return stream;
  }
  return device->stream();
}

void define_stream(py::module_& m) {
  py::class_<Stream, StreamRef>(m, "Stream", py::dynamic_attr(),
                                R"(A queue of work of one device; what is enqueued runs in order.

"with stream:" makes it the current stream of this thread or asyncio task: arrays, ops and launches without stream=
go to it. "await stream" waits for what is enqueued by then. priority 0 (lowest) to 3; ring_entries a power of two, 0: 1024.
Raises BusyError when the device has no queue left. Thread-safe.)")
      .def(py::init<DeviceRef, int, uint32_t>(), py::arg("device"), py::arg("priority") = 0,
           py::arg("ring_entries") = 0)
      .def("__enter__",
           [](const StreamRef& s) {
             set_current(py::make_tuple(s, current_entry()));
             return s;
           })
      .def("__exit__",
           [](Stream&, const py::args&) {
             const py::object entry = current_entry();
             if (entry.is_none())
               fail(jalErrorIllegalState, "no stream is current; leave a with block that was entered");
             set_current(py::reinterpret_borrow<py::tuple>(entry)[1]);
           })
      .def_property_readonly(
          "device", [](const Stream& s) { return s.device->shared_from_this(); }, "The Device it belongs to.")
      .def("synchronize", &Stream::synchronize, py::arg("timeout") = py::none(),
           R"(Waits until all enqueued work is done, without the GIL; Ctrl-C interrupts.

timeout in seconds (None: JAL_WAIT_TIMEOUT_MS, inf: without end). Raises WaitTimeout (everything goes on), or the stream's
error with its record: KernelError, DependencyError, ...)")
      .def(
          "query",
          [](const Stream& s) {
            const jalError_t e = jalStreamQuery(s.handle);
            if (e == jalErrorNotReady) return false;
            check(e, s.handle);
            return true;
          },
          "True when all is done. Never blocks. Raises the stream's error.")
      .def(
          "position",
          [](const Stream& s) {
            uint64_t submitted = 0, completed = 0;
            check(jalStreamGetPosition(s.handle, &submitted, &completed));
            return py::make_tuple(submitted, completed);
          },
          "(submitted, completed): how many operations were enqueued and are done.")
      .def(
          "wait",
          [](Stream& s, const std::shared_ptr<Event>& e) {
            enqueue(s, [&] { return jalStreamWaitEvent(s.handle, e->handle); });
            s.keep(e);
          },
          py::arg("event"), "Later work starts after the event's last record. An event never recorded is no wait.")
      .def(
          "wait",
          [](Stream& s, const std::shared_ptr<Timeline>& t, uint64_t value) {
            enqueue(s, [&] { return jalStreamWaitTimeline(s.handle, t->handle, value); });
            s.keep(t);
          },
          py::arg("timeline"), py::arg("value"), "Later work starts once the timeline has reached value.")
      .def(
          "signal",
          [](Stream& s, const std::shared_ptr<Timeline>& t, uint64_t value) {
            enqueue(s, [&] { return jalStreamSignalTimeline(s.handle, t->handle, value); });
            s.keep(t);
          },
          py::arg("timeline"), py::arg("value"), "Sets the timeline to value when the work before it is done.")
      .def(
          "reset",
          [](const Stream& s) {
            uint64_t discarded = 0;
            check(without_gil([&] { return jalStreamReset(s.handle, &discarded); }));
            return discarded;
          },
          "Brings a failed or busy stream back, empty. Returns how many operations were discarded.")
      .def_property_readonly(
          "error",
          [](const Stream& s) -> std::optional<jalErrorRecord> {
            jalErrorRecord r{};
            r.struct_size = sizeof r;
            const jalError_t e = jalStreamGetErrorRecord(s.handle, &r);
            if (e == jalErrorNotFound) return std::nullopt;
            check(e);
            return r;
          },
          "The ErrorRecord of the first failure since creation or reset, or None.")
      .def(
          "call",
          [](const Stream& s, const py::function& function) {
            PyObject* f = function.inc_ref().ptr();
            s.wait_for_room();
            jalError_t e;
            {
              const Released released;
              e = jalLaunchHostFunc(
                  s.handle,
                  [](void* data) {
                    if (!calls().begin()) return;
                    {
                      py::gil_scoped_acquire acquire;
                      auto call = py::reinterpret_steal<py::function>(static_cast<PyObject*>(data));
                      try {
                        call();
                      } catch (py::error_already_set& error) {
                        error.discard_as_unraisable(call);
                      }
                    }
                    calls().finish();
                  },
                  f);
            }
            if (e != jalSuccess) Py_DECREF(f);
            check(e, s.handle);
          },
          py::arg("function"),
          "Calls function() on a thread of the library when the work before it is done; later work waits for it. It "
          "must not wait for the device.")
      .def(
          "notify", [](const Stream& s, int fd) { enqueue(s, [&] { return jalStreamNotifyEventfd(s.handle, fd); }); },
          py::arg("eventfd"), "Adds 1 to the eventfd when the work before it is done. It must stay open until then.")
      .def("__repr__",
           [](const Stream& s) { return "<jalapeno.Stream of " + std::string(s.device->properties.uri) + ">"; });
  py::module_::import("atexit").attr("register")(py::cpp_function([owner = getpid()] {
    if (getpid() != owner) return;  // a forked child has none of these threads
    const Released released;
    calls().end();
  }));
  m.def(
      "current_stream", [](const DeviceRef& d) { return choose_stream(d, nullptr); }, py::arg("device"),
      "The stream that work of this device goes to now.");
}

}  // namespace jalapeno::python
