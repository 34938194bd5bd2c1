// Continuous batching: several prompts decode together, and a prompt that waits takes the place of one that is done.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "model.hpp"
#include "tokenizer.hpp"

namespace llm {

struct BatchOptions {
  uint32_t parallel = 1, count = 128;  // sequences at once, tokens to make for each
  bool ignore_end = false;
  Sampling sampling;
};

class Batch {
 public:
  // done(i, tokens) is called once for each prompt, in the order in which they end.
  using Done = std::function<void(size_t prompt, const std::vector<int32_t>& tokens)>;
  Batch(Model& model, const Tokenizer& tokenizer, const BatchOptions& options)
      : model_(model), tokenizer_(tokenizer), options_(options) {}

  // Starts what fits, from the front of `prompts`; returns how many tokens of prompts were run. Throws as the model
  // does.
  uint64_t fill(const std::vector<std::vector<int32_t>>& prompts, const Done& done);
  // One token more for every running sequence; returns how many.
  uint32_t step(const Done& done);
  bool full() const { return active_.size() == options_.parallel; }
  bool running() const { return !active_.empty(); }
  bool waiting(const std::vector<std::vector<int32_t>>& prompts) const { return next_ < prompts.size(); }

 private:
  struct Sequence {
    size_t prompt;
    std::vector<int32_t> tokens;
  };
  // Takes a token; true when the sequence is done with it.
  bool take(Sequence& sequence, uint32_t slot, int32_t token) const;

  Model& model_;
  const Tokenizer& tokenizer_;
  BatchOptions options_;
  std::vector<Sequence> active_;  // sequence s of the model is active_[s]
  size_t next_ = 0;
};

}  // namespace llm
