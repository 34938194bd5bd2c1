// Modules, kernels and launches. A launch reads its arguments straight from the Python objects: no lists, no copies.
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <unordered_set>

#include "core.hpp"

namespace jalapeno::python {

Module::Module(DeviceRef d, const std::string& path) : device(std::move(d)) {
  check(without_gil([&] { return jalModuleLoad(device->get(), path.c_str(), &handle); }));
}
Module::Module(DeviceRef d, const py::bytes& image) : device(std::move(d)) {
  const std::string_view bytes = image;
  check(jalModuleLoadData(device->get(), bytes.data(), bytes.size(), &handle));
}
Module::~Module() {
  if (device->handle != nullptr && !ending()) without_gil([&] { (void)jalModuleUnload(handle); });
}

Kernel::Kernel(DeviceRef d, std::shared_ptr<Module> m, jalKernel_t h)
    : device(std::move(d)), module(std::move(m)), handle(h) {
  info.struct_size = sizeof info;
  check(jalKernelGetInfo(handle, &info));
  for (uint32_t k = 0; k < info.arguments; ++k) {
    jalArgInfo a{};
    a.struct_size = sizeof a;
    check(jalKernelGetArgumentInfo(handle, k, &a));
    arguments.push_back(a);
  }
}

namespace {

const char* kind_name(jalArgKind kind) {
  static const char* const kNames[] = {"int32", "int64", "float32", "tensor"};
  return kNames[kind];
}

std::string type_of(const py::handle& o) { return Py_TYPE(o.ptr())->tp_name; }

int64_t integer(const py::handle& value, const std::string& what) {
  // Whatever says it is an integer (NumPy's are), but not a float.
  py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    PyErr_Clear();
    fail(jalErrorInvalidValue, what + ": is " + py::repr(value).cast<std::string>() + ", expected an int");
  }
  int overflow = 0;
  const long long v = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0)
    fail(jalErrorInvalidValue, what + ": is " + py::str(index).cast<std::string>() + ", which 64 bits do not hold");
  return v;
}

// Where Python calls from; strings live for ever, a program has few files.
void call_site(jalLaunchConfig& c) {
  PyFrameObject* frame = PyEval_GetFrame();
  // Skip the package's own frames: the user's line is what an error should name.
  static std::unordered_set<std::string>* const files = new std::unordered_set<std::string>;
  static const std::string own = [] {
    const auto path = py::module_::import("jalapeno").attr("__file__").cast<std::string>();
    return path.substr(0, path.find_last_of('/') + 1);
  }();
  Py_XINCREF(frame);
  while (frame != nullptr) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    Py_ssize_t size = 0;
    const char* file = PyUnicode_AsUTF8AndSize(code->co_filename, &size);
    const bool mine = file != nullptr && std::string_view(file, static_cast<size_t>(size)).starts_with(own);
    if (file != nullptr && !mine) {
      c.call_file = files->emplace(file, static_cast<size_t>(size)).first->c_str();
      c.call_line = static_cast<uint32_t>(PyFrame_GetLineNumber(frame));
    }
    Py_DECREF(code);
    PyFrameObject* back = mine ? PyFrame_GetBack(frame) : nullptr;
    Py_DECREF(frame);
    frame = back;
  }
  PyErr_Clear();
}

}  // namespace

void read_grid(const py::handle& grid, uint32_t out[3]) {
  auto one = [&](const py::handle& v) -> uint32_t {
    const int64_t n = integer(v, "grid");
    if (n < 1 || n > std::numeric_limits<uint32_t>::max())
      fail(jalErrorInvalidValue,
           "grid: is " + py::repr(grid).cast<std::string>() + ", expected 1 to 3 extents of at least 1");
    return static_cast<uint32_t>(n);
  };
  out[0] = out[1] = out[2] = 1;
  if (!PyTuple_Check(grid.ptr()) && !PyList_Check(grid.ptr())) {
    out[0] = one(grid);
    return;
  }
  const auto sequence = py::reinterpret_borrow<py::sequence>(grid);
  const size_t n = sequence.size();
  if (n < 1 || n > 3)
    fail(jalErrorInvalidValue,
         "grid: is " + py::repr(grid).cast<std::string>() + ", expected 1 to 3 extents of at least 1");
  for (size_t k = 0; k < n; ++k) out[k] = one(sequence[k]);
}

