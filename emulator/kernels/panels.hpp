// The order of a blocked multiplication: B in panels that stay in the first-level cache, A in groups of a few rows,
// both as words of 32 bits, one panel meeting all groups. What a word is and how it is made is packed.hpp's and
// packed_avx2.hpp's. Included by multiply.cpp only.
#pragma once
#include "kernels/kernels.hpp"
#include "kernels/numbers.hpp"

#if defined(__AVX2__)

namespace jalapeno::emu {
namespace {

#if defined(__AVX512F__)
constexpr uint32_t kPanelColumns = 32, kPanelWords = 256;  // 32 KiB
constexpr int kGroup = 12;  // rows of A that share a look at the panel: 24 sums, the other registers for A and B
#else
constexpr uint32_t kPanelColumns = 16, kPanelWords = 256;  // 16 KiB
constexpr int kGroup = 6;                                  // 12 sums
#endif
// [word][row], and one word more: on AVX-512 what a row's sums begin with, on AVX2 what packing writes behind the last.
constexpr size_t kGroupWords = size_t{kPanelWords + 1} * kGroup;

// What is multiplied at a time: columns n.. of C, words first.. of the depth.
struct Piece {
  uint32_t n, columns, first, words;
  float* groups;
  bool add;                                                                     // C has something to be added to
  float* group(uint32_t m) const { return groups + m / kGroup * kGroupWords; }  // of rows m.. of A
};

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

// Of each_panel, for those who keep A in an order of their own.
struct NoGroups {
  void operator()(uint32_t, uint32_t, const Piece&) const {}
};

// Calls pack(piece) and rows(some, m, piece) for all of C and of a depth of so many words, kRows rows at a time, after
// group(m, rows, piece) for the groups of A that they meet. Along B's rows all groups of A are kept, down its columns
// those of one level.
template <int kRows = kGroup, class Group, class Pack, class Rows>
inline void each_panel(const MultiplyArgs& x, uint32_t depth, bool along_rows, Group group, Pack pack, Rows rows) {
  constexpr bool kGroups = !std::is_same_v<Group, NoGroups>;
  static_assert(kRows == kGroup || !kGroups);
  static thread_local Scratch memory;
  const uint32_t down = (depth + kPanelWords - 1) / kPanelWords, across = (x.n + kPanelColumns - 1) / kPanelColumns,
                 groups = (x.m + kRows - 1) / kRows, per_word = (x.k + depth - 1) / depth;
  // Levels are about as deep as each other, because a shallow one costs as many looks at C, and of whole blocks: 32
  // elements, of whatever a word holds.
  const auto begin = [=](uint32_t level) { return std::min(depth, (depth + 31) / 32 * level / down * 32); };
  const size_t level_words = kGroups ? groups * kGroupWords : 0;
  float* packed = memory.reserve((along_rows ? down : 1) * level_words);
  const auto piece = [&](uint32_t i) {
    const uint32_t level = along_rows ? i % down : i / across, n = (along_rows ? i / down : i % across) * kPanelColumns,
                   first = begin(level);
    return Piece{n,
                 std::min(x.n - n, kPanelColumns),
                 first,
                 begin(level + 1) - first,
                 packed + (along_rows ? level * level_words : 0),
                 x.accumulate || level > 0};
  };
  for (uint32_t i = 0; i < across * down; ++i) {
    const Piece p = piece(i);
    for (uint32_t m = 0; p.n == 0 && m < x.m; m += kRows) group(m, std::min<uint32_t>(x.m - m, kRows), p);
    pack(p);
    const Piece next = i + 1 < across * down ? piece(i + 1) : p;
    const uint32_t first_k = next.first * per_word, length = next.words * per_word;
    Ahead ahead = x.rows_are_k ? Ahead(x.b + x.b_pitch * first_k + hw::row_bytes(x.b_type, next.n), x.b_pitch, length,
                                       hw::row_bytes(x.b_type, next.columns), groups)
                               : Ahead(x.b + x.b_pitch * next.n + hw::row_bytes(x.b_type, first_k), x.b_pitch,
                                       next.columns, hw::row_bytes(x.b_type, length), groups);
    row_blocks<kRows>(x.m, [&](auto some, uint32_t m) {
      ahead.ask();
      rows(some, m, p);
    });
  }
}

}  // namespace
}  // namespace jalapeno::emu

#endif
