// Multiplication of blocks of integers (q8_0 by q8_0, q4_0 or MXFP4) for AVX-512 with VNNI: integer products inside a
// block, f32 between blocks. VPDPBUSD takes unsigned by signed bytes, so weights are read as value + 128 (or + 8, +
// 12), and what that adds, which depends on the activations only, is taken away at the start. Included by multiply.cpp
// only.
#pragma once
#include "kernels/blocks.hpp"
#include "kernels/packed.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

namespace jalapeno::emu {
namespace {

// The rows of A in block form, taken apart: bytes without the scales between them.
struct Quantised {
  const int8_t* bytes;   // [m][k]
  const float* scale;    // [m][k / 32]
  const int32_t* shift;  // [m][k / 32]: what a block's sum is too large by, negated
  uint32_t k;
};
inline Quantised take_apart(const MultiplyArgs& x, int32_t bias) {
  static thread_local Scratch memory;
  const size_t blocks = x.k / 32, all = blocks * x.m;
  float* base = memory.reserve(all * 8 + 2 * (all + 16) + 64);
  auto* bytes = reinterpret_cast<int8_t*>(base);
  float* scale = base + all * 8;
  auto* shift = reinterpret_cast<int32_t*>(scale + (all + 15) / 16 * 16);
  for (uint32_t m = 0; m < x.m; ++m) {
    const std::byte* p = x.a + x.a_pitch * m;
    for (size_t b = 0; b < blocks; ++b, p += 34) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + size_t{m} * x.k + b * 32), v);
      scale[m * blocks + b] = _cvtsh_ss(read16(p));
      const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), v);
      __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
      s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
      shift[m * blocks + b] = -bias * (_mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 1));
    }
  }
  return {bytes, scale, shift, x.k};
}

template <int kM>
inline void quantised_rows(const MultiplyArgs& x, const Quantised& a, uint32_t m, uint32_t n, uint32_t columns,
                           uint32_t first_block, uint32_t blocks, const __m512i* panel, const float* scales, bool add) {
  __m512 sum[kM][2];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    prefetch_columns(x, m + static_cast<uint32_t>(i), n);
  }
  const uint32_t all = a.k / 32;
  for (uint32_t block = 0; block < blocks; ++block) {
    __m512i dot[kM][2];
    const size_t at = size_t{m} * all + first_block + block;
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) dot[i][0] = dot[i][1] = _mm512_set1_epi32(a.shift[at + static_cast<size_t>(i) * all]);
    const int8_t* bytes = a.bytes + size_t{m} * a.k + size_t{first_block + block} * 32;
#pragma GCC unroll 8
    for (int w = 0; w < 8; ++w) {
      const __m512i b0 = _mm512_load_si512(panel + (block * 8 + static_cast<uint32_t>(w)) * 2),
                    b1 = _mm512_load_si512(panel + (block * 8 + static_cast<uint32_t>(w)) * 2 + 1);
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i) {
        int32_t word;
        std::memcpy(&word, bytes + static_cast<size_t>(i) * a.k + w * 4, 4);
        const __m512i av = _mm512_set1_epi32(word);
        dot[i][0] = _mm512_dpbusd_epi32(dot[i][0], b0, av);
        dot[i][1] = _mm512_dpbusd_epi32(dot[i][1], b1, av);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const __m512 factor = _mm512_set1_ps(a.scale[at + static_cast<size_t>(i) * all]);
      for (int half = 0; half < 2; ++half)
        sum[i][half] = _mm512_fmadd_ps(
            _mm512_cvtepi32_ps(dot[i][half]),
            _mm512_mul_ps(factor, _mm512_load_ps(scales + (block * 2 + static_cast<uint32_t>(half)) * 16)),
            sum[i][half]);
    }
  }
  for (int i = 0; i < kM; ++i)
    for (uint32_t half = 0; half < 2 && half * 16 < columns; ++half)
      put_vector(x, m + static_cast<uint32_t>(i), n + half * 16, sum[i][half], columns - half * 16, add);
}

