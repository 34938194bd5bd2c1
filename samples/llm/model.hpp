// A Llama-architecture model on the device: weights, paged KV cache, prefill in chunks, decode as one replayed graph.
#pragma once
#include <functional>
#include <jalapeno/jalapeno.hpp>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gguf.hpp"

namespace llm {

struct Hyperparameters {
  uint32_t layers, width, ffn, heads, kv_heads, head, rotated, vocabulary, context;
  float eps, theta, rope_scale;  // rope_scale: positions are divided by it
};

struct Sampling {
  float temperature = 0;  // 0: the most likely token
  uint32_t top_k = 40;    // 1..1024
  float top_p = 1;
  int64_t seed = 0;
};

class Model {
 public:
  // context 0: the model's own. Throws std::runtime_error or jalapeno::Error. progress as in load_weights.
  Model(const jalapeno::Device& device, const Gguf& file, uint32_t context,
        const std::function<void(uint64_t, uint64_t)>& progress);

  const Hyperparameters& parameters() const { return h_; }
  uint64_t weight_bytes() const { return weight_bytes_; }

  // Runs the tokens from position 0 on. Afterwards decode() continues. Throws when they do not fit the context.
  void prefill(std::span<const int32_t> tokens);
  // The same, and returns the logits of every position, [tokens, vocabulary].
  std::vector<float> logits(std::span<const int32_t> tokens);
  // The next token, by the given sampling. The first call after prefill() samples from the prompt's last logits.
  int32_t next(const Sampling& sampling);
  uint32_t position() const { return position_; }

 private:
  struct Weight {
    void* data = nullptr;
    jalDType dtype = jalF32;
    uint32_t rows = 0, columns = 0;
    jalTensor tensor() const { return jalapeno::tensor(data, dtype, {rows, columns}); }
    jalTensor vector() const { return jalapeno::tensor(data, dtype, {columns}); }
  };
  // Matrices that multiply the same input, one below the other: one launch where their types agree.
  struct Stack {
    struct Piece {
      Weight weight;
      uint32_t row;  // of the whole
    };
    std::vector<Piece> pieces;
    uint32_t rows = 0;
  };
  struct Layer {
    Weight attn_norm, o, ffn_norm, down;
    Stack qkv, gate_up;
    jalapeno::Buffer<uint8_t> keys, values;
  };
  Weight take(const Gguf& file, const std::string& name, uint64_t rows, uint64_t columns, bool vector,
              bool required = true);
  struct Wanted {
    std::string name;
    uint64_t rows;
  };
  Stack take_stack(const Gguf& file, const std::vector<Wanted>& wanted, uint64_t columns);
  jalapeno::Kernel kernel(const std::string& name);
  void check_vocabulary(std::span<const int32_t> tokens) const;  // throws naming the token
  void make_rope_tables(const Gguf& file);
  void multiply(const Weight& w, const jalTensor& in, const jalTensor& out, bool add);
  void multiply(const Stack& w, const jalTensor& in, const jalapeno::Buffer<float>& out);
  void forward(uint32_t tokens, bool all_logits);
  void run_chunk(std::span<const int32_t> tokens, bool all_logits);
  void sample(const Sampling& sampling);
  jalTensor rows(const jalapeno::Buffer<float>& buffer, uint32_t n, uint32_t columns) const {
    return jalapeno::tensor(buffer.data(), jalF32, {n, columns});
  }
  // `count` columns from `first` on of a buffer with `width` columns.
  jalTensor columns(const jalapeno::Buffer<float>& buffer, uint32_t n, uint32_t width, uint32_t first,
                    uint32_t count) const {
    jalTensor t = jalapeno::tensor(buffer.data() + first, jalF32, {n, count});
    t.stride[0] = uint64_t{width} * sizeof(float);
    return t;
  }

  const jalapeno::Device& device_;
  jalapeno::Stream stream_;
  Hyperparameters h_{};
  uint32_t chunk_ = 0, pages_ = 0, cores_ = 1;
  uint64_t weight_bytes_ = 0;
  std::map<std::string, jalapeno::Kernel> kernels_;
  std::vector<jalapeno::Buffer<uint8_t>> storage_;
  struct Wish {
    uint64_t offset, bytes;
    void* destination;
  };
  std::vector<Wish> wishes_;
  jalDType kv_type_ = jalBF16;
  Weight embedding_, output_norm_, output_;
  std::vector<Layer> layers_;
  jalapeno::Buffer<float> cosine_, sine_, x_, norm_, qkv_, attention_, gate_up_, logits_;
  jalapeno::Buffer<int32_t> tokens_, position_device_, table_;
  jalapeno::HostBuffer<int32_t> token_host_;
  jalapeno::Graph step_;
  Sampling step_sampling_;
  uint32_t position_ = 0;   // of the next token to be fed
  bool sampled_ = false;    // tokens_[0] holds the token to be fed
  uint32_t last_rows_ = 0;  // of logits_ that hold the prompt's end
};

}  // namespace llm
