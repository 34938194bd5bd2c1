#include "model.hpp"

#include <cmath>
#include <cstring>
#include <set>
#include <stdexcept>
#include <utility>

#include "loader.hpp"

namespace llm {

using jalapeno::check;
using jalapeno::launch;
using jalapeno::tensor;

namespace {

constexpr uint32_t kPage = 16, kChunk = 512;       // tokens
constexpr uint32_t kLong = 2048, kMostShares = 8;  // a context whose keys are shared out; parts

jalDType dtype_of(TensorType t) {
  switch (t) {
    case TensorType::kF32:
      return jalF32;
    case TensorType::kF16:
      return jalF16;
    case TensorType::kBF16:
      return jalBF16;
    case TensorType::kQ8_0:
      return jalQ8_0;
    case TensorType::kQ4_0:
      return jalQ4_0;
    case TensorType::kMXFP4:
      return jalMXFP4;
  }
  return jalF32;
}

const char* dtype_name(jalDType t) {
  switch (t) {
    case jalF32:
      return "f32";
    case jalBF16:
      return "bf16";
    case jalF16:
      return "f16";
    case jalI8:
      return "i8";
    case jalI32:
      return "i32";
    case jalQ8_0:
      return "q8_0";
    case jalQ4_0:
      return "q4_0";
    case jalMXFP4:
      return "mxfp4";
    case jalMXFP8:
      return "mxfp8";
    case jalE4M3:
      return "e4m3";
    case jalE5M2:
      return "e5m2";
    case jalI64:
      return "i64";
  }
  return "";
}

uint64_t row_bytes(jalDType t, uint64_t columns) {
  switch (t) {
    case jalF32:
    case jalI32:
      return columns * 4;
    case jalBF16:
    case jalF16:
      return columns * 2;
    case jalI8:
    case jalE4M3:
    case jalE5M2:
      return columns;
    case jalI64:
      return columns * 8;
    case jalQ8_0:
      return columns / 32 * 34;
    case jalQ4_0:
      return columns / 32 * 18;
    case jalMXFP4:
      return columns / 32 * 17;
    case jalMXFP8:
      return columns / 32 * 33;
  }
  return 0;
}

uint32_t blocks(uint32_t n, uint32_t size) { return (n + size - 1) / size; }
uint64_t rounded(uint64_t bytes) { return (bytes + 255) / 256 * 256; }  // as buffers begin

}  // namespace

jalDType Model::Weight::input() const { return dtype == jalQ4_0 || dtype == jalMXFP4 ? jalQ8_0 : dtype; }
jalDType Model::Stack::input() const {
  return pieces.size() == 1 ? pieces[0].weight.input() : jalF32;  // of different types: each converts for itself
}

// One buffer for all weights, and one for the KV cache: a matrix in one of its own leaves a part of a page of 2 MiB
// behind it, a fifth of a small model. Where the device has no such room in one piece, they are taken one by one.
void Model::reserve_weights(const Gguf& file) {
  uint64_t all = 0;
  for (const auto& [name, t] : file.tensors())
    all += rounded(name.rfind("blk.", 0) == 0 && t.rows > 1 ? t.bytes / ranks_ : t.bytes);
  reserve(all);
}

void Model::reserve(uint64_t bytes) {
  free_bytes_ = 0;
  if (bytes == 0) return;
  try {
    free_ = storage_.emplace_back(device_, bytes).data(), free_bytes_ = bytes;
  } catch (const jalapeno::Error& e) {
    if (e.code() != jalErrorOutOfMemory) throw;
  }
}

uint8_t* Model::room(uint64_t bytes) {
  if (rounded(bytes) > free_bytes_) return storage_.emplace_back(device_, bytes).data();
  free_bytes_ -= rounded(bytes);
  return std::exchange(free_, free_ + rounded(bytes));
}

Model::Weight Model::take(const Gguf& file, const std::string& name, uint64_t rows, uint64_t columns, bool vector,
                          bool required, void* place, Part part) {
  const TensorInfo* t = file.find(name);
  if (t == nullptr) {
    if (required) throw std::runtime_error(file.path() + ": tensor " + name + " is missing");
    return {};
  }
  const uint64_t all_rows = part == Part::kRows ? rows * ranks_ : rows,
                 all_columns = part == Part::kColumns ? columns * ranks_ : columns;
  if (t->rows != all_rows || t->columns != all_columns)
    throw std::runtime_error(file.path() + ": tensor " + name + " is " + std::to_string(t->rows) + " x " +
                             std::to_string(t->columns) + ", expected " + std::to_string(all_rows) + " x " +
                             std::to_string(all_columns));
  if (vector && t->type != TensorType::kF32)
    throw std::runtime_error(file.path() + ": tensor " + name + " is " + type_name(t->type) + ", vectors must be F32");
  const uint64_t bytes = part == Part::kAll ? t->bytes : t->bytes / ranks_, row = t->bytes / t->rows;
  if (place == nullptr) place = room(bytes);
  weight_bytes_ += bytes;
  if (part == Part::kColumns && ranks_ > 1) {
    for (uint64_t r = 0; r < rows; ++r)
      wishes_.push_back(
          {t->offset + r * row + rank_ * (row / ranks_), row / ranks_, static_cast<char*>(place) + r * (row / ranks_)});
  } else {
    wishes_.push_back({t->offset + (part == Part::kRows ? rank_ * bytes : 0), bytes, place});
  }
  return {place, dtype_of(t->type), static_cast<uint32_t>(rows), static_cast<uint32_t>(columns)};
}

Model::Stack Model::take_stack(const Gguf& file, const std::vector<Wanted>& wanted, uint64_t columns) {
  const TensorInfo* top = file.find(wanted.front().name);
  uint64_t bytes = 0;
  bool joined = top != nullptr;  // what is missing is told by take()
  for (const Wanted& w : wanted) {
    const TensorInfo* t = file.find(w.name);
    joined = joined && t != nullptr && t->type == top->type;
    if (joined) bytes += t->bytes / ranks_;
  }
  uint8_t* place = joined ? room(bytes) : nullptr;
  Stack stack;
  for (const Wanted& w : wanted) {
    stack.pieces.push_back({take(file, w.name, w.rows, columns, false, true, place, Part::kRows), stack.rows});
    stack.rows += static_cast<uint32_t>(w.rows);
    if (joined) place += file.find(w.name)->bytes / ranks_;
  }
  if (!joined) return stack;
  Weight whole = stack.pieces.front().weight;
  whole.rows = stack.rows;
  stack.pieces = {{whole, 0}};
  return stack;
}

jalapeno::Kernel Model::kernel(const std::string& name) {
  auto [it, fresh] = kernels_.try_emplace(name);
  if (fresh) it->second = jalapeno::library_kernel(device_, name);
  return it->second;
}

Model::Model(const jalapeno::Device& device, const Gguf& file, uint32_t context, uint32_t sequences,
             const std::function<void(uint64_t, uint64_t)>& progress, const jalapeno::Communicator* ranks,
             const std::string& kv)
    : device_(device), comm_(ranks), stream_(device), cores_(device.properties().cores), sequences_(sequences) {
  if (comm_ != nullptr) {
    const jalCommInfo info = comm_->info();
    rank_ = static_cast<uint32_t>(info.rank), ranks_ = static_cast<uint32_t>(info.ranks);
  }
  const std::string architecture = file.text("general.architecture");
  if (architecture != "llama")
    throw std::runtime_error(file.path() + ": architecture \"" + architecture + "\", this program runs llama");
  auto integer = [&](const char* key, uint64_t low, uint64_t high, uint64_t fallback = 0) {
    const std::string full = std::string("llama.") + key;
    const uint64_t v = fallback != 0 ? file.integer(full, fallback) : file.integer(full);
    if (v < low || v > high)
      throw std::runtime_error(file.path() + ": " + full + " is " + std::to_string(v) + ", expected " +
                               std::to_string(low) + " to " + std::to_string(high));
    return static_cast<uint32_t>(v);
  };
  h_.layers = integer("block_count", 1, 1024);
  h_.width = integer("embedding_length", 8, 16384);
  h_.ffn = integer("feed_forward_length", 8, 1 << 20);
  h_.heads = integer("attention.head_count", 1, 1024);
  h_.kv_heads = integer("attention.head_count_kv", 1, h_.heads, h_.heads);
  if (h_.heads % h_.kv_heads != 0)
    throw std::runtime_error(file.path() + ": " + std::to_string(h_.heads) + " heads cannot share " +
                             std::to_string(h_.kv_heads) + " KV heads");
  if (h_.heads / h_.kv_heads > 32) throw std::runtime_error(file.path() + ": more than 32 heads share a KV head");
  h_.head = integer("attention.key_length", 2, 1024, h_.width / h_.heads);
  h_.rotated = integer("rope.dimension_count", 2, h_.head, h_.head);
  h_.vocabulary = static_cast<uint32_t>(file.texts("tokenizer.ggml.tokens").size());
  const uint32_t trained = integer("context_length", 1, 1 << 24);
  h_.context = context != 0 ? context : std::min(trained, 4096u);
  if (h_.context > trained)
    throw std::runtime_error("--context " + std::to_string(h_.context) + ": the model was trained for " +
                             std::to_string(trained));
  if (h_.heads * h_.head > 16384 || h_.rotated % 2 != 0)
    throw std::runtime_error(file.path() + ": " + std::to_string(h_.heads) + " heads of " + std::to_string(h_.head) +
                             ", " + std::to_string(h_.rotated) + " rotated");
  auto real = [&](const std::string& key, double fallback, double low, double high) {
    const double v = std::isnan(fallback) ? file.real(key) : file.real(key, fallback);
    if (!(v >= low && v <= high))
      throw std::runtime_error(file.path() + ": " + key + " is " + std::to_string(v) + ", expected " +
                               std::to_string(low) + " to " + std::to_string(high));
    return static_cast<float>(v);
  };
  h_.eps = real("llama.attention.layer_norm_rms_epsilon", std::nan(""), 0, 1);
  h_.theta = real("llama.rope.freq_base", 10000.0, 1, 1e12);
  h_.rope_scale = 1;
  const std::string scaling = file.has("llama.rope.scaling.type") ? file.text("llama.rope.scaling.type") : "none";
  if (scaling == "linear")
    h_.rope_scale = real("llama.rope.scaling.factor", std::nan(""), 1e-3, 1e6);
  else if (scaling != "none")
    throw std::runtime_error(file.path() + ": rope scaling \"" + scaling +
                             "\", supported are none, linear and the factors of Llama 3 (rope_freqs.weight)");

  // Blocks of 32 elements are not cut.
  uint32_t unit = 1;
  for (const auto& [name, t] : file.tensors())
    if (t.type == TensorType::kQ4_0 || t.type == TensorType::kQ8_0 || t.type == TensorType::kMXFP4) unit = 32;
  auto shares = [&](uint32_t n) {
    return h_.kv_heads % n == 0 && h_.ffn % (unit * n) == 0 && h_.heads / n * h_.head % unit == 0;
  };
  if (!shares(ranks_)) {
    std::string possible;
    for (uint32_t n = 1; n <= h_.kv_heads; ++n)
      if (shares(n)) possible += (possible.empty() ? "" : ", ") + std::to_string(n);
    throw std::runtime_error(file.path() + ": " + std::to_string(h_.kv_heads) +
                             " KV heads and a feed-forward layer of " + std::to_string(h_.ffn) +
                             " cannot be shared out to " + std::to_string(ranks_) + " chips; possible are " + possible);
  }
  h_.heads /= ranks_, h_.kv_heads /= ranks_, h_.ffn /= ranks_;
  const uint64_t kv_width = uint64_t{h_.kv_heads} * h_.head, q_width = uint64_t{h_.heads} * h_.head;
  reserve_weights(file);
  embedding_ = take(file, "token_embd.weight", h_.vocabulary, h_.width, false);
  output_norm_ = take(file, "output_norm.weight", 1, h_.width, true);
  output_ = take(file, "output.weight", h_.vocabulary, h_.width, false, false);
  if (output_.data == nullptr) output_ = embedding_;  // tied
  bool all_f32 = output_.dtype == jalF32;
  bool any_f16 = false;
  std::set<std::string> known{"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"};
  for (uint32_t l = 0; l < h_.layers; ++l) {
    auto full = [&](const char* name) {
      const std::string text = "blk." + std::to_string(l) + "." + name + ".weight";
      known.insert(text);
      return text;
    };
    auto note = [&](const Weight& w) { all_f32 &= w.dtype == jalF32, any_f16 |= w.dtype == jalF16; };
    auto matrix = [&](const char* name, uint64_t rows, uint64_t columns) {
      const Weight w = take(file, full(name), rows, columns, false, true, nullptr, Part::kColumns);
      note(w);
      return w;
    };
    auto stack = [&](const std::vector<Wanted>& wanted) {
      Stack s = take_stack(file, wanted, h_.width);
      for (const Stack::Piece& p : s.pieces) note(p.weight);
      return s;
    };
    Layer x;
    x.attn_norm = take(file, full("attn_norm"), 1, h_.width, true);
    x.qkv = stack({{full("attn_q"), q_width}, {full("attn_k"), kv_width}, {full("attn_v"), kv_width}});
    x.o = matrix("attn_output", h_.width, q_width);
    x.ffn_norm = take(file, full("ffn_norm"), 1, h_.width, true);
    x.gate_up = stack({{full("ffn_gate"), h_.ffn}, {full("ffn_up"), h_.ffn}});
    x.down = matrix("ffn_down", h_.width, h_.ffn);
    layers_.push_back(std::move(x));
  }
  for (const auto& [name, t] : file.tensors())
    if (known.count(name) == 0)
      throw std::runtime_error(file.path() + ": tensor " + name + " belongs to a variant this program does not run");
  kv_type_ = all_f32 ? jalF32 : any_f16 ? jalF16 : jalBF16;
  if (!kv.empty()) {
    bool known_type = false;
    for (jalDType t : {jalF32, jalBF16, jalF16, jalQ8_0})
      if (kv == dtype_name(t)) kv_type_ = t, known_type = true;
    if (!known_type) throw std::runtime_error("a KV cache of type \"" + kv + "\", expected f32, bf16, f16 or q8_0");
    if (kv_type_ == jalQ8_0 && h_.head % 32 != 0)
      throw std::runtime_error("a KV cache of q8_0 has blocks of 32, a head of this model " + std::to_string(h_.head));
  }

  std::vector<Piece> pieces;
  for (const Wish& w : wishes_) pieces.push_back({w.offset, w.bytes, w.destination});
  load_weights(device_, stream_, file.path(), pieces, progress);

  pages_ = blocks(h_.context, kPage);
  const uint64_t each = rounded(cache_bytes() / (2 * h_.layers));
  reserve(2 * h_.layers * each);
  for (Layer& l : layers_)
    for (uint8_t** part : {&l.keys, &l.values}) {
      *part = room(each);
      stream_.fill(*part, 0, each);  // masked keys are multiplied by 0: they must not be NaN
    }
  chunk_ = std::min(kChunk, h_.context);
  const uint32_t most = std::max(chunk_, sequences_);  // rows of one pass
  auto floats = [&](uint64_t n) { return jalapeno::Buffer<float>(device_, n); };
  auto bytes = [&](uint64_t n) { return jalapeno::Buffer<uint8_t>(device_, n * sizeof(float)); };  // the widest type
  x_ = floats(uint64_t{most} * h_.width), norm_ = bytes(uint64_t{most} * h_.width);
  qkv_ = floats(most * (q_width + 2 * kv_width)), attention_ = bytes(most * q_width);
  gate_up_ = floats(uint64_t{most} * h_.ffn * 2), hidden_ = bytes(uint64_t{most} * h_.ffn);
  uint32_t parts = 0;
  for (uint32_t n = 1; n <= sequences_; ++n)
    if (key_shares(n) > 1) parts = std::max(parts, key_shares(n) * n);
  if (parts > 0) partial_ = floats(uint64_t{parts} * q_width), state_ = floats(uint64_t{parts} * h_.heads * 4);
  // Logits of a whole chunk are only asked for by logits(), which makes room itself.
  logits_ = floats(uint64_t{sequences_} * h_.vocabulary);
  prompt_ = jalapeno::Buffer<int32_t>(device_, chunk_), prompt_position_ = jalapeno::Buffer<int32_t>(device_, 1);
  tokens_ = jalapeno::Buffer<int32_t>(device_, sequences_),
  position_device_ = jalapeno::Buffer<int32_t>(device_, sequences_);
  token_host_ = jalapeno::HostBuffer<int32_t>(device_, sequences_);
  positions_.assign(sequences_, 0);
  std::vector<int32_t> table;
  for (uint32_t s = 0; s < sequences_; ++s) {
    pages_of_.emplace_back(pages_);
    for (uint32_t p = 0; p < pages_; ++p) pages_of_[s][p] = static_cast<int32_t>(s * pages_ + p);
    table.insert(table.end(), pages_of_[s].begin(), pages_of_[s].end());
  }
  table_ = jalapeno::Buffer<int32_t>(device_, std::span<const int32_t>(table));
  make_rope_tables(file);
  stream_.synchronize();
}

void Model::make_rope_tables(const Gguf& file) {
  std::vector<float> factors(h_.rotated / 2, 1.f);
  if (const TensorInfo* t = file.find("rope_freqs.weight")) {  // Llama 3: long wavelengths are stretched
    if (t->type != TensorType::kF32 || t->rows != 1 || t->columns != h_.rotated / 2)
      throw std::runtime_error(file.path() + ": tensor rope_freqs.weight is " + std::to_string(t->columns) + " " +
                               type_name(t->type) + ", expected " + std::to_string(h_.rotated / 2) + " F32");
    jalapeno::Buffer<float> temporary(device_, factors.size());
    load_weights(device_, stream_, file.path(), {{t->offset, t->bytes, temporary.data()}}, [](uint64_t, uint64_t) {});
    factors = temporary.to_host();
  }
  std::vector<float> c(size_t{h_.context} * h_.rotated / 2), s(c.size());
  for (uint32_t p = 0; p < h_.context; ++p)
    for (uint32_t i = 0; i < h_.rotated / 2; ++i) {
      const double angle = p / static_cast<double>(h_.rope_scale) *
                           std::pow(static_cast<double>(h_.theta), -2.0 * i / h_.rotated) /
                           static_cast<double>(factors[i]);
      c[size_t{p} * h_.rotated / 2 + i] = static_cast<float>(std::cos(angle));
      s[size_t{p} * h_.rotated / 2 + i] = static_cast<float>(std::sin(angle));
    }
  cosine_ = jalapeno::Buffer<float>(device_, std::span<const float>(c));
  sine_ = jalapeno::Buffer<float>(device_, std::span<const float>(s));
}

// Few rows: at least as many programs as saturate the memory. Many: as many as fill the cores, and no more, because the
// larger a program's piece, the longer its weights stay in place.
void Model::multiply(const Weight& w, const jalTensor& in, const jalTensor& out, bool add) {
  constexpr uint32_t kStreams = 8, kFew = 16;
  const uint32_t m = in.shape[0];
  const bool few = m <= kFew;
  uint32_t rows = 256, columns = few ? 128 : 256;
  auto programs = [&] { return uint64_t{blocks(m, rows)} * blocks(w.rows, columns); };
  while (programs() < (few ? kStreams : cores_) && columns > 64) {
    if (rows > columns && m > rows / 2)
      rows /= 2;
    else
      columns /= 2;
  }
  launch(stream_, {blocks(w.rows, columns), blocks(m, rows)},
         kernel(std::string(few ? "matvec_" : "matmul_") + dtype_name(w.dtype) + (add ? "_add" : "")), in, w.tensor(),
         out);
}

void Model::multiply(const Stack& w, const jalTensor& in, const jalapeno::Buffer<float>& out) {
  for (const Stack::Piece& p : w.pieces)
    multiply(p.weight, in, columns(out, in.shape[0], w.rows, p.row, p.weight.rows), false);
}

// x += in * w, whose columns are shared out: one rank adds its part to x, and what all of them have is added up.
void Model::add_product(const Weight& w, const jalTensor& in, const jalTensor& x) {
  multiply(w, in, x, rank_ == 0);
  if (comm_ != nullptr)
    comm_->all_reduce(static_cast<const float*>(x.data), static_cast<float*>(x.data), size_t{x.shape[0]} * x.shape[1],
                      jalSum, stream_);
}

std::string Model::cache_type() const { return dtype_name(kv_type_); }
uint64_t Model::cache_bytes() const {
  return uint64_t{2} * h_.layers * sequences_ * pages_ * kPage * row_bytes(kv_type_, uint64_t{h_.kv_heads} * h_.head);
}

// Few KV heads leave cores idle, the longer the more.
uint32_t Model::key_shares(uint32_t n) const {
  return h_.context < kLong ? 1 : std::clamp(cores_ / (h_.kv_heads * n), 1u, kMostShares);
}

Model::Pass Model::prompt_pass(uint32_t n, uint32_t s) const {
  return {n, false, tensor(prompt_.data(), jalI32, {n}), tensor(prompt_position_.data(), jalI32, {1}),
          tensor(table_.data() + size_t{s} * pages_, jalI32, {1, pages_})};
}

Model::Pass Model::step_pass(uint32_t n) const {
  return {n, true, tensor(tokens_.data(), jalI32, {n}), tensor(position_device_.data(), jalI32, {n}),
          tensor(table_.data(), jalI32, {n, pages_})};
}

// Enqueues one pass; its logits start at logits_.
void Model::forward(const Pass& pass, bool all_logits) {
  const uint32_t n = pass.n;
  const uint32_t kv_width = h_.kv_heads * h_.head, q_width = h_.heads * h_.head, half = h_.rotated / 2;
  const std::string rope_suffix = "interleaved_d" + std::to_string(h_.head) + "_r" + std::to_string(h_.rotated);
  const std::string attention_suffix = std::string(dtype_name(kv_type_)) + "_d" + std::to_string(h_.head);
  const uint32_t qkv_width = q_width + 2 * kv_width;
  const jalTensor x = rows(x_, n, h_.width);
  const jalTensor q = columns(qkv_, n, qkv_width, 0, q_width), k = columns(qkv_, n, qkv_width, q_width, kv_width),
                  v = columns(qkv_, n, qkv_width, q_width + kv_width, kv_width);
  const jalTensor gate = columns(gate_up_, n, 2 * h_.ffn, 0, h_.ffn),
                  up = columns(gate_up_, n, 2 * h_.ffn, h_.ffn, h_.ffn);
  const jalTensor cosine = tensor(cosine_.data(), jalF32, {h_.context, half}),
                  sine = tensor(sine_.data(), jalF32, {h_.context, half});
  const float scale = 1 / std::sqrt(static_cast<float>(h_.head));
  const auto group = static_cast<int32_t>(h_.heads / h_.kv_heads);
  // [sequences, heads, head] as a step sees it, [heads, tokens, head] as a prompt does
  auto heads = [&](const jalTensor& matrix) {
    jalTensor t = tensor(matrix.data, matrix.dtype, {n, h_.heads, h_.head});
    t.stride[0] = matrix.stride[0] != 0 ? matrix.stride[0] : row_bytes(matrix.dtype, q_width);
    t.stride[1] = row_bytes(matrix.dtype, h_.head);
    if (pass.step) return t;
    std::swap(t.shape[0], t.shape[1]), std::swap(t.stride[0], t.stride[1]);
    return t;
  };
  const auto programs = [&](uint32_t rows) { return std::min(rows, cores_); };  // of what is done row by row
  launch(stream_, {n}, kernel("embed"), embedding_.tensor(), pass.tokens, x);
  for (Layer& l : layers_) {
    const jalTensor keys = tensor(l.keys, kv_type_, {sequences_ * pages_ * kPage, kv_width}),
                    values = tensor(l.values, kv_type_, {sequences_ * pages_ * kPage, kv_width});
    jalTensor norm = tensor(norm_.data(), l.qkv.input(), {n, h_.width});
    launch(stream_, {programs(n)}, kernel("rmsnorm"), x, l.attn_norm.vector(), norm, h_.eps);
    multiply(l.qkv, norm, qkv_);
    launch(stream_, {programs(n)}, kernel("rope_" + rope_suffix), q, cosine, sine, pass.position, q);
    launch(stream_, {programs(n)}, kernel("rope_kv_" + rope_suffix), k, v, cosine, sine, pass.position, pass.table,
           keys, values);
    // A head that is no whole number of blocks cannot be written in blocks.
    const jalDType attended_type = l.o.input() == jalQ8_0 && h_.head % 32 != 0 ? jalF32 : l.o.input();
    const jalTensor attended = tensor(attention_.data(), attended_type, {n, q_width});
    // Many rows use each block of keys longer, as long as the cores are full.
    const uint32_t rows = h_.heads * blocks(n, 128) >= cores_ ? 128 : 64;
    if (const uint32_t parts = pass.step ? key_shares(n) : 1; parts > 1) {
      const jalTensor partial = tensor(partial_.data(), jalF32, {parts * n, h_.heads, h_.head}),
                      state = tensor(state_.data(), jalF32, {parts * n, h_.heads, 4});
      launch(stream_, {h_.kv_heads, n, parts}, kernel("attention_split_" + attention_suffix), heads(q), keys, values,
             pass.position, pass.table, partial, state, group, scale);
      launch(stream_, {1, n}, kernel("attention_merge_d" + std::to_string(h_.head)), partial, state, heads(attended));
    } else if (pass.step)
      launch(stream_, {h_.kv_heads, n}, kernel("attention_decode_" + attention_suffix), heads(q), keys, values,
             pass.position, pass.table, heads(attended), group, scale);
    else
      launch(stream_, {h_.heads, blocks(n, rows)}, kernel("attention_paged_" + attention_suffix), heads(q), keys,
             values, pass.position, tensor(pass.table.data, jalI32, {pages_}), heads(attended), group, scale);
    add_product(l.o, attended, x);
    norm = tensor(norm_.data(), l.gate_up.input(), {n, h_.width});
    launch(stream_, {programs(n)}, kernel("rmsnorm"), x, l.ffn_norm.vector(), norm, h_.eps);
    multiply(l.gate_up, norm, gate_up_);
    const jalTensor hidden = tensor(hidden_.data(), l.down.input(), {n, h_.ffn});
    launch(stream_, {blocks(h_.ffn, 8192), programs(n)}, kernel("swiglu"), gate, up, hidden);
    add_product(l.down, hidden, x);
  }
  const uint32_t first = all_logits || pass.step ? 0 : n - 1, count = n - first;
  const jalTensor last = tensor(norm_.data(), output_.input(), {count, h_.width});
  launch(stream_, {programs(count)}, kernel("rmsnorm"),
         tensor(x_.data() + size_t{first} * h_.width, jalF32, {count, h_.width}), output_norm_.vector(), last, h_.eps);
  multiply(output_, last, rows(logits_, count, h_.vocabulary), false);
}

void Model::run_chunk(std::span<const int32_t> tokens, uint32_t s, bool all_logits) {
  stream_.copy(prompt_.data(), tokens.data(), tokens.size_bytes());
  check(jalMemFillAsync(prompt_position_.data(), positions_[s], 4, 4, stream_.get()));
  forward(prompt_pass(static_cast<uint32_t>(tokens.size()), s), all_logits);
  positions_[s] += static_cast<uint32_t>(tokens.size());
}

void Model::check_vocabulary(std::span<const int32_t> tokens) const {
  for (int32_t t : tokens)
    if (t < 0 || static_cast<uint32_t>(t) >= h_.vocabulary)
      throw std::runtime_error("token " + std::to_string(t) + " is outside the vocabulary of " +
                               std::to_string(h_.vocabulary));
}

void Model::prefill(std::span<const int32_t> tokens, uint32_t s) {
  if (tokens.empty())
    throw std::runtime_error(
        "there is no token to start from: the prompt is empty and no beginning-of-text token was put in front");
  if (tokens.size() > h_.context)
    throw std::runtime_error("the prompt has " + std::to_string(tokens.size()) + " tokens, the context holds " +
                             std::to_string(h_.context));
  check_vocabulary(tokens);
  positions_[s] = 0;
  for (size_t at = 0; at < tokens.size(); at += chunk_)
    run_chunk(tokens.subspan(at, std::min<size_t>(chunk_, tokens.size() - at)), s, false);
  stream_.synchronize();
}

std::vector<float> Model::logits(std::span<const int32_t> tokens) {
  std::vector<float> out(tokens.size() * h_.vocabulary);
  positions_[0] = 0;
  if (tokens.size() > h_.context)
    throw std::runtime_error(std::to_string(tokens.size()) + " tokens, the context holds " +
                             std::to_string(h_.context));
  check_vocabulary(tokens);
  if (logits_.size() < uint64_t{chunk_} * h_.vocabulary)
    logits_ = jalapeno::Buffer<float>(device_, uint64_t{chunk_} * h_.vocabulary), steps_.clear();
  for (size_t at = 0; at < tokens.size(); at += chunk_) {
    const size_t n = std::min<size_t>(chunk_, tokens.size() - at);
    run_chunk(tokens.subspan(at, n), 0, true);
    stream_.copy(out.data() + at * h_.vocabulary, logits_.data(), n * h_.vocabulary * sizeof(float));
  }
  return out;
}

// One token for each row of `logits`, for the sequences from `s` on.
void Model::sample(const Sampling& how, const jalTensor& logits, uint32_t s) {
  const uint32_t n = logits.shape[0];
  const jalTensor token = tensor(tokens_.data() + s, jalI32, {n}),
                  position = tensor(position_device_.data() + s, jalI32, {n});
  if (how.temperature <= 0)
    launch(stream_, {n}, kernel("sample_greedy"), logits, token, position);
  else
    launch(stream_, {n}, kernel("sample_k" + std::to_string(how.top_k)), logits, token, position, how.temperature,
           how.top_p, how.seed);
  stream_.copy(token_host_.data() + s, tokens_.data() + s, n * sizeof(int32_t));
}

int32_t Model::first(const Sampling& how, uint32_t s) {
  // The sampler moves the position on by one, so it starts at the last one that was fed.
  check(jalMemFillAsync(position_device_.data() + s, positions_[s] - 1, 4, 4, stream_.get()));
  sample(how, tensor(logits_.data(), jalF32, {1, h_.vocabulary}), s);
  stream_.synchronize();
  return token_host_[s];
}

std::span<const int32_t> Model::step(const Sampling& how, uint32_t n) {
  for (uint32_t s = 0; s < n; ++s)
    if (positions_[s] >= h_.context)
      throw std::runtime_error("the context of " + std::to_string(h_.context) + " tokens is full");
  const bool same = how.temperature == steps_sampling_.temperature && how.top_k == steps_sampling_.top_k &&
                    how.top_p == steps_sampling_.top_p && how.seed == steps_sampling_.seed;
  if (!same) steps_.clear(), steps_sampling_ = how;
  auto enqueue = [&] {
    forward(step_pass(n), false);
    sample(how, tensor(logits_.data(), jalF32, {n, h_.vocabulary}), 0);
  };
  if (const auto known = steps_.find(n); known != steps_.end()) {
    known->second.launch(stream_);
  } else {
    enqueue();  // outside a capture first: loads what kernels are missing, and is this step
    stream_.synchronize();
    steps_.emplace(n, jalapeno::Graph(stream_, enqueue));
  }
  for (uint32_t s = 0; s < n; ++s) ++positions_[s];
  stream_.synchronize();
  return {token_host_.data(), n};
}

void Model::exchange(uint32_t a, uint32_t b) {
  if (a == b) return;
  std::swap(positions_[a], positions_[b]);
  std::swap(pages_of_[a], pages_of_[b]);
  std::swap(token_host_[a], token_host_[b]);
  for (uint32_t s : {a, b}) {
    const auto position = static_cast<int32_t>(positions_[s]);
    stream_.copy(table_.data() + size_t{s} * pages_, pages_of_[s].data(), pages_ * sizeof(int32_t));
    stream_.copy(tokens_.data() + s, token_host_.data() + s, sizeof(int32_t));
    stream_.copy(position_device_.data() + s, &position, sizeof position);
  }
}

}  // namespace llm
