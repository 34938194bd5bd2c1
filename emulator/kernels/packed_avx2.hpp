// Blocked multiplication for AVX2: every type is widened to f32. Columns of C in vector lanes, B in panels that stay in
// the first-level cache, A broadcast element by element. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace jalapeno::emu {
namespace {

constexpr uint32_t kPanelColumns = 16, kPanelWords = 256;  // 16 KiB of f32, or of other words of 32 bits
constexpr int kGroup = 6;  // rows of A that share a look at the panel: 12 sums, and the rest of the registers for B
constexpr size_t kGroupWords = size_t{kPanelWords} * kGroup;

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

// What is multiplied at a time: columns n.. of C, words first.. of the depth.
struct Piece {
  uint32_t n, columns, first, words;
  float* groups;
  bool add;                                                                     // C has something to be added to
  float* group(uint32_t m) const { return groups + m / kGroup * kGroupWords; }  // of rows m.. of A
};

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

// The part of B that the next panel takes, asked for line by line between the groups of rows that meet this one.
class Ahead {
 public:
  Ahead(const std::byte* data, size_t pitch, uint32_t rows, uint64_t row_bytes, uint32_t groups)
      : at_(reinterpret_cast<uintptr_t>(data)),
        pitch_(pitch),
        lines_(static_cast<uint32_t>((row_bytes + 63) / 64)),
        left_(rows * lines_),
        share_((left_ + groups - 1) / groups) {}
  void ask() {
    for (uint32_t i = std::min(share_, left_); i > 0; --i, --left_) {
      __builtin_prefetch(reinterpret_cast<const void*>(at_ + size_t{line_} * 64), 0, 2);
      if (++line_ == lines_) line_ = 0, at_ += pitch_;
    }
  }

 private:
  uintptr_t at_;  // no pointer: behind the last row it may be anywhere
  size_t pitch_;
  uint32_t lines_, left_, share_, line_ = 0;
};

// Calls pack(piece) and rows(some, m, piece) for all of C and of a depth of so many words. widen(m, first, words, out)
// makes words of a row of A. Few rows of A stay in the cache, so that B is read along its rows; many do not, and its
// panels go down the columns.
template <class Widen, class Pack, class Rows>
inline void each_panel(const MultiplyArgs& x, uint32_t depth, Widen widen, Pack pack, Rows rows) {
  static thread_local Scratch memory;
  const bool along_rows = size_t{x.m} * x.k * 4 <= 256 << 10;
  const uint32_t across = (x.n + kPanelColumns - 1) / kPanelColumns, down = (depth + kPanelWords - 1) / kPanelWords,
                 groups = (x.m + kGroup - 1) / kGroup, per_word = (x.k + depth - 1) / depth;
  const size_t level_words = groups * kGroupWords;
  float* packed = memory.reserve((along_rows ? down : 1) * level_words + 8);  // and what the last group has too much
  const auto piece = [&](uint32_t i) {
    const uint32_t level = along_rows ? i % down : i / across, n = (along_rows ? i / down : i % across) * kPanelColumns,
                   first = level * kPanelWords;
    return Piece{n,
                 std::min(x.n - n, kPanelColumns),
                 first,
                 std::min(depth - first, kPanelWords),
                 packed + (along_rows ? level * level_words : 0),
                 x.accumulate || level > 0};
  };
  for (uint32_t i = 0; i < across * down; ++i) {
    const Piece p = piece(i);
    for (uint32_t m = 0; p.n == 0 && m < x.m; m += kGroup)
      pack_group(
          std::min<uint32_t>(x.m - m, kGroup), p.words,
          [&](uint32_t r, float* words) { widen(m + r, p.first, p.words, words); }, p.group(m));
    pack(p);
    const Piece next = i + 1 < across * down ? piece(i + 1) : p;
    const uint32_t first_k = next.first * per_word, length = next.words * per_word;
    Ahead ahead = x.rows_are_k ? Ahead(x.b + x.b_pitch * first_k + hw::row_bytes(x.b_type, next.n), x.b_pitch, length,
                                       hw::row_bytes(x.b_type, next.columns), groups)
                               : Ahead(x.b + x.b_pitch * next.n + hw::row_bytes(x.b_type, first_k), x.b_pitch,
                                       next.columns, hw::row_bytes(x.b_type, length), groups);
    row_blocks<kGroup>(x.m, [&](auto some, uint32_t m) {
      ahead.ask();
      rows(some, m, p);
    });
  }
}

inline void multiply_packed(const MultiplyArgs& x) {
  static thread_local Scratch panel_memory;
  float* panel = panel_memory.reserve(kPanelWords * kPanelColumns);
  each_panel(
      x, x.k,
      [&](uint32_t m, uint32_t first, uint32_t words, float* out) {
        load(x.a_type, x.a + x.a_pitch * m + hw::row_bytes(x.a_type, first), words, out);
      },
      [&](const Piece& p) {
        x.rows_are_k ? pack_by_rows(x, p.n, p.columns, p.first, p.words, panel)
                     : pack_columns(x, p.n, p.columns, p.first, p.words, panel);
      },
      [&](auto some, uint32_t m, const Piece& p) { panel_rows<some>(x, m, p, panel); });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
