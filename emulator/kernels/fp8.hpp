// fp8 operands for AVX-512: every fp8 value is a bf16 value too, so they become bf16 and are multiplied as that.
// Weights, [n, k], do so on their way into registers, of MXFP8 those that few rows meet, other operands in memory.
// Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

namespace jalapeno::emu {
namespace {

// A word of bf16 from two codes: the bf16 of every code without its sign is in a table of four vectors.
class Fp8Words {
 public:
  static constexpr size_t kBytes = 2, kVectorBytes = 32;
  explicit Fp8Words(DType type) {
    uint16_t table[128];
    for (uint8_t code = 0; code < 128; ++code)
      table[code] = to_bf16(type == DType::kE4M3 ? E4M3::from(code) : E5M2::from(code));
    std::memcpy(table_, table, sizeof table);
  }
  __m512i words(const std::byte* p, __mmask16 some) const { return bf16(_mm256_maskz_loadu_epi16(some, p)); }
  __m512i load_some(const std::byte* p, uint32_t n) const {
    return bf16(_mm256_maskz_loadu_epi8(static_cast<__mmask32>((1u << n) - 1), p));
  }

 private:
  __m512i bf16(__m256i codes) const {
    const __m512i c = _mm512_cvtepu8_epi16(codes);
    const __m512i low = _mm512_permutex2var_epi16(table_[0], c, table_[1]),
                  high = _mm512_permutex2var_epi16(table_[2], c, table_[3]);
    const __m512i magnitude = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(c, _mm512_set1_epi16(0x40)), low, high);
    return _mm512_or_si512(magnitude, _mm512_slli_epi16(_mm512_srli_epi16(c, 7), 15));
  }
  __m512i table_[4];
};

// A block of MXFP8: what its codes are as bf16, and the scale of all of them.
struct ScaledWords {
  __m512i words;
  __m512 scale;
};
class MxFp8Words {
 public:
  static constexpr size_t kVectorBytes = 33;
  ScaledWords words(const std::byte* p, __mmask16 some) const {
    return {codes_.words(p + 1, some), _mm512_set1_ps(kE8m0[static_cast<uint8_t>(*p)])};
  }
  ScaledWords load_some(const std::byte* p, uint32_t) const { return words(p, 0xFFFF); }  // rows are whole blocks

 private:
  Fp8Words codes_{DType::kE4M3};
};

// Rows of fp8 at `p` as rows of bf16: their place and, in `pitch`, their distance.
inline const std::byte* widen(DType type, const std::byte* p, size_t& pitch, uint32_t rows, uint32_t columns,
                              Scratch& memory) {
  const Fp8Words source(type);
  const size_t from = pitch;
  pitch = (size_t{columns} + 31) / 32 * 64;
  auto* out = reinterpret_cast<std::byte*>(memory.reserve(rows * pitch / 4));
  for (uint32_t r = 0; r < rows; ++r, p += from) {
    uint32_t c = 0;
    for (; c + 32 <= columns; c += 32) _mm512_store_si512(out + r * pitch + c * 2, source.words(p + c, 0xFFFF));
    if (c < columns) _mm512_store_si512(out + r * pitch + c * 2, source.load_some(p + c, columns - c));
  }
  return out;
}
inline MultiplyArgs a_widened(MultiplyArgs x) {
  static thread_local Scratch memory;
  x.a = widen(x.a_type, x.a, x.a_pitch, x.m, x.k, memory);
  x.a_type = DType::kBF16;
  return x;
}
inline MultiplyArgs b_widened(MultiplyArgs x) {  // B is [k, n]
  static thread_local Scratch memory;
  x.b = widen(x.b_type, x.b, x.b_pitch, x.k, x.n, memory);
  x.b_type = DType::kBF16;
  return x;
}

}  // namespace
}  // namespace jalapeno::emu

#endif
