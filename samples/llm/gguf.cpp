#include "gguf.hpp"

#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace llm {
namespace {

struct TypeSize {
  TensorType type;
  const char* name;
  uint64_t block, bytes;
};
constexpr TypeSize kTypes[] = {{TensorType::kF32, "F32", 1, 4},     {TensorType::kF16, "F16", 1, 2},
                               {TensorType::kBF16, "BF16", 1, 2},   {TensorType::kQ8_0, "Q8_0", 32, 34},
                               {TensorType::kQ4_0, "Q4_0", 32, 18}, {TensorType::kMXFP4, "MXFP4", 32, 17}};

constexpr uint64_t kMaxText = 1 << 24, kMaxItems = 1 << 24;

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb"), std::fclose) {
    if (file_ == nullptr) fail(std::strerror(errno));
    std::fseek(file_.get(), 0, SEEK_END);
    const long end = std::ftell(file_.get());
    if (end < 0) fail("its size cannot be read");
    size_ = static_cast<uint64_t>(end);
    std::rewind(file_.get());
  }
  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }
  uint64_t size() const { return size_; }
  uint64_t position() const { return at_; }
  void read(void* out, uint64_t bytes, const std::string& what) {
    if (bytes > size_ - at_)
      fail("ends at byte " + std::to_string(size_) + " inside " + what + ", which needs " + std::to_string(bytes) +
           " bytes from " + std::to_string(at_));
    if (bytes > 0 && std::fread(out, 1, bytes, file_.get()) != bytes) fail("read error inside " + what);
    at_ += bytes;
  }
  template <class T>
  T number(const std::string& what) {
    T t;
    read(&t, sizeof t, what);
    return t;
  }
  std::string text(const std::string& what) {
    const uint64_t n = number<uint64_t>("the length of " + what);
    if (n > kMaxText || n > size_ - at_)
      fail(what + " claims " + std::to_string(n) + " bytes, the file has " + std::to_string(size_ - at_) + " left");
    std::string s(n, '\0');
    read(s.data(), n, what);
    return s;
  }

 private:
  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  uint64_t size_ = 0, at_ = 0;
};

Value read_value(Reader& in, uint32_t kind, const std::string& key) {
  switch (kind) {
    case 0:
      return uint64_t{in.number<uint8_t>(key)};
    case 1:
      return int64_t{in.number<int8_t>(key)};
    case 2:
      return uint64_t{in.number<uint16_t>(key)};
    case 3:
      return int64_t{in.number<int16_t>(key)};
    case 4:
      return uint64_t{in.number<uint32_t>(key)};
    case 5:
      return int64_t{in.number<int32_t>(key)};
    case 6:
      return double{in.number<float>(key)};
    case 7:
      return in.number<uint8_t>(key) != 0;
    case 8:
      return in.text(key);
    case 10:
      return in.number<uint64_t>(key);
    case 11:
      return in.number<int64_t>(key);
    case 12:
      return in.number<double>(key);
    case 9: {
      const uint32_t item = in.number<uint32_t>(key);
      const uint64_t n = in.number<uint64_t>(key);
      if (n > kMaxItems || n > in.size() - in.position())
        in.fail(key + " claims " + std::to_string(n) + " items, the file has " +
                std::to_string(in.size() - in.position()) + " bytes left");
      if (item == 8) {
        std::vector<std::string> out;
        for (uint64_t i = 0; i < n; ++i) out.push_back(in.text(key));
        return out;
      }
      if (item == 9 || item > 12) in.fail(key + ": an array of type " + std::to_string(item) + " is not supported");
      std::vector<double> reals;
      std::vector<int64_t> integers;
      for (uint64_t i = 0; i < n; ++i) {
        const Value v = read_value(in, item, key);
        if (auto* d = std::get_if<double>(&v))
          reals.push_back(*d);
        else if (auto* u = std::get_if<uint64_t>(&v))
          integers.push_back(static_cast<int64_t>(*u));
        else if (auto* s = std::get_if<int64_t>(&v))
          integers.push_back(*s);
        else
          integers.push_back(std::get<bool>(v));
      }
      if (item == 6 || item == 12) return reals;
      return integers;
    }
    default:
      in.fail(key + ": value type " + std::to_string(kind) + " does not exist");
  }
}

}  // namespace

const char* type_name(TensorType type) {
  for (const TypeSize& t : kTypes)
    if (t.type == type) return t.name;
  return "unknown";
}

