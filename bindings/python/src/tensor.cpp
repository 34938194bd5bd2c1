// Memory, and arrays as views of it: what launches, copies, buffers and DLPack see.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include <dlpack/dlpack.h>
#include "core.hpp"

namespace jalapeno::python {

// ---- Element types ----
namespace {
constexpr DType kDTypes[] = {
    {"float32", jalF32, 4, "float32", true},
    {"bfloat16", jalBF16, 2, "uint16", false},
    {"float16", jalF16, 2, "float16", true},
    {"int8", jalI8, 1, "int8", true},
    {"int32", jalI32, 4, "int32", true},
    {"float8_e4m3", jalE4M3, 1, "uint8", false},
    {"float8_e5m2", jalE5M2, 1, "uint8", false},
    {"int64", -1, 8, "int64", true},
    {"uint8", -1, 1, "uint8", true},
    {"bool", -1, 1, "bool", true},
};

std::string text_of(const std::vector<int64_t>& v) {
  std::string out = "(";
  for (size_t k = 0; k < v.size(); ++k) out += (k != 0 ? ", " : "") + std::to_string(v[k]);
  return out + (v.size() == 1 ? ",)" : ")");
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t s : shape) {
    if (s < 0) fail(jalErrorInvalidValue, "shape " + text_of(shape) + ", expected extents of at least 0");
    if (__builtin_mul_overflow(n, s, &n))
      fail(jalErrorInvalidValue, "shape " + text_of(shape) + " has more elements than fit 63 bits");
  }
  return n;
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& shape, int64_t itemsize) {
  std::vector<int64_t> out(shape.size());
  int64_t step = itemsize;
  for (size_t k = shape.size(); k-- > 0;) out[k] = step, step *= std::max<int64_t>(shape[k], 1);
  return out;
}
}  // namespace

const DType& dtype_named(const std::string& name) {
  for (const DType& d : kDTypes)
    if (name == d.name) return d;
  fail(jalErrorInvalidValue, "element type \"" + name + "\" does not exist");
}
const DType* dtype_of_code(int code) {
  for (const DType& d : kDTypes)
    if (d.code == code && code >= 0) return &d;
  return nullptr;
}

// ---- Memory ----
Memory::Memory(DeviceRef d, size_t n, Place p, const StreamRef& stream) : device(std::move(d)), bytes(n), place(p) {
  (void)device->get();
  if (bytes == 0) return;
  if (place == Place::kPinned)
    check(without_gil([&] { return jalHostAlloc(device->get(), &pointer, bytes); }));
  else if (stream)
    check(jalMallocAsync(&pointer, bytes, stream->handle));
  else
    check(jalMalloc(device->get(), &pointer, bytes));
}
Memory::Memory(void* p, size_t n, py::object o) : pointer(p), bytes(n), place(Place::kHost), owner(o.release().ptr()) {}
Memory::~Memory() { free(); }
void Memory::free() {
  freed = true;
  if (void* p = std::exchange(pointer, nullptr); p != nullptr && device != nullptr && device->handle != nullptr)
    (void)(place == Place::kPinned ? jalHostFree(p) : jalFree(p));
  if (PyObject* o = std::exchange(owner, nullptr); o != nullptr && Py_IsInitialized()) {
    py::gil_scoped_acquire acquire;
    Py_DECREF(o);
  }
}
void* Memory::at(size_t offset) const {
  if (freed) fail(jalErrorInvalidHandle, "the array's memory was freed");
  if (device != nullptr) (void)device->get();
  return static_cast<char*>(pointer) + offset;
}

// ---- Tensors ----
int64_t Tensor::size() const { return product(shape); }
int64_t Tensor::span() const {
  int64_t n = dtype->bytes;
  for (size_t k = 0; k < shape.size(); ++k) {
    if (shape[k] == 0) return 0;
    n += (shape[k] - 1) * strides[k];
  }
  return n;
}
bool Tensor::contiguous() const {
  int64_t step = dtype->bytes;
  for (size_t k = shape.size(); k-- > 0;) {
    if (shape[k] == 0) return true;
    if (shape[k] != 1 && strides[k] != step) return false;
    step *= shape[k];
  }
  return true;
}