jalLaunchConfig launch_config(const py::handle& grid) {
  jalLaunchConfig c{};
  c.struct_size = sizeof c;
  read_grid(grid, c.grid);
  call_site(c);
  return c;
}

void Kernel::convert(const py::handle* args, size_t count, jalArg* out,
                     std::vector<std::shared_ptr<void>>* keep) const {
  auto text = [&](size_t k) {
    return std::string("kernel ") + info.name + ", argument " + std::to_string(k) + " (" + arguments[k].name + ")";
  };
  if (count != arguments.size()) {
    std::string names;
    for (const jalArgInfo& a : arguments) names += (names.empty() ? "" : ", ") + std::string(a.name);
    fail(jalErrorInvalidValue, std::string("kernel ") + info.name + " takes " + std::to_string(arguments.size()) +
                                   " arguments (" + names + "), got " + std::to_string(count));
  }
  if (count > kMaxArguments)
    fail(jalErrorNotSupported,
         std::string("kernel ") + info.name + " takes " + std::to_string(count) + " arguments, expected at most 64");
  for (size_t k = 0; k < count; ++k) {
    const jalArgInfo& want = arguments[k];
    out[k].kind = want.kind;
    switch (want.kind) {
      case jalArgTensor: {
        if (!py::isinstance<Tensor>(args[k]))
          fail(jalErrorInvalidValue,
               text(k) + ": is " + type_of(args[k]) + ", expected a jalapeno.Array" +
                   (type_of(args[k]) == "numpy.ndarray" ? "; jalapeno.array(x) copies it to the device" : ""));
        const auto& t = args[k].cast<const Tensor&>();
        if (want.dtype >= 0 && t.dtype->code != want.dtype) {
          const DType* expected = dtype_of_code(want.dtype);
          fail(jalErrorInvalidValue, text(k) + ": is " + t.dtype->name + ", expected " +
                                         (expected != nullptr ? expected->name : "another type"));
        }
        if (std::max<size_t>(t.shape.size(), 1) != want.rank)
          fail(jalErrorInvalidValue, text(k) + ": has " + std::to_string(t.shape.size()) + " dimensions, expected " +
                                         std::to_string(want.rank));
        out[k].value.tensor = t.as_argument(info.name, k, want.name);
        if (keep != nullptr) keep->push_back(t.memory);
        break;
      }
      case jalArgF32: {
        const double v = PyFloat_AsDouble(args[k].ptr());
        if (v == -1 && PyErr_Occurred() != nullptr) {
          PyErr_Clear();
          fail(jalErrorInvalidValue, text(k) + ": is " + type_of(args[k]) + ", expected a float");
        }
        out[k].value.f32 = static_cast<float>(v);
        break;
      }
      case jalArgI32: {
        const int64_t v = integer(args[k], text(k));
        if (v < std::numeric_limits<int32_t>::min() || v > std::numeric_limits<int32_t>::max())
          fail(jalErrorInvalidValue, text(k) + ": is " + std::to_string(v) + ", which int32 does not hold");
        out[k].value.i32 = static_cast<int32_t>(v);
        break;
      }
      case jalArgI64:
        out[k].value.i64 = integer(args[k], text(k));
        break;
    }
  }
}

void Kernel::launch(const py::handle& grid, const py::handle* args, size_t count, const StreamRef& stream) const {
  std::array<jalArg, kMaxArguments> list;
  const StreamRef s = choose_stream(device, stream);
  convert(args, count, list.data(), s->recorded.get());
  const jalLaunchConfig config = launch_config(grid);
  enqueue(*s, [&] { return jalLaunchKernelEx(handle, &config, list.data(), static_cast<uint32_t>(count), s->handle); });
}