Gguf::Gguf(const std::string& path) : path_(path) {
  Reader in(path);
  char magic[4];
  in.read(magic, 4, "the magic");
  if (std::memcmp(magic, "GGUF", 4) != 0) in.fail("not a GGUF file: it begins with other bytes than \"GGUF\"");
  const uint32_t version = in.number<uint32_t>("the version");
  if (version != 2 && version != 3) in.fail("GGUF version " + std::to_string(version) + ", expected 2 or 3");
  const uint64_t tensors = in.number<uint64_t>("the tensor count"), keys = in.number<uint64_t>("the metadata count");
  if (tensors > 1 << 20) in.fail("claims " + std::to_string(tensors) + " tensors, expected at most 1048576");
  if (keys > 1 << 20) in.fail("claims " + std::to_string(keys) + " metadata entries, expected at most 1048576");
  for (uint64_t k = 0; k < keys; ++k) {
    const std::string key = in.text("the name of metadata entry " + std::to_string(k));
    const uint32_t kind = in.number<uint32_t>("the type of " + key);
    if (!metadata_.emplace(key, read_value(in, kind, key)).second) in.fail("metadata " + key + " appears twice");
  }
  const uint64_t alignment = integer("general.alignment", 32);
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > 1 << 20)
    in.fail("general.alignment is " + std::to_string(alignment) + ", expected a power of two");
  for (uint64_t k = 0; k < tensors; ++k) {
    TensorInfo t;
    t.name = in.text("the name of tensor " + std::to_string(k));
    const uint32_t dims = in.number<uint32_t>(t.name);
    if (dims < 1 || dims > 4)
      in.fail("tensor " + t.name + " has " + std::to_string(dims) + " dimensions, expected 1 to 4");
    uint64_t shape[4] = {1, 1, 1, 1};
    for (uint32_t d = 0; d < dims; ++d) {
      shape[d] = in.number<uint64_t>(t.name);
      if (shape[d] == 0 || shape[d] > uint64_t{1} << 31)
        in.fail("tensor " + t.name + ": dimension " + std::to_string(d) + " is " + std::to_string(shape[d]));
    }
    if (shape[2] != 1 || shape[3] != 1) in.fail("tensor " + t.name + " has more than two dimensions");
    const uint32_t type = in.number<uint32_t>(t.name);
    const TypeSize* size = nullptr;
    for (const TypeSize& s : kTypes)
      if (static_cast<uint32_t>(s.type) == type) size = &s;
    if (size == nullptr)
      in.fail("tensor " + t.name + " has type " + std::to_string(type) +
              ", supported are F32, F16, BF16, Q8_0, Q4_0 and MXFP4");
    t.type = size->type, t.columns = shape[0], t.rows = shape[1];
    if (t.columns % size->block != 0)
      in.fail("tensor " + t.name + " has " + std::to_string(t.columns) + " columns, expected a multiple of " +
              std::to_string(size->block) + " for " + size->name);
    t.bytes = t.columns / size->block * size->bytes * t.rows;
    t.offset = in.number<uint64_t>(t.name);
    if (t.offset % alignment != 0)
      in.fail("tensor " + t.name + " is at offset " + std::to_string(t.offset) + ", expected a multiple of " +
              std::to_string(alignment));
    const std::string name = t.name;
    if (!tensors_.emplace(name, std::move(t)).second) in.fail("tensor " + name + " appears twice");
  }
  const uint64_t data = (in.position() + alignment - 1) / alignment * alignment;
  for (auto& [name, t] : tensors_) {
    if (data > in.size() || t.offset > in.size() - data || t.bytes > in.size() - data - t.offset)
      in.fail("tensor " + name + " needs bytes " + std::to_string(data + t.offset) + " to " +
              std::to_string(data + t.offset + t.bytes) + ", the file ends at " + std::to_string(in.size()));
    t.offset += data;
  }
}

template <class T>
const T& Gguf::get(const std::string& key, const char* kind) const {
  auto it = metadata_.find(key);
  if (it == metadata_.end()) throw std::runtime_error(path_ + ": metadata " + key + " is missing");
  const T* v = std::get_if<T>(&it->second);
  if (v == nullptr) throw std::runtime_error(path_ + ": metadata " + key + " is not " + kind);
  return *v;
}

uint64_t Gguf::integer(const std::string& key) const {
  if (auto it = metadata_.find(key); it != metadata_.end()) {
    if (auto* s = std::get_if<int64_t>(&it->second); s != nullptr && *s >= 0) return static_cast<uint64_t>(*s);
  }
  return get<uint64_t>(key, "a non-negative integer");
}
double Gguf::real(const std::string& key) const { return get<double>(key, "a real number"); }
bool Gguf::flag(const std::string& key, bool fallback) const { return has(key) ? get<bool>(key, "a flag") : fallback; }
const std::string& Gguf::text(const std::string& key) const { return get<std::string>(key, "text"); }
const std::vector<std::string>& Gguf::texts(const std::string& key) const {
  return get<std::vector<std::string>>(key, "a list of texts");
}
const std::vector<int64_t>& Gguf::integers(const std::string& key) const {
  return get<std::vector<int64_t>>(key, "a list of integers");
}
const std::vector<double>& Gguf::reals(const std::string& key) const {
  return get<std::vector<double>>(key, "a list of real numbers");
}

const TensorInfo* Gguf::find(const std::string& name) const {
  auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace llm