jalTensor Tensor::as_argument(const char* kernel, size_t index, const std::string& name) const {
  auto refuse = [&](const std::string& why) {
    fail(jalErrorInvalidValue,
         std::string("kernel ") + kernel + ", argument " + std::to_string(index) + " (" + name + "): " + why);
  };
  if (memory->place == Place::kHost)
    refuse(
        "is an array in host memory the device does not reach; move it with .to(device) or make it with pinned=True");
  if (dtype->code < 0) refuse(std::string("is ") + dtype->name + ", which kernels do not take");
  const size_t rank = shape.size();
  if (rank > 4) refuse("has " + std::to_string(rank) + " dimensions, expected at most 4");
  jalTensor t{};
  t.data = data();
  t.dtype = static_cast<jalDType>(dtype->code);
  t.rank = rank == 0 ? 1 : static_cast<uint32_t>(rank);
  t.shape[0] = 1;
  for (size_t k = 0; k < rank; ++k) {
    if (shape[k] > std::numeric_limits<uint32_t>::max())
      refuse("has shape " + text_of(shape) + ", expected extents below 2^32");
    t.shape[k] = static_cast<uint32_t>(shape[k]);
    if (k + 1 < rank)
      t.stride[k] = static_cast<uint64_t>(strides[k]);
    else if (shape[k] > 1 && strides[k] != dtype->bytes)
      refuse("is not contiguous along its last axis (strides " + text_of(strides) + "); use .contiguous()");
  }
  return t;
}

