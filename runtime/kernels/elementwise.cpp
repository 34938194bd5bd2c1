// Row-wise kernels: embedding, norm, activation, residual, softmax, rotary position and KV append.
#include <limits>

#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

KernelCode embed() {
  Builder k("embed");
  constexpr uint32_t kColumns = 8192;
  auto table = k.any_tensor("table", 2);
  auto tokens = k.tensor("tokens", i32, 1), out = k.tensor("out", f32, 2);
  auto index = k.spm(i32, 1, 1);
  auto row = k.spm(f32, 1, kColumns);
  Reg width = table.dim(1);
  k.loop(k.pid_x(), tokens.dim(0), k.grid_x(), [&](Reg t) {
    k.load(index, tokens, {t}, -1);
    k.loop(0, width, kColumns, [&](Reg c) {
      Tile r = k.slice(row, 0, 0, 1, k.min(width - c, kColumns));
      k.gather(r, table, index, c);
      k.store(out, {t, c}, r);
    });
  });
  return k.finish();
}

namespace {
// The rows of a matrix in blocks: as many at a time as the grid leaves a program, up to `most`. body(block, first row,
// rows); blocks are counted in steps of one, which keeps two stages apart.
constexpr uint32_t kBlockRows = 8;
template <class Body>
void each_block(Builder& k, const Reg& pid, const Reg& grid, const Reg& rows, const Value& most, Body body) {
  Reg height = k.max(k.min(k.cdiv(rows, grid), most), 1), blocks = k.cdiv(rows, height);
  k.loop(0, k.cdiv(k.max(blocks - pid, 0), grid), [&](Reg i) {
    Reg row = (pid + i * grid) * height;
    body(i, row, k.min(rows - row, height));
  });
}
}  // namespace

KernelCode rmsnorm() {
  Builder k("rmsnorm");
  auto x = k.tensor("x", f32, 2), weight = k.tensor("weight", f32, 1), out = k.any_tensor("out", 2);
  Reg eps = k.scalar_f32("eps");
  auto w = k.spm(f32, 1, kMaxRow);
  auto rows = k.spm(f32, kBlockRows, kMaxRow, Stages(2)), y = k.spm(f32, kBlockRows, kMaxRow, Stages(2));
  Reg width = weight.dim(0);
  Tile wt = k.slice(w, 0, 0, 1, width);
  k.load(wt, weight, {0});
  each_block(k, k.pid_x(), k.grid_x(), x.dim(0), kBlockRows, [&](Reg i, Reg row, Reg n) {
    Tile in = k.slice(rows[i], 0, 0, n, width), o = k.slice(y[i], 0, 0, n, width);
    k.load(in, x, {row, 0});
    k.rmsnorm(o, in, wt, eps);
    k.store(out, {row, 0}, o);
  });
  return k.finish();
}

namespace {
// out = f(a, b) over the elements of two matrices.
template <class F>
KernelCode pairwise(const char* name, const char* first, const char* second, F f) {
  Builder k(name);
  constexpr uint32_t kColumns = 8192;
  auto a = k.tensor(first, f32, 2), b = k.tensor(second, f32, 2), out = k.any_tensor("out", 2);
  auto x = k.spm(f32, kBlockRows, kColumns, Stages(2)), y = k.spm(f32, kBlockRows, kColumns, Stages(2));
  Reg width = a.dim(1);
  each_block(k, k.pid_y(), k.grid_y(), a.dim(0), kBlockRows, [&](Reg, Reg row, Reg rows) {
    Reg pieces = k.cdiv(width, kColumns), pid = k.pid_x(), grid = k.grid_x();
    k.loop(0, k.cdiv(k.max(pieces - pid, 0), grid), [&](Reg i) {
      Reg c = (pid + i * grid) * kColumns, n = k.min(width - c, kColumns);
      Tile xt = k.slice(x[i], 0, 0, rows, n), yt = k.slice(y[i], 0, 0, rows, n);
      k.load(xt, a, {row, c});
      k.load(yt, b, {row, c});
      f(k, xt, yt);
      k.store(out, {row, c}, xt);
    });
  });
  return k.finish();
}
}  // namespace

KernelCode swiglu() {
  return pairwise("swiglu", "gate", "up",
                  [](Builder& k, const Tile& x, const Tile& y) { k.glu(ActOp::kSilu, x, x, y); });
}

KernelCode add() {
  return pairwise("add", "a", "b", [](Builder& k, const Tile& x, const Tile& y) { k.add(x, x, y); });
}

KernelCode softmax() {
  Builder k("softmax");
  constexpr float kMinus = -std::numeric_limits<float>::infinity();
  auto x = k.tensor("x", f32, 2), out = k.tensor("out", f32, 2);
  auto row = k.spm(f32, 1, kMaxRow), p = k.spm(f32, 1, kMaxRow), state = k.spm(f32, 1, 3);
  Reg width = x.dim(1), one = k.constant_f32(1);
  Tile peak = k.slice(state, 0, 0, 1, 1), sum = k.slice(state, 0, 1, 1, 1);
  k.loop(k.pid_x(), x.dim(0), k.grid_x(), [&](Reg r) {
    k.fill(state, 0);
    k.fill(peak, kMinus);
    k.loop(0, width, kMaxRow, [&](Reg c) {
      Tile in = k.slice(row, 0, 0, 1, k.min(width - c, kMaxRow)), o = k.slice(p, 0, 0, 1, k.min(width - c, kMaxRow));
      k.load(in, x, {r, c});
      k.softmax_step(o, in, state, one);
    });
    k.unary(UnaryOp::kRcp, sum, sum);
    k.loop(0, width, kMaxRow, [&](Reg c) {
      Tile in = k.slice(row, 0, 0, 1, k.min(width - c, kMaxRow));
      k.load(in, x, {r, c});
      k.binary(BinaryOp::kSub, in, in, peak);
      k.unary(UnaryOp::kExp, in, in);
      k.mul(in, in, sum);
      k.store(out, {r, c}, in);
    });
  });
  return k.finish();
}

