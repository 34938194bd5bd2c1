// Blocked multiplication for AVX-512: columns of C in vector lanes, B transposed in panels that stay in the first-level
// cache, A broadcast word by word. A "word" is what one 32-bit lane takes of a row: one f32, two bf16 or four bytes.
// Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"
#include "kernels/panels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__)

namespace jalapeno::emu {
namespace {

// Rows of `c` from m on; `columns` of the panel's 32 are real.
inline void put_vector(const MultiplyArgs& x, uint32_t m, uint32_t n, __m512 sum, uint32_t columns, bool add) {
  float* c = row(x.c, x.c_pitch, m) + n;
  const __mmask16 mask = columns >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << columns) - 1);
  if (add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c));
  _mm512_mask_storeu_ps(c, mask, sum);
}

// A panel's columns of a row of C, which will be written when their sums are ready.
inline void prefetch_columns(const MultiplyArgs& x, uint32_t m, uint32_t n) {
  const float* c = row(x.c, x.c_pitch, m) + n;
  __builtin_prefetch(c, 1), __builtin_prefetch(c + 16, 1);
}

// Rows that are in memory as they are multiplied.
struct PlainWords {
  static constexpr size_t kBytes = 4, kVectorBytes = 64;
  static __m512i words(const std::byte* p, __mmask16 some) { return _mm512_maskz_loadu_epi32(some, p); }
};

// Sixteen rows of sixteen words become sixteen vectors: word i of every row.
struct Transposed {
  __m512i v[16];
};
inline __attribute__((always_inline)) Transposed transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  Transposed out;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD),
                  c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88),
                  d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    out.v[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    out.v[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    out.v[i + 8] = _mm512_shuffle_i32x4(a, c, 0xDD);
    out.v[i + 12] = _mm512_shuffle_i32x4(b, d, 0xDD);
  }
  return out;
}
// kRows of them exist, all of sixteen words.
template <uint32_t kRows, class Source>
inline __attribute__((always_inline)) Transposed transpose_whole(const Source& source, const std::byte* p,
                                                                 size_t pitch) {
  __m512i r[16];
#pragma GCC unroll 16
  for (uint32_t i = 0; i < 16; ++i, p += pitch) {
    r[i] = i < kRows ? source.words(p, 0xFFFF) : _mm512_setzero_si512();
    asm("" : "+r"(p));  // else GCC 12 keeps sixteen addresses, on the stack
  }
  return transpose(r);
}
// `rows` of them exist, of them the `words` of a mask.
template <class Source>
inline Transposed transpose_some(const Source& source, const std::byte* p, size_t pitch, uint32_t rows,
                                 __mmask16 words) {
  __m512i r[16];
#pragma GCC unroll 16
  for (uint32_t i = 0; i < 16; ++i) r[i] = i < rows ? source.words(p + pitch * i, words) : _mm512_setzero_si512();
  return transpose(r);
}

// panel[word][column] from 32 rows of B, each `words` long. flip turns signed bytes into unsigned ones plus 128.
template <class Weights>
inline void pack_rows(const Weights& weights, const std::byte* b, size_t pitch, uint32_t columns, uint32_t words,
                      __m512i flip, void* panel) {
  auto* out = static_cast<__m512i*>(panel);
  for (uint32_t w = 0; w < words; w += 16) {
    const uint32_t n = std::min(words - w, 16u);
    for (uint32_t half = 0; half < 2; ++half) {
      __m512i* to = out + w * 2 + half;
      if (columns <= half * 16) {  // its lanes are never stored
        for (uint32_t i = 0; i < n; ++i) _mm512_store_si512(to + i * 2, _mm512_setzero_si512());
        continue;
      }
      const std::byte* from = b + pitch * half * 16 + w * Weights::kBytes;
      if (n == 16 && columns == kPanelColumns) {
        const Transposed t = transpose_whole<16>(weights, from, pitch);
#pragma GCC unroll 16
        for (uint32_t i = 0; i < 16; ++i) _mm512_store_si512(to + i * 2, _mm512_xor_si512(t.v[i], flip));
      } else {
        const Transposed t = transpose_some(weights, from, pitch, std::min(columns - half * 16, 16u),
                                            static_cast<__mmask16>((1u << n) - 1));
        for (uint32_t i = 0; i < n; ++i) _mm512_store_si512(to + i * 2, _mm512_xor_si512(t.v[i], flip));
      }
    }
  }
}