namespace {

using Handles = std::vector<py::handle>;
Handles handles_of(const py::args& args) {
  Handles out(args.size());
  for (size_t k = 0; k < args.size(); ++k) out[k] = PyTuple_GET_ITEM(args.ptr(), static_cast<Py_ssize_t>(k));
  return out;
}

StreamRef stream_of(const py::kwargs& kwargs) {
  StreamRef stream;
  for (const auto& [key, value] : kwargs) {
    const auto name = key.cast<std::string>();
    if (name != "stream") fail(jalErrorInvalidValue, "launch: unknown keyword " + name + ", expected stream");
    if (value.is_none()) continue;
    if (!py::isinstance<Stream>(value))
      fail(jalErrorInvalidValue, "launch: stream is " + type_of(value) + ", expected a jalapeno.Stream");
    stream = value.cast<StreamRef>();
  }
  return stream;
}

// kernel[grid]
struct Launcher {
  std::shared_ptr<Kernel> kernel;
  py::object grid;
};

struct PreparedLaunch {
  PreparedLaunch(std::shared_ptr<Kernel> k, const py::handle& grid, const py::args& args) : kernel(std::move(k)) {
    std::array<jalArg, Kernel::kMaxArguments> list;
    const Handles handles = handles_of(args);
    kernel->convert(handles.data(), handles.size(), list.data(), &kept);
    const jalLaunchConfig config = launch_config(grid);
    check(without_gil([&] {
      return jalLaunchPrepare(kernel->handle, &config, list.data(), static_cast<uint32_t>(handles.size()), &handle);
    }));
  }
  ~PreparedLaunch() {
    if (kernel->device->handle != nullptr) (void)jalPreparedLaunchDestroy(handle);
  }
  std::shared_ptr<Kernel> kernel;
  std::vector<std::shared_ptr<void>> kept;
  jalPreparedLaunch_t handle = nullptr;
};

}  // namespace

