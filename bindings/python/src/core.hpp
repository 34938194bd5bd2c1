// What the parts of the extension share: owners of C handles, tensors, and how errors and waits reach Python.
// The extension calls jalapeno.h and nothing below it; NumPy-like behaviour lives in the Python package above it.
#pragma once
#include <jalapeno/jalapeno.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace jalapeno::python {

namespace py = pybind11;

struct Device;
struct Stream;
using DeviceRef = std::shared_ptr<Device>;
using StreamRef = std::shared_ptr<Stream>;

// A failed call on its way to Python, where errors.py chooses the class.
struct Failure : std::runtime_error {
  Failure(jalError_t c, std::string text, const jalErrorRecord* r = nullptr)
      : std::runtime_error(std::move(text)), code(c) {
    if (r != nullptr) record = *r;
  }
  jalError_t code;
  std::optional<jalErrorRecord> record;
};
[[noreturn]] void fail(jalError_t code, const std::string& text, jalStream_t stream = nullptr);  // with its record
std::string last_detail(jalError_t code);
[[noreturn]] void fail_last(jalError_t code, jalStream_t stream = nullptr);  // with the library's text and record
inline void check(jalError_t code, jalStream_t stream = nullptr) {
  if (code != jalSuccess) fail_last(code, stream);
}

// While it lives, this thread does not hold the GIL. A thread that comes back after Python has begun to end must not:
// taking the GIL then ends the thread through frames that may not be unwound. It sleeps until the process is gone.
class Released {
 public:
  Released() : ending_(_Py_IsFinalizing() != 0), state_(PyEval_SaveThread()) {}
  ~Released() {
    while (!ending_ && _Py_IsFinalizing()) pause();
    PyEval_RestoreThread(state_);
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  bool ending_;  // this is the thread that ends Python
  PyThreadState* state_;
};
// Objects that Python drops while it ends: what they own goes with the device or the process, and is not waited for.
inline bool ending() { return !Py_IsInitialized() || _Py_IsFinalizing() != 0; }

// Runs without the GIL; destructors may be called from anywhere, also while Python shuts down.
template <class F>
auto without_gil(F f) {
  if (!Py_IsInitialized() || PyGILState_Check() == 0) return f();
  const Released released;
  return f();
}

// Waits in slices, so that Ctrl-C and other threads of Python get their turn. attempt(ns) is one of the library's waits
// with a timeout. timeout: seconds; none: the library's default (JAL_WAIT_TIMEOUT_MS); infinity: without end.
using Timeout = std::optional<double>;
jalError_t wait_in_slices(const Timeout& timeout, jalError_t (*attempt)(void* what, uint64_t ns), void* what);
template <class F>
jalError_t wait(const Timeout& timeout, F attempt) {
  return wait_in_slices(
      timeout, [](void* what, uint64_t ns) { return (*static_cast<F*>(what))(ns); }, &attempt);
}

// ---- Element types: the chip's, and those that only lie in memory ----
struct DType {
  const char* name;
  int code;  // a jalDType, or -1: kernels do not take it
  uint32_t bytes;
  const char* numpy;  // the type NumPy holds the bits in
  bool native;        // numpy is this very type
};
const DType& dtype_named(const std::string& name);
const DType* dtype_of_code(int code);

// ---- Owners ----
struct Device : std::enable_shared_from_this<Device> {
  explicit Device(const std::optional<std::string>& uri);
  ~Device() { close(); }
  void close();
  jalDevice_t get() const;  // throws when closed
  jalDevice_t handle = nullptr;
  jalDeviceProperties properties{};
  StreamRef stream();  // the one used when no other is current
  void enlist(jalStream_t stream);
  void dismiss(jalStream_t stream);
  jalStream_t failed_stream();  // null: none