// One step of a sum. In assembly because GCC 12 otherwise moves the 24 sums of a block between registers and stack.
struct F32Words : PlainWords {
  static constexpr uint32_t kPerWord = 1;
  static constexpr bool kInteger = false;
  static __m512i load_some(const std::byte* p, uint32_t n) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static __m512 step(__m512 sum, __m512i a, __m512i b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};
// f16 on its way to f32.
struct HalfWords {
  static constexpr size_t kBytes = 2, kVectorBytes = 32;
  static __m512i words(const std::byte* p, __mmask16 some) {
    return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, p)));
  }
  static __m512i load_some(const std::byte* p, uint32_t n) { return words(p, static_cast<__mmask16>((1u << n) - 1)); }
};
#if defined(__AVX512BF16__)
struct Bf16Words : PlainWords {
  static constexpr uint32_t kPerWord = 2;
  static constexpr bool kInteger = false;
  static __m512i load_some(const std::byte* p, uint32_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1), p);
  }
  static __m512 step(__m512 sum, __m512i a, __m512i b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};
#endif
#if defined(__AVX512VNNI__)
struct I8Words : PlainWords {  // sums are int32 in the lanes of a float vector
  static constexpr uint32_t kPerWord = 4;
  static constexpr bool kInteger = true;
  static __m512 step(__m512 sum, __m512i a, __m512i b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    return sum;
  }
};
#endif

// kM rows of A, word by word, against one panel.
template <class Words, int kM>
__attribute__((noinline)) void panel_rows(const MultiplyArgs& x, uint32_t m, const Piece& p, const int32_t* panel) {
  const auto* group = reinterpret_cast<const int32_t*>(p.group(m));
  __m512 sum[kM][2];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    sum[i][0] = sum[i][1] = Words::kInteger ? _mm512_castsi512_ps(_mm512_set1_epi32(group[i])) : _mm512_setzero_ps();
    prefetch_columns(x, m + static_cast<uint32_t>(i), p.n);
  }
  for (const int32_t* end = panel + p.words * kPanelColumns; panel != end; panel += kPanelColumns) {
    const __m512i b0 = _mm512_load_si512(panel), b1 = _mm512_load_si512(panel + 16);
    group += kGroup;
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const __m512i av = _mm512_set1_epi32(group[i]);
      sum[i][0] = Words::step(sum[i][0], av, b0);
      sum[i][1] = Words::step(sum[i][1], av, b1);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; ++half) {
      if (p.columns <= half * 16) break;
      const uint32_t at = p.n + half * 16, here = p.columns - half * 16;
      if constexpr (Words::kInteger) {
        auto* c = reinterpret_cast<int32_t*>(row(x.c, x.c_pitch, m + static_cast<uint32_t>(i))) + at;
        const __mmask16 mask = here >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << here) - 1);
        __m512i s = _mm512_castps_si512(sum[i][half]);
        if (p.add) s = _mm512_add_epi32(s, _mm512_maskz_loadu_epi32(mask, c));
        _mm512_mask_storeu_epi32(c, mask, s);
      } else {
        put_vector(x, m + static_cast<uint32_t>(i), at, sum[i][half], here, p.add);
      }
    }
}

