#include "tokenizer.hpp"

#include <wctype.h>

#include <array>
#include <clocale>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <queue>
#include <stdexcept>
#include <unordered_map>

namespace llm {
namespace {

// The character at `at`; its length in bytes, 0 when it is not UTF-8.
size_t decode_utf8(std::string_view s, size_t at, uint32_t& out) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(s[at + k]); };
  const unsigned char first = byte(0);
  const size_t n = first < 0x80                    ? 1
                   : first >= 0xC2 && first < 0xE0 ? 2
                   : first >= 0xE0 && first < 0xF0 ? 3
                   : first >= 0xF0 && first < 0xF5 ? 4
                                                   : 0;
  if (n == 0 || at + n > s.size()) return 0;
  out = n == 1 ? first : first & (0xFFu >> (n + 1));
  for (size_t k = 1; k < n; ++k) {
    if ((byte(k) & 0xC0) != 0x80) return 0;
    out = out << 6 | (byte(k) & 0x3F);
  }
  if ((n == 3 && (out < 0x800 || (out >= 0xD800 && out < 0xE000))) || (n == 4 && (out < 0x10000 || out > 0x10FFFF)))
    return 0;
  return n;
}

std::string encode_utf8(uint32_t c) {
  std::string s;
  if (c < 0x80)
    s += static_cast<char>(c);
  else if (c < 0x800)
    s += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  else if (c < 0x10000)
    s += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
          static_cast<char>(0x80 | (c & 63))};
  else
    s += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
          static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
  return s;
}

