#include <pybind11/stl.h>

#include <chrono>

#include "core.hpp"

namespace jalapeno::python {

void fail(jalError_t code, const std::string& text, jalStream_t stream) {
  jalErrorRecord record{};
  record.struct_size = sizeof record;
  if (stream != nullptr && jalStreamGetErrorRecord(stream, &record) == jalSuccess) throw Failure(code, text, &record);
  throw Failure(code, text);
}
std::string last_detail(jalError_t code) {
  const char* detail = jalGetLastErrorDetail();
  return *detail != 0 ? detail : jalGetErrorString(code);
}
void fail_last(jalError_t code, jalStream_t stream) { fail(code, last_detail(code), stream); }

jalError_t wait_in_slices(const Timeout& timeout, jalError_t (*attempt)(void*, uint64_t), void* what) {
  using Clock = std::chrono::steady_clock;
  if (timeout && !(*timeout >= 0))
    fail(jalErrorInvalidValue, "timeout is " + std::to_string(*timeout) + " s, expected at least 0");
  static const double kDefault = [] {
    const char* ms = std::getenv("JAL_WAIT_TIMEOUT_MS");
    return ms != nullptr ? std::atof(ms) * 1e-3 : 60.0;
  }();
  const double seconds = timeout.value_or(kDefault);
  const auto begin = Clock::now();
  constexpr double kSlice = 0.05;
  for (;;) {
    const double left = seconds - std::chrono::duration<double>(Clock::now() - begin).count();
    const double slice = left < kSlice ? (left > 0 ? left : 0) : kSlice;
    jalError_t e;
    {
      const Released released;
      e = attempt(what, static_cast<uint64_t>(slice * 1e9));
    }
    if (e != jalErrorWaitTimeout) return e;
    if (left <= slice) {
      // The library tells the last slice's time.
      const std::string detail = last_detail(e);
      char time[32];
      std::snprintf(time, sizeof time, " after %g s", seconds);
      fail(e, detail.substr(0, detail.rfind(" after ")) + time);
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

void define_errors(py::module_& m) {
  py::class_<jalErrorRecord>(m, "ErrorRecord", "What failed first on a stream, as the library recorded it.")
      .def_property_readonly(
          "code", [](const jalErrorRecord& r) { return static_cast<int>(r.code); }, "The jalError_t it failed with.")
      .def_property_readonly(
          "name", [](const jalErrorRecord& r) { return jalGetErrorName(r.code); }, "The code's name.")
      .def_property_readonly(
          "root_code", [](const jalErrorRecord& r) { return static_cast<int>(r.root_code); },
          "What the failed dependency ended with.")
      .def_property_readonly(
          "sequence", [](const jalErrorRecord& r) { return r.sequence; }, "Position in the stream.")
      .def_property_readonly(
          "operation", [](const jalErrorRecord& r) { return r.operation; }, "launch, copy, ...; empty when unknown.")
      .def_property_readonly(
          "kernel", [](const jalErrorRecord& r) { return r.kernel; }, "Empty when no kernel ran.")
      .def_property_readonly(
          "source_file", [](const jalErrorRecord& r) { return r.source_file; },
          "Of the instruction; empty when unknown.")
      .def_property_readonly(
          "source_line", [](const jalErrorRecord& r) { return r.source_line; }, "Of the instruction.")
      .def_property_readonly(
          "instruction",
          [](const jalErrorRecord& r) -> std::optional<uint32_t> {
            return r.instruction == UINT32_MAX ? std::nullopt : std::optional(r.instruction);
          },
          "Its number in the kernel; None outside of one.")
      .def_property_readonly(
          "grid_position",
          [](const jalErrorRecord& r) {
            return py::make_tuple(r.grid_position[0], r.grid_position[1], r.grid_position[2]);
          },
          "Of the program that failed: (x, y, z).")
      .def_property_readonly(
          "core", [](const jalErrorRecord& r) { return r.core; }, "The core it ran on.")
      .def_property_readonly(
          "address", [](const jalErrorRecord& r) { return r.address; },
          "What was accessed: a device pointer, or a place in the scratchpad.")
      .def_property_readonly(
          "bytes", [](const jalErrorRecord& r) { return r.bytes; }, "How much was accessed.")
      .def_property_readonly(
          "access",
          [](const jalErrorRecord& r) {
            static const char* const kNames[] = {"", "read", "write", "execute"};
            return kNames[r.access < 4 ? r.access : 0];
          },
          "read, write, execute, or empty.")
      .def_property_readonly(
          "allocation", [](const jalErrorRecord& r) { return r.allocation; },
          "The allocation nearest to the address; 0: none.")
      .def_property_readonly(
          "allocation_bytes", [](const jalErrorRecord& r) { return r.allocation_bytes; }, "Its size.")
      .def_property_readonly(
          "allocation_offset", [](const jalErrorRecord& r) { return r.allocation_offset; },
          "The address counted from the allocation's begin.")
      .def_property_readonly(
          "call_site", [](const jalErrorRecord& r) { return r.call_site; },
          "file:line of the launch; empty when unknown.")
      .def_property_readonly(
          "detail", [](const jalErrorRecord& r) { return r.detail; }, "What happened, in words.")
      .def("__repr__",
           [](const jalErrorRecord& r) {
             return std::string("<jalapeno.ErrorRecord ") + jalGetErrorName(r.code) +
                    (r.kernel[0] != 0 ? std::string(" in kernel ") + r.kernel : "") + ">";
           })
      .def("__str__", [](const py::object& r) { return py::module_::import("jalapeno.errors").attr("describe")(r); });

  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Failure& f) {
      try {
        py::object make = py::module_::import("jalapeno.errors").attr("from_code");
        py::object record = f.record ? py::cast(*f.record) : py::none();
        py::object e = make(static_cast<int>(f.code), jalGetErrorName(f.code), f.what(), record);
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(e.ptr())), e.ptr());
      } catch (py::error_already_set& inner) {
        inner.restore();
      }
    }
  });
  m.def(
      "error_string", [](int code) { return jalGetErrorString(static_cast<jalError_t>(code)); },
      "What a jalError_t means.");
  m.def(
      "version", [] { return jalGetVersion(); }, "The library's: major * 10000 + minor * 100 + patch.");
}

}  // namespace jalapeno::python
