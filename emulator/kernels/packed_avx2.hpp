// Blocked multiplication for AVX2: every type is widened to f32. Columns of C in vector lanes, B in panels that stay in
// the first-level cache, A broadcast element by element. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"
#include "kernels/panels.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace jalapeno::emu {
namespace {

inline void put(const MultiplyArgs& x, uint32_t m, uint32_t n, float sum) {
  float& c = row(x.c, x.c_pitch, m)[n];
  c = x.accumulate ? c + sum : sum;
}

inline float horizontal(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// out[k][j] = in[j][k] for eight by eight.
inline void transpose8(const float* in, size_t in_pitch, float* out, size_t out_pitch) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + in_pitch * static_cast<size_t>(i));
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  // In order: where rows of `out` are shorter than eight, the next one overwrites what is too much.
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i)
    _mm256_storeu_ps(out + out_pitch * static_cast<size_t>(i), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i)
    _mm256_storeu_ps(out + out_pitch * static_cast<size_t>(i + 4), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
}

// panel[k][column] = in[column][k]: f32, or other words of 32 bits.
inline void transpose_panel(const float* in, size_t pitch, uint32_t rows, float* panel) {
  const uint32_t whole = rows / 8 * 8;
  for (uint32_t half = 0; half < kPanelColumns; half += 8)
    for (uint32_t k = 0; k < whole; k += 8)
      transpose8(in + pitch * half + k, pitch, panel + k * kPanelColumns + half, kPanelColumns);
  for (uint32_t k = whole; k < rows; ++k)
    for (uint32_t j = 0; j < kPanelColumns; ++j) std::memcpy(panel + k * kPanelColumns + j, in + pitch * j + k, 4);
}

// panel[k][column] from rows n.. of B [n, k], elements first.. of each.
inline void pack_columns(const MultiplyArgs& x, uint32_t n, uint32_t columns, uint32_t first, uint32_t rows,
                         float* panel) {
  static thread_local Scratch memory;
  float* wide = memory.reserve(size_t{kPanelColumns} * kPanelWords);
  const float* in = wide;
  size_t pitch = kPanelWords;
  const std::byte* b = x.b + x.b_pitch * n + hw::row_bytes(x.b_type, first);
  if (in_place(x.b_type, b, x.b_pitch) && columns == kPanelColumns) {
    in = reinterpret_cast<const float*>(b), pitch = x.b_pitch / 4;
  } else {
    for (uint32_t j = 0; j < columns; ++j) load(x.b_type, b + x.b_pitch * j, rows, wide + pitch * j);
    std::memset(wide + pitch * columns, 0, (kPanelColumns - columns) * pitch * 4);
  }
  transpose_panel(in, pitch, rows, panel);
}

// panel[k][column] from rows first.. of B [k, n], columns n.. of each.
inline void pack_by_rows(const MultiplyArgs& x, uint32_t n, uint32_t columns, uint32_t first, uint32_t rows,
                         float* panel) {
  const std::byte* b = x.b + x.b_pitch * first + hw::row_bytes(x.b_type, n);
  if (columns < kPanelColumns) std::memset(panel, 0, size_t{rows} * kPanelColumns * 4);
  for (uint32_t k = 0; k < rows; ++k) load(x.b_type, b + x.b_pitch * k, columns, panel + k * kPanelColumns);
}

template <int kM>
inline void panel_rows(const MultiplyArgs& x, uint32_t m, const Piece& p, const float* panel) {
  const float* group = p.group(m);
  __m256 sum[kM][2];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    __builtin_prefetch(row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + p.n, 1);
  }
  for (uint32_t k = 0; k < p.words; ++k) {
    const __m256 b0 = _mm256_load_ps(panel + k * kPanelColumns), b1 = _mm256_load_ps(panel + k * kPanelColumns + 8);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const __m256 av = _mm256_broadcast_ss(group + k * kGroup + i);
      sum[i][0] = _mm256_fmadd_ps(av, b0, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(av, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    float* c = row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + p.n;
    if (p.columns == kPanelColumns) {
      for (int half = 0; half < 2; ++half)
        _mm256_storeu_ps(c + half * 8,
                         p.add ? _mm256_add_ps(_mm256_loadu_ps(c + half * 8), sum[i][half]) : sum[i][half]);
    } else {
      float plain[kPanelColumns];
      for (int half = 0; half < 2; ++half) _mm256_storeu_ps(plain + half * 8, sum[i][half]);
      for (uint32_t j = 0; j < p.columns; ++j) c[j] = p.add ? c[j] + plain[j] : plain[j];
    }
  }
}

// group[word][row] of kGroup rows from widen(i, out), which makes the words of row i: where rows lie as far apart as a
// power of two, all of them meet in the same few lines of the cache.
template <class Widen>
inline void pack_group(uint32_t rows, uint32_t words, Widen widen, float* group) {
  static thread_local Scratch memory;
  float* wide = memory.reserve(size_t{8} * kPanelWords);
  for (uint32_t i = 0; i < rows; ++i) widen(i, wide + size_t{i} * kPanelWords);
  for (uint32_t w = 0; w < words; w += 8) transpose8(wide + w, kPanelWords, group + size_t{w} * kGroup, kGroup);
}

// Few rows of A stay in the cache, so that B is read along its rows; many do not.
inline bool stays_in_cache(const MultiplyArgs& x) { return size_t{x.m} * x.k * 4 <= 256 << 10; }

// group() of each_panel: words of row m + i from widen(m + i, first, words, out).
template <class Widen>
inline auto widened(Widen widen) {
  return [=](uint32_t m, uint32_t rows, const Piece& p) {
    pack_group(
        rows, p.words, [&](uint32_t i, float* words) { widen(m + i, p.first, p.words, words); }, p.group(m));
  };
}

inline void multiply_packed(const MultiplyArgs& x) {
  static thread_local Scratch panel_memory;
  float* panel = panel_memory.reserve(kPanelWords * kPanelColumns);
  each_panel(
      x, x.k, stays_in_cache(x), widened([&](uint32_t m, uint32_t first, uint32_t words, float* out) {
        load(x.a_type, x.a + x.a_pitch * m + hw::row_bytes(x.a_type, first), words, out);
      }),
      [&](const Piece& p) {
        x.rows_are_k ? pack_by_rows(x, p.n, p.columns, p.first, p.words, panel)
                     : pack_columns(x, p.n, p.columns, p.first, p.words, panel);
      },
      [&](auto some, uint32_t m, const Piece& p) { panel_rows<some>(x, m, p, panel); });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