namespace {

Tensor make_tensor(MemoryRef memory, size_t offset, const std::string& dtype, std::vector<int64_t> shape,
                   std::optional<std::vector<int64_t>> strides, bool writable) {
  Tensor t;
  t.memory = std::move(memory), t.offset = offset, t.dtype = &dtype_named(dtype);
  (void)product(shape);
  t.strides = strides ? *strides : dense_strides(shape, t.dtype->bytes);
  t.shape = std::move(shape), t.writable = writable;
  if (t.shape.size() > 8) fail(jalErrorInvalidValue, "shape " + text_of(t.shape) + ", expected at most 8 dimensions");
  if (t.strides.size() != t.shape.size())
    fail(jalErrorInvalidValue, "strides " + text_of(t.strides) + " for shape " + text_of(t.shape));
  for (int64_t s : t.strides)
    if (s < 0)
      fail(jalErrorInvalidValue,
           "strides " + text_of(t.strides) + ", expected none below 0: device arrays cannot run backwards");
  const auto span = static_cast<size_t>(t.span());
  if (offset > t.memory->bytes || span > t.memory->bytes - offset)
    fail(jalErrorInvalidValue, "an array of " + std::to_string(span) + " bytes at " + std::to_string(offset) +
                                   " in memory of " + std::to_string(t.memory->bytes));
  return t;
}

// Copies between two views of the same shape and item size, as few two-dimensional copies as their strides allow.
struct Axis {
  int64_t n, to, from;
};
void copy_axes(char* to, const char* from, const std::vector<Axis>& axes, size_t depth, int64_t width,
               const StreamRef& stream) {
  if (depth == axes.size()) {
    check(jalMemcpyAsync(to, from, static_cast<size_t>(width), stream->handle), stream->handle);
  } else if (depth + 1 == axes.size()) {
    const Axis& a = axes[depth];
    check(jalMemcpy2DAsync(to, static_cast<size_t>(a.to), from, static_cast<size_t>(a.from), static_cast<size_t>(width),
                           static_cast<size_t>(a.n), stream->handle),
          stream->handle);
  } else {
    for (int64_t k = 0; k < axes[depth].n; ++k)
      copy_axes(to + k * axes[depth].to, from + k * axes[depth].from, axes, depth + 1, width, stream);
  }
}
void copy(const Tensor& to, const Tensor& from, const StreamRef& stream) {
  if (to.shape != from.shape)
    fail(jalErrorInvalidValue, "copy from shape " + text_of(from.shape) + " to " + text_of(to.shape));
  if (to.dtype->bytes != from.dtype->bytes)
    fail(jalErrorInvalidValue, std::string("copy from ") + from.dtype->name + " to " + to.dtype->name);
  if (!to.writable) fail(jalErrorInvalidValue, "the array is read-only");
  if (to.size() == 0) return;
  std::vector<Axis> axes;
  for (size_t k = 0; k < to.shape.size(); ++k) {
    if (to.shape[k] == 1) continue;
    const Axis a{to.shape[k], to.strides[k], from.strides[k]};
    if (!axes.empty() && axes.back().to == a.n * a.to && axes.back().from == a.n * a.from)
      axes.back() = {axes.back().n * a.n, a.to, a.from};
    else
      axes.push_back(a);
  }
  int64_t width = to.dtype->bytes;
  if (!axes.empty() && axes.back().to == width && axes.back().from == width) width *= axes.back().n, axes.pop_back();
  // A copy to memory the device does not reach returns when it is done: wait where Ctrl-C is heard.
  if (to.memory->place == Place::kHost && from.memory->place != Place::kHost) stream->synchronize(std::nullopt);
  stream->wait_for_room();
  char* t = static_cast<char*>(to.data());
  const char* f = static_cast<const char*>(from.data());
  without_gil([&] { copy_axes(t, f, axes, 0, width, stream); });
  stream->keep(to.memory), stream->keep(from.memory);
}

// ---- The buffer protocol, for host memory ----
struct BufferHold {
  MemoryRef memory;
  std::vector<Py_ssize_t> shape, strides;
};
const char* buffer_format(const DType& d) {
  static const std::pair<const char*, const char*> kFormats[] = {{"float32", "f"}, {"uint16", "H"}, {"float16", "e"},
                                                                 {"int8", "b"},    {"int32", "i"},  {"int64", "q"},
                                                                 {"uint8", "B"},   {"bool", "?"}};
  for (const auto& [name, format] : kFormats)
    if (std::strcmp(name, d.numpy) == 0) return format;
  return "B";
}
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  try {
    const auto& t = py::handle(self).cast<const Tensor&>();
    view->obj = nullptr;
    if (t.memory->place == Place::kDevice) {
      PyErr_SetString(PyExc_BufferError, "the array lies in device memory; .numpy() copies it to the host");
      return -1;
    }
    if ((flags & PyBUF_WRITABLE) != 0 && !t.writable) {
      PyErr_SetString(PyExc_BufferError, "the array is read-only");
      return -1;
    }
    const bool strided = (flags & PyBUF_STRIDES) == PyBUF_STRIDES;
    // Dense rows are in Fortran's order too only when there is no more than one axis to order.
    const bool dense = t.contiguous(), flat = t.size() <= 1 || std::count_if(t.shape.begin(), t.shape.end(),
                                                                             [](int64_t n) { return n > 1; }) <= 1;
    const bool fortran = (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS;
    const bool any = !strided || (flags & PyBUF_C_CONTIGUOUS) == PyBUF_C_CONTIGUOUS ||
                     (flags & PyBUF_ANY_CONTIGUOUS) == PyBUF_ANY_CONTIGUOUS;
    if ((any && !dense) || (fortran && !(dense && flat))) {
      PyErr_SetString(PyExc_BufferError,
                      fortran ? "the array is not contiguous in Fortran's order" : "the array is not contiguous");
      return -1;
    }
    auto hold = std::make_unique<BufferHold>();
    hold->memory = t.memory;
    hold->shape.assign(t.shape.begin(), t.shape.end()), hold->strides.assign(t.strides.begin(), t.strides.end());
    view->buf = t.data();
    view->len = static_cast<Py_ssize_t>(t.size() * t.dtype->bytes);
    view->itemsize = t.dtype->bytes, view->readonly = !t.writable;
    view->ndim = static_cast<int>(t.shape.size());
    view->format = (flags & PyBUF_FORMAT) != 0 ? const_cast<char*>(buffer_format(*t.dtype)) : nullptr;
    view->shape = (flags & PyBUF_ND) != 0 ? hold->shape.data() : nullptr;
    view->strides = strided ? hold->strides.data() : nullptr;
    view->suboffsets = nullptr;
    ++t.memory->exports;
    view->internal = hold.release();
    view->obj = self;
    Py_INCREF(self);
    return 0;
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_BufferError, e.what());
    return -1;
  }
}
void release_buffer(PyObject*, Py_buffer* view) {
  std::unique_ptr<BufferHold> hold(static_cast<BufferHold*>(view->internal));
  --hold->memory->exports;
}

