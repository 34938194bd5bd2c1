// Multiplication of blocks of integers (q8_0 by q8_0, q4_0 or MXFP4) for AVX-512 with VNNI: integer products inside a
// block, f32 between blocks. VPDPBUSD takes unsigned by signed bytes, so weights are read as value + 128 (or + 8, +
// 12), and what that adds, which depends on the activations only, is taken away at the start. Included by multiply.cpp
// only.
#pragma once
#include "kernels/blocks.hpp"
#include "kernels/dot.hpp"
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
inline void quantised_rows(const MultiplyArgs& x, const Quantised& a, uint32_t m, const Piece& p, const __m512i* panel,
                           const float* scales) {
  __m512 sum[kM][2];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    prefetch_columns(x, m + static_cast<uint32_t>(i), p.n);
  }
  const uint32_t all = a.k / 32;
  for (uint32_t block = 0; block < p.words / 8; ++block) {
    __m512i dot[kM][2];
    const size_t at = size_t{m} * all + p.first / 8 + block;
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) dot[i][0] = dot[i][1] = _mm512_set1_epi32(a.shift[at + static_cast<size_t>(i) * all]);
    const int8_t* bytes = a.bytes + size_t{m} * a.k + size_t{p.first / 8 + block} * 32;
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
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        sum[i][half] = _mm512_fmadd_ps(
            _mm512_cvtepi32_ps(dot[i][half]),
            _mm512_mul_ps(factor, _mm512_load_ps(scales + (block * 2 + static_cast<uint32_t>(half)) * 16)),
            sum[i][half]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; ++half) {
      if (p.columns <= half * 16) break;
      put_vector(x, m + static_cast<uint32_t>(i), p.n + half * 16, sum[i][half], p.columns - half * 16, p.add);
    }
}

// Two blocks at a time of sixteen rows of B become words in lanes, and their scales.
template <class Block>
inline void pack_blocks(const MultiplyArgs& x, const Piece& p, __m512i* panel, float* scales) {
  const uint32_t blocks = p.words / 8;
  alignas(64) std::byte plain[16][64];
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t rows = p.columns > half * 16 ? std::min(p.columns - half * 16, 16u) : 0;
    for (uint32_t block = 0; block < blocks; block += 2) {
      const uint32_t pair = std::min(blocks - block, 2u);
      alignas(64) float scale[2][16] = {};
      const std::byte* row_of_b = x.b + x.b_pitch * (p.n + half * 16) + Block::bytes * (p.first / 8 + block);
      for (uint32_t r = 0; r < rows; ++r, row_of_b += x.b_pitch)
        for (uint32_t j = 0; j < pair; ++j) {
          const std::byte* b = row_of_b + Block::bytes * j;
          _mm256_store_si256(reinterpret_cast<__m256i*>(plain[r] + j * 32), unsigned_block<Block>(b));
          scale[j][r] = block_scale<Block>(b);
        }
      const Transposed t = transpose_some(PlainWords{}, plain[0], 64, rows, pair == 2 ? 0xFFFF : 0xFF);
      for (uint32_t w = 0; w < pair * 8; ++w) _mm512_store_si512(panel + (block * 8 + w) * 2 + half, t.v[w]);
      for (uint32_t j = 0; j < pair; ++j) std::memcpy(scales + ((block + j) * 2 + half) * 16, scale[j], 64);
    }
  }
}

template <class Block>
void multiply_quantised(const MultiplyArgs& x) {
  static thread_local Scratch panel_memory, scale_memory;
  auto* panel = reinterpret_cast<__m512i*>(panel_memory.reserve(kPanelWords * kPanelColumns));
  float* scales = scale_memory.reserve(kPanelWords / 8 * kPanelColumns);
  const Quantised a = take_apart(x, kExcess<Block>);
  each_panel<6>(
      x, x.k / 4, true, NoGroups{}, [&](const Piece& p) { pack_blocks<Block>(x, p, panel, scales); },
      [&](auto some, uint32_t m, const Piece& p) { quantised_rows<some>(x, a, m, p, panel, scales); });
}

// A few rows of A: weights are read once, in their own order, in steps. Of q8_0 a step is a vector of two blocks; of
// nibbles it is four blocks, the first halves of all in one vector, the second ones in another, each block in a lane of
// 128 bits, so that two instructions add up four blocks. (Halves of q8_0 in the same way take twice the loads.)
template <class Block>
struct Step {
  static constexpr int kBlocks = Block::nibbles ? 4 : 2, kVectors = kBlocks / 2;
  __m512i bytes[kVectors];  // value + bias
  __m512 scale;             // of each lane's block
};

