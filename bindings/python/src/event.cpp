// Events and timelines.
#include <pybind11/stl.h>

#include "core.hpp"

namespace jalapeno::python {

Event::Event(DeviceRef d, bool timing) : device(std::move(d)) {
  check(jalEventCreate(device->get(), timing ? JAL_EVENT_TIMING : 0, &handle));
}
Event::~Event() {
  if (device->handle != nullptr) (void)jalEventDestroy(handle);
}
Timeline::Timeline(DeviceRef d, uint64_t initial) : device(std::move(d)) {
  check(jalTimelineCreate(device->get(), initial, &handle));
}
Timeline::~Timeline() {
  if (device->handle != nullptr) (void)jalTimelineDestroy(handle);
}

void define_event(py::module_& m) {
  py::class_<jalElapsed>(m, "Elapsed", "Time between two events. The two clocks are never mixed.")
      .def_readonly("device_ns", &jalElapsed::device_ns, "The chip's clock: modelled on an emulated chip.")
      .def_readonly("host_ns", &jalElapsed::host_ns, "This machine's clock; 0 where the device cannot read it.")
      .def("__repr__", [](const jalElapsed& e) {
        return "<jalapeno.Elapsed device_ns=" + std::to_string(e.device_ns) + " host_ns=" + std::to_string(e.host_ns) +
               ">";
      });
  py::class_<Event, std::shared_ptr<Event>>(
      m, "Event", py::dynamic_attr(),
      R"(A mark in a stream: what was enqueued before record() is done when the event is.

timing: elapsed() may be asked for.)")
      .def(py::init<DeviceRef, bool>(), py::arg("device"), py::arg("timing") = false)
      .def_property_readonly(
          "device", [](const Event& e) { return e.device; }, "The Device it belongs to.")
      .def(
          "record",
          [](const std::shared_ptr<Event>& e, const StreamRef& stream) {
            const StreamRef s = choose_stream(e->device, stream);
            enqueue(*s, [&] { return jalEventRecord(e->handle, s->handle); });
            s->keep(e);
          },
          py::arg("stream") = py::none(),
          "Marks what is enqueued on the stream by now; records again over an older mark.")
      .def(
          "query",
          [](const Event& e) {
            const jalError_t error = jalEventQuery(e.handle);
            if (error == jalErrorNotReady) return false;
            check(error);
            return true;
          },
          "True when it is done. Never blocks. Raises what the work failed with.")
      .def(
          "synchronize",
          [](const Event& e, const Timeout& timeout) {
            check(wait(timeout, [h = e.handle](uint64_t ns) { return jalEventSynchronizeUntil(h, ns); }));
          },
          py::arg("timeout") = py::none(), "Waits, as Stream.synchronize does.")
      .def(
          "elapsed",
          [](const Event& end, const Event& begin) {
            jalElapsed out{};
            out.struct_size = sizeof out;
            check(jalEventElapsed(&out, begin.handle, end.handle));
            return out;
          },
          py::arg("begin"), "Since `begin`; both need timing=True and must be done.")
      .def("__repr__",
           [](const Event& e) { return "<jalapeno.Event of " + std::string(e.device->properties.uri) + ">"; });
  py::class_<Timeline, std::shared_ptr<Timeline>>(
      m, "Timeline", "A 64-bit value that only grows; device and host signal it and wait for it.")
      .def(py::init<DeviceRef, uint64_t>(), py::arg("device"), py::arg("initial") = 0)
      .def_property_readonly(
          "device", [](const Timeline& t) { return t.device; }, "The Device it belongs to.")
      .def_property_readonly(
          "value",
          [](const Timeline& t) {
            uint64_t v = 0;
            check(jalTimelineGetValue(t.handle, &v));
            return v;
          },
          "The present value.")
      .def(
          "signal", [](const Timeline& t, uint64_t value) { check(jalTimelineSignal(t.handle, value)); },
          py::arg("value"), "From the host. A value that is not above the present one changes nothing.")
      .def(
          "wait",
          [](const Timeline& t, uint64_t value, const Timeout& timeout) {
            check(wait(timeout, [h = t.handle, value](uint64_t ns) { return jalTimelineWait(h, value, ns); }));
          },
          py::arg("value"), py::arg("timeout") = py::none(),
          "Blocks until the value is reached; raises DependencyError when a failure reached it.")
      .def("__repr__",
           [](const Timeline& t) { return "<jalapeno.Timeline of " + std::string(t.device->properties.uri) + ">"; });
}

}  // namespace jalapeno::python