// ---- DLPack ----
struct Export {
  DLManagedTensor managed;
  MemoryRef memory;
  std::vector<int64_t> shape, strides;
};
void delete_export(DLManagedTensor* m) { delete static_cast<Export*>(m->manager_ctx); }
constexpr int kCpu = 1, kExtension = 12;
DLDataType dlpack_type(const DType& d) {
  const std::string name = d.name;
  const uint8_t code = name.starts_with("bool")     ? 6
                       : name.starts_with("bfloat") ? 4
                       : name.starts_with("float8") ? (name == "float8_e4m3" ? 10 : 12)
                       : name.starts_with("float")  ? 2
                       : name.starts_with("uint")   ? 1
                                                    : 0;
  return {code, static_cast<uint8_t>(d.bytes * 8), 1};
}
py::capsule to_dlpack(const Tensor& t) {
  void* const data = t.data();  // throws when the memory was freed
  auto* e = new Export{{}, t.memory, t.shape, {}};
  for (int64_t s : t.strides) e->strides.push_back(s / t.dtype->bytes);
  DLTensor& d = e->managed.dl_tensor;
  d.data = data;
  d.device.device_type = static_cast<DLDeviceType>(t.memory->place == Place::kDevice ? kExtension : kCpu);
  d.device.device_id = 0;
  d.ndim = static_cast<int32_t>(t.shape.size()), d.dtype = dlpack_type(*t.dtype);
  d.shape = e->shape.data(), d.strides = e->strides.data(), d.byte_offset = 0;
  e->managed.manager_ctx = e;
  e->managed.deleter = delete_export;
  // A consumer renames the capsule and takes the tensor over.
  return py::reinterpret_steal<py::capsule>(PyCapsule_New(&e->managed, "dltensor", [](PyObject* o) {
    if (PyCapsule_IsValid(o, "dltensor") == 0) return;
    auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(o, "dltensor"));
    m->deleter(m);
  }));
}
Tensor from_dlpack(const py::capsule& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor") == 0)
    fail(jalErrorInvalidValue, "expected a fresh DLPack capsule named \"dltensor\"");
  auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  const DLTensor& d = m->dl_tensor;
  if (d.device.device_type != kCpu && d.device.device_type != kExtension)
    fail(jalErrorInvalidValue,
         "DLPack device type " + std::to_string(d.device.device_type) + ", expected 1 (CPU) or 12 (this library's)");
  if (d.device.device_type == kExtension && m->deleter != delete_export)
    fail(jalErrorInvalidValue, "DLPack device type 12 of another library, expected a tensor of this one");
  const DType* dtype = nullptr;
  for (const DType& candidate : kDTypes) {
    const DLDataType want = dlpack_type(candidate);
    if (want.code == d.dtype.code && want.bits == d.dtype.bits && d.dtype.lanes == 1) dtype = &candidate;
  }
  if (dtype == nullptr)
    fail(jalErrorInvalidValue, "DLPack type code " + std::to_string(d.dtype.code) + " of " +
                                   std::to_string(d.dtype.bits) + " bits has no element type here");
  Tensor t;
  t.dtype = dtype;
  t.shape.assign(d.shape, d.shape + d.ndim);
  if (d.strides != nullptr)
    for (int k = 0; k < d.ndim; ++k) t.strides.push_back(d.shape[k] <= 1 ? dtype->bytes : d.strides[k] * dtype->bytes);
  else
    t.strides = dense_strides(t.shape, dtype->bytes);
  for (int64_t s : t.strides)
    if (s < 0)
      fail(jalErrorInvalidValue, "a DLPack tensor with strides " + text_of(t.strides) + ": cannot run backwards");
  if (d.device.device_type == kExtension) {
    // Our own export: find the memory it came from.
    auto* e = static_cast<Export*>(m->manager_ctx);
    t.memory = e->memory;
    t.offset = static_cast<size_t>(static_cast<char*>(d.data) + d.byte_offset - static_cast<char*>(t.memory->at(0)));
    m->deleter(m);
  } else {
    py::capsule owner(m, [](void* p) {
      auto* x = static_cast<DLManagedTensor*>(p);
      if (x->deleter != nullptr) x->deleter(x);
    });
    t.memory =
        std::make_shared<Memory>(static_cast<char*>(d.data) + d.byte_offset, static_cast<size_t>(t.span()), owner);
  }
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  return t;
}

