#include "core.hpp"

PYBIND11_MODULE(_core, m) {
  using namespace jalapeno::python;
  m.doc() = "libjalapeno's C API as Python objects. Use the jalapeno package, which builds on it.";
  define_errors(m);
  define_device(m);
  define_stream(m);
  define_event(m);
  define_tensor(m);
  define_kernel(m);
  define_graph(m);
  define_communicator(m);
  define_tile(m);
  define_llm(m);
}
