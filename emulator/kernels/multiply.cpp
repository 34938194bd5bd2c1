// Matrix multiplication of tiles. Compiled three times with different -m flags; everything but the entry has internal
// linkage.
#include "kernels/blocks.hpp"
#include "kernels/dot.hpp"
#include "kernels/dot_avx2.hpp"
#include "kernels/few_rows.hpp"
#include "kernels/fp8.hpp"
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"
#include "kernels/packed.hpp"
#include "kernels/packed_avx2.hpp"
#include "kernels/packed_avx2_integers.hpp"
#include "kernels/quantised.hpp"

namespace jalapeno::emu {
namespace {

using hw::DType;

inline float dot(const float* a, const float* b, uint32_t k) {
  return lane_sum(k, [=](uint32_t i) { return a[i] * b[i]; });
}

// Any types: rows of B become f32 one at a time and meet every row of A.
void multiply_any(const MultiplyArgs& x) {
  static thread_local Scratch wide_memory, row_memory;
  const size_t length = x.rows_are_k ? x.n : x.k;
  const float* wide = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, wide_memory);
  float* scratch = row_memory.reserve(length);
  if (!x.accumulate)
    for (uint32_t m = 0; m < x.m; ++m) std::memset(row(x.c, x.c_pitch, m), 0, size_t{x.n} * 4);
  for (uint32_t i = 0; i < (x.rows_are_k ? x.k : x.n); ++i) {
    const float* b = reinterpret_cast<const float*>(x.b + x.b_pitch * i);
    if (x.b_type != DType::kF32) {
      load(x.b_type, x.b + x.b_pitch * i, static_cast<uint32_t>(length), scratch);
      b = scratch;
    }
    for (uint32_t m = 0; m < x.m; ++m) {
      const float* a = wide + size_t{m} * x.k;
      float* c = row(x.c, x.c_pitch, m);
      if (x.rows_are_k) {
        const float factor = a[i];
        for (uint32_t n = 0; n < x.n; ++n) c[n] += factor * b[n];
      } else {
        c[i] += dot(a, b, x.k);
      }
    }
  }
}

void multiply_i8(const MultiplyArgs& x) {
  for (uint32_t m = 0; m < x.m; ++m) {
    auto* a = reinterpret_cast<const int8_t*>(x.a + x.a_pitch * m);
    auto* c = reinterpret_cast<int32_t*>(row(x.c, x.c_pitch, m));
    for (uint32_t n = 0; n < x.n; ++n) {
      int32_t sum = x.accumulate ? c[n] : 0;
      if (x.rows_are_k) {
        auto* b = reinterpret_cast<const int8_t*>(x.b) + n;
        for (uint32_t k = 0; k < x.k; ++k) sum += a[k] * b[k * x.b_pitch];
      } else {
        auto* b = reinterpret_cast<const int8_t*>(x.b + x.b_pitch * n);
        for (uint32_t k = 0; k < x.k; ++k) sum += a[k] * b[k];
      }
      c[n] = sum;
    }
  }
}

#if defined(__AVX2__)
// Calls f with the kind of block. False: it is none.
template <class F>
inline bool with_block(DType type, F f) {
  switch (type) {
    case DType::kQ8_0:
      return f(Q8_0{}), true;
    case DType::kQ4_0:
      return f(Q4_0{}), true;
    case DType::kMXFP4:
      return f(MxFp4{}), true;
    default:
      return false;
  }
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr uint32_t kPackedBlockRows = 12, kPackedNibbleRows = 4;

// -128, which no quantiser makes, has no opposite for _mm256_sign_epi8.
inline bool has_lowest(const MultiplyArgs& x) {
  __m256i any = _mm256_setzero_si256();
  for (uint32_t m = 0; m < x.m; ++m)
    for (uint32_t k = 0; k < x.k / 32; ++k)
      any = _mm256_or_si256(
          any, _mm256_cmpeq_epi8(signed_block<Q8_0>(x.a + x.a_pitch * m + size_t{k} * 34), _mm256_set1_epi8(-128)));
  return _mm256_movemask_epi8(any) != 0;
}

// Panels are added to C level by level, a few rows when their sums are complete.
inline void added_once(const MultiplyArgs& x, void (*multiply_panels)(const MultiplyArgs&)) {
  if (!x.accumulate) return multiply_panels(x);
  static thread_local Scratch memory;
  MultiplyArgs sums = x;
  sums.c = memory.reserve(size_t{x.m} * x.n), sums.c_pitch = size_t{x.n} * 4, sums.accumulate = false;
  multiply_panels(sums);
  for (uint32_t m = 0; m < x.m; ++m)
    for (uint32_t n = 0; n < x.n; ++n) row(x.c, x.c_pitch, m)[n] += row(sums.c, sums.c_pitch, m)[n];
}

// A few rows of q8_0 by rows n, n + apart, .. of B, straight from memory: integer products inside a block, f32 between
// blocks.
inline void multiply_blocks(const MultiplyArgs& x) {
  auto block = [&](auto rows, auto columns, uint32_t m, uint32_t n, uint32_t apart) {
    constexpr int M = rows, N = columns;
    __m256 sum[M][N];
    for (auto& r : sum)
      for (auto& s : r) s = _mm256_setzero_ps();
    for (uint32_t k = 0; k < x.k / 32; ++k) {
      __m256i b[N], magnitude[N];
      float scale[N];
      for (int j = 0; j < N; ++j) {
        const std::byte* p = x.b + x.b_pitch * (n + static_cast<uint32_t>(j) * apart) + k * Q8_0::bytes;
        stream_ahead(p);
        b[j] = signed_block<Q8_0>(p), magnitude[j] = _mm256_abs_epi8(b[j]);
        scale[j] = block_scale<Q8_0>(p);
      }
      for (int i = 0; i < M; ++i) {
        const std::byte* p = x.a + x.a_pitch * (m + i) + size_t{k} * Q8_0::bytes;
        const __m256i a = signed_block<Q8_0>(p);
        const float factor = block_scale<Q8_0>(p);
        for (int j = 0; j < N; ++j) {
          const __m256i dot = dot_bytes(_mm256_sign_epi8(a, b[j]), magnitude[j]);
          sum[i][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(factor * scale[j]), sum[i][j]);
        }
      }
    }
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j)
        put(x, m + static_cast<uint32_t>(i), n + static_cast<uint32_t>(j) * apart, horizontal(sum[i][j]));
  };
  far_columns<4>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
    row_blocks<4>(x.m, [&](auto rows, uint32_t m) { block(rows, some, m, n, apart); });
  });
}