// Up to kGroup rows of A: first what their sums begin with where panels hold B + 128, then [word][row].
template <bool kInteger>
inline void pack_group(const std::byte* a, size_t pitch, uint32_t rows, uint32_t words, int32_t* group) {
  constexpr auto kRows = static_cast<__mmask16>((1u << kGroup) - 1);
  __m512i sums = _mm512_setzero_si512();
  int32_t* to = group + kGroup;
  for (uint32_t w = 0; w < words; w += 16, a += 64, to += 16 * kGroup) {
    const uint32_t n = std::min(words - w, 16u);
    const Transposed t = n == 16 && rows == kGroup
                             ? transpose_whole<kGroup>(PlainWords{}, a, pitch)
                             : transpose_some(PlainWords{}, a, pitch, rows, static_cast<__mmask16>((1u << n) - 1));
#pragma GCC unroll 16
    for (uint32_t i = 0; i < 16; ++i) {
      if (i == n) break;
      _mm512_mask_storeu_epi32(to + i * kGroup, kRows, t.v[i]);
#if defined(__AVX512VNNI__)
      if constexpr (kInteger) sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), t.v[i]);
#endif
    }
  }
  if constexpr (kInteger)
    _mm512_mask_storeu_epi32(group, kRows, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7)));
}

// k is a multiple of Words::kPerWord. pack(piece, panel) brings a part of B into lane order.
template <class Words, class Pack>
void multiply_panels(const MultiplyArgs& x, Pack pack) {
  static thread_local Scratch panel_memory;
  auto* panel = reinterpret_cast<int32_t*>(panel_memory.reserve(kPanelWords * kPanelColumns));
  const uint32_t words = x.k / Words::kPerWord;
  constexpr size_t kKept = 384 << 10;  // of A, in the second-level cache
  each_panel(
      x, words, size_t{x.m} * words * 4 <= kKept,
      [&](uint32_t m, uint32_t rows, const Piece& p) {
        pack_group<Words::kInteger>(x.a + x.a_pitch * m + size_t{p.first} * 4, x.a_pitch, rows, p.words,
                                    reinterpret_cast<int32_t*>(p.group(m)));
      },
      [&](const Piece& p) { pack(p, panel); },
      [&](auto some, uint32_t m, const Piece& p) { panel_rows<Words, some>(x, m, p, panel); });
}

// B is [n, k].
template <class Words, class Weights = Words>
void multiply_packed(const MultiplyArgs& x, const Weights& weights = {}) {
  const __m512i flip = Words::kInteger ? _mm512_set1_epi8(-128) : _mm512_setzero_si512();
  multiply_panels<Words>(x, [&](const Piece& p, int32_t* panel) {
    pack_rows(weights, x.b + x.b_pitch * p.n + p.first * Weights::kBytes, x.b_pitch, p.columns, p.words, flip, panel);
  });
}

// B is [k, n], both f32 or both bf16: its rows already have the columns in lanes.
template <class Words>
void multiply_packed_by_rows(const MultiplyArgs& x) {
  multiply_panels<Words>(x, [&](const Piece& p, int32_t* panel) {
    for (uint32_t i = 0; i < p.words; ++i) {
      auto* out = reinterpret_cast<__m512i*>(panel) + i * 2;
      const std::byte* b = x.b + x.b_pitch * size_t{p.first + i} * Words::kPerWord;
      if constexpr (Words::kPerWord == 1) {
        for (uint32_t half = 0; half < 2; ++half) {
          const uint32_t left = p.columns > half * 16 ? p.columns - half * 16 : 0;
          const __mmask16 mask = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
          _mm512_store_si512(out + half, _mm512_maskz_loadu_epi32(mask, b + size_t{p.n + half * 16} * 4));
        }
      } else {
        const auto mask = static_cast<__mmask32>((uint64_t{1} << p.columns) - 1);
        const __m512i even = _mm512_maskz_loadu_epi16(mask, b + size_t{p.n} * 2),
                      odd = _mm512_maskz_loadu_epi16(mask, b + x.b_pitch + size_t{p.n} * 2);
        const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                      second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        _mm512_store_si512(out, _mm512_permutex2var_epi64(low, first, high));
        _mm512_store_si512(out + 1, _mm512_permutex2var_epi64(low, second, high));
      }
    }
  });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
