// Blocked multiplication for AVX2: every type is widened to f32. Columns of C in vector lanes, B in panels that stay in
// the first-level cache, A broadcast element by element. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace jalapeno::emu {
namespace {

constexpr uint32_t kPanelColumns = 16, kPanelRows = 256;  // 16 KiB
constexpr int kGroup = 6;  // rows of A that share a look at the panel: 12 sums, and the rest of the registers for B

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
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + out_pitch * static_cast<size_t>(i), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + out_pitch * static_cast<size_t>(i + 4), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// panel[k][column] = in[column][k]: f32, or other words of 32 bits.
inline void transpose_panel(const float* in, size_t pitch, uint32_t rows, float* panel) {
  uint32_t k = 0;
  for (; k + 8 <= rows; k += 8)
    for (uint32_t half = 0; half < kPanelColumns; half += 8)
      transpose8(in + pitch * half + k, pitch, panel + k * kPanelColumns + half, kPanelColumns);
  for (; k < rows; ++k)
    for (uint32_t j = 0; j < kPanelColumns; ++j) std::memcpy(panel + k * kPanelColumns + j, in + pitch * j + k, 4);
}

// panel[k][column] from rows n.. of B [n, k], elements first.. of each.
inline void pack_columns(const MultiplyArgs& x, uint32_t n, uint32_t columns, uint32_t first, uint32_t rows,
                         float* panel) {
  static thread_local Scratch memory;
  float* wide = memory.reserve(size_t{kPanelColumns} * kPanelRows);
  const float* in = wide;
  size_t pitch = kPanelRows;
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
inline void panel_rows(const MultiplyArgs& x, const float* a, size_t a_pitch, uint32_t m, uint32_t n, uint32_t columns,
                       uint32_t rows, const float* panel, bool add) {
  __m256 sum[kM][2];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
  for (uint32_t k = 0; k < rows; ++k) {
    const __m256 b0 = _mm256_load_ps(panel + k * kPanelColumns), b1 = _mm256_load_ps(panel + k * kPanelColumns + 8);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const __m256 av = _mm256_broadcast_ss(a + a_pitch * static_cast<size_t>(i) + k);
      sum[i][0] = _mm256_fmadd_ps(av, b0, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(av, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    float* c = row(x.c, x.c_pitch, m + static_cast<uint32_t>(i)) + n;
    if (columns == kPanelColumns) {
      for (int half = 0; half < 2; ++half)
        _mm256_storeu_ps(c + half * 8, add ? _mm256_add_ps(_mm256_loadu_ps(c + half * 8), sum[i][half]) : sum[i][half]);
    } else {
      float plain[kPanelColumns];
      for (int half = 0; half < 2; ++half) _mm256_storeu_ps(plain + half * 8, sum[i][half]);
      for (uint32_t j = 0; j < columns; ++j) c[j] = add ? c[j] + plain[j] : plain[j];
    }
  }
}

// Calls panel(n, columns, first, some) for all columns and all of the depth, `most` at a time. Few rows of A stay in
// the cache, so that B is read along its rows; many do not, and its panels go down the columns.
template <class Panel>
inline void each_panel(const MultiplyArgs& x, uint32_t most, uint32_t depth, Panel panel) {
  const bool along_rows = size_t{x.m} * x.k * 4 <= 256 << 10;
  const uint32_t across = (x.n + kPanelColumns - 1) / kPanelColumns, down = (depth + most - 1) / most;
  for (uint32_t i = 0; i < across * down; ++i) {
    const uint32_t n = (along_rows ? i / down : i % across) * kPanelColumns,
                   first = (along_rows ? i % down : i / across) * most;
    panel(n, std::min(x.n - n, kPanelColumns), first, std::min(depth - first, most));
  }
}

inline void multiply_packed(const MultiplyArgs& x) {
  static thread_local Scratch panel_memory, wide_memory;
  float* panel = panel_memory.reserve(kPanelRows * kPanelColumns);
  const float* a = reinterpret_cast<const float*>(x.a);
  size_t a_pitch = x.a_pitch / 4;
  if (!in_place(x.a_type, x.a, x.a_pitch))
    a = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, wide_memory), a_pitch = x.k;
  each_panel(x, kPanelRows, x.k, [&](uint32_t n, uint32_t columns, uint32_t k, uint32_t rows) {
    x.rows_are_k ? pack_by_rows(x, n, columns, k, rows, panel) : pack_columns(x, n, columns, k, rows, panel);
    row_blocks<kGroup>(x.m, [&](auto some, uint32_t m) {
      panel_rows<some>(x, a + a_pitch * m + k, a_pitch, m, n, columns, rows, panel, x.accumulate || k > 0);
    });
  });
}

// Rows of weights as f32, sixteen at a time from registers. kPairs: the eight even ones come first, because a word of
// two bf16 is two f32 without moving lanes.
struct F32Rows {
  static constexpr bool kPairs = false;
  static void sixteen(const std::byte* row, uint32_t k, __m256& b0, __m256& b1) {
    const auto* p = reinterpret_cast<const float*>(row) + k;
    b0 = _mm256_loadu_ps(p), b1 = _mm256_loadu_ps(p + 8);
  }
  static float one(const std::byte* row, uint32_t k) { return reinterpret_cast<const float*>(row)[k]; }
};
struct Bf16Rows {
  static constexpr bool kPairs = true;
  static void sixteen(const std::byte* row, uint32_t k, __m256& b0, __m256& b1) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + size_t{k} * 2));
    b0 = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    b1 = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
  }
  static float one(const std::byte* row, uint32_t k) { return from_bf16(read16(row + size_t{k} * 2)); }
};
template <class Fp>
struct Fp8Rows {
  static constexpr bool kPairs = false;
  static void sixteen(const std::byte* row, uint32_t k, __m256& b0, __m256& b1) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k));
    const __m256 factor = _mm256_set1_ps(Fp8Halves<Fp>::kFactor);
    b0 = _mm256_mul_ps(_mm256_cvtph_ps(Fp8Halves<Fp>::of(codes)), factor);
    b1 = _mm256_mul_ps(_mm256_cvtph_ps(Fp8Halves<Fp>::of(_mm_srli_si128(codes, 8))), factor);
  }
  static float one(const std::byte* row, uint32_t k) { return Fp::from(static_cast<uint8_t>(row[k])); }
};
struct MxFp8Rows {  // rows are whole blocks
  static constexpr bool kPairs = false;
  static void sixteen(const std::byte* row, uint32_t k, __m256& b0, __m256& b1) {
    const std::byte* block = row + size_t{k} / 32 * 33;
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 1 + k % 32));
    // In two steps: the two factors' product may be too large.
    const __m256 factor = _mm256_set1_ps(Fp8Halves<E4M3>::kFactor),
                 scale = _mm256_set1_ps(kE8m0[static_cast<uint8_t>(*block)]);
    b0 = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtph_ps(Fp8Halves<E4M3>::of(codes)), factor), scale);
    b1 = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtph_ps(Fp8Halves<E4M3>::of(_mm_srli_si128(codes, 8))), factor), scale);
  }
  static float one(const std::byte* row, uint32_t k) {
    const std::byte* block = row + size_t{k} / 32 * 33;
    return kE8m0[static_cast<uint8_t>(*block)] * E4M3::from(static_cast<uint8_t>(block[1 + k % 32]));
  }
};

