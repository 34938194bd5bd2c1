// Attention with grouped queries: online softmax over blocks of keys, contiguous or paged.
#include <limits>

#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

namespace {

constexpr float kMinus = -std::numeric_limits<float>::infinity();

// Everything one row block needs; both kernels differ only in what a row is.
struct Steps {
  Builder& k;
  uint32_t most;  // keys of one step
  Tile query, scores, p, state, output, result;
  StagedTile keys, values;
  Tile pages;

  Steps(Builder& builder, DType kv, uint32_t rows, uint32_t head, uint32_t step)
      : k(builder),
        most(step),
        query(k.spm(kv, rows, head)),
        scores(k.acc(rows, step)),
        p(k.spm(kv, rows, step)),
        state(k.spm(f32, rows, 4)),
        output(k.acc(rows, head)),
        result(k.spm(f32, rows, head)),
        keys(k.spm(kv, step, head, Stages(2))),
        values(k.spm(kv, step, head, Stages(2))),
        pages(k.spm(i32, 1, step / kPage)) {}

  // rows of q, whose element r sees keys below limit + r * step; `count` keys in all. fetch loads a block.
  void run(const Reg& rows, const Reg& limit, uint32_t step, const Reg& count, const Reg& scale, uint32_t head,
           const std::function<void(const Tile&, const Tile&, const Reg&)>& fetch) {
    Tile q = k.slice(query, 0, 0, rows, head);
    Tile st = k.slice(state, 0, 0, rows, 4), o = k.slice(output, 0, 0, rows, head),
         out = k.slice(result, 0, 0, rows, head);
    Tile peak = k.slice(state, 0, 0, rows, 1), sum = k.slice(state, 0, 1, rows, 1),
         correction = k.slice(state, 0, 2, rows, 1);
    k.fill(st, 0);
    k.fill(peak, kMinus);
    k.zero(o);
    k.loop(0, k.cdiv(count, most), [&](Reg block) {
      // The last block is often short: whole pages, but no more than there are keys.
      Reg key0 = block * most, here = k.min(k.cdiv(count - key0, kPage) * kPage, most);
      Tile s = k.slice(scores, 0, 0, rows, here), pt = k.slice(p, 0, 0, rows, here);
      Tile kt = k.slice(keys[block], 0, 0, here, head), vt = k.slice(values[block], 0, 0, here, head);
      fetch(kt, vt, key0);
      k.mma(s, q, kt, {.accumulate = false});
      k.mask(s, s, key0, limit, step, kMinus);
      k.softmax_step(pt, s, st, scale);
      k.binary(BinaryOp::kMul, o, o, correction);
      k.mma(o, pt, vt, {.accumulate = true, .rows_are_k = true});
    });
    k.unary(UnaryOp::kRcp, sum, sum);
    DrainOptions normalise;
    normalise.column_scale = &sum;
    k.drain(out, o, normalise);
  }
};

}  // namespace

// q and out are [heads, tokens, head]; caches are [slots, kv_heads * head].
KernelCode attention(DType kv, uint32_t head, bool paged) {
  Builder k(std::string(paged ? "attention_paged_" : "attention_causal_") + hw::info(kv).name + "_d" +
            std::to_string(head));
  constexpr uint32_t kRows = 128, kUnit = 16, kKeys = 256;
  auto Q = k.tensor("q", f32, 3), K = k.tensor("k_cache", kv, 2), V = k.tensor("v_cache", kv, 2);
  auto position = k.tensor("position", i32, 1);
  Tensor table;
  if (paged) table = k.tensor("table", i32, 1);
  auto O = k.any_tensor("out", 3);
  Reg group = k.scalar_i32("group"), scale = k.scalar_f32("scale");
  auto first = k.spm(i32, 1, 1);
  Steps steps(k, kv, kRows, head, kKeys);
  k.load(first, position, {0});
  Reg position0 = k.read(first, 0, 0), tokens = Q.dim(1);
  // As much as the grid leaves a program: few rows fill many cores, many rows use each block of keys longer.
  Reg height = k.min(k.cdiv(k.cdiv(tokens, k.grid_y()), kUnit) * kUnit, kRows);
  k.loop(k.pid_x(), Q.dim(0), k.grid_x(), [&](Reg h) {
    Reg column = h / group * head;
    k.loop(k.pid_y(), k.cdiv(tokens, height), k.grid_y(), [&](Reg tile_index) {
      Reg row0 = tile_index * height, rows = k.min(tokens - row0, height), limit = position0 + row0 + 1;
      Tile q = k.slice(steps.query, 0, 0, rows, head);
      k.load(q, Q, {h, row0, 0});
      steps.run(rows, limit, 1, limit + rows - 1, scale, head, [&](const Tile& kt, const Tile& vt, const Reg& key0) {
        if (paged) {
          k.load(steps.pages, table, {key0 / kPage}, -1);
          k.gather(kt, K, steps.pages, column, kPage);
          k.gather(vt, V, steps.pages, column, kPage);
        } else {
          k.load(kt, K, {key0, column});
          k.load(vt, V, {key0, column});
        }
      });
      k.store(O, {h, row0, 0}, k.slice(steps.result, 0, 0, rows, head));
    });
  });
  return k.finish();
}

// q and out are [sequences, heads, head]; position[s] is the place of sequence s's token, table[s] its pages.
KernelCode attention_decode(DType kv, uint32_t head) {
  Builder k(std::string("attention_decode_") + hw::info(kv).name + "_d" + std::to_string(head));
  constexpr uint32_t kRows = 32, kKeys = 128;  // rows: heads that share a KV head
  auto Q = k.tensor("q", f32, 3), K = k.tensor("k_cache", kv, 2), V = k.tensor("v_cache", kv, 2);
  auto position = k.tensor("position", i32, 1), table = k.tensor("table", i32, 2), O = k.any_tensor("out", 3);
  Reg group = k.scalar_i32("group"), scale = k.scalar_f32("scale");
  auto here = k.spm(i32, 1, 1);
  Steps steps(k, kv, kRows, head, kKeys);
  Reg kv_heads = Q.dim(1) / group;
  k.loop(k.pid_y(), Q.dim(0), k.grid_y(), [&](Reg sequence) {
    k.load(here, position, {sequence});
    Reg count = k.read(here, 0, 0) + 1;
    k.loop(k.pid_x(), kv_heads, k.grid_x(), [&](Reg h) {
      Tile q = k.slice(steps.query, 0, 0, group, head);
      k.load(q, Q, {sequence, h * group, 0});
      steps.run(group, count, 0, count, scale, head, [&](const Tile& kt, const Tile& vt, const Reg& key0) {
        k.load(steps.pages, table, {sequence, key0 / kPage}, -1);
        k.gather(kt, K, steps.pages, h * head, kPage);
        k.gather(vt, V, steps.pages, h * head, kPage);
      });
      k.store(O, {sequence, h * group, 0}, k.slice(steps.result, 0, 0, group, head));
    });
  });
  return k.finish();
}

}  // namespace jalapeno::kernels