// The same by blocks of nibbles. Two columns share a vector: low nibbles of both, then high ones, each column in its
// half.
template <class Block>
void multiply_nibbles(const MultiplyArgs& x) {
  struct Row {  // of a block of A
    float factor;
    int32_t excess[4];  // what B's bias adds to the four sums of a half
  };
  static thread_local Scratch memory;
  const uint32_t blocks = x.k / 32;
  static_assert(sizeof(Row) == 5 * sizeof(float));
  auto* rows_of_a = reinterpret_cast<Row*>(memory.reserve(size_t{x.m} * blocks * 5));
  const auto half_of = [](const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  const __m128i bias = _mm_set1_epi8(Block::bias), ones = _mm_set1_epi16(1);
  for (uint32_t m = 0; m < x.m; ++m)
    for (uint32_t k = 0; k < blocks; ++k) {
      const std::byte* p = x.a + x.a_pitch * m + size_t{k} * Q8_0::bytes;
      Row& r = rows_of_a[size_t{m} * blocks + k];
      r.factor = block_scale<Q8_0>(p) * (std::is_same_v<Block, MxFp4> ? 0.5f : 1.f);
      const __m128i sums =
          _mm_add_epi16(_mm_maddubs_epi16(bias, half_of(p + 2)), _mm_maddubs_epi16(bias, half_of(p + 18)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(r.excess), _mm_madd_epi16(sums, ones));
    }
  auto block = [&](auto rows, auto columns, uint32_t m, uint32_t n, uint32_t apart) {
    constexpr int M = rows, N = columns, kPairs = (N + 1) / 2;
    __m256 sum[M][kPairs];
    for (auto& r : sum)
      for (auto& s : r) s = _mm256_setzero_ps();
    const std::byte* b = x.b + x.b_pitch * n;
    const size_t stride = x.b_pitch * apart;
    for (uint32_t k = 0; k < blocks; ++k) {
#pragma GCC unroll 2
      for (int j = 0; j < kPairs; ++j) {
        const std::byte *p = b + stride * static_cast<size_t>(2 * j) + size_t{k} * Block::bytes,
                        *q = N == 1 ? p : p + stride;
        stream_ahead(p);
        if (N > 1) stream_ahead(q);
        const __m256i both = _mm256_set_m128i(half_of(q + Block::at), half_of(p + Block::at));
        __m256i low = _mm256_and_si256(both, _mm256_set1_epi8(15)),
                high = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
        __m256 scale;
        if constexpr (std::is_same_v<Block, MxFp4>) {
          const __m256i values = _mm256_broadcastsi128_si256(mxfp4_plus_12());
          low = _mm256_shuffle_epi8(values, low), high = _mm256_shuffle_epi8(values, high);
          scale = _mm256_set_m128(_mm_broadcast_ss(&kE8m0[static_cast<uint8_t>(*q)]),
                                  _mm_broadcast_ss(&kE8m0[static_cast<uint8_t>(*p)]));
        } else {
          const __m128i halves = _mm_cvtsi32_si128(static_cast<int32_t>(read16(p) | uint32_t{read16(q)} << 16));
          const __m128i spread = _mm_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3);
          scale = _mm256_cvtph_ps(_mm_shuffle_epi8(halves, spread));
        }
#pragma GCC unroll 3
        for (int i = 0; i < M; ++i) {
          const std::byte* a = x.a + x.a_pitch * (m + static_cast<uint32_t>(i)) + size_t{k} * Q8_0::bytes;
          const Row& r = rows_of_a[size_t{m + static_cast<uint32_t>(i)} * blocks + k];
          const __m256i pairs =
              _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_broadcastsi128_si256(half_of(a + 2))),
                               _mm256_maddubs_epi16(high, _mm256_broadcastsi128_si256(half_of(a + 18))));
          const __m256i excess = _mm256_broadcastsi128_si256(half_of(reinterpret_cast<const std::byte*>(r.excess)));
          const __m256i dot = _mm256_sub_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), excess);
          sum[i][j] =
              _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(_mm256_set1_ps(r.factor), scale), sum[i][j]);
        }
      }
    }
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) {
        __m128 s = _mm256_extractf128_ps(sum[i][j / 2], 1);
        if (j % 2 == 0) s = _mm256_castps256_ps128(sum[i][j / 2]);
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        put(x, m + static_cast<uint32_t>(i), n + static_cast<uint32_t>(j) * apart,
            _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s))));
      }
  };
  far_columns<4>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
    row_blocks<3>(x.m, [&](auto rows, uint32_t m) { block(rows, some, m, n, apart); });
  });
}
#endif

