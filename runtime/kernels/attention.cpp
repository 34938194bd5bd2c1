// Attention with grouped queries: online softmax over blocks of keys, contiguous or paged.
#include <limits>

#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

namespace {

constexpr float kMinus = -std::numeric_limits<float>::infinity();

// Probabilities are multiplied along the keys, which the blocks of a head do not follow.
DType probability(DType kv) { return hw::info(kv).block > 1 ? bf16 : kv; }

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
        p(k.spm(probability(kv), rows, step)),
        state(k.spm(f32, rows, 4)),
        output(k.acc(rows, head)),
        result(k.spm(f32, rows, head)),
        keys(k.spm(kv, step, head, Stages(2))),
        values(k.spm(kv, step, head, Stages(2))),
        pages(k.spm(i32, 1, step / kPage)) {}

  using Fetch = std::function<void(const Tile&, const Tile&, const Reg&)>;

  // rows of q, whose element r sees keys below limit + r * step; `count` keys in all, of which it looks at blocks begin
  // to end. fetch loads a block. Leaves sums weighted by exp(score - peak) in output, peak and their total in state.
  void accumulate(const Reg& rows, const Reg& limit, uint32_t step, const Reg& count, const Value& begin,
                  const Value& end, const Reg& scale, uint32_t head, const Fetch& fetch) {
    Tile q = k.slice(query, 0, 0, rows, head), o = k.slice(output, 0, 0, rows, head);
    Tile st = k.slice(state, 0, 0, rows, 4), peak = k.slice(state, 0, 0, rows, 1),
         correction = k.slice(state, 0, 2, rows, 1);
    k.fill(st, 0);
    k.fill(peak, kMinus);
    k.zero(o);
    k.loop(begin, end, [&](Reg block) {
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
  }
  // All keys, into result.
  void run(const Reg& rows, const Reg& limit, uint32_t step, const Reg& count, const Reg& scale, uint32_t head,
           const Fetch& fetch) {
    accumulate(rows, limit, step, count, 0, k.cdiv(count, most), scale, head, fetch);
    Tile sum = k.slice(state, 0, 1, rows, 1);
    k.unary(UnaryOp::kRcp, sum, sum);
    DrainOptions normalise;
    normalise.column_scale = &sum;
    k.drain(k.slice(result, 0, 0, rows, head), k.slice(output, 0, 0, rows, head), normalise);
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

// q and out are [sequences, heads, head]; position[s] is the place of sequence s's token, table[s] its pages. split:
// each share of the keys leaves what it found in partial and state, [shares * sequences, heads, head or 4], for
// attention_merge.
KernelCode attention_decode(DType kv, uint32_t head, bool split) {
  Builder k(std::string(split ? "attention_split_" : "attention_decode_") + hw::info(kv).name + "_d" +
            std::to_string(head));
  constexpr uint32_t kRows = 32;  // heads that share a KV head
  // Few steps, as long as two stages of keys and values are half of a scratchpad.
  const uint32_t most_keys = hw::row_bytes(kv, head) > 2048 ? 128 : 256;
  auto Q = k.tensor("q", f32, 3), K = k.tensor("k_cache", kv, 2), V = k.tensor("v_cache", kv, 2);
  auto position = k.tensor("position", i32, 1), table = k.tensor("table", i32, 2);
  Tensor O = split ? k.tensor("partial", f32, 3) : k.any_tensor("out", 3), S;
  if (split) S = k.tensor("state", f32, 3);
  Reg group = k.scalar_i32("group"), scale = k.scalar_f32("scale");
  auto here = k.spm(i32, 1, 1);
  Steps steps(k, kv, kRows, head, most_keys);
  Reg sequences = Q.dim(0), kv_heads = Q.dim(1) / group;
  k.loop(k.pid_y(), sequences, k.grid_y(), [&](Reg sequence) {
    k.load(here, position, {sequence});
    Reg count = k.read(here, 0, 0) + 1;
    k.loop(k.pid_x(), kv_heads, k.grid_x(), [&](Reg h) {
      k.load(k.slice(steps.query, 0, 0, group, head), Q, {sequence, h * group, 0});
      auto fetch = [&](const Tile& kt, const Tile& vt, const Reg& key0) {
        k.load(steps.pages, table, {sequence, key0 / kPage}, -1);
        k.gather(kt, K, steps.pages, h * head, kPage);
        k.gather(vt, V, steps.pages, h * head, kPage);
      };
      if (!split) {
        steps.run(group, count, 0, count, scale, head, fetch);
        k.store(O, {sequence, h * group, 0}, k.slice(steps.result, 0, 0, group, head));
        return;
      }
      Reg shares = O.dim(0) / sequences, blocks = k.cdiv(count, most_keys), each = k.cdiv(blocks, shares);
      k.loop(k.pid_z(), shares, k.grid_z(), [&](Reg share) {
        Reg begin = share * each, row = share * sequences + sequence;
        steps.accumulate(group, count, 0, count, begin, k.min(begin + each, blocks), scale, head, fetch);
        Tile out = k.slice(steps.result, 0, 0, group, head);
        k.drain(out, k.slice(steps.output, 0, 0, group, head));
        k.store(O, {row, h * group, 0}, out);
        k.store(S, {row, h * group, 0}, k.slice(steps.state, 0, 0, group, 4));
      });
    });
  });
  return k.finish();
}

// Joins the shares of attention_split: each weighs exp(its peak - the highest).
KernelCode attention_merge(uint32_t head) {
  Builder k("attention_merge_d" + std::to_string(head));
  constexpr uint32_t kRows = 64;  // heads at a time
  auto P = k.tensor("partial", f32, 3), S = k.tensor("state", f32, 3), O = k.any_tensor("out", 3);
  auto sum_tile = k.spm(f32, kRows, head), next_tile = k.spm(f32, kRows, head), state = k.spm(f32, kRows, 4),
       next_state = k.spm(f32, kRows, 4), peak_tile = k.spm(f32, kRows, 1);
  Reg sequences = O.dim(0), heads = O.dim(1), shares = P.dim(0) / sequences;
  k.loop(k.pid_y(), sequences, k.grid_y(), [&](Reg sequence) {
    k.loop(k.pid_x(), k.cdiv(heads, kRows), k.grid_x(), [&](Reg piece) {
      Reg h0 = piece * kRows, rows = k.min(heads - h0, kRows);
      Tile o = k.slice(sum_tile, 0, 0, rows, head), p = k.slice(next_tile, 0, 0, rows, head),
           st = k.slice(state, 0, 0, rows, 4), ns = k.slice(next_state, 0, 0, rows, 4),
           peak = k.slice(peak_tile, 0, 0, rows, 1);
      Tile mine = k.slice(state, 0, 0, rows, 1), total = k.slice(state, 0, 1, rows, 1),
           theirs = k.slice(next_state, 0, 0, rows, 1), more = k.slice(next_state, 0, 1, rows, 1);
      k.load(o, P, {sequence, h0, 0});  // the first share has the first key: its peak is finite
      k.load(st, S, {sequence, h0, 0});
      k.loop(1, shares, [&](Reg share) {
        Reg row = share * sequences + sequence;
        k.load(p, P, {row, h0, 0});
        k.load(ns, S, {row, h0, 0});
        k.binary(BinaryOp::kMax, peak, mine, theirs);
        for (const Tile& t : {mine, theirs}) {
          k.binary(BinaryOp::kSub, t, t, peak);
          k.unary(UnaryOp::kExp, t, t);
        }
        k.binary(BinaryOp::kMul, o, o, mine);
        k.binary(BinaryOp::kMul, p, p, theirs);
        k.binary(BinaryOp::kAdd, o, o, p);
        k.binary(BinaryOp::kMul, total, total, mine);
        k.binary(BinaryOp::kMul, more, more, theirs);
        k.binary(BinaryOp::kAdd, total, total, more);
        k.unary(UnaryOp::kCopy, mine, peak);
      });
      k.unary(UnaryOp::kRcp, total, total);
      k.binary(BinaryOp::kMul, o, o, total);
      k.store(O, {sequence, h0, 0}, o);
    });
  });
  return k.finish();
}

}  // namespace jalapeno::kernels
