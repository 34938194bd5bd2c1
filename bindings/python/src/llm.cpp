// The language model of samples/llm.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <model.hpp>
#include <mutex>
#include <tokenizer.hpp>

#include "core.hpp"

namespace jalapeno::python {
namespace {

// The sample's code throws plain C++ exceptions that name the file, the field or the token.
template <class F>
auto told(F f) {
  try {
    return f();
  } catch (const jalapeno::Error& e) {
    std::string text = e.what();
    const std::string prefix = std::string(jalGetErrorName(e.code())) + ": ";
    if (text.starts_with(prefix)) text.erase(0, prefix.size());
    throw Failure(e.code(), text);
  } catch (const std::runtime_error& e) {
    if (dynamic_cast<const Failure*>(&e) != nullptr || dynamic_cast<const py::builtin_exception*>(&e) != nullptr) throw;
    throw Failure(jalErrorInvalidValue, e.what());
  }
}

// Calls wait for one another: a model is one state.
struct Model {
  Model(DeviceRef d, const std::string& path, uint32_t context, uint32_t sequences, const py::object& progress,
        const std::string& kv)
      : device(std::move(d)), view(device->get()) {
    std::exception_ptr interrupted;
    auto tell = [&](uint64_t done, uint64_t all) {
      if (interrupted) return;
      py::gil_scoped_acquire acquire;
      try {
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (!progress.is_none()) progress(done, all);
      } catch (...) {
        interrupted = std::current_exception();
      }
    };
    try {
      told([&] {
        const Released released;
        const llm::Gguf file(path);
        tokenizer = llm::Tokenizer::create(file);
        model = std::make_unique<llm::Model>(view, file, context, sequences, tell, nullptr, kv);
      });
    } catch (...) {
      (void)view.release();
      throw;
    }
    if (interrupted) {
      close();
      std::rethrow_exception(interrupted);
    }
  }
  ~Model() { close(); }
  void close() {
    without_gil([&] { model.reset(); });  // on a closed device its handles are gone: nothing happens to them
    (void)view.release();
  }
  template <class F>
  auto with(F f) {
    return told([&] {
      const Released released;
      const std::lock_guard lock(mutex);
      if (device->handle == nullptr || model == nullptr) fail(jalErrorInvalidHandle, "the model's device was closed");
      return f(*model);
    });
  }
  DeviceRef device;
  jalapeno::Device view;  // not the owner: given back before it could close the device
  std::unique_ptr<llm::Tokenizer> tokenizer;
  std::unique_ptr<llm::Model> model;
  std::mutex mutex;
};

llm::Sampling sampling(float temperature, uint32_t top_k, float top_p, int64_t seed) {
  if (!(temperature >= 0))
    fail(jalErrorInvalidValue, "temperature is " + std::to_string(temperature) + ", expected at least 0");
  if (top_k < 1 || top_k > 1024)
    fail(jalErrorInvalidValue, "top_k is " + std::to_string(top_k) + ", expected 1 to 1024");
  if (!(top_p > 0 && top_p <= 1))
    fail(jalErrorInvalidValue, "top_p is " + std::to_string(top_p) + ", expected more than 0, at most 1");
  return {temperature, top_k, top_p, seed};
}

}  // namespace

void define_llm(py::module_& m) {
  py::class_<Model>(m, "LanguageModel", "Use jalapeno.llm.Model.")
      .def(py::init<DeviceRef, const std::string&, uint32_t, uint32_t, const py::object&, const std::string&>(),
           py::arg("device"), py::arg("path"), py::arg("context"), py::arg("sequences"), py::arg("progress"),
           py::arg("kv"))
      .def_property_readonly(
          "device", [](const Model& x) { return x.device; }, "Where it runs.")
      .def_property_readonly(
          "parameters",
          [](const Model& x) {
            const llm::Hyperparameters& h = x.model->parameters();
            py::dict d;
            d["layers"] = h.layers, d["width"] = h.width, d["ffn"] = h.ffn, d["heads"] = h.heads;
            d["kv_heads"] = h.kv_heads, d["head"] = h.head, d["vocabulary"] = h.vocabulary;
            d["context"] = h.context;
            return d;
          },
          "Sizes as a dict.")
      .def_property_readonly(
          "weight_bytes", [](const Model& x) { return x.model->weight_bytes(); }, "Of the weights on the device.")
      .def(
          "encode",
          [](const Model& x, const std::string& text) { return told([&] { return x.tokenizer->encode(text); }); },
          "Text to token ids.")
      .def(
          "decode",
          [](const Model& x, int32_t token) {
            if (token < 0 || static_cast<size_t>(token) >= x.tokenizer->size())
              fail(jalErrorInvalidValue,
                   "token " + std::to_string(token) + ", expected 0 to " + std::to_string(x.tokenizer->size() - 1));
            return py::bytes(x.tokenizer->decode(token));
          },
          "The bytes of a token.")
      .def(
          "ends_text", [](const Model& x, int32_t token) { return x.tokenizer->ends_text(token); },
          "Whether the token ends the text.")
      .def(
          "position", [](Model& x) { return x.with([](llm::Model& l) { return l.position(); }); },
          "How many tokens the cache holds.")
      .def(
          "prefill",
          [](Model& x, const std::vector<int32_t>& tokens) { x.with([&](llm::Model& l) { l.prefill(tokens); }); },
          "Begins a sequence with these tokens.")
      .def(
          "first",
          [](Model& x, float temperature, uint32_t top_k, float top_p, int64_t seed) {
            const llm::Sampling s = sampling(temperature, top_k, top_p, seed);
            return x.with([&](llm::Model& l) { return l.first(s); });
          },
          "The token after the prefill: (temperature, top_k, top_p, seed).")
      .def(
          "step",
          [](Model& x, float temperature, uint32_t top_k, float top_p, int64_t seed) {
            const llm::Sampling s = sampling(temperature, top_k, top_p, seed);
            return x.with([&](llm::Model& l) { return l.step(s)[0]; });
          },
          "The next token: (temperature, top_k, top_p, seed).")
      .def(
          "logits",
          [](Model& x, const std::vector<int32_t>& tokens) {
            std::vector<float> values = x.with([&](llm::Model& l) { return l.logits(tokens); });
            const auto columns = static_cast<py::ssize_t>(x.model->parameters().vocabulary);
            py::array_t<float> out({static_cast<py::ssize_t>(tokens.size()), columns});
            std::copy(values.begin(), values.end(), out.mutable_data());
            return out;
          },
          "Behind every position, float32 [len(tokens), vocabulary].");
}

}  // namespace jalapeno::python