namespace {
// How many tokens at a time: a block where they share the row that `last` is the last of, one where each has its own.
Reg together(Builder& k, const Reg& last) { return k.max(last * -int64_t{kBlockRows} + kBlockRows, 1); }

// Where token t stands: one position is that of the first of tokens that follow each other, several are each token's.
struct Places {
  Builder& k;
  const Tensor& position;
  Tile one;
  Reg last;
  Places(Builder& builder, const Tensor& tensor)
      : k(builder), position(tensor), one(k.spm(i32, 1, 1)), last(tensor.dim(0) - 1) {}
  Reg of(const Reg& t) {
    Reg which = k.min(t, last);
    k.load(one, position, {which});
    return k.read(one, 0, 0) + t - which;
  }
};

std::string rope_name(const char* base, RopeOp mode, uint32_t head, uint32_t rotated) {
  return std::string(base) + "_" + std::string(hw::kRopeNames[static_cast<int>(mode)]) + "_d" + std::to_string(head) +
         "_r" + std::to_string(rotated);
}
}  // namespace

KernelCode rope(RopeOp mode, uint32_t head, uint32_t rotated) {
  Builder k(rope_name("rope", mode, head, rotated));
  auto x = k.tensor("x", f32, 2), cosine = k.tensor("cos", f32, 2), sine = k.tensor("sin", f32, 2);
  auto position = k.tensor("position", i32, 1), out = k.tensor("out", f32, 2);
  auto block = k.spm(f32, kBlockRows, kMaxRow), c = k.spm(f32, kBlockRows, rotated / 2),
       s = k.spm(f32, kBlockRows, rotated / 2);
  Places places(k, position);
  Reg width = x.dim(1);
  each_block(k, k.pid_x(), k.grid_x(), x.dim(0), together(k, places.last), [&](Reg, Reg t, Reg n) {
    Reg at = places.of(t);
    Tile rows = k.slice(block, 0, 0, n, width), ct = k.slice(c, 0, 0, n, rotated / 2),
         st = k.slice(s, 0, 0, n, rotated / 2);
    k.load(rows, x, {t, 0});
    k.load(ct, cosine, {at, 0});
    k.load(st, sine, {at, 0});
    k.rope(mode, rows, rows, ct, st, head, rotated);
    k.store(out, {t, 0}, rows);
  });
  return k.finish();
}

// Rotates the keys of new tokens and appends keys and values to a paged cache.
KernelCode rope_kv(RopeOp mode, uint32_t head, uint32_t rotated) {
  Builder k(rope_name("rope_kv", mode, head, rotated));
  auto key = k.tensor("k", f32, 2), value = k.tensor("v", f32, 2), cosine = k.tensor("cos", f32, 2),
       sine = k.tensor("sin", f32, 2);
  auto position = k.tensor("position", i32, 1), table = k.tensor("table", i32, 2);
  auto key_cache = k.any_tensor("k_cache", 2), value_cache = k.any_tensor("v_cache", 2);
  auto keys = k.spm(f32, kBlockRows, kMaxRow), values = k.spm(f32, kBlockRows, kMaxRow);
  auto c = k.spm(f32, kBlockRows, rotated / 2), s = k.spm(f32, kBlockRows, rotated / 2), entry = k.spm(i32, 1, 1);
  Places places(k, position);
  Reg width = key.dim(1), last_sequence = table.dim(0) - 1;
  each_block(k, k.pid_x(), k.grid_x(), key.dim(0), k.min(together(k, places.last), together(k, last_sequence)),
             [&](Reg, Reg t, Reg n) {
               Reg at = places.of(t), end = at + n;
               Tile kt = k.slice(keys, 0, 0, n, width), vt = k.slice(values, 0, 0, n, width),
                    ct = k.slice(c, 0, 0, n, rotated / 2), st = k.slice(s, 0, 0, n, rotated / 2);
               k.load(kt, key, {t, 0});
               k.load(vt, value, {t, 0});
               k.load(ct, cosine, {at, 0});
               k.load(st, sine, {at, 0});
               k.rope(mode, kt, kt, ct, st, head, rotated);
               k.loop(at / kPage, k.cdiv(end, kPage), [&](Reg page) {
                 k.load(entry, table, {k.min(t, last_sequence), page}, -1);
                 Reg from = k.max(page * kPage, at), here = k.min(page * kPage + kPage, end) - from;
                 Reg slot = k.read(entry, 0, 0) * kPage + from % kPage;
                 k.store(key_cache, {slot, 0}, k.slice(kt, from - at, 0, here, width));
                 k.store(value_cache, {slot, 0}, k.slice(vt, from - at, 0, here, width));
               });
             });
  return k.finish();
}

}  // namespace jalapeno::kernels
