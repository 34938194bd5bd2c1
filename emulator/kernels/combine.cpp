// What the ranks of a group have, combined. The order is a binary tree over the ranks, cut at powers of two: it depends
// on their number alone. Floats are added in f32 and rounded once; integers in 64 bits, wrapping.
// Compiled once per host instruction set, as kernels.cpp.
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

namespace jalapeno::emu {
namespace {

using hw::FabricOp;
using hw::FabricType;

constexpr uint32_t kBlock = 1024;  // elements: a buffer of every level of the tree stays in the first cache

// The ranks [low, high) of a tree: [low, cut) and [cut, high).
uint32_t cut(uint32_t low, uint32_t high) {
  uint32_t half = 1;
  while (2 * half < high - low) half *= 2;
  return low + half;
}

template <class T, class F>
inline void apply(const T* a, const T* b, uint32_t n, T* out, F f) {
  for (uint32_t i = 0; i < n; ++i) out[i] = f(a[i], b[i]);
}

template <class T>
void join(FabricOp op, const T* a, const T* b, uint32_t n, T* out) {
  using U = std::conditional_t<std::is_floating_point_v<T>, T,
                               std::make_unsigned_t<std::conditional_t<std::is_floating_point_v<T>, int, T>>>;
  switch (op) {
    case FabricOp::kSum:
      return apply(a, b, n, out, [](T x, T y) { return static_cast<T>(static_cast<U>(x) + static_cast<U>(y)); });
    case FabricOp::kProduct:
      return apply(a, b, n, out, [](T x, T y) { return static_cast<T>(static_cast<U>(x) * static_cast<U>(y)); });
    case FabricOp::kMin:  // a NaN stays one
      return apply(a, b, n, out, [](T x, T y) { return x < y || x != x ? x : y; });
    case FabricOp::kMax:
      return apply(a, b, n, out, [](T x, T y) { return x > y || x != x ? x : y; });
  }
}

void load_wide(const CombineArgs& x, uint32_t rank, size_t at, uint32_t n, float* out) {
  const auto type = static_cast<DType>(x.type);
  JAL_KERNELS.load(type, x.sources[rank] + at * hw::info(type).bytes, n, out);
}
void load_wide(const CombineArgs& x, uint32_t rank, size_t at, uint32_t n, int64_t* out) {
  const std::byte* p = x.sources[rank];
  switch (x.type) {
    case FabricType::kI8:
      for (uint32_t i = 0; i < n; ++i) out[i] = reinterpret_cast<const int8_t*>(p)[at + i];
      return;
    case FabricType::kI32:
      for (uint32_t i = 0; i < n; ++i) out[i] = reinterpret_cast<const int32_t*>(p)[at + i];
      return;
    default:
      std::memcpy(out, reinterpret_cast<const int64_t*>(p) + at, size_t{n} * 8);
  }
}

// `out` and the buffers behind it, one for each level.
template <class T>
void tree(const CombineArgs& x, uint32_t low, uint32_t high, size_t at, uint32_t n, T* out) {
  if (high - low == 1) return load_wide(x, low, at, n, out);
  if constexpr (std::is_same_v<T, float>) {
    if (high - low == 2 && x.type == FabricType::kF32)
      return join(x.op, reinterpret_cast<const float*>(x.sources[low]) + at,
                  reinterpret_cast<const float*>(x.sources[low + 1]) + at, n, out);
  }
  const uint32_t middle = cut(low, high);
  tree(x, low, middle, at, n, out);
  tree(x, middle, high, at, n, out + kBlock);
  join(x.op, out, out + kBlock, n, out);
}

void store_narrow(FabricType type, const float* in, uint32_t n, std::byte* out) {
  JAL_KERNELS.store(static_cast<DType>(type), in, n, out);
}
void store_narrow(FabricType type, const int64_t* in, uint32_t n, std::byte* out) {
  switch (type) {
    case FabricType::kI8:
      for (uint32_t i = 0; i < n; ++i) reinterpret_cast<int8_t*>(out)[i] = static_cast<int8_t>(in[i]);
      return;
    case FabricType::kI32:
      for (uint32_t i = 0; i < n; ++i) reinterpret_cast<int32_t*>(out)[i] = static_cast<int32_t>(in[i]);
      return;
    default:
      std::memcpy(out, in, size_t{n} * 8);
  }
}

// Around the caches where both sides lie on cache lines: what is written is not read again soon.
void stream(const std::byte* from, size_t bytes, std::byte* to) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
    std::memcpy(to + i, from + i, bytes - i);
    return;
  }
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(to) % 32 == 0) {
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    std::memcpy(to + i, from + i, bytes - i);
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

template <class T>
void combine_as(const CombineArgs& x) {
  const size_t element = hw::element_bytes(x.result);
  constexpr uint32_t kLevels = 12;  // of up to hw::kMaxFabricRanks ranks, and one
  alignas(64) T buffer[kLevels * kBlock];
  alignas(64) std::byte narrow[kBlock * sizeof(T)];
  for (size_t at = 0; at < x.count; at += kBlock) {
    const auto n = static_cast<uint32_t>(std::min<size_t>(kBlock, x.count - at));
    tree(x, 0, x.ranks, at, n, buffer);
    if (x.divisor > 1)
      for (uint32_t i = 0; i < n; ++i) buffer[i] = buffer[i] / static_cast<T>(x.divisor);
    // Through a buffer, because a destination may be a source; then to each destination.
    store_narrow(x.result, buffer, n, narrow);
    for (uint32_t d = 0; d < x.destination_count; ++d) {
      if (x.around_caches)
        stream(narrow, n * element, x.destinations[d] + at * element);
      else
        std::memcpy(x.destinations[d] + at * element, narrow, n * element);
    }
  }
#if defined(__AVX2__)
  if (x.around_caches) _mm_sfence();
#endif
}

}  // namespace

namespace JAL_KERNELS_ISA {
void combine(const CombineArgs& x) {
  if (hw::wide_type(x.type) == FabricType::kI64)
    combine_as<int64_t>(x);
  else
    combine_as<float>(x);
}
}  // namespace JAL_KERNELS_ISA

}  // namespace jalapeno::emu