#if defined(__AVX512F__)
// From this many rows on, bringing B into lane order costs less than it saves.
constexpr uint32_t kPackedRows = 12, kPackedBlockRows = 5;
// B is of f16, which becomes f32: weights in registers, [k, n] in memory.
void multiply_halves(MultiplyArgs x) {
  static thread_local Scratch a_memory, b_memory;
  const bool packed = x.m >= kPackedRows;
  if (x.rows_are_k && !packed) return multiply_few_rows<DType::kF16>(x);
  if (x.a_type != DType::kF32) {
    x.a = reinterpret_cast<std::byte*>(as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, a_memory));
    x.a_type = DType::kF32, x.a_pitch = size_t{x.k} * 4;
  }
  if (x.rows_are_k) {
    x.b = reinterpret_cast<std::byte*>(as_floats(x.b_type, x.b, x.b_pitch, x.k, x.n, b_memory));
    x.b_type = DType::kF32, x.b_pitch = size_t{x.n} * 4;
    return multiply_packed_by_rows<F32Words>(x);
  }
  packed ? multiply_packed<F32Words>(x, HalfWords()) : multiply_dot<F32Words>(x, HalfWords());
}
bool multiply_avx512(const MultiplyArgs& x) {
  if (x.b_type == DType::kF16) return multiply_halves(x), true;
  const bool packed = x.m >= kPackedRows;
  if (x.a_type == DType::kF32 && x.b_type == DType::kF32) {
    if (x.rows_are_k) return packed && (multiply_packed_by_rows<F32Words>(x), true);
    packed ? multiply_packed<F32Words>(x) : multiply_dot<F32Words>(x);
    return true;
  }
#if defined(__AVX512BF16__)
  const bool mxfp8 = x.b_type == DType::kMXFP8 && !x.rows_are_k && !packed;
  if (hw::is_fp8(x.a_type) && (x.b_type == DType::kBF16 || hw::is_fp8(x.b_type) || mxfp8))
    return multiply_avx512(a_widened(x));
  if (x.a_type == DType::kBF16 && mxfp8) return multiply_dot<Bf16Words>(x, MxFp8Words()), true;
  if (x.a_type == DType::kBF16 && hw::is_fp8(x.b_type)) {
    if (x.rows_are_k) return packed && multiply_avx512(b_widened(x));
    const Fp8Words weights(x.b_type);
    packed&& x.k % 2 == 0 ? multiply_packed<Bf16Words>(x, weights) : multiply_dot<Bf16Words>(x, weights);
    return true;
  }
  if (x.a_type == DType::kBF16 && x.b_type == DType::kBF16) {
    if (x.rows_are_k) return packed && x.k % 2 == 0 && (multiply_packed_by_rows<Bf16Words>(x), true);
    packed&& x.k % 2 == 0 ? multiply_packed<Bf16Words>(x) : multiply_dot<Bf16Words>(x);
    return true;
  }
#endif
#if defined(__AVX512VNNI__)
  if (x.rows_are_k) return false;
  if (x.a_type == DType::kI8 && x.b_type == DType::kI8) return x.k % 4 == 0 && (multiply_packed<I8Words>(x), true);
  if (x.a_type == DType::kQ8_0)
    return with_block(x.b_type, [&](auto block) {
      using Block = decltype(block);
      x.m >= kPackedBlockRows ? multiply_quantised<Block>(x) : multiply_quantised_dot<Block>(x);
    });
#endif
  return false;
}
#endif

}  // namespace

