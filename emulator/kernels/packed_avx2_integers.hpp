// Blocked multiplication of integers for AVX2: bytes, and blocks of them with a scale, become words of two 16-bit
// integers, which one instruction multiplies and adds up exactly. Integers of four bits stay bytes, four to a word:
// products of a few words fit into 16 bits together. Otherwise as packed_avx2.hpp. Included by multiply.cpp only.
#pragma once
#include "kernels/blocks.hpp"
#include "kernels/packed_avx2.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace jalapeno::emu {
namespace {

template <class Block>
constexpr uint32_t kBlockWords = Block::nibbles ? 8 : 16;

inline void store_words(int32_t* out, __m256i words) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words); }

inline __m256i dot_bytes(__m256i a_signed, __m256i b_magnitude) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(b_magnitude, a_signed), _mm256_set1_epi16(1));
}

// `n` bytes as words; behind an odd one comes a zero.
inline void widen_bytes(const std::byte* from, uint32_t n, int32_t* out) {
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16)
    store_words(out + i / 2, _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < n; i += 2) {
    const auto low = static_cast<int16_t>(static_cast<int8_t>(from[i])),
               high = static_cast<int16_t>(i + 1 < n ? static_cast<int8_t>(from[i + 1]) : 0);
    const int16_t pair[] = {low, high};
    std::memcpy(out + i / 2, pair, sizeof pair);
  }
}

// panel[word][column] from what widen(column, words) makes of each column.
template <class Widen>
inline void pack_pairs(uint32_t columns, uint32_t words, Widen widen, int32_t* panel) {
  static thread_local Scratch memory;
  float* wide = memory.reserve(size_t{kPanelColumns} * kPanelWords);
  auto* in = reinterpret_cast<int32_t*>(wide);
  for (uint32_t j = 0; j < columns; ++j) widen(j, in + j * kPanelWords);
  std::memset(in + columns * kPanelWords, 0, (kPanelColumns - columns) * size_t{kPanelWords} * 4);
  transpose_panel(wide, kPanelWords, words, reinterpret_cast<float*>(panel));
}

// One word of a row of A by sixteen columns, added to two vectors of sums: two integers of 16 bits into 32, or four
// bytes, B's unsigned, into 16. In assembly because GCC 12 otherwise keeps sums on the stack.
struct PairStep {
  [[gnu::always_inline]] static void add(__m256i& s0, __m256i& s1, const float& a, __m256i b0, __m256i b1) {
    __m256i t0, t1;
    asm("vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpmaddwd %6, %2, %2\n\tvpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
        : "+x"(s0), "+x"(s1), "=&x"(t0), "=&x"(t1)
        : "m"(a), "x"(b0), "x"(b1));
  }
};
struct ByteStep {
  [[gnu::always_inline]] static void add(__m256i& s0, __m256i& s1, const float& a, __m256i b0, __m256i b1) {
    __m256i t0, t1;
    asm("vpbroadcastd %4, %2\n\tvpmaddubsw %2, %5, %3\n\tvpmaddubsw %2, %6, %2\n\tvpaddw %3, %0, %0\n\tvpaddw %2, %1, "
        "%1"
        : "+x"(s0), "+x"(s1), "=&x"(t0), "=&x"(t1)
        : "m"(a), "x"(b0), "x"(b1));
  }
};

// Adds `words` words of kM rows of A times the panel.
template <class Step, int kM>
[[gnu::always_inline]] inline void add_words(const float* group, uint32_t words, const int32_t* panel,
                                             __m256i (&sum)[kM][2]) {
  for (uint32_t w = 0; w < words; ++w) {
    const auto* b = reinterpret_cast<const __m256i*>(panel + w * kPanelColumns);
    const __m256i b0 = _mm256_load_si256(b), b1 = _mm256_load_si256(b + 1);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      __m256i s0 = sum[i][0], s1 = sum[i][1];
      Step::add(s0, s1, group[w * kGroup + static_cast<uint32_t>(i)], b0, b1);
      sum[i][0] = s0, sum[i][1] = s1;
    }
  }
}

template <int kM>
inline void byte_rows(const MultiplyArgs& x, uint32_t m, const Piece& p, const int32_t* panel) {
  __m256i sum[kM][2];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
  add_words<PairStep, kM>(p.group(m), p.words, panel, sum);
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    int32_t plain[kPanelColumns];
    store_words(plain, sum[i][0]), store_words(plain + 8, sum[i][1]);
    auto* c = reinterpret_cast<int32_t*>(row(x.c, x.c_pitch, m + static_cast<uint32_t>(i))) + p.n;
    for (uint32_t j = 0; j < p.columns; ++j) c[j] = p.add ? c[j] + plain[j] : plain[j];
  }
}

// B is [n, k].
inline void multiply_packed_bytes(const MultiplyArgs& x) {
  static thread_local Scratch panel_memory;
  auto* panel = reinterpret_cast<int32_t*>(panel_memory.reserve(kPanelWords * kPanelColumns));
  const auto widen = [&](const std::byte* row, uint32_t first, uint32_t words, int32_t* out) {
    widen_bytes(row + size_t{first} * 2, std::min(x.k - first * 2, words * 2), out);
  };
  const auto widen_a = [&](uint32_t m, uint32_t first, uint32_t words, float* out) {
    widen(x.a + x.a_pitch * m, first, words, reinterpret_cast<int32_t*>(out));
  };
  each_panel(
      x, (x.k + 1) / 2, stays_in_cache(x), widened(widen_a),
      [&](const Piece& p) {
        pack_pairs(
            p.columns, p.words,
            [&](uint32_t j, int32_t* out) { widen(x.b + x.b_pitch * (p.n + j), p.first, p.words, out); }, panel);
      },
      [&](auto rows, uint32_t m, const Piece& p) { byte_rows<rows>(x, m, p, panel); });
}

