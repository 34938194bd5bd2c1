// Blocked multiplication of integers for AVX2: bytes, and blocks of them with a scale, become words of two 16-bit
// integers, which one instruction multiplies and adds up exactly. Otherwise as packed_avx2.hpp. Included by
// multiply.cpp only.
#pragma once
#include "kernels/blocks.hpp"
#include "kernels/packed_avx2.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace jalapeno::emu {
namespace {

constexpr uint32_t kBlockWords = 16;

inline void store_words(int32_t* out, __m256i words) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words); }

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

// A block's words, and its scale.
template <class Block>
inline float widen_block(const std::byte* p, int32_t* out) {
  const __m256i v = signed_block<Block>(p);
  store_words(out, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)));
  store_words(out + 8, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)));
  return block_scale<Block>(p);
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

// Adds `words` words of kM rows of A times the panel. In assembly because GCC 12 otherwise keeps sums on the stack.
template <int kM>
[[gnu::always_inline]] inline void add_pairs(const float* group, uint32_t words, const int32_t* panel,
                                             __m256i (&sum)[kM][2]) {
  for (uint32_t w = 0; w < words; ++w) {
    const auto* b = reinterpret_cast<const __m256i*>(panel + w * kPanelColumns);
    const __m256i b0 = _mm256_load_si256(b), b1 = _mm256_load_si256(b + 1);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      __m256i s0 = sum[i][0], s1 = sum[i][1], t0, t1;
      asm("vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpmaddwd %6, %2, %2\n\tvpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
          : "+x"(s0), "+x"(s1), "=&x"(t0), "=&x"(t1)
          : "m"(group[w * kGroup + static_cast<uint32_t>(i)]), "x"(b0), "x"(b1));
      sum[i][0] = s0, sum[i][1] = s1;
    }
  }
}

template <int kM>
inline void byte_rows(const MultiplyArgs& x, uint32_t m, const Piece& p, const int32_t* panel) {
  __m256i sum[kM][2];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
  add_pairs<kM>(p.group(m), p.words, panel, sum);
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
      x, (x.k + 1) / 2, widen_a,
      [&](const Piece& p) {
        pack_pairs(
            p.columns, p.words,
            [&](uint32_t j, int32_t* out) { widen(x.b + x.b_pitch * (p.n + j), p.first, p.words, out); }, panel);
      },
      [&](auto rows, uint32_t m, const Piece& p) { byte_rows<rows>(x, m, p, panel); });
}

// A block of B for every column of the panel: its scale.
using Scales = float[kPanelColumns];

// `scale` has a value for each block of a row of A, rows `scale_pitch` apart. Inlined, GCC 12 keeps fewer of the
// integers in registers: a third slower.
template <int kM>
[[gnu::noinline]] void quantised_rows(const MultiplyArgs& x, const float* scale, size_t scale_pitch, uint32_t m,
                                      const Piece& p, const int32_t* panel, const Scales* scales) {
  const float* group = p.group(m);
  alignas(32) float sum[kM][kPanelColumns] = {};  // in memory: a block's integers take the registers
  for (uint32_t k = 0; k < p.words / kBlockWords; ++k) {
    __m256i dot[kM][2];
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) dot[i][0] = dot[i][1] = _mm256_setzero_si256();
    add_pairs<kM>(group + size_t{k} * kBlockWords * kGroup, kBlockWords, panel + k * kBlockWords * kPanelColumns, dot);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const __m256 factor = _mm256_set1_ps(scale[scale_pitch * static_cast<size_t>(i) + k]);
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
  constexpr uint32_t kBlocks = kPanelWords / kBlockWords;
  static thread_local Scratch panel_memory, scale_memory;
  auto* panel = reinterpret_cast<int32_t*>(panel_memory.reserve(kPanelWords * kPanelColumns));
  const uint32_t blocks = x.k / 32;
  float* a_scales = scale_memory.reserve(size_t{x.m} * blocks);
  const auto widen = [](auto kind, const std::byte* row, uint32_t first, uint32_t words, int32_t* out, float* scale,
                        size_t apart) {
    using Kind = decltype(kind);
    const std::byte* p = row + size_t{first} / kBlockWords * Kind::bytes;
    for (uint32_t k = 0; k < words / kBlockWords; ++k)
      scale[k * apart] = widen_block<Kind>(p + k * Kind::bytes, out + k * kBlockWords);
  };
  const auto widen_a = [&](uint32_t m, uint32_t first, uint32_t words, float* out) {
    widen(Q8_0{}, x.a + x.a_pitch * m, first, words, reinterpret_cast<int32_t*>(out),
          a_scales + size_t{m} * blocks + first / kBlockWords, 1);
  };
  alignas(32) Scales scales[kBlocks] = {};
  each_panel(
      x, blocks * kBlockWords, widen_a,
      [&](const Piece& p) {
        pack_pairs(
            p.columns, p.words,
            [&](uint32_t j, int32_t* out) {
              widen(Block{}, x.b + x.b_pitch * (p.n + j), p.first, p.words, out, &scales[0][j], kPanelColumns);
            },
            panel);
      },
      [&](auto rows, uint32_t m, const Piece& p) {
        quantised_rows<rows>(x, a_scales + size_t{m} * blocks + p.first / kBlockWords, blocks, m, p, panel, scales);
      });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