// A few rows of A, f32: rows n, n + apart, .. of B [n, k] as inner products, straight from memory.
template <class Rows, int kM, int kN>
inline void dot_rows(const MultiplyArgs& x, const float* a, size_t a_pitch, uint32_t m, uint32_t n, uint32_t apart) {
  const std::byte* b = x.b + x.b_pitch * n;
  const size_t stride = x.b_pitch * apart;
  __m256 sum[kM][kN];
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) sum[i][j] = _mm256_setzero_ps();
  const uint32_t whole = x.k / 16 * 16;
  for (uint32_t k = 0; k < whole; k += 16) {
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) {
      __m256 b0, b1;
      Rows::sixteen(b + stride * static_cast<size_t>(j), k, b0, b1);
#pragma GCC unroll 4
      for (int i = 0; i < kM; ++i) {
        const float* av = a + a_pitch * (m + static_cast<uint32_t>(i)) + k;
        sum[i][j] = _mm256_fmadd_ps(_mm256_loadu_ps(av), b0, sum[i][j]);
        sum[i][j] = _mm256_fmadd_ps(_mm256_loadu_ps(av + 8), b1, sum[i][j]);
      }
    }
  }
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kN; ++j) {
      float s = horizontal(sum[i][j]);
      for (uint32_t k = whole; k < x.k; ++k)
        s += a[a_pitch * (m + static_cast<uint32_t>(i)) + k] * Rows::one(b + stride * static_cast<size_t>(j), k);
      put(x, m + static_cast<uint32_t>(i), n + static_cast<uint32_t>(j) * apart, s);
    }
}

template <class Rows>
void multiply_dot(const MultiplyArgs& x) {
  static thread_local Scratch memory;
  const float* a = reinterpret_cast<const float*>(x.a);
  size_t pitch = x.a_pitch / 4;
  if (Rows::kPairs || !in_place(x.a_type, x.a, x.a_pitch)) {
    float* wide = as_floats(x.a_type, x.a, x.a_pitch, x.m, x.k, memory);
    for (uint32_t m = 0; Rows::kPairs && m < x.m; ++m)
      for (uint32_t k = 0; k + 16 <= x.k; k += 16) {
        float *out = wide + size_t{m} * x.k + k, plain[16];
        std::memcpy(plain, out, sizeof plain);
        for (uint32_t i = 0; i < 8; ++i) out[i] = plain[2 * i], out[8 + i] = plain[2 * i + 1];
      }
    a = wide, pitch = x.k;
  }
  far_columns<4>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
    row_blocks<3>(x.m, [&](auto rows, uint32_t m) { dot_rows<Rows, rows, some>(x, a, pitch, m, n, apart); });
  });
}

// Calls f with how rows of B are read as they lie. False: they are not.
template <class F>
inline bool with_rows(const MultiplyArgs& x, F f) {
  switch (x.b_type) {
    case DType::kF32:
      return in_place(x.b_type, x.b, x.b_pitch) && (f(F32Rows{}), true);
    case DType::kBF16:
      return f(Bf16Rows{}), true;
    case DType::kE4M3:
      return f(Fp8Rows<E4M3>{}), true;
    case DType::kE5M2:
      return f(Fp8Rows<E5M2>{}), true;
    case DType::kMXFP8:
      return f(MxFp8Rows{}), true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace jalapeno::emu

#endif