// Unicode classes as the C library knows them, whatever the program's locale.
locale_t unicode() {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return locale;
}
bool is_digit(uint32_t c) {
  return c < 128 ? c >= '0' && c <= '9'
                 : unicode() != nullptr && iswalnum_l(c, unicode()) && !iswupper_l(c, unicode()) &&
                       !iswlower_l(c, unicode()) &&
                       ((c >= 0x660 && c <= 0x669) || (c >= 0x966 && c <= 0x96F) || (c >= 0xFF10 && c <= 0xFF19));
}
bool is_letter(uint32_t c) {
  return c < 128 ? (c | 32) >= 'a' && (c | 32) <= 'z'
                 : unicode() != nullptr && iswalpha_l(c, unicode()) && !is_digit(c);
}
bool is_space(uint32_t c) {
  return c == ' ' || (c >= 9 && c <= 13) || c == 0x85 || c == 0xA0 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

enum class Split { kGpt2, kSmollm, kLlama3 };

// Words of the text as the model's pre-tokenizer cuts them. [begin, end) of each goes to `word`.
void split(std::string_view text, Split how, const std::function<void(std::string_view)>& word) {
  struct Char {
    uint32_t c;
    size_t at;
  };
  std::vector<Char> s;
  for (size_t at = 0; at < text.size();) {
    uint32_t c = 0;
    const size_t n = decode_utf8(text, at, c);
    s.push_back({c, at});
    at += n;
  }
  const size_t n = s.size();
  auto at = [&](size_t i) { return i < n ? s[i].c : 0u; };
  auto emit = [&](size_t from, size_t to) {
    word(text.substr(s[from].at, (to < n ? s[to].at : text.size()) - s[from].at));
  };
  auto other = [&](uint32_t c) { return c != 0 && !is_space(c) && !is_letter(c) && !is_digit(c); };
  auto lower = [&](uint32_t c) { return how == Split::kLlama3 && c >= 'A' && c <= 'Z' ? c + 32 : c; };
  for (size_t i = 0; i < n;) {
    size_t j = i;
    if (at(i) == '\'') {  // contractions
      const uint32_t a = lower(at(i + 1)), b = lower(at(i + 2));
      if (a == 's' || a == 't' || a == 'm' || a == 'd')
        j = i + 2;
      else if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        j = i + 3;
      if (j > i) {
        emit(i, j), i = j;
        continue;
      }
    }
    if (how == Split::kLlama3) {
      const bool lead = at(i) != '\r' && at(i) != '\n' && !is_letter(at(i)) && !is_digit(at(i)) && is_letter(at(i + 1));
      if (is_letter(at(i)) || lead) {
        for (j = i + 1; is_letter(at(j)); ++j) {
        }
      } else if (is_digit(at(i))) {
        for (j = i + 1; j < i + 3 && is_digit(at(j)); ++j) {
        }
      } else if (other(at(i)) || (at(i) == ' ' && other(at(i + 1)))) {
        for (j = i + 1; other(at(j)); ++j) {
        }
        while (at(j) == '\r' || at(j) == '\n') ++j;
      } else {
        size_t end = i, newline = i;
        for (; end < n && is_space(at(end)); ++end)
          if (at(end) == '\r' || at(end) == '\n') newline = end + 1;
        j = newline > i ? newline : end < n && end - i > 1 ? end - 1 : end;
      }
    } else {
      const size_t start = i + (at(i) == ' ' && (is_letter(at(i + 1)) || is_digit(at(i + 1)) || other(at(i + 1))));
      if (how == Split::kSmollm && is_digit(at(start)) && start > i)
        j = start;  // digits stand alone
      else if (is_letter(at(start))) {
        for (j = start; is_letter(at(j)); ++j) {
        }
      } else if (is_digit(at(start))) {
        for (j = start + 1; how == Split::kGpt2 && is_digit(at(j)); ++j) {
        }
      } else if (other(at(start))) {
        for (j = start; other(at(j)); ++j) {
        }
      } else {
        size_t end = i;
        while (end < n && is_space(at(end))) ++end;
        j = end < n && end - i > 1 ? end - 1 : end;  // the last space belongs to what follows
      }
    }
    emit(i, std::max(j, i + 1)), i = std::max(j, i + 1);
  }
}

class BytePairTokenizer final : public Tokenizer {
 public:
  explicit BytePairTokenizer(const Gguf& file) : Tokenizer(file) {
    const std::string pre = file.has("tokenizer.ggml.pre") ? file.text("tokenizer.ggml.pre") : "gpt-2";
    if (pre == "gpt-2" || pre == "default")
      split_ = Split::kGpt2;
    else if (pre == "smollm")
      split_ = Split::kSmollm;
    else if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3")
      split_ = Split::kLlama3;
    else
      throw std::runtime_error(file.path() + ": pre-tokenizer \"" + pre +
                               "\", supported are gpt-2, smollm and llama-bpe");
    if (!file.has("tokenizer.ggml.merges"))
      throw std::runtime_error(file.path() + ": a byte-level BPE vocabulary without tokenizer.ggml.merges");
    // GPT-2's alphabet: every byte as a printable character.
    uint32_t extra = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      spelling_[b] = encode_utf8(printable ? b : extra);
      byte_of_[spelling_[b]] = static_cast<char>(b);
      if (!printable) ++extra;
    }
    for (size_t i = 0; i < tokens_.size(); ++i) ids_.emplace(tokens_[i], static_cast<int32_t>(i));
    const auto& merges = file.texts("tokenizer.ggml.merges");
    for (size_t i = 0; i < merges.size(); ++i) ranks_.emplace(merges[i], static_cast<uint32_t>(i));
    for (const std::string& s : spelling_)
      if (ids_.count(s) == 0)
        throw std::runtime_error(file.path() + ": the vocabulary has no token for a byte (" + s + ")");
  }

  std::string decode(int32_t token) const override {
    if (control(token)) return "";
    const std::string& t = tokens_.at(static_cast<size_t>(token));
    std::string out;
    for (size_t at = 0; at < t.size();) {
      uint32_t c;
      const size_t n = std::max<size_t>(1, decode_utf8(t, at, c));
      const std::string one = t.substr(at, n);
      auto it = byte_of_.find(one);
      if (it != byte_of_.end())
        out += it->second;
      else
        out += one;
      at += n;
    }
    return out;
  }

 private:
  void encode_words(std::string_view text, std::vector<int32_t>& out) const override {
    split(text, split_, [&](std::string_view word) {
      std::vector<std::string> parts;
      for (char c : word) parts.push_back(spelling_[static_cast<unsigned char>(c)]);
      while (parts.size() > 1) {
        uint32_t best = std::numeric_limits<uint32_t>::max();
        size_t where = 0;
        for (size_t k = 0; k + 1 < parts.size(); ++k) {
          auto it = ranks_.find(parts[k] + " " + parts[k + 1]);
          if (it != ranks_.end() && it->second < best) best = it->second, where = k;
        }
        if (best == std::numeric_limits<uint32_t>::max()) break;
        parts[where] += parts[where + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(where) + 1);
      }
      for (const std::string& p : parts) {
        if (auto it = ids_.find(p); it != ids_.end())
          out.push_back(it->second);
        else  // a merge whose result is no token: its bytes are
          for (size_t at = 0; at < p.size();) {
            uint32_t c;
            const size_t n = std::max<size_t>(1, decode_utf8(p, at, c));
            out.push_back(ids_.at(p.substr(at, n)));
            at += n;
          }
      }
    });
  }

  Split split_;
  std::array<std::string, 256> spelling_;
  std::unordered_map<std::string, char> byte_of_;
  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_map<std::string, uint32_t> ranks_;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const Gguf& file)
      : Tokenizer(file),
        scores_(file.reals("tokenizer.ggml.scores")),
        prefix_(file.flag("tokenizer.ggml.add_space_prefix", true)) {
    if (scores_.size() != tokens_.size())
      throw std::runtime_error(file.path() + ": " + std::to_string(scores_.size()) + " scores for " +
                               std::to_string(tokens_.size()) + " tokens");
    for (size_t i = 0; i < tokens_.size(); ++i) ids_.emplace(tokens_[i], static_cast<int32_t>(i));
    unknown_ = static_cast<int32_t>(file.integer("tokenizer.ggml.unknown_token_id", 0));
  }

  std::string decode(int32_t token) const override {
    if (control(token)) return "";
    const std::string& t = tokens_.at(static_cast<size_t>(token));
    unsigned byte;
    if (t.size() == 6 && std::sscanf(t.c_str(), "<0x%2X>", &byte) == 1) return std::string(1, static_cast<char>(byte));
    std::string out;
    for (size_t at = 0; at < t.size();) {
      if (t.compare(at, kSpace.size(), kSpace) == 0)
        out += ' ', at += kSpace.size();
      else
        out += t[at++];
    }
    return out;
  }

 private:
  static constexpr std::string_view kSpace = "\xE2\x96\x81";

  void encode_words(std::string_view text, std::vector<int32_t>& out) const override {
    if (text.empty()) return;
    std::string s(prefix_ ? kSpace : "");
    for (char c : text) c == ' ' ? s += kSpace : s += c;
    struct Symbol {
      size_t at, bytes;
      int before, after;
    };
    std::vector<Symbol> symbols;
    for (size_t at = 0; at < s.size();) {
      uint32_t c;
      const size_t n = decode_utf8(s, at, c);
      symbols.push_back({at, n, static_cast<int>(symbols.size()) - 1, static_cast<int>(symbols.size()) + 1});
      at += n;
    }
    symbols.back().after = -1;
    struct Pair {
      double score;
      int left, right;
      size_t bytes;
      bool operator<(const Pair& o) const { return score < o.score || (score == o.score && left > o.left); }
    };
    std::priority_queue<Pair> pairs;
    auto propose = [&](int left, int right) {
      if (left < 0 || right < 0) return;
      const size_t bytes = symbols[static_cast<size_t>(left)].bytes + symbols[static_cast<size_t>(right)].bytes;
      auto it = ids_.find(s.substr(symbols[static_cast<size_t>(left)].at, bytes));
      if (it != ids_.end()) pairs.push({scores_[static_cast<size_t>(it->second)], left, right, bytes});
    };
    for (int i = 0; i + 1 < static_cast<int>(symbols.size()); ++i) propose(i, i + 1);
    while (!pairs.empty()) {
      const Pair p = pairs.top();
      pairs.pop();
      Symbol &l = symbols[static_cast<size_t>(p.left)], &r = symbols[static_cast<size_t>(p.right)];
      if (l.bytes == 0 || r.bytes == 0 || l.bytes + r.bytes != p.bytes) continue;  // one of them has changed
      l.bytes = p.bytes, r.bytes = 0, l.after = r.after;
      if (r.after >= 0) symbols[static_cast<size_t>(r.after)].before = p.left;
      propose(l.before, p.left);
      propose(p.left, l.after);
    }
    for (int i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].after) {
      const Symbol& x = symbols[static_cast<size_t>(i)];
      if (auto it = ids_.find(s.substr(x.at, x.bytes)); it != ids_.end()) {
        out.push_back(it->second);
        continue;
      }
      for (size_t k = 0; k < x.bytes; ++k) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned char>(s[x.at + k]));
        auto byte = ids_.find(name);
        out.push_back(byte != ids_.end() ? byte->second : unknown_);
      }
    }
  }

  std::vector<double> scores_;
  bool prefix_;
  std::unordered_map<std::string, int32_t> ids_;
  int32_t unknown_;
};

}  // namespace