// The words of a block of B, and its scale.
template <class Block>
inline float weight_words(const std::byte* p, int32_t* out) {
  if constexpr (Block::nibbles) {
    store_words(out, unsigned_block<Block>(p));
  } else {
    const __m256i v = signed_block<Block>(p);
    store_words(out, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)));
    store_words(out + 8, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)));
  }
  return block_scale<Block>(p);
}

// A block of A as these words meet it. excess: what B's bias adds to its sum.
struct Activation {
  float scale;
  int32_t excess;
};
template <class Block>
inline Activation activation_words(const std::byte* p, int32_t* out) {
  if constexpr (Block::nibbles) {
    const __m256i v = signed_block<Q8_0>(p);
    store_words(out, v);
    const __m256i sums = dot_bytes(v, _mm256_set1_epi8(Block::bias));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return {block_scale<Q8_0>(p), _mm_cvtsi128_si32(four) + _mm_extract_epi32(four, 1)};
  } else {
    return {weight_words<Q8_0>(p, out), 0};
  }
}

// Sums of a block's products, of kM rows of A.
template <class Block, int kM>
[[gnu::always_inline]] inline void add_block(const float* group, const int32_t* panel, __m256i (&sum)[kM][2]) {
  if constexpr (!Block::nibbles) {
    add_words<PairStep, kM>(group, kBlockWords<Block>, panel, sum);
  } else {
    constexpr uint32_t kRun = 2 * 128 * 8 * Block::most <= 32767 ? 8 : 4;  // words whose products 16 bits hold
    for (uint32_t first = 0; first < kBlockWords<Block>; first += kRun) {
      __m256i part[kM][2];
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i) part[i][0] = part[i][1] = _mm256_setzero_si256();
      add_words<ByteStep, kM>(group + first * kGroup, kRun, panel + first * kPanelColumns, part);
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i)
        for (int half = 0; half < 2; ++half)
          sum[i][half] = _mm256_add_epi32(sum[i][half], _mm256_madd_epi16(part[i][half], _mm256_set1_epi16(1)));
    }
  }
}

// A block of B for every column of the panel: its scale.
using Scales = float[kPanelColumns];

// `a` tells of each block of a row of A, rows `a_pitch` apart. Inlined, GCC 12 keeps fewer of the integers in
// registers: a third slower.
template <class Block, int kM>
[[gnu::noinline]] void quantised_rows(const MultiplyArgs& x, const Activation* a, size_t a_pitch, uint32_t m,
                                      const Piece& p, const int32_t* panel, const Scales* scales) {
  constexpr uint32_t kWords = kBlockWords<Block>;
  const float* group = p.group(m);
  alignas(32) float sum[kM][kPanelColumns] = {};  // in memory: a block's integers take the registers
  for (uint32_t k = 0; k < p.words / kWords; ++k) {
    __m256i dot[kM][2];
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i)
      dot[i][0] = dot[i][1] =
          Block::nibbles ? _mm256_set1_epi32(-a[a_pitch * static_cast<size_t>(i) + k].excess) : _mm256_setzero_si256();
    add_block<Block, kM>(group + size_t{k} * kWords * kGroup, panel + k * kWords * kPanelColumns, dot);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const __m256 factor = _mm256_set1_ps(a[a_pitch * static_cast<size_t>(i) + k].scale);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        _mm256_store_ps(sum[i] + half * 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[i][half]),
                                                           _mm256_mul_ps(factor, _mm256_load_ps(scales[k] + half * 8)),
                                                           _mm256_load_ps(sum[i] + half * 8)));
    }
  }
  for (int i = 0; i < kM; ++i) {
    float* c = row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + p.n;
    for (uint32_t j = 0; j < p.columns; ++j) c[j] = p.add ? c[j] + sum[i][j] : sum[i][j];
  }
}

// A in blocks of q8_0, B, [n, k], in some blocks: integers inside a block, f32 between blocks.
template <class Block>
void multiply_packed_blocks(const MultiplyArgs& x) {
  constexpr uint32_t kWords = kBlockWords<Block>;
  static thread_local Scratch panel_memory, activation_memory;
  auto* panel = reinterpret_cast<int32_t*>(panel_memory.reserve(kPanelWords * kPanelColumns));
  const uint32_t blocks = x.k / 32;
  static_assert(sizeof(Activation) == 2 * sizeof(float));
  auto* activations = reinterpret_cast<Activation*>(activation_memory.reserve(size_t{x.m} * blocks * 2));
  alignas(32) Scales scales[kPanelWords / kWords] = {};
  each_panel(
      x, blocks * kWords, stays_in_cache(x), widened([&](uint32_t m, uint32_t first, uint32_t words, float* out) {
        const uint32_t block = first / kWords;
        for (uint32_t k = 0; k < words / kWords; ++k)
          activations[size_t{m} * blocks + block + k] = activation_words<Block>(
              x.a + x.a_pitch * m + size_t{block + k} * Q8_0::bytes, reinterpret_cast<int32_t*>(out) + k * kWords);
      }),
      [&](const Piece& p) {
        pack_pairs(
            p.columns, p.words,
            [&](uint32_t j, int32_t* out) {
              const std::byte* b = x.b + x.b_pitch * (p.n + j) + size_t{p.first} / kWords * Block::bytes;
              for (uint32_t k = 0; k < p.words / kWords; ++k)
                scales[k][j] = weight_words<Block>(b + k * Block::bytes, out + k * kWords);
            },
            panel);
      },
      [&](auto rows, uint32_t m, const Piece& p) {
        quantised_rows<Block, rows>(x, activations + size_t{m} * blocks + p.first / kWords, blocks, m, p, panel,
                                    scales);
      });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