 private:
  StreamRef default_stream_;
  std::mutex streams_mutex_;
  std::vector<jalStream_t> streams_;
};

struct Stream {
  Stream(DeviceRef d, int priority, uint32_t ring_entries);
  ~Stream();
  void synchronize(const Timeout& timeout);
  DeviceRef device;  // of a device's own stream: not an owner, see Device::stream()
  jalStream_t handle = nullptr;
  uint32_t ring = 0;
  void wait_for_room() const;
  // While a graph records: what it must keep alive.
  std::shared_ptr<std::vector<std::shared_ptr<void>>> recorded;
  void keep(const std::shared_ptr<void>& what) {
    if (recorded) recorded->push_back(what);
  }
};
// Calls an enqueuing function without the GIL: it blocks while the ring is full, perhaps behind a callback into Python.
template <class F>
void enqueue(const Stream& stream, F f) {
  stream.wait_for_room();
  jalError_t e;
  {
    const Released released;
    e = f();
  }
  check(e, stream.handle);
}

struct Event {
  Event(DeviceRef d, bool timing);
  ~Event();
  DeviceRef device;
  jalEvent_t handle = nullptr;
};
struct Timeline {
  Timeline(DeviceRef d, uint64_t initial);
  ~Timeline();
  DeviceRef device;
  jalTimeline_t handle = nullptr;
};

// The stream work goes to: `given`, else the current one if it is the device's, else the device's own.
StreamRef choose_stream(const DeviceRef& device, const StreamRef& given);

// Memory an array lies in. Device memory goes back when the last array is gone and enqueued work is done with it.
enum class Place { kDevice, kPinned, kHost };
struct Memory {
  Memory(DeviceRef device, size_t bytes, Place place, const StreamRef& stream);
  Memory(void* pointer, size_t bytes, py::object owner);  // somebody else's host memory
  ~Memory();
  void free();
  void* at(size_t offset) const;  // throws when freed
  DeviceRef device;               // null for kHost
  void* pointer = nullptr;
  size_t bytes = 0;
  Place place = Place::kDevice;
  bool freed = false;
  PyObject* owner = nullptr;
  int64_t exports = 0;  // buffers Python holds
};
using MemoryRef = std::shared_ptr<Memory>;

// A view of memory as an array. Strides are bytes, never negative. Immutable.
struct Tensor {
  MemoryRef memory;
  size_t offset = 0;
  const DType* dtype = nullptr;
  std::vector<int64_t> shape, strides;
  bool writable = true;

  int64_t size() const;
  int64_t span() const;  // bytes from the first element's to the end of the last's
  bool contiguous() const;
  void* data() const { return memory->at(offset); }
  jalTensor as_argument(const char* kernel, size_t index, const std::string& name) const;
};

struct Module {
  Module(DeviceRef d, const std::string& path);
  Module(DeviceRef d, const py::bytes& image);
  ~Module();
  DeviceRef device;
  jalModule_t handle = nullptr;
};

struct Kernel {
  Kernel(DeviceRef d, std::shared_ptr<Module> m, jalKernel_t h);
  DeviceRef device;
  std::shared_ptr<Module> module;  // null: of the library
  jalKernel_t handle;
  jalKernelInfo info{};
  std::vector<jalArgInfo> arguments;

  // Into at most kMaxArguments places; what must stay alive goes to `keep` when it is given.
  static constexpr size_t kMaxArguments = 64;
  void convert(const py::handle* args, size_t count, jalArg* out, std::vector<std::shared_ptr<void>>* keep) const;
  void launch(const py::handle& grid, const py::handle* args, size_t count, const StreamRef& stream) const;
};
void read_grid(const py::handle& grid, uint32_t out[3]);
jalLaunchConfig launch_config(const py::handle& grid);

void define_errors(py::module_& m);
void define_device(py::module_& m);
void define_stream(py::module_& m);
void define_event(py::module_& m);
void define_tensor(py::module_& m);
void define_kernel(py::module_& m);
void define_graph(py::module_& m);
void define_tile(py::module_& m);
void define_llm(py::module_& m);
void define_communicator(py::module_& m);

}  // namespace jalapeno::python