Tokenizer::Tokenizer(const Gguf& file) : tokens_(file.texts("tokenizer.ggml.tokens")) {
  if (file.has("tokenizer.ggml.token_type")) types_ = file.integers("tokenizer.ggml.token_type");
  if (!types_.empty() && types_.size() != tokens_.size())
    throw std::runtime_error(file.path() + ": " + std::to_string(types_.size()) + " token types for " +
                             std::to_string(tokens_.size()) + " tokens");
  auto id = [&](const char* key) {
    if (!file.has(key)) return int32_t{-1};
    const uint64_t v = file.integer(key);
    if (v >= tokens_.size())
      throw std::runtime_error(file.path() + ": " + key + " is " + std::to_string(v) + ", the vocabulary has " +
                               std::to_string(tokens_.size()) + " tokens");
    return static_cast<int32_t>(v);
  };
  bos_ = id("tokenizer.ggml.bos_token_id"), eos_ = id("tokenizer.ggml.eos_token_id"),
  eot_ = id("tokenizer.ggml.eot_token_id");
  const bool sentencepiece = file.text("tokenizer.ggml.model") == "llama";
  add_bos_ = file.flag("tokenizer.ggml.add_bos_token", sentencepiece) && bos_ >= 0;
}

std::unique_ptr<Tokenizer> Tokenizer::create(const Gguf& file) {
  const std::string& model = file.text("tokenizer.ggml.model");
  if (model == "gpt2") return std::make_unique<BytePairTokenizer>(file);
  if (model == "llama") return std::make_unique<SentencePieceTokenizer>(file);
  throw std::runtime_error(file.path() + ": tokenizer \"" + model +
                           "\", supported are gpt2 (byte-level BPE) and llama (SentencePiece)");
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  for (size_t at = 0; at < text.size();) {
    uint32_t c;
    const size_t n = decode_utf8(text, at, c);
    if (n == 0)
      throw std::runtime_error("the text is not UTF-8: byte " + std::to_string(at) + " is " +
                               std::to_string(static_cast<unsigned char>(text[at])));
    at += n;
  }
  std::vector<int32_t> out;
  if (add_bos_) out.push_back(bos_);
  encode_words(text, out);
  return out;
}

size_t complete_utf8(std::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    uint32_t c;
    const size_t n = decode_utf8(bytes, at, c);
    if (n == 0) {
      if (bytes.size() - at < 4 && static_cast<unsigned char>(bytes[at]) >= 0xC2) return at;  // may still be completed
      ++at;                                                                                   // never will be
      continue;
    }
    at += n;
  }
  return at;
}

}  // namespace llm