namespace JAL_KERNELS_ISA {

void multiply(const MultiplyArgs& x);

#if defined(__AVX512F__)
// Weights that are bf16 without loss become so, as many rows at a time as the cache holds.
static void multiply_widened(const MultiplyArgs& x) {
  constexpr uint32_t kCached = 160 << 10;  // elements
  static thread_local Scratch wide_memory, memory;
  const uint32_t most = std::max(16u, kCached / x.k);
  float* wide = wide_memory.reserve(x.k);
  auto* half = reinterpret_cast<std::byte*>(memory.reserve((size_t{most} * x.k + 1) / 2));
  MultiplyArgs part = x;
  part.b = half, part.b_pitch = size_t{x.k} * 2, part.b_type = DType::kBF16;
  for (uint32_t n = 0; n < x.n; n += most) {
    part.n = std::min(x.n - n, most), part.c = x.c + n;
    for (uint32_t j = 0; j < part.n; ++j) {
      load(x.b_type, x.b + x.b_pitch * (n + j), x.k, wide);
      auto* out = reinterpret_cast<uint16_t*>(half + part.b_pitch * j);
      for (uint32_t k = 0; k < x.k; ++k) out[k] = static_cast<uint16_t>(float_to_bits(wide[k]) >> 16);
    }
    multiply(part);
  }
}
#endif

void multiply(const MultiplyArgs& x) {
#if defined(__AVX512F__)
  if (multiply_avx512(x)) return;
  if (!x.rows_are_k && x.b_type == DType::kMXFP8) return multiply_widened(x);
#elif defined(__AVX2__)
  if (!x.rows_are_k && x.a_type == DType::kQ8_0 && with_block(x.b_type, [&](auto block) {
        using Block = decltype(block);
        if (x.m >= (Block::nibbles ? kPackedNibbleRows : kPackedBlockRows)) return multiply_packed_blocks<Block>(x);
        if (!Block::nibbles && has_lowest(x)) return added_once(x, multiply_packed_blocks<Block>);
        if constexpr (Block::nibbles)
          multiply_nibbles<Block>(x);
        else
          multiply_blocks(x);
      }))
    return;
  if (!x.rows_are_k && x.a_type == DType::kI8 && x.b_type == DType::kI8) return multiply_packed_bytes(x);
#endif
  if (x.a_type == DType::kI8 && x.b_type == DType::kI8) return multiply_i8(x);
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Packing pays from some rows on, where values have to become f32 first from fewer, where few rows meet [k, n] as it
  // lies from more; a block of B's columns may be no place to cut a row.
  const bool converted = hw::is_fp8(x.b_type) || x.b_type == DType::kMXFP8 || x.b_type == DType::kF16;
  const uint32_t packed_rows = converted ? 12 : 17;
  if (x.m < packed_rows && !x.rows_are_k && with_rows(x, [&](auto rows) { multiply_dot<decltype(rows)>(x); })) return;
  const bool as_it_lies =
      x.rows_are_k && (x.b_type == DType::kBF16 || x.b_type == DType::kF16 || in_place(x.b_type, x.b, x.b_pitch));
  if (x.m >= (as_it_lies ? 12 : 4) && !(x.rows_are_k && hw::info(x.b_type).block > 1)) return multiply_packed(x);
#endif
  if (x.rows_are_k && x.b_type == DType::kBF16) return multiply_few_rows<DType::kBF16>(x);
  if (x.rows_are_k && x.b_type == DType::kF16) return multiply_few_rows<DType::kF16>(x);
  if (x.rows_are_k && x.b_type == DType::kQ8_0) return multiply_few_rows<DType::kQ8_0>(x);
  if (x.rows_are_k && in_place(x.b_type, x.b, x.b_pitch)) return multiply_few_rows<DType::kF32>(x);
  multiply_any(x);
}

}  // namespace JAL_KERNELS_ISA

}  // namespace jalapeno::emu
