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
  // context 0: the model's own; `sequences` of them can be held and decoded at once. Throws std::runtime_error or
  // jalapeno::Error. progress as in load_weights.
  // ranks: not null, and this is one rank's part of the model: heads and the feed-forward layer are shared out, and
  // every rank makes the same calls. All of them get the same tokens, because the sums they share are the same bits.
  // kv: the type of the KV cache, f32, bf16, f16 or q8_0; empty: f32 or f16 as the weights are, otherwise bf16.
  Model(const jalapeno::Device& device, const Gguf& file, uint32_t context, uint32_t sequences,
        const std::function<void(uint64_t, uint64_t)>& progress, const jalapeno::Communicator* ranks = nullptr,
        const std::string& kv = "");

  const Hyperparameters& parameters() const { return h_; }  // heads and ffn: this rank's
  uint64_t weight_bytes() const { return weight_bytes_; }
  std::string cache_type() const;  // of this rank's KV cache, and all its bytes
  uint64_t cache_bytes() const;

  // Runs the tokens as sequence `s`, from position 0 on. Throws when they do not fit the context.
  void prefill(std::span<const int32_t> tokens, uint32_t s = 0);
  // Samples the token behind the prompt that prefill() has just run as sequence `s`.
  int32_t first(const Sampling& sampling, uint32_t s = 0);
  // One more token for each of the sequences 0..n-1. The result is valid until the next call.
  std::span<const int32_t> step(const Sampling& sampling, uint32_t n = 1);
  // The two sequences change places: those that go on stay the first ones.
  void exchange(uint32_t a, uint32_t b);
  uint32_t position(uint32_t s = 0) const { return positions_[s]; }  // of the next token to be fed
  // The same, and returns the logits of every position, [tokens, vocabulary].
  std::vector<float> logits(std::span<const int32_t> tokens);

 private:
  struct Weight {
    void* data = nullptr;
    jalDType dtype = jalF32;
    uint32_t rows = 0, columns = 0;
    jalTensor tensor() const { return jalapeno::tensor(data, dtype, {rows, columns}); }
    jalDType input() const;  // what its multiplication takes: blocks of int8 for weights in blocks
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
    jalDType input() const;  // what its multiplications take
  };
  struct Layer {
    Weight attn_norm, o, ffn_norm, down;
    Stack qkv, gate_up;
    uint8_t *keys = nullptr, *values = nullptr;  // the cache
  };
  // What of a matrix in the file this rank has: rows and columns are its own.
  enum class Part { kAll, kRows, kColumns };
  void reserve_weights(const Gguf& file);
  void reserve(uint64_t bytes);   // what room() then gives
  uint8_t* room(uint64_t bytes);  // on the device, as long as the model
  Weight take(const Gguf& file, const std::string& name, uint64_t rows, uint64_t columns, bool vector,
              bool required = true, void* place = nullptr, Part part = Part::kAll);
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
  void add_product(const Weight& w, const jalTensor& in, const jalTensor& x);  // over all ranks
  // What one pass over `n` tokens reads: either a piece of one prompt, or one token of each of n sequences.
  struct Pass {
    uint32_t n;
    bool step;
    jalTensor tokens, position, table;
  };
  uint32_t key_shares(uint32_t n) const;  // of the keys, in a step of n sequences
  Pass prompt_pass(uint32_t n, uint32_t s) const;
  Pass step_pass(uint32_t n) const;
  void forward(const Pass& pass, bool all_logits);
  void run_chunk(std::span<const int32_t> tokens, uint32_t s, bool all_logits);
  void sample(const Sampling& sampling, const jalTensor& logits, uint32_t s);
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
  const jalapeno::Communicator* comm_;  // nullptr: alone
  uint32_t rank_ = 0, ranks_ = 1;
  jalapeno::Stream stream_;
  Hyperparameters h_{};
  uint32_t chunk_ = 0, pages_ = 0, cores_ = 1;
  uint64_t weight_bytes_ = 0;
  std::map<std::string, jalapeno::Kernel> kernels_;
  std::vector<jalapeno::Buffer<uint8_t>> storage_;
  uint8_t* free_ = nullptr;  // of the newest, and how much
  uint64_t free_bytes_ = 0;
  struct Wish {
    uint64_t offset, bytes;
    void* destination;
  };
  std::vector<Wish> wishes_;
  jalDType kv_type_ = jalBF16;
  Weight embedding_, output_norm_, output_;
  std::vector<Layer> layers_;
  jalapeno::Buffer<float> cosine_, sine_, x_, qkv_, gate_up_, logits_;
  jalapeno::Buffer<float> partial_, state_;              // of the shares
  jalapeno::Buffer<uint8_t> norm_, attention_, hidden_;  // in the type the next multiplication takes
  // Of prompts, and of the sequences: each one's token to be fed, its position, and the pages of its cache.
  jalapeno::Buffer<int32_t> prompt_, prompt_position_, tokens_, position_device_, table_;
  jalapeno::HostBuffer<int32_t> token_host_;
  std::map<uint32_t, jalapeno::Graph> steps_;  // by number of sequences
  Sampling steps_sampling_;
  uint32_t sequences_ = 1;
  std::vector<uint32_t> positions_;
  std::vector<std::vector<int32_t>> pages_of_;
};

}  // namespace llm
