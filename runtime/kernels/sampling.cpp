// Choosing tokens from logits: argmax, top-k, and top-k/top-p sampling with a counter-based generator.
#include <limits>

#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

namespace {
constexpr float kMinus = -std::numeric_limits<float>::infinity();

// The k largest of row `row`, in pieces of a tile.
void largest(Builder& k, const Tensor& x, const Reg& row, const Reg& width, const Tile& piece, const Tile& values,
             const Tile& indices) {
  k.fill(values, kMinus);
  k.fill(indices, -1);
  k.loop(0, width, piece.columns(), [&](Reg c) {
    Tile t = k.slice(piece, 0, 0, 1, k.min(width - c, piece.columns()));
    k.load(t, x, {row, c});
    k.top_k(values, indices, t, c, true);
  });
}
}  // namespace

KernelCode argmax() {
  Builder k("argmax");
  auto x = k.tensor("x", f32, 2), out = k.tensor("out", i32, 1);
  auto piece = k.spm(f32, 1, kMaxRow), value = k.spm(f32, 1, 1), index = k.spm(i32, 1, 1);
  Reg width = x.dim(1);
  k.loop(k.pid_x(), x.dim(0), k.grid_x(), [&](Reg r) {
    largest(k, x, r, width, piece, value, index);
    k.store(out, {r}, index);
  });
  return k.finish();
}

KernelCode topk(uint32_t count) {
  Builder k("topk_k" + std::to_string(count));
  auto x = k.tensor("x", f32, 2), values = k.tensor("values", f32, 2), indices = k.tensor("indices", i32, 2);
  auto piece = k.spm(f32, 1, kMaxRow), v = k.spm(f32, 1, count), n = k.spm(i32, 1, count);
  Reg width = x.dim(1);
  k.loop(k.pid_x(), x.dim(0), k.grid_x(), [&](Reg r) {
    largest(k, x, r, width, piece, v, n);
    k.store(values, {r, 0}, v);
    k.store(indices, {r, 0}, n);
  });
  return k.finish();
}

namespace {
// Both samplers end a decode step: the sequence's token goes where the next step reads it, and its position moves on.
void finish_step(Builder& k, const Reg& sequence, const Tensor& token, const Tensor& position, const Tile& chosen,
                 const Tile& place) {
  k.store(token, {sequence}, chosen);
  k.binary(BinaryOp::kAdd, place, place, 1.f);
  k.store(position, {sequence}, place);
}
}  // namespace

KernelCode sample_greedy() {
  Builder k("sample_greedy");
  auto logits = k.tensor("logits", f32, 2), token = k.tensor("token", i32, 1), position = k.tensor("position", i32, 1);
  auto piece = k.spm(f32, 1, kMaxRow), value = k.spm(f32, 1, 1), index = k.spm(i32, 1, 1), place = k.spm(i32, 1, 1);
  Reg width = logits.dim(1);
  k.loop(k.pid_x(), logits.dim(0), k.grid_x(), [&](Reg s) {
    k.load(place, position, {s});
    largest(k, logits, s, width, piece, value, index);
    finish_step(k, s, token, position, index, place);
  });
  return k.finish();
}

KernelCode sample(uint32_t count) {
  Builder k("sample_k" + std::to_string(count));
  auto logits = k.tensor("logits", f32, 2), token = k.tensor("token", i32, 1), position = k.tensor("position", i32, 1);
  Reg temperature = k.scalar_f32("temperature"), top_p = k.scalar_f32("top_p"), seed = k.scalar_i64("seed");
  auto piece = k.spm(f32, 1, kMaxRow), v = k.spm(f32, 1, count), sums = k.spm(f32, 1, count),
       keep = k.spm(f32, 1, count);
  auto n = k.spm(i32, 1, count), place = k.spm(i32, 1, 1), chosen = k.spm(i32, 1, 1);
  auto state = k.spm(f32, 1, 3), draw = k.spm(f32, 1, 1), total = k.spm(f32, 1, 1), below = k.spm(i32, 1, 1);
  Tile peak = k.slice(state, 0, 0, 1, 1), sum = k.slice(state, 0, 1, 1, 1);
  Reg width = logits.dim(1);
  k.loop(k.pid_x(), logits.dim(0), k.grid_x(), [&](Reg s) {
    k.load(place, position, {s});
    Reg counter = k.read(place, 0, 0);
    largest(k, logits, s, width, piece, v, n);
    // Probabilities of the candidates, largest first.
    k.fill(state, 0);
    k.fill(peak, kMinus);
    k.softmax_step(v, v, state, k.scalar(hw::SaluOp::kFDiv, k.constant_f32(1), temperature));
    k.unary(UnaryOp::kRcp, sum, sum);
    k.mul(v, v, sum);
    // Keep those before which less than top_p has been seen.
    k.scan(sums, v);
    k.binary(BinaryOp::kSub, keep, sums, v);
    k.binary(BinaryOp::kLt, keep, keep, top_p);
    k.mul(v, v, keep);
    // The first whose running sum exceeds u times the total.
    k.scan(sums, v);
    k.reduce(ReduceOp::kSum, total, v);
    k.uniform(draw, seed + s, counter);
    k.mul(draw, draw, total);
    k.binary(BinaryOp::kLe, keep, sums, draw);
    k.reduce(ReduceOp::kSum, below, keep);
    Reg which = k.min(k.read(below, 0, 0), count - 1);
    k.write(chosen, 0, 0, k.read(n, 0, which));
    finish_step(k, s, token, position, chosen, place);
  });
  return k.finish();
}

}  // namespace jalapeno::kernels