template <class Block>
void multiply_quantised(const MultiplyArgs& x) {
  constexpr uint32_t kBlocks = kPanelWords / 8;
  static thread_local Scratch panel_memory, scale_memory;
  auto* panel = reinterpret_cast<int32_t*>(panel_memory.reserve(kPanelWords * kPanelColumns));
  auto* vectors = reinterpret_cast<__m512i*>(panel);
  float* scales = scale_memory.reserve(kBlocks * 32);
  alignas(64) std::byte plain[16][64];  // two blocks of sixteen rows
  const Quantised a = take_apart(x, kExcess<Block>);
  const uint32_t all = x.k / 32;
  for (uint32_t n = 0; n < x.n; n += kPanelColumns) {
    const uint32_t columns = std::min(x.n - n, kPanelColumns);
    for (uint32_t first = 0; first < all; first += kBlocks) {
      const uint32_t here = std::min(all - first, kBlocks);
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t rows = columns > half * 16 ? std::min(columns - half * 16, 16u) : 0;
        for (uint32_t block = 0; block < here; block += 2) {
          const uint32_t pair = std::min(here - block, 2u);
          alignas(64) float scale[2][16] = {};
          for (uint32_t r = 0; r < rows; ++r)
            for (uint32_t j = 0; j < pair; ++j) {
              const std::byte* p = x.b + x.b_pitch * (n + half * 16 + r) + Block::bytes * (first + block + j);
              _mm_prefetch(reinterpret_cast<const char*>(p + x.b_pitch * kPanelColumns), _MM_HINT_T1);
              _mm256_store_si256(reinterpret_cast<__m256i*>(plain[r] + j * 32), unsigned_block<Block>(p));
              scale[j][r] = block_scale<Block>(p);
            }
          const Transposed t = transpose(PlainWords{}, plain[0], 64, rows, pair == 2 ? 0xFFFF : 0xFF);
          for (uint32_t w = 0; w < pair * 8; ++w) _mm512_store_si512(vectors + (block * 8 + w) * 2 + half, t.v[w]);
          for (uint32_t j = 0; j < pair; ++j) std::memcpy(scales + ((block + j) * 2 + half) * 16, scale[j], 64);
        }
      }
      row_blocks<6>(x.m, [&](auto rows, uint32_t m) {
        quantised_rows<rows>(x, a, m, n, columns, first, here, vectors, scales, x.accumulate || first > 0);
      });
    }
  }
}

// A few rows of A: weights are read once, in their own order, two blocks to a vector.
struct SpreadRows {
  const int8_t* bytes;   // [m][k]
  const float* factor;   // [m][k / 4]: the scale of A for each lane's four bytes
  const int32_t* shift;  // [m][k / 4]: what the lane's sum is too large by, negated
};

// Value + bias of two blocks that follow each other, and their scales, each in the lanes of its block.
template <class Block>
inline __m512i unsigned_pair(const std::byte* p) {
  const auto* first = reinterpret_cast<const __m128i*>(p + Block::at);
  const auto* second = reinterpret_cast<const __m128i*>(p + Block::at + Block::bytes);
  if constexpr (Block::nibbles) {
    const __m512i both =
        _mm512_mask_broadcast_i64x2(_mm512_broadcast_i64x2(_mm_loadu_si128(first)), 0xF0, _mm_loadu_si128(second));
    const __m512i right = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    const __m512i codes = _mm512_and_si512(_mm512_srlv_epi64(both, right), _mm512_set1_epi8(15));
    if constexpr (std::is_same_v<Block, MxFp4>)
      return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(mxfp4_plus_12()), codes);
    else
      return codes;
  } else {
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first))),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
    return _mm512_xor_si512(both, _mm512_set1_epi8(-128));
  }
}
template <class Block>
inline __m512 scale_pair(const std::byte* p) {
  __m128 both;
  if constexpr (std::is_same_v<Block, MxFp4>)
    both = _mm_setr_ps(block_scale<Block>(p), block_scale<Block>(p + Block::bytes), 0, 0);
  else
    both = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int32_t>(read16(p) | uint32_t{read16(p + Block::bytes)} << 16)));
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(both));
}