// Sixteen bytes of each of kCount blocks, from `p` on, a block to a lane of 128 bits.
template <class Block, int kCount>
inline __m512i block_halves(const std::byte* p) {
  const auto at = [=](size_t block) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + block * Block::bytes));
  };
  __m512i v = _mm512_zextsi128_si512(at(0));
  if constexpr (kCount > 1) v = _mm512_mask_broadcast_i32x4(v, 0x00F0, at(1));
  if constexpr (kCount > 2) v = _mm512_mask_broadcast_i32x4(v, 0x0F00, at(2));
  if constexpr (kCount > 3) v = _mm512_mask_broadcast_i32x4(v, 0xF000, at(3));
  return v;
}

// One or two blocks of q8_0, as they are.
template <int kCount>
inline __m512i block_pair(const std::byte* p) {
  const auto at = [=](size_t block) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + block * Q8_0::bytes + Q8_0::at));
  };
  const __m512i first = _mm512_zextsi256_si512(at(0));
  return kCount < 2 ? first : _mm512_inserti64x4(first, at(1), 1);
}

// The first kCount blocks of a step; nothing behind them is read, and their scale is zero.
template <class Block, int kCount>
inline Step<Block> step_at(const std::byte* p) {
  Step<Block> out;
  if constexpr (!Block::nibbles) {
    out.bytes[0] = _mm512_xor_si512(block_pair<kCount>(p), _mm512_set1_epi8(-128));
    const uint32_t second = kCount < 2 ? 0 : read16(p + Block::bytes);
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int32_t>(read16(p) | second << 16)));
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    out.scale = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(both));
    return out;
  } else {
    const __m512i both = block_halves<Block, kCount>(p + Block::at), low = _mm512_set1_epi8(15);
    out.bytes[0] = _mm512_and_si512(both, low), out.bytes[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    constexpr size_t kAll = Block::bytes * kCount;
    constexpr auto kHere = static_cast<__mmask64>(kAll >= 64 ? ~uint64_t{0} : (uint64_t{1} << kAll) - 1);
    const __m512i begin = _mm512_maskz_loadu_epi8(kHere, p);  // all scales are in it
    if constexpr (std::is_same_v<Block, MxFp4>) {
      const __m512i values = _mm512_broadcast_i32x4(mxfp4_plus_12());
      for (__m512i& codes : out.bytes) codes = _mm512_shuffle_epi8(values, codes);
      // The scale of block i is byte i of lane i: the exponent goes to the top of every word there, then below the
      // sign.
      const __m512i place = _mm512_set_epi32(0x03808080, 0x03808080, 0x03808080, 0x03808080, 0x02808080, 0x02808080,
                                             0x02808080, 0x02808080, 0x01808080, 0x01808080, 0x01808080, 0x01808080,
                                             0x00808080, 0x00808080, 0x00808080, 0x00808080);
      const __m512i exponent = _mm512_srli_epi32(_mm512_shuffle_epi8(begin, place), 1);
      const __m512i value = _mm512_max_epu32(exponent, _mm512_set1_epi32(0x400000));  // 2^-127
      const __mmask16 none = _mm512_cmpeq_epi32_mask(exponent, _mm512_set1_epi32(0x7F800000));
      out.scale = _mm512_castsi512_ps(_mm512_mask_mov_epi32(value, none, _mm512_set1_epi32(0x7FC00000)));
    } else {  // blocks begin so many 16-bit words after each other
      constexpr int64_t kWords = Block::bytes / 2, kEach = 0x0001000100010001;
      const __m512i place =
          _mm512_castsi256_si512(_mm256_set_epi64x(3 * kWords * kEach, 2 * kWords * kEach, kWords * kEach, 0));
      out.scale = _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(place, begin)));
    }
    if constexpr (kCount < 4) out.scale = _mm512_maskz_mov_ps((1u << kCount * 4) - 1, out.scale);
    return out;
  }
}

// Calls f(integral_constant) with the number of blocks of a step of kBlocks of which `left` are there.
template <int kBlocks, class F>
inline __attribute__((always_inline)) void with_count(uint32_t left, F f) {
  if constexpr (kBlocks > 1) {
    if (left < kBlocks) return with_count<kBlocks - 1>(left, f);
  }
  f(std::integral_constant<int, kBlocks>{});
}

