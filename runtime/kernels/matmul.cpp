// Matrix multiplication: c[m, n] = a[m, k] * w[n, k], weights in the order files store them.
#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

namespace {
constexpr uint32_t kRows = 32, kColumns = 64;

// Depth of a step: whole scratchpad lines, and two stages of weights well under a megabyte.
uint32_t depth(DType weight) { return hw::info(weight).block > 1 ? 4096 : weight == f32 ? 1024 : 2048; }
DType activation(DType weight) { return hw::info(weight).block > 1 ? q8_0 : weight; }
}  // namespace

KernelCode matmul(DType weight, bool add) {
  Builder k(std::string("matmul_") + hw::info(weight).name + (add ? "_add" : ""));
  const uint32_t kDepth = depth(weight);
  auto A = k.tensor("a", f32, 2), W = k.tensor("w", weight, 2), C = k.tensor("c", f32, 2);
  auto a = k.spm(activation(weight), kRows, kDepth, Stages(2)), w = k.spm(weight, kColumns, kDepth, Stages(2));
  auto acc = k.acc(kRows, kColumns), out = k.spm(f32, kRows, kColumns);
  Reg m = A.dim(0), n = W.dim(0), depth = A.dim(1);
  k.loop(k.pid_x(), k.cdiv(n, kColumns), k.grid_x(), [&](Reg nt) {
    Reg n0 = nt * kColumns, columns = k.min(n - n0, kColumns);
    k.loop(k.pid_y(), k.cdiv(m, kRows), k.grid_y(), [&](Reg mt) {
      Reg m0 = mt * kRows, rows = k.min(m - m0, kRows);
      Tile c = k.slice(acc, 0, 0, rows, columns), o = k.slice(out, 0, 0, rows, columns);
      k.zero(c);
      k.loop(0, k.cdiv(depth, kDepth), [&](Reg step) {
        Reg k0 = step * kDepth, length = k.min(depth - k0, kDepth);
        Tile at = k.slice(a[step], 0, 0, rows, length), wt = k.slice(w[step], 0, 0, columns, length);
        k.load(at, A, {m0, k0});
        k.load(wt, W, {n0, k0});
        k.mma(c, at, wt);
      });
      k.drain(o, c);
      if (add)
        k.store_add(C, {m0, n0}, o);
      else
        k.store(C, {m0, n0}, o);
    });
  });
  return k.finish();
}

KernelCode matmul_i8() {
  Builder k("matmul_i8");
  constexpr uint32_t kDepth = 4096;
  auto A = k.tensor("a", i8, 2), W = k.tensor("w", i8, 2), SA = k.tensor("a_scale", f32, 1),
       SW = k.tensor("w_scale", f32, 1), C = k.tensor("c", f32, 2);
  auto a = k.spm(i8, kRows, kDepth, Stages(2)), w = k.spm(i8, kColumns, kDepth, Stages(2));
  auto acc = k.acc(kRows, kColumns, i32), out = k.spm(f32, kRows, kColumns);
  auto sa = k.spm(f32, 1, kRows), sa_column = k.spm(f32, kRows, 1), sw = k.spm(f32, 1, kColumns);
  Reg m = A.dim(0), n = W.dim(0), depth = A.dim(1);
  k.loop(k.pid_x(), k.cdiv(n, kColumns), k.grid_x(), [&](Reg nt) {
    Reg n0 = nt * kColumns, columns = k.min(n - n0, kColumns);
    k.loop(k.pid_y(), k.cdiv(m, kRows), k.grid_y(), [&](Reg mt) {
      Reg m0 = mt * kRows, rows = k.min(m - m0, kRows);
      Tile c = k.slice(acc, 0, 0, rows, columns), o = k.slice(out, 0, 0, rows, columns);
      Tile row_scale = k.slice(sw, 0, 0, 1, columns), column_scale = k.slice(sa_column, 0, 0, rows, 1);
      k.load(sa, SA, {m0});
      k.load(row_scale, SW, {n0});
      k.copy(sa_column, sa, true);
      k.zero(c);
      k.loop(0, k.cdiv(depth, kDepth), [&](Reg step) {
        Reg k0 = step * kDepth, length = k.min(depth - k0, kDepth);
        Tile at = k.slice(a[step], 0, 0, rows, length), wt = k.slice(w[step], 0, 0, columns, length);
        k.load(at, A, {m0, k0});
        k.load(wt, W, {n0, k0});
        k.mma(c, at, wt);
      });
      DrainOptions scales;
      scales.row_scale = &row_scale, scales.column_scale = &column_scale;
      k.drain(o, c, scales);
      k.store(C, {m0, n0}, o);
    });
  });
  return k.finish();
}

}  // namespace jalapeno::kernels