template <class Block, int kM, int kN>
inline void quantised_dot(const MultiplyArgs& x, const SpreadRows& a, uint32_t m, uint32_t n, uint32_t apart) {
  const std::byte* b = x.b + x.b_pitch * n;
  const size_t stride = x.b_pitch * apart, blocks = x.k / 32, pairs = blocks / 2;
  __m512 sum[kM][kN];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) sum[i][j] = _mm512_setzero_ps();
  for (size_t pair = 0; pair < pairs; ++pair) {
    __m512i bytes[kN];
    __m512 scale[kN];
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) {
      const std::byte* p = b + stride * static_cast<size_t>(j) + pair * 2 * Block::bytes;
      stream_ahead(p);
      bytes[j] = unsigned_pair<Block>(p);
      scale[j] = scale_pair<Block>(p);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const size_t at = (static_cast<size_t>(i) + m) * x.k + pair * 64;
      const __m512i av = _mm512_loadu_si512(a.bytes + at), shift = _mm512_loadu_si512(a.shift + at / 4);
      const __m512 factor = _mm512_loadu_ps(a.factor + at / 4);
#pragma GCC unroll 4
      for (int j = 0; j < kN; ++j)
        sum[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(shift, bytes[j], av)),
                                    _mm512_mul_ps(scale[j], factor), sum[i][j]);
    }
  }
  if (blocks % 2 != 0) {
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const size_t at = (static_cast<size_t>(i) + m) * x.k + pairs * 64;
      const __m256i av = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.bytes + at)),
                    shift = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.shift + at / 4));
#pragma GCC unroll 4
      for (int j = 0; j < kN; ++j) {
        const std::byte* p = b + stride * static_cast<size_t>(j) + pairs * 2 * Block::bytes;
        const __m256 factors = _mm256_mul_ps(_mm256_set1_ps(block_scale<Block>(p)), _mm256_loadu_ps(a.factor + at / 4));
        const __m256 dot = _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(shift, unsigned_block<Block>(p), av));
        sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_zextps256_ps512(_mm256_mul_ps(dot, factors)));
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) {
      float& c = row(x.c, x.c_pitch, m + static_cast<uint32_t>(i))[n + static_cast<uint32_t>(j) * apart];
      const float s = _mm512_reduce_add_ps(sum[i][j]);
      c = x.accumulate ? c + s : s;
    }
}

template <class Block>
void multiply_quantised_dot(const MultiplyArgs& x) {
  static thread_local Scratch memory;
  const size_t all = size_t{x.m} * x.k;
  float* base = memory.reserve(all * 3 / 4 + 64);
  auto* bytes = reinterpret_cast<int8_t*>(base);
  float* factor = base + all / 4;
  auto* shift = reinterpret_cast<int32_t*>(factor + all / 4);
  size_t at = 0;
  for (uint32_t m = 0; m < x.m; ++m)
    for (const std::byte *p = x.a + x.a_pitch * m, *end = p + x.k / 32 * 34; p < end; p += 34, at += 32) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + at), v);
      _mm256_storeu_ps(factor + at / 4, _mm256_set1_ps(_cvtsh_ss(read16(p))));
      const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(Block::bias), v);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(shift + at / 4), _mm256_sub_epi32(_mm256_setzero_si256(), sums));
    }
  const SpreadRows a{bytes, factor, shift};
  far_columns<4>(x.n, [&](auto some, uint32_t n, uint32_t apart) {
    uint32_t m = 0;
    for (; m + 4 <= x.m; m += 4) quantised_dot<Block, 4, some>(x, a, m, n, apart);
    for (; m + 2 <= x.m; m += 2) quantised_dot<Block, 2, some>(x, a, m, n, apart);
    for (; m < x.m; ++m) quantised_dot<Block, 1, some>(x, a, m, n, apart);
  });
}

}  // namespace
}  // namespace jalapeno::emu

#endif
