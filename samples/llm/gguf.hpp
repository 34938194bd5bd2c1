// GGUF files: metadata and the table of tensors. Reads every length and offset as somebody else's claim.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace llm {

enum class TensorType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ8_0 = 8, kBF16 = 30, kMXFP4 = 39 };

struct TensorInfo {
  std::string name;
  TensorType type;
  uint64_t columns, rows;  // rows 1: a vector
  uint64_t offset;         // in the file
  uint64_t bytes;
};

using Value = std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>,
                           std::vector<std::string>>;

class Gguf {
 public:
  // Throws std::runtime_error that names the file, the field, its value and what was expected.
  explicit Gguf(const std::string& path);

  const std::string& path() const { return path_; }
  bool has(const std::string& key) const { return metadata_.count(key) != 0; }
  // Throw when the key is missing (and there is no default) or of another type.
  uint64_t integer(const std::string& key) const;
  uint64_t integer(const std::string& key, uint64_t fallback) const { return has(key) ? integer(key) : fallback; }
  double real(const std::string& key) const;
  double real(const std::string& key, double fallback) const { return has(key) ? real(key) : fallback; }
  bool flag(const std::string& key, bool fallback) const;
  const std::string& text(const std::string& key) const;
  const std::vector<std::string>& texts(const std::string& key) const;
  const std::vector<int64_t>& integers(const std::string& key) const;
  const std::vector<double>& reals(const std::string& key) const;

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(const std::string& name) const;

 private:
  template <class T>
  const T& get(const std::string& key, const char* kind) const;
  std::string path_;
  std::map<std::string, Value> metadata_;
  std::map<std::string, TensorInfo> tensors_;
};

const char* type_name(TensorType type);

}  // namespace llm
