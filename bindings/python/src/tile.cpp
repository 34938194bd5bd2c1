// The C++ kernel builder (tile.hpp) for language.py: handles keep their builder alive, operations go by name, the place
// in the source is set before each. Everything is checked where C++ kernels are: in the builder and in the verifier.
#include <pybind11/stl.h>

#include <jalapeno/tile.hpp>
#include <set>

#include "core.hpp"

namespace jalapeno::python {
namespace {

namespace t = jalapeno::tile;
using Builder = t::Builder;

struct Source;
using SourceRef = std::shared_ptr<Source>;
// A builder and where its next instruction comes from.
struct Source {
  Source(const std::string& name, const std::string& file, uint32_t line)
      : builder(name, t::Where(intern(file), line)), where(intern(file), line) {}
  const char* intern(const std::string& s) { return files.insert(s).first->c_str(); }
  std::set<std::string> files;
  Builder builder;
  t::Where where;
};

// Members are destroyed last to first: the handle goes before its builder.
template <class T>
struct Held {
  SourceRef source;
  T value;
};
using Reg = Held<t::Reg>;
using Tile = Held<t::Tile>;
using Staged = Held<t::StagedTile>;
using Argument = Held<t::Tensor>;

template <class Enum, size_t N>
Enum named(const std::string_view (&names)[N], const std::string& name) {
  for (size_t k = 0; k < N; ++k)
    if (names[k] == name) return static_cast<Enum>(k);
  throw t::BuildError("no operation \"" + name + "\"");
}

t::Value value_of(const py::handle& o) {
  if (py::isinstance<Reg>(o)) return o.cast<const Reg&>().value;
  return o.cast<int64_t>();
}
t::Coordinates coordinates(const py::sequence& s) {
  t::Coordinates out;
  for (const auto& o : s) out.push_back(value_of(o));
  return out;
}
t::DType dtype_of(const std::string& name) { return static_cast<t::DType>(dtype_named(name).code); }

}  // namespace

void define_tile(py::module_& m) {
  py::module_ sub = m.def_submodule("tile", "The kernel builder. Use jalapeno.language, which builds on it.");
  static py::exception<t::BuildError> build_error(sub, "BuildError", PyExc_ValueError);
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const t::BuildError& e) {
      build_error(e.what());
    }
  });
  py::class_<Reg>(sub, "Reg");
  py::class_<Argument>(sub, "Argument");
  py::class_<Tile>(sub, "Tile")
      .def(
          "memory",
          [](const Tile& x) {
            return Tile{x.source, x.value.memory()};
          },
          "The memory alone, without a tile register: for overlay().");
  py::class_<Staged>(sub, "Staged");
  py::class_<t::KernelCode>(sub, "KernelCode")
      .def_readonly("name", &t::KernelCode::name)
      .def_readonly("spm_bytes", &t::KernelCode::spm_bytes)
      .def_readonly("acc_bytes", &t::KernelCode::acc_bytes)
      .def_property_readonly("instructions", [](const t::KernelCode& k) { return k.code.size(); });

  auto tile = [](const SourceRef& s, t::Tile x) { return Tile{s, std::move(x)}; };
  auto reg = [](const SourceRef& s, t::Reg x) { return Reg{s, std::move(x)}; };
  py::class_<Source, SourceRef>(sub, "Builder")
      .def(py::init<const std::string&, const std::string&, uint32_t>(), py::arg("name"), py::arg("file"),
           py::arg("line"))
      .def(
          "at", [](Source& s, uint32_t line) { s.where.line = line; }, "The line of what follows.")
      .def("tensor",
           [](const SourceRef& s, const std::string& name, const std::optional<std::string>& dtype, uint32_t rank) {
             return Argument{
                 s, dtype ? s->builder.tensor(name, dtype_of(*dtype), rank) : s->builder.any_tensor(name, rank)};
           })
      .def("scalar",
           [reg](const SourceRef& s, const std::string& name, const std::string& kind) {
             return reg(s,
                        kind == "f32" ? s->builder.scalar_f32(name, s->where) : s->builder.scalar_i64(name, s->where));
           })
      .def("dim", [reg](const SourceRef& s, const Argument& a, uint32_t k) { return reg(s, a.value.dim(k)); })
      .def("spm", [tile](const SourceRef& s, const std::string& d, uint32_t rows,
                         uint32_t columns) { return tile(s, s->builder.spm(dtype_of(d), rows, columns, s->where)); })
      .def("staged",
           [](const SourceRef& s, const std::string& d, uint32_t rows, uint32_t columns, uint32_t stages) {
             return Staged{s, s->builder.spm(dtype_of(d), rows, columns, t::Stages(stages), s->where)};
           })
      .def("stage", [tile](const SourceRef& s, const Staged& x, const Reg& i) { return tile(s, x.value[i.value]); })
      .def("acc", [tile](const SourceRef& s, const std::string& d, uint32_t rows,
                         uint32_t columns) { return tile(s, s->builder.acc(rows, columns, dtype_of(d), s->where)); })
      .def("overlay",
           [tile](const SourceRef& s, const Tile& x, const std::string& d, uint32_t rows, uint32_t columns) {
             return tile(s, s->builder.overlay(x.value, dtype_of(d), rows, columns, s->where));
           })
      .def("slice",
           [tile](const SourceRef& s, const Tile& x, const py::object& row, const py::object& column,
                  const py::object& rows, const py::object& columns) {
             return tile(s, s->builder.slice(x.value, value_of(row), value_of(column), value_of(rows),
                                             value_of(columns), s->where));
           })
      .def("special",
           [reg](const SourceRef& s, const std::string& name) {
             Builder& b = s->builder;
             const t::Where& w = s->where;
             return reg(s, name == "pid_x"    ? b.pid_x(w)
                           : name == "pid_y"  ? b.pid_y(w)
                           : name == "pid_z"  ? b.pid_z(w)
                           : name == "grid_x" ? b.grid_x(w)
                           : name == "grid_y" ? b.grid_y(w)
                                              : b.grid_z(w));
           })
      .def("constant", [reg](const SourceRef& s, int64_t v) { return reg(s, s->builder.constant(v, s->where)); })
      .def("constant_f32", [reg](const SourceRef& s, float v) { return reg(s, s->builder.constant_f32(v, s->where)); })
      .def("scalar_op",
           [reg](const SourceRef& s, const std::string& op, const py::object& a, const py::object& b) {
             return reg(s,
                        s->builder.scalar(named<hw::SaluOp>(hw::kSaluNames, op), value_of(a), value_of(b), s->where));
           })
      .def("assign",
           [](Source& s, const Reg& to, const py::object& v) { s.builder.assign(to.value, value_of(v), s.where); })
      .def("read",
           [reg](const SourceRef& s, const Tile& x, const py::object& row, const py::object& column) {
             return reg(s, s->builder.read(x.value, value_of(row), value_of(column), s->where));
           })
      .def("begin_loop",
           [reg](const SourceRef& s, const py::object& begin, const py::object& end, const py::object& step) {
             return reg(s, s->builder.begin_loop(value_of(begin), value_of(end), value_of(step), s->where));
           })
      .def("begin_when",
           [](Source& s, const py::object& a, const std::string& cond, const py::object& b) {
             s.builder.begin_when(value_of(a), named<hw::Cond>(hw::kCondNames, cond), value_of(b), s.where);
           })
      .def("end_block", [](Source& s) { s.builder.end_block(s.where); })
      .def("trap", [](Source& s, uint32_t code) { s.builder.trap(code, s.where); })
      .def("load", [](Source& s, const Tile& to, const Argument& from, const py::sequence& at,
                      float fill) { s.builder.load(to.value, from.value, coordinates(at), fill, s.where); })
      .def("store",
           [](Source& s, const Argument& to, const py::sequence& at, const Tile& from, bool add) {
             if (add)
               s.builder.store_add(to.value, coordinates(at), from.value, s.where);
             else
               s.builder.store(to.value, coordinates(at), from.value, s.where);
           })
      .def("gather",
           [](Source& s, const Tile& to, const Argument& from, const Tile& index, const py::object& column,
              uint32_t unit) { s.builder.gather(to.value, from.value, index.value, value_of(column), unit, s.where); })
      .def("scatter",
           [](Source& s, const Argument& to, const Tile& from, const Tile& index, const py::object& column,
              uint32_t unit) { s.builder.scatter(to.value, from.value, index.value, value_of(column), unit, s.where); })
      .def("copy", [](Source& s, const Tile& to, const Tile& from,
                      bool transposed) { s.builder.copy(to.value, from.value, transposed, s.where); })
      .def("zero", [](Source& s, const Tile& acc) { s.builder.zero(acc.value, s.where); })
      .def("mma",
           [](Source& s, const Tile& acc, const Tile& a, const Tile& b, bool accumulate, bool rows_are_k) {
             s.builder.mma(acc.value, a.value, b.value, {accumulate, rows_are_k}, s.where);
           })
      .def("drain",
           [](Source& s, const Tile& to, const Tile& acc, const std::string& act, const Tile* row, const Tile* column) {
             t::DrainOptions o;
             o.act = named<hw::ActOp>(hw::kActNames, act);
             o.row_scale = row != nullptr ? &row->value : nullptr,
             o.column_scale = column != nullptr ? &column->value : nullptr;
             s.builder.drain(to.value, acc.value, o, s.where);
           })
      .def("unary",
           [](Source& s, const std::string& op, const Tile& to, const Tile& a) {
             s.builder.unary(named<hw::UnaryOp>(hw::kUnaryNames, op), to.value, a.value, s.where);
           })
      .def("binary",
           [](Source& s, const std::string& op, const Tile& to, const Tile& a, const py::object& b, bool reverse) {
             const auto o = named<hw::BinaryOp>(hw::kBinaryNames, op);
             if (py::isinstance<Reg>(b))
               s.builder.binary(o, to.value, a.value, b.cast<const Reg&>().value, reverse, s.where);
             else if (reverse)
               s.builder.binary_reverse(o, to.value, a.value, b.cast<const Tile&>().value, s.where);
             else
               s.builder.binary(o, to.value, a.value, b.cast<const Tile&>().value, s.where);
           })
      .def("ternary",
           [](Source& s, const std::string& op, const Tile& to, const Tile& a, const Tile& b, const Tile& c) {
             s.builder.ternary(named<hw::TernaryOp>(hw::kTernaryNames, op), to.value, a.value, b.value, c.value,
                               s.where);
           })
      .def("mask",
           [](Source& s, const Tile& to, const Tile& a, const py::object& column0, const py::object& limit,
              uint32_t step, float fill) {
             s.builder.mask(to.value, a.value, value_of(column0), value_of(limit), step, fill, s.where);
           })
      .def("reduce",
           [](Source& s, const std::string& op, const Tile& to, const Tile& a) {
             s.builder.reduce(named<hw::ReduceOp>(hw::kReduceNames, op), to.value, a.value, s.where);
           })
      .def("rmsnorm", [](Source& s, const Tile& to, const Tile& a, const Tile& weight,
                         const Reg& eps) { s.builder.rmsnorm(to.value, a.value, weight.value, eps.value, s.where); })
      .def("rope",
           [](Source& s, const std::string& op, const Tile& to, const Tile& a, const Tile& cosine, const Tile& sine,
              uint32_t head, uint32_t rotated) {
             s.builder.rope(named<hw::RopeOp>(hw::kRopeNames, op), to.value, a.value, cosine.value, sine.value, head,
                            rotated, s.where);
           })
      .def("softmax_step",
           [](Source& s, const Tile& p, const Tile& scores, const Tile& state, const Reg& scale) {
             s.builder.softmax_step(p.value, scores.value, state.value, scale.value, s.where);
           })
      .def("glu",
           [](Source& s, const std::string& act, const Tile& to, const Tile& gate, const Tile& up) {
             s.builder.glu(named<hw::ActOp>(hw::kActNames, act), to.value, gate.value, up.value, s.where);
           })
      .def("top_k",
           [](Source& s, const Tile& values, const Tile& indices, const Tile& a, const py::object& base, bool merge) {
             s.builder.top_k(values.value, indices.value, a.value, value_of(base), merge, s.where);
           })
      .def("uniform",
           [](Source& s, const Tile& to, const py::object& seed, const py::object& counter) {
             s.builder.uniform(to.value, value_of(seed), value_of(counter), s.where);
           })
      .def("scan", [](Source& s, const Tile& to, const Tile& a) { s.builder.scan(to.value, a.value, s.where); })
      .def("iota",
           [](Source& s, const Tile& to, const py::object& start, int64_t row_step, int64_t column_step) {
             s.builder.iota(to.value, value_of(start), row_step, column_step, s.where);
           })
      .def("fill", [](Source& s, const Tile& to, float v) { s.builder.fill(to.value, v, s.where); })
      .def("finish", [](Source& s) { return s.builder.finish(s.where); });

  sub.def(
      "write_module",
      [](const std::vector<t::KernelCode>& kernels) {
        const std::vector<std::byte> bytes = t::write_module(kernels);
        return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      },
      "The bytes of a module with these kernels, for Module().");
  sub.def(
      "disassemble",
      [](const py::bytes& module) {
        const std::string_view v = module;
        size_t needed = 0;
        check(jalModuleDisassemble(v.data(), v.size(), nullptr, 0, &needed));
        std::string text(needed, 0);
        check(jalModuleDisassemble(v.data(), v.size(), text.data(), text.size(), nullptr));
        text.pop_back();
        return text;
      },
      "A module as text: one instruction a line, with its source line.");
  sub.attr("isa_version") = hw::kIsaVersion;
}

}  // namespace jalapeno::python
