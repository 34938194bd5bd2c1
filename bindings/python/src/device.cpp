#include <pybind11/stl.h>

#include "core.hpp"

namespace jalapeno::python {

Device::Device(const std::optional<std::string>& uri) {
  without_gil([&] { check(jalDeviceOpen(uri ? uri->c_str() : nullptr, &handle)); });
  properties.struct_size = sizeof properties;
  check(jalDeviceGetProperties(handle, &properties));
}

void Device::close() {
  default_stream_.reset();
  if (jalDevice_t d = std::exchange(handle, nullptr)) without_gil([&] { (void)jalDeviceClose(d); });
}

void Device::enlist(jalStream_t stream) {
  const std::lock_guard lock(streams_mutex_);
  streams_.push_back(stream);
}
void Device::dismiss(jalStream_t stream) {
  const std::lock_guard lock(streams_mutex_);
  std::erase(streams_, stream);
}
jalStream_t Device::failed_stream() {
  const std::lock_guard lock(streams_mutex_);
  jalErrorRecord record{};
  record.struct_size = sizeof record;
  for (jalStream_t s : streams_)
    if (jalStreamGetErrorRecord(s, &record) == jalSuccess) return s;
  return nullptr;
}

jalDevice_t Device::get() const {
  if (handle == nullptr) fail(jalErrorInvalidHandle, std::string("device ") + properties.uri + " was closed");
  return handle;
}

namespace {

py::dict properties_of(const Device& d) {
  const jalDeviceProperties& p = d.properties;
  py::dict out;
  out["uri"] = p.uri, out["config_name"] = p.config_name;
  out["emulated"] = p.emulated != 0, out["assumed"] = p.assumed != 0;
  out["cores"] = p.cores, out["spm_bytes"] = p.spm_bytes, out["acc_bytes"] = p.acc_bytes;
  out["links"] = p.links, out["queues"] = p.queues, out["hbm_bytes"] = p.hbm_bytes;
  out["interface_version"] = p.interface_version, out["isa_version"] = p.isa_version;
  out["core_clock_ghz"] = p.core_clock_ghz, out["hbm_gbytes_per_second"] = p.hbm_gbytes_per_second;
  out["link_gbits_per_second"] = p.link_gbits_per_second, out["peak_tflops_bf16"] = p.peak_tflops_bf16;
  out["function"] = p.function, out["virtual_functions"] = p.virtual_functions;
  out["power_limit_watts"] = p.power_limit_watts, out["dollars_per_hour"] = p.dollars_per_hour;
  return out;
}

py::dict telemetry_of(const Device& d) {
  jalTelemetry t{};
  t.struct_size = sizeof t;
  check(jalDeviceGetTelemetry(d.get(), &t));
  py::dict out;
  out["temperature_celsius"] = t.temperature_celsius, out["power_watts"] = t.power_watts;
  out["energy_joules"] = t.energy_joules, out["device_ns"] = t.device_ns;
  out["busy_cores_ns"] = t.busy_cores_ns, out["busy_matrix_ns"] = t.busy_matrix_ns;
  out["busy_vector_ns"] = t.busy_vector_ns, out["busy_dma_ns"] = t.busy_dma_ns, out["busy_copy_ns"] = t.busy_copy_ns;
  out["hbm_read_bytes"] = t.hbm_read_bytes, out["hbm_write_bytes"] = t.hbm_write_bytes,
  out["host_bytes"] = t.host_bytes;
  out["packets"] = t.packets, out["launches"] = t.launches, out["instances"] = t.instances;
  out["instructions"] = t.instructions, out["faults"] = t.faults;
  out["ecc_corrected"] = t.ecc_corrected, out["ecc_uncorrected"] = t.ecc_uncorrected, out["healthy"] = t.healthy != 0;
  out["busy_fabric_ns"] = t.busy_fabric_ns, out["fabric_read_bytes"] = t.fabric_read_bytes;
  out["fabric_write_bytes"] = t.fabric_write_bytes, out["fabric_errors"] = t.fabric_errors;
  out["links_up"] = t.links_up;
  return out;
}

}  // namespace

void define_device(py::module_& m) {
  py::class_<Device, DeviceRef>(m, "Device", py::dynamic_attr(),
                                R"(A chip: an emulated one in this process, one behind a socket, or a board.

uri: "emu:", "emu:?hbm=1G&threads=2&check=races,uninit,oob", "emu:/path/to.sock", "vfio:0000:3b:00.0"; None is the first
of jalapeno.devices(). Owned by this object; closed when it is gone, or by close(), or at the end of a with block.
Thread-safe. Raises DeviceError when it cannot be opened, BusyError when another process holds it.)")
      .def(py::init<std::optional<std::string>>(), py::arg("uri") = py::none())
      .def("close", &Device::close, "Ends all that belongs to the device. Later use raises InvalidHandleError.")
      .def("__enter__", [](const DeviceRef& d) { return d; })
      .def("__exit__", [](Device& d, const py::args&) { d.close(); })
      .def_property_readonly(
          "closed", [](const Device& d) { return d.handle == nullptr; }, "Whether close() was called.")
      .def_property_readonly(
          "uri", [](const Device& d) { return d.properties.uri; }, "What it was opened as.")
      .def_property_readonly("properties", &properties_of,
                             "Sizes and rates as a dict. assumed: the rates are assumptions, not a data sheet's.")
      .def("telemetry", &telemetry_of,
           "Counters as a dict; they never go back. Energy, power and times are modelled on an emulated chip.")
      .def(
          "memory_info",
          [](const Device& d) {
            size_t free = 0, total = 0;
            check(jalDeviceGetMemoryInfo(d.get(), &free, &total));
            return py::make_tuple(free, total);
          },
          "(free, total) bytes of device memory.")
      .def_property_readonly("stream", &Device::stream, "The device's own stream, used where no other is current.")
      .def(
          "synchronize",
          [](const DeviceRef& d, const Timeout& timeout) {
            const jalError_t e =
                wait(timeout, [h = d->get()](uint64_t ns) { return jalDeviceSynchronizeUntil(h, ns); });
            if (e == jalSuccess) return;
            const std::string text = last_detail(e);  // before the search for the record changes it
            fail(e, text, e == jalErrorWaitTimeout ? nullptr : d->failed_stream());
          },
          py::arg("timeout") = py::none(), "Waits for all streams. timeout in seconds; raises WaitTimeout.")
      .def(
          "reset", [](const DeviceRef& d) { check(without_gil([h = d->get()] { return jalDeviceReset(h); })); },
          "Resets every stream: what has not run is discarded, errors are cleared, memory and modules stay.")
      .def(
          "trim", [](const DeviceRef& d, size_t keep) { check(jalMemPoolTrim(d->get(), keep)); },
          py::arg("keep_bytes") = 0, "Gives pooled memory beyond keep_bytes back to the device.")
      .def("__repr__", [](const Device& d) {
        return std::string("<jalapeno.Device ") + d.properties.uri + (d.handle == nullptr ? ", closed>" : ">");
      });
  m.def(
      "devices",
      [] {
        int count = 0;
        check(jalGetDeviceCount(&count));
        std::vector<std::string> out;
        char uri[256];
        for (int k = 0; k < count; ++k) {
          check(jalGetDeviceUri(k, uri, sizeof uri));
          out.emplace_back(uri);
        }
        return out;
      },
      "URIs of the devices this process would use: JAL_DEVICE_URI, else PCI devices, else one embedded emulator.");
}

}  // namespace jalapeno::python