py::tuple tuple_of(const std::vector<int64_t>& v) {
  py::tuple out(v.size());
  for (size_t k = 0; k < v.size(); ++k) out[k] = v[k];
  return out;
}

Place place_named(const std::string& name) {
  if (name == "device") return Place::kDevice;
  if (name == "pinned") return Place::kPinned;
  fail(jalErrorInvalidValue, "place \"" + name + "\", expected device or pinned");
}
const char* place_name(Place p) { return p == Place::kDevice ? "device" : p == Place::kPinned ? "pinned" : "host"; }

}  // namespace

void define_tensor(py::module_& m) {
  py::class_<Memory, MemoryRef>(m, "Memory",
                                "An allocation. Freed when nothing refers to it and enqueued work is done with it.")
      .def(py::init([](const DeviceRef& d, size_t bytes, const std::string& place, const StreamRef& stream) {
             return std::make_shared<Memory>(d, bytes, place_named(place), stream);
           }),
           py::arg("device"), py::arg("bytes"), py::arg("place") = "device", py::arg("stream") = py::none())
      .def_property_readonly(
          "device", [](const Memory& x) { return x.device; }, "The Device, or None for plain host memory.")
      .def_property_readonly(
          "place", [](const Memory& x) { return place_name(x.place); },
          "device, pinned (host memory the device reaches) or host.")
      .def_property_readonly(
          "bytes", [](const Memory& x) { return x.bytes; }, "Its size.")
      .def("__repr__",
           [](const Memory& x) {
             return "<jalapeno.Memory of " + std::to_string(x.bytes) + " bytes, " + place_name(x.place) +
                    (x.device != nullptr ? " of " + std::string(x.device->properties.uri) : "") + ">";
           })
      .def_property_readonly(
          "freed", [](const Memory& x) { return x.freed; }, "Whether free() was called.")
      .def(
          "free",
          [](Memory& x) {
            if (x.exports > 0)
              fail(jalErrorIllegalState, std::to_string(x.exports) + " buffers of the array's memory are still in use");
            x.free();
          },
          "Gives it back now; later use raises InvalidHandleError. IllegalStateError while buffers of it are in use.")
      .def_static(
          "of_buffer",
          [](const py::buffer& b, bool writable) {
            // Keeps the exporter's buffer for as long as the memory lives.
            auto* view = new Py_buffer;
            if (PyObject_GetBuffer(b.ptr(), view, PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0)) != 0) {
              delete view;
              throw py::error_already_set();
            }
            py::capsule owner(view, [](void* p) {
              PyBuffer_Release(static_cast<Py_buffer*>(p));
              delete static_cast<Py_buffer*>(p);
            });
            size_t span = view->len == 0 ? 0 : static_cast<size_t>(view->itemsize);
            for (int k = 0; k < view->ndim && span != 0; ++k)
              span += static_cast<size_t>((view->shape[k] - 1) * view->strides[k]);
            return std::make_shared<Memory>(view->buf, span, owner);
          },
          "The memory of an object with the buffer protocol, kept for as long as this one lives.");

  py::class_<Tensor> tensor(m, "Tensor", py::dynamic_attr(),
                            "A view of memory with element type, shape and strides; base of jalapeno.Array.");
  tensor
      .def(py::init(&make_tensor), py::arg("memory"), py::arg("offset"), py::arg("dtype"), py::arg("shape"),
           py::arg("strides") = py::none(), py::arg("writable") = true)
      .def(py::init([](const Tensor& t) { return t; }))
      .def_property_readonly(
          "memory", [](const Tensor& t) { return t.memory; }, "What it is a view of.")
      .def_property_readonly(
          "device", [](const Tensor& t) { return t.memory->device; }, "The Device, or None for plain host memory.")
      .def_property_readonly(
          "place", [](const Tensor& t) { return place_name(t.memory->place); },
          "\"device\", \"pinned\" (host memory the device reaches) or \"host\".")
      .def_property_readonly(
          "offset", [](const Tensor& t) { return t.offset; }, "Of the first element in the memory, in bytes.")
      .def_property_readonly(
          "dtype_name", [](const Tensor& t) { return t.dtype->name; }, "The element type's name.")
      .def_property_readonly(
          "shape", [](const Tensor& t) { return tuple_of(t.shape); }, "The extents.")
      .def_property_readonly(
          "strides", [](const Tensor& t) { return tuple_of(t.strides); }, "Bytes, as NumPy's.")
      .def_property_readonly(
          "ndim", [](const Tensor& t) { return t.shape.size(); }, "How many dimensions it has.")
      .def_property_readonly("size", &Tensor::size, "How many elements it has.")
      .def_property_readonly(
          "itemsize", [](const Tensor& t) { return t.dtype->bytes; }, "Bytes of an element.")
      .def_property_readonly(
          "nbytes", [](const Tensor& t) { return t.size() * t.dtype->bytes; }, "Bytes of all elements.")
      .def_property_readonly("is_contiguous", &Tensor::contiguous, "Whether the elements lie dense, row by row.")
      .def_property_readonly(
          "writable", [](const Tensor& t) { return t.writable; }, "Whether copies may change it.")
      .def_property_readonly(
          "pointer", [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data()); },
          "Of the first element: a device pointer, or a host address.")
      .def("dlpack_capsule", &to_dlpack, "A DLPack capsule of the memory as it is, without waiting.");
  auto* type = reinterpret_cast<PyHeapTypeObject*>(tensor.ptr());
  type->as_buffer.bf_getbuffer = get_buffer, type->as_buffer.bf_releasebuffer = release_buffer;
  type->ht_type.tp_as_buffer = &type->as_buffer;

  m.def(
      "copy", [](const Tensor& to, const Tensor& from, const StreamRef& stream) { copy(to, from, stream); },
      py::arg("to"), py::arg("from_"), py::arg("stream"),
      "Enqueues a copy. Plain host memory is read before the call returns; copies to it return when they are done.");
  m.def(
      "fill",
      [](const Tensor& t, uint32_t pattern, const StreamRef& stream) {
        if (t.dtype->bytes > 4)
          fail(jalErrorInvalidValue,
               std::string("fill of ") + t.dtype->name + ", expected elements of at most 4 bytes");
        if (!t.contiguous()) fail(jalErrorInvalidValue, "fill of an array that is not contiguous");
        if (t.size() == 0) return;
        void* data = t.data();
        enqueue(*stream, [&] {
          return jalMemFillAsync(data, pattern, t.dtype->bytes, static_cast<size_t>(t.size()) * t.dtype->bytes,
                                 stream->handle);
        });
        stream->keep(t.memory);
      },
      py::arg("tensor"), py::arg("pattern"), py::arg("stream"),
      "Enqueues writing the pattern's low bytes to every element.");
  m.def("from_dlpack", &from_dlpack, py::arg("capsule"),
        "A view of a DLPack capsule's memory; takes the capsule over.");
  py::list types;
  for (const DType& d : kDTypes) types.append(py::make_tuple(d.name, d.bytes, d.numpy, d.native, d.code));
  m.attr("dtypes") = types;
}

}  // namespace jalapeno::python