// Rows of A for that; what is missing of the last step is zero.
struct SpreadRows {
  const __m512i* bytes;  // [m][steps][vectors]
  const __m512* factor;  // [m][steps]: the scale of A for each lane
  const __m512i* shift;  // [m][steps]: what the lane's sum is too large by, negated
  uint32_t steps;
};
template <class Block>
inline SpreadRows spread_rows(const MultiplyArgs& x) {
  constexpr int kBlocks = Step<Block>::kBlocks, kVectors = Step<Block>::kVectors;
  static thread_local Scratch memory;
  const uint32_t blocks = x.k / 32, steps = (blocks + kBlocks - 1) / kBlocks;
  const size_t all = size_t{x.m} * steps;
  auto* bytes = reinterpret_cast<__m512i*>(memory.reserve(all * 16 * (kVectors + 2)));
  auto* factor = reinterpret_cast<__m512*>(bytes + all * kVectors);
  auto* shift = reinterpret_cast<__m512i*>(factor + all);
  const __m512i bias = _mm512_set1_epi8(Block::bias);
  const float unit = std::is_same_v<Block, MxFp4> ? 0.5f : 1.f;
  for (uint32_t m = 0; m < x.m; ++m)
    for (uint32_t step = 0; step < steps; ++step) {
      const std::byte* p = x.a + x.a_pitch * m + size_t{step} * kBlocks * Q8_0::bytes;
      const size_t at = size_t{m} * steps + step;
      with_count<kBlocks>(blocks - step * kBlocks, [&](auto count) {
        __m512i* v = bytes + at * kVectors;
        if constexpr (Block::nibbles)
          v[0] = block_halves<Q8_0, count>(p + Q8_0::at), v[1] = block_halves<Q8_0, count>(p + Q8_0::at + 16);
        else
          v[0] = block_pair<count>(p);
        __m512i sums = _mm512_setzero_si512();
        for (int i = 0; i < kVectors; ++i) sums = _mm512_dpbusd_epi32(sums, bias, v[i]);
        shift[at] = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
        __m512 scale = _mm512_setzero_ps();
        constexpr int kLanes = 16 / kBlocks;
        for (int i = 0; i < count; ++i)
          scale = _mm512_mask_mov_ps(scale, static_cast<__mmask16>(((1u << kLanes) - 1) << i * kLanes),
                                     _mm512_set1_ps(block_scale<Q8_0>(p + i * Q8_0::bytes) * unit));
        factor[at] = scale;
      });
    }
  return {bytes, factor, shift, steps};
}

template <class Block, int kM, int kN>
inline void quantised_dot(const MultiplyArgs& x, const SpreadRows& a, uint32_t m, uint32_t n, uint32_t apart) {
  constexpr int kBlocks = Step<Block>::kBlocks, kVectors = Step<Block>::kVectors;
  const std::byte* b = x.b + x.b_pitch * n;
  const size_t stride = x.b_pitch * apart;
  __m512 sum[kM][kN];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) sum[i][j] = _mm512_setzero_ps();
  auto meet = [&](auto count, size_t step) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) {
      const std::byte* p = b + stride * static_cast<size_t>(j) + step * kBlocks * Block::bytes;
      stream_ahead(p);
      const Step<Block> w = step_at<Block, count>(p);
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i) {
        const size_t at = (static_cast<size_t>(i) + m) * a.steps + step;
        __m512i dot = a.shift[at];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          dot = _mm512_dpbusd_epi32(dot, w.bytes[v], a.bytes[at * kVectors + static_cast<size_t>(v)]);
        sum[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(w.scale, a.factor[at]), sum[i][j]);
      }
    }
  };
  const uint32_t whole = x.k / (32 * kBlocks);
  for (size_t step = 0; step < whole; ++step) meet(std::integral_constant<int, kBlocks>{}, step);
  if (const uint32_t left = x.k / 32 % kBlocks; left != 0)
    with_count<kBlocks - 1>(
        left, [&](auto count) __attribute__((always_inline)) { meet(count, whole); });
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) put_columns<kN>(x, m + static_cast<uint32_t>(i), n, apart, sum[i]);
}

template <class Block>
void multiply_quantised_dot(const MultiplyArgs& x) {
  const SpreadRows a = spread_rows<Block>(x);
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