void define_kernel(py::module_& m) {
  py::class_<Launcher>(m, "Launcher", "kernel[grid]: call it with the kernel's arguments.")
      .def("__call__", [](const Launcher& l, const py::args& args, const py::kwargs& kwargs) {
        const Handles handles = handles_of(args);
        l.kernel->launch(l.grid, handles.data(), handles.size(), stream_of(kwargs));
      });
  py::class_<PreparedLaunch, std::shared_ptr<PreparedLaunch>>(
      m, "PreparedLaunch",
      "A launch with everything fixed, made ready once; launch() writes one packet. Keeps its arrays alive.")
      .def(
          "launch",
          [](const std::shared_ptr<PreparedLaunch>& p, const StreamRef& stream) {
            const StreamRef s = choose_stream(p->kernel->device, stream);
            enqueue(*s, [&] { return jalLaunchPrepared(p->handle, s->handle); });
            s->keep(p);
          },
          py::arg("stream") = py::none(), "Enqueues it, on the current stream where none is given.")
      .def("__repr__", [](const PreparedLaunch& p) {
        return "<jalapeno.PreparedLaunch of " + std::string(p.kernel->info.name) + ">";
      });
  py::class_<Kernel, std::shared_ptr<Kernel>>(m, "Kernel", R"(A kernel of a module or of the library.

kernel[grid](*args, stream=None) launches: grid is an int or a tuple of up to three; arrays, ints and floats are checked
against the kernel's arguments. Never blocks, unless the stream's ring is full.)")
      .def("__getitem__",
           [](const std::shared_ptr<Kernel>& k, py::object grid) {
             return Launcher{k, std::move(grid)};
           })
      .def(
          "prepare",
          [](const std::shared_ptr<Kernel>& k, const py::handle& grid, const py::args& args) {
            return std::make_shared<PreparedLaunch>(k, grid, args);
          },
          py::arg("grid"), "A PreparedLaunch with this grid and these arguments.")
      .def_property_readonly(
          "name", [](const Kernel& k) { return k.info.name; }, "As the module has it.")
      .def_property_readonly(
          "device", [](const Kernel& k) { return k.device; }, "The Device it belongs to.")
      .def_property_readonly(
          "instructions", [](const Kernel& k) { return k.info.instructions; }, "How many it has.")
      .def_property_readonly(
          "spm_bytes", [](const Kernel& k) { return k.info.spm_bytes; }, "Scratchpad it uses.")
      .def_property_readonly(
          "acc_bytes", [](const Kernel& k) { return k.info.acc_bytes; }, "Accumulators it uses.")
      .def_property_readonly(
          "arguments",
          [](const Kernel& k) {
            py::list out;
            for (const jalArgInfo& a : k.arguments) {
              const DType* d = dtype_of_code(a.dtype);
              out.append(py::make_tuple(a.name, kind_name(a.kind),
                                        d != nullptr ? py::object(py::str(d->name)) : py::none(), a.rank));
            }
            return out;
          },
          "[(name, kind, dtype or None for any, rank)], kind one of int32, int64, float32, tensor.")
      .def("__repr__", [](const Kernel& k) { return std::string("<jalapeno.Kernel ") + k.info.name + ">"; });
  py::class_<Module, std::shared_ptr<Module>>(m, "Module", R"(Kernels from a file or from bytes, verified when loaded.

module["name"] is one of them. Raises ImageError naming the offset and the rule that was broken.)")
      .def(py::init([](const DeviceRef& d, const py::object& image) {
             if (py::isinstance<py::bytes>(image)) return std::make_shared<Module>(d, image.cast<py::bytes>());
             return std::make_shared<Module>(d, py::module_::import("os").attr("fspath")(image).cast<std::string>());
           }),
           py::arg("device"), py::arg("image"))
      .def_property_readonly(
          "device", [](const Module& x) { return x.device; }, "The Device it belongs to.")
      .def("__getitem__",
           [](const std::shared_ptr<Module>& x, const std::string& name) {
             jalKernel_t k = nullptr;
             check(jalModuleGetKernel(x->handle, name.c_str(), &k));
             return std::make_shared<Kernel>(x->device, x, k);
           })
      .def_property_readonly(
          "kernels",
          [](const std::shared_ptr<Module>& x) {
            uint32_t count = 0;
            check(jalModuleGetKernelCount(x->handle, &count));
            std::vector<std::shared_ptr<Kernel>> out;
            for (uint32_t n = 0; n < count; ++n) {
              jalKernel_t k = nullptr;
              check(jalModuleGetKernelByIndex(x->handle, n, &k));
              out.push_back(std::make_shared<Kernel>(x->device, x, k));
            }
            return out;
          },
          "All of them, as a list.")
      .def("__repr__", [](const Module& x) {
        uint32_t count = 0;
        (void)jalModuleGetKernelCount(x.handle, &count);
        return "<jalapeno.Module of " + std::to_string(count) + " kernels>";
      });
  m.def(
      "launch",
      [](const Kernel& k, const py::handle& grid, const py::tuple& args, const StreamRef& stream) {
        const Handles handles = handles_of(py::reinterpret_borrow<py::args>(args));
        k.launch(grid, handles.data(), handles.size(), stream);
      },
      py::arg("kernel"), py::arg("grid"), py::arg("args"), py::arg("stream") = py::none(),
      "kernel[grid](*args), without the detour.");
  m.def(
      "signature",
      [](const py::tuple& args) {
        // Types and ranks, a byte each: what a kernel is specialised for.
        std::string out;
        const Device* device = nullptr;
        for (const py::handle& a : args) {
          if (PyFloat_Check(a.ptr())) {
            out += 'f';
          } else if (PyLong_Check(a.ptr())) {
            out += 'i';
          } else if (py::isinstance<Tensor>(a)) {
            const auto& t = a.cast<const Tensor&>();
            out += static_cast<char>('A' + t.dtype->code + 1);
            out += static_cast<char>('0' + std::max<size_t>(t.shape.size(), 1));
            if (device == nullptr) device = t.memory->device.get();
          } else {
            out += '?';
            out += type_of(a);
          }
        }
        return py::make_tuple(reinterpret_cast<uintptr_t>(device), py::bytes(out));
      },
      py::arg("args"), "(device, types): equal for launches that the same specialisation serves.");
  m.def(
      "library_kernel",
      [](const DeviceRef& d, const std::string& name) {
        jalKernel_t k = nullptr;
        check(without_gil([&] { return jalLibraryGetKernel(d->get(), name.c_str(), &k); }));
        return std::make_shared<Kernel>(d, nullptr, k);
      },
      py::arg("device"), py::arg("name"), "A kernel of the library that comes with the runtime (docs/kernels.md).");
}

}  // namespace jalapeno::python
