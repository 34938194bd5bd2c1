// The kernel library: each function makes one kernel with the tile builder. Names and arguments: docs/kernels.md.
// Every kernel strides over its work by the grid, so any grid gives the same result.
#pragma once
#include <jalapeno/tile.hpp>

namespace jalapeno::kernels {

// Widest tile of a row-wise kernel, in f32 elements.
inline constexpr uint32_t kMaxRow = 16384;
inline constexpr uint32_t kPage = 16;  // tokens of a KV page

tile::KernelCode matmul(tile::DType weight, bool add);
tile::KernelCode matvec(tile::DType weight, bool add);
tile::KernelCode matmul_i8();
tile::KernelCode embed();
tile::KernelCode rmsnorm();
tile::KernelCode swiglu();
tile::KernelCode add();
tile::KernelCode softmax();
tile::KernelCode rope(tile::RopeOp mode, uint32_t head, uint32_t rotated);
tile::KernelCode rope_kv(tile::RopeOp mode, uint32_t head, uint32_t rotated);
tile::KernelCode attention(tile::DType kv, uint32_t head, bool paged);         // many rows of one sequence, causal
tile::KernelCode attention_decode(tile::DType kv, uint32_t head, bool split);  // one token of many sequences, paged
tile::KernelCode attention_merge(uint32_t head);
tile::KernelCode argmax();
tile::KernelCode topk(uint32_t k);
tile::KernelCode sample(uint32_t k);
tile::KernelCode sample_greedy();

}  // namespace jalapeno::kernels
