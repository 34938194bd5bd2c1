// Text to token ids and back, from a GGUF file's vocabulary: byte-level BPE ("gpt2") and SentencePiece style ("llama").
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.hpp"

namespace llm {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Throws std::runtime_error on an unknown family or an incomplete vocabulary.
  static std::unique_ptr<Tokenizer> create(const Gguf& file);

  // The ids of `text`, with the beginning-of-text token in front when the model wants one.
  // Throws std::runtime_error naming the byte when the text is not UTF-8.
  std::vector<int32_t> encode(std::string_view text) const;
  // The bytes a token stands for. Sequences of bytes may be split between tokens. Control tokens are empty.
  virtual std::string decode(int32_t token) const = 0;
  bool ends_text(int32_t token) const { return token == eos_ || token == eot_; }
  size_t size() const { return tokens_.size(); }

 protected:
  explicit Tokenizer(const Gguf& file);
  virtual void encode_words(std::string_view text, std::vector<int32_t>& out) const = 0;
  bool control(int32_t token) const { return !types_.empty() && types_[static_cast<size_t>(token)] == 3; }

  std::vector<std::string> tokens_;
  std::vector<int64_t> types_;  // 1 normal, 2 unknown, 3 control, 6 byte
  int32_t bos_ = -1, eos_ = -1, eot_ = -1;
  bool add_bos_ = false;
};

// The length of the longest prefix of `bytes` that ends between characters; for streaming.
size_t complete_utf8(std::string_view bytes);

}  // namespace llm
