// Matrix multiplication: c[m, n] = a[m, k] * w[n, k], weights in the order files store them.
#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

namespace {
// The largest piece of C a program works on at once. The grid decides how much of it is used: the columns and rows are
// shared out among the programs in whole multiples of kUnit, so that a caller can fill every core with a small matrix
// and keep weights in place with a large one.
constexpr uint32_t kRows = 256, kColumns = 256, kUnit = 16;

// Depth of a step: whole scratchpad lines, and two stages of weights about a megabyte.
uint32_t depth(DType weight) { return hw::info(weight).block > 1 || weight == i8 ? 2048 : weight == f32 ? 512 : 1024; }
DType activation(DType weight) { return hw::info(weight).block > 1 ? q8_0 : weight; }

// How much of `all` one of `programs` takes at a time.
Reg share(Builder& k, const Reg& all, const Reg& programs, uint32_t most) {
  return k.min(k.cdiv(k.cdiv(all, programs), kUnit) * kUnit, most);
}

// Everything between the pieces of C: which ones this program has, and the steps along the depth.
template <class Before, class After>
void pieces(Builder& k, const Tensor& A, const Tensor& W, const StagedTile& a, const StagedTile& w, const Tile& acc,
            uint32_t step_depth, Before before, After after) {
  Reg m = A.dim(0), n = W.dim(0), all = A.dim(1);
  Reg width = share(k, n, k.grid_x(), kColumns), height = share(k, m, k.grid_y(), kRows);
  k.loop(k.pid_x(), k.cdiv(n, width), k.grid_x(), [&](Reg nt) {
    Reg n0 = nt * width, columns = k.min(n - n0, width);
    k.loop(k.pid_y(), k.cdiv(m, height), k.grid_y(), [&](Reg mt) {
      Reg m0 = mt * height, rows = k.min(m - m0, height);
      Tile c = k.slice(acc, 0, 0, rows, columns);
      before(m0, n0, rows, columns);
      k.zero(c);
      k.loop(0, k.cdiv(all, step_depth), [&](Reg step) {
        Reg k0 = step * step_depth, length = k.min(all - k0, step_depth);
        Tile at = k.slice(a[step], 0, 0, rows, length), wt = k.slice(w[step], 0, 0, columns, length);
        k.load(at, A, {m0, k0});
        k.load(wt, W, {n0, k0});
        k.mma(c, at, wt);
      });
      after(m0, n0, rows, columns, c);
    });
  });
}
}  // namespace

KernelCode matmul(DType weight, bool add) {
  Builder k(std::string("matmul_") + hw::info(weight).name + (add ? "_add" : ""));
  const uint32_t d = depth(weight);
  auto A = k.any_tensor("a", 2), W = k.tensor("w", weight, 2), C = k.tensor("c", f32, 2);
  auto a = k.spm(activation(weight), kRows, d, Stages(2)), w = k.spm(weight, kColumns, d, Stages(2));
  auto acc = k.acc(kRows, kColumns), out = k.spm(f32, kRows, kColumns);
  pieces(
      k, A, W, a, w, acc, d, [](const Reg&, const Reg&, const Reg&, const Reg&) {},
      [&](const Reg& m0, const Reg& n0, const Reg& rows, const Reg& columns, const Tile& c) {
        Tile o = k.slice(out, 0, 0, rows, columns);
        k.drain(o, c);
        if (add)
          k.store_add(C, {m0, n0}, o);
        else
          k.store(C, {m0, n0}, o);
      });
  return k.finish();
}

KernelCode matmul_i8() {
  Builder k("matmul_i8");
  const uint32_t d = depth(i8);
  auto A = k.tensor("a", i8, 2), W = k.tensor("w", i8, 2), SA = k.tensor("a_scale", f32, 1),
       SW = k.tensor("w_scale", f32, 1), C = k.tensor("c", f32, 2);
  auto a = k.spm(i8, kRows, d, Stages(2)), w = k.spm(i8, kColumns, d, Stages(2));
  auto acc = k.acc(kRows, kColumns, i32), out = k.spm(f32, kRows, kColumns);
  auto sa = k.spm(f32, 1, kRows), sa_column = k.spm(f32, kRows, 1), sw = k.spm(f32, 1, kColumns);
  pieces(
      k, A, W, a, w, acc, d,
      [&](const Reg& m0, const Reg& n0, const Reg&, const Reg& columns) {
        k.load(sa, SA, {m0});
        k.load(k.slice(sw, 0, 0, 1, columns), SW, {n0});
        k.copy(sa_column, sa, true);
      },
      [&](const Reg& m0, const Reg& n0, const Reg& rows, const Reg& columns, const Tile& c) {
        Tile o = k.slice(out, 0, 0, rows, columns);
        Tile row_scale = k.slice(sw, 0, 0, 1, columns), column_scale = k.slice(sa_column, 0, 0, rows, 1);
        DrainOptions scales;
        scales.row_scale = &row_scale, scales.column_scale = &column_scale;
        k.drain(o, c, scales);
        k.store(C, {m0, n0}, o);
      });
  return k.finish();
}

}  // namespace jalapeno::kernels
