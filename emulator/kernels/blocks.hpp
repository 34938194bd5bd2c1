// The types that store 32 small integers behind a scale, in registers. Included by multiply.cpp only.
#pragma once
#include "kernels/numbers.hpp"

#if defined(__AVX2__)

namespace jalapeno::emu {
namespace {

// Integers of a block are read as unsigned bytes, larger by `bias`, at most `most`; `at` is where they begin. MXFP4's
// are twice its values: -12 to 12.
struct Q8_0 {
  static constexpr size_t bytes = hw::info(hw::DType::kQ8_0).bytes, at = 2;
  static constexpr int8_t bias = -128;  // 128, which has no other name among signed bytes
  static constexpr bool nibbles = false;
};
struct Q4_0 {
  static constexpr size_t bytes = hw::info(hw::DType::kQ4_0).bytes, at = 2;
  static constexpr int8_t bias = 8, most = 15;
  static constexpr bool nibbles = true;
};
struct MxFp4 {
  static constexpr size_t bytes = hw::info(hw::DType::kMXFP4).bytes, at = 1;
  static constexpr int8_t bias = 12, most = 24;
  static constexpr bool nibbles = true;
};
template <class Block>
constexpr int32_t kExcess = Block::bias < 0 ? -int32_t{Block::bias} : Block::bias;

template <class Block>
inline float block_scale(const std::byte* p) {
  if constexpr (std::is_same_v<Block, MxFp4>)
    return kE8m0[static_cast<uint8_t>(*p)] * 0.5f;
  else
    return _cvtsh_ss(read16(p));
}

inline __m128i mxfp4_plus_12() { return _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0); }

// Value + bias, of one block.
template <class Block>
inline __m256i unsigned_block(const std::byte* p) {
  if constexpr (!Block::nibbles) {
    return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + Block::at)),
                            _mm256_set1_epi8(-128));
  } else {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + Block::at));
    const __m256i codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), _mm256_set1_epi8(15));
    if constexpr (std::is_same_v<Block, MxFp4>)
      return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(mxfp4_plus_12()), codes);
    else
      return codes;
  }
}
template <class Block>
inline __m256i signed_block(const std::byte* p) {
  if constexpr (!Block::nibbles)
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + Block::at));
  else
    return _mm256_sub_epi8(unsigned_block<Block>(p), _mm256_set1_epi8(Block::bias));
}

}  // namespace
}  // namespace jalapeno::emu

#endif
