// What the ranks of a group have, combined. The order is a binary tree over the ranks, cut at powers of two: it depends
// on their number alone. Floats are added in f32 and rounded once; integers in 64 bits, wrapping.
// Compiled once per host instruction set, as kernels.cpp.
#include <bit>

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

// As tree(), for few ranks of a type that takes part in models: one pass from the sources to what is rounded.
inline float widened(const float* p, uint32_t i) { return p[i]; }
inline float widened(const uint16_t* p, uint32_t i) { return from_bf16(p[i]); }
inline void narrowed(float v, float* out) { *out = v; }
inline void narrowed(float v, uint16_t* out) { *out = to_bf16(v); }
template <class T, uint32_t kLow, uint32_t kHigh>
inline float sum_of(const T* const* sources, uint32_t i) {
  if constexpr (kHigh - kLow == 1) {
    return widened(sources[kLow], i);
  } else {
    constexpr uint32_t kCut = kLow + std::bit_ceil(kHigh - kLow) / 2;
    return sum_of<T, kLow, kCut>(sources, i) + sum_of<T, kCut, kHigh>(sources, i);
  }
}
#if defined(__AVX2__)
// Eight at a time; what GCC 12 makes of the loop below takes 1.5 times as long.
template <uint32_t kLow, uint32_t kHigh>
inline __m256 sum_of_bf16(const uint16_t* const* sources, uint32_t i) {
  if constexpr (kHigh - kLow == 1) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sources[kLow] + i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  } else {
    constexpr uint32_t kCut = kLow + std::bit_ceil(kHigh - kLow) / 2;
    return _mm256_add_ps(sum_of_bf16<kLow, kCut>(sources, i), sum_of_bf16<kCut, kHigh>(sources, i));
  }
}
inline __m256i rounded_bf16(__m256 v) {  // as to_bf16, in the low halves
  const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_srli_epi32(
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan)), 16);
}
template <uint32_t kRanks>
uint32_t sum_bf16(const uint16_t* const* sources, uint32_t n, uint16_t* out) {
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i low = rounded_bf16(sum_of_bf16<0, kRanks>(sources, i)),
                  high = rounded_bf16(sum_of_bf16<0, kRanks>(sources, i + 8));
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11011000);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), both);
  }
  return i;
}
#endif
template <class T, uint32_t kRanks>
void sum_block(const CombineArgs& x, size_t at, uint32_t n, std::byte* out) {
  const T* sources[kRanks];
  for (uint32_t r = 0; r < kRanks; ++r) sources[r] = reinterpret_cast<const T*>(x.sources[r]) + at;
  T* to = reinterpret_cast<T*>(out);
  uint32_t i = 0;
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, uint16_t>) i = sum_bf16<kRanks>(sources, n, to);
#endif
#pragma GCC ivdep
  for (; i < n; ++i) narrowed(sum_of<T, 0, kRanks>(sources, i), to + i);
}
using SumBlock = void (*)(const CombineArgs&, size_t at, uint32_t n, std::byte* out);
SumBlock sum_block_of(const CombineArgs& x) {  // nullptr: the general way
  if (x.op != FabricOp::kSum || x.divisor > 1 || x.type != x.result) return nullptr;
  const bool f32 = x.type == FabricType::kF32;
  if (!f32 && x.type != FabricType::kBF16) return nullptr;
  switch (x.ranks) {
    case 2:
      return f32 ? sum_block<float, 2> : sum_block<uint16_t, 2>;
    case 4:
      return f32 ? sum_block<float, 4> : sum_block<uint16_t, 4>;
    case 8:
      return f32 ? sum_block<float, 8> : sum_block<uint16_t, 8>;
    default:
      return nullptr;
  }
}

template <class T>
void combine_as(const CombineArgs& x) {
  const size_t element = hw::element_bytes(x.result);
  constexpr uint32_t kLevels = 12;  // of up to hw::kMaxFabricRanks ranks, and one
  alignas(64) T buffer[kLevels * kBlock];
  alignas(64) std::byte narrow[kBlock * sizeof(T)];
  const SumBlock sums = std::is_same_v<T, float> ? sum_block_of(x) : nullptr;
  for (size_t at = 0; at < x.count; at += kBlock) {
    const auto n = static_cast<uint32_t>(std::min<size_t>(kBlock, x.count - at));
    // Through a buffer, because a destination may be a source; sums read each element before they write it.
    const bool direct = sums != nullptr && !x.around_caches;
    std::byte* result = direct ? x.destinations[0] + at * element : narrow;
    if (sums != nullptr) {
      sums(x, at, n, result);
    } else {
      tree(x, 0, x.ranks, at, n, buffer);
      if (x.divisor > 1)
        for (uint32_t i = 0; i < n; ++i) buffer[i] = buffer[i] / static_cast<T>(x.divisor);
      store_narrow(x.result, buffer, n, narrow);
    }
    for (uint32_t d = direct ? 1 : 0; d < x.destination_count; ++d) {
      if (x.around_caches)
        stream(result, n * element, x.destinations[d] + at * element);
      else
        std::memcpy(x.destinations[d] + at * element, result, n * element);
    }
  }
#if defined(__AVX2__)
  if (x.around_caches) _mm_sfence();
#endif
}

}  // namespace

namespace JAL_KERNELS_ISA {
void copy_around_caches(const std::byte* from, size_t bytes, std::byte* to) {
  const size_t head = std::min<size_t>(bytes, -reinterpret_cast<uintptr_t>(to) % 64);
  std::memcpy(to, from, head);
  stream(from + head, bytes - head, to + head);
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
void combine(const CombineArgs& x) {
  if (hw::wide_type(x.type) == FabricType::kI64)
    combine_as<int64_t>(x);
  else
    combine_as<float>(x);
}
}  // namespace JAL_KERNELS_ISA

}  // namespace jalapeno::emu
