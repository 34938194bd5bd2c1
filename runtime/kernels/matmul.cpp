// Matrix multiplication: c[m, n] = a[m, k] * w[n, k], weights in the order files store them.
#include "kernels/kernels.hpp"

namespace jalapeno::kernels {

using namespace tile;

namespace {
// The largest piece of C a program works on at once, and how deep a step goes. The grid decides how much of the piece
// is used: columns and rows are shared out among the programs in whole multiples of kUnit, so that a caller can fill
// every core with a small matrix and keep weights in place with a large one.
struct Shape {
  uint32_t rows, columns, depth;
};
constexpr uint32_t kUnit = 16;

// Many rows: a square piece, whose operands are used often. Two stages of weights are about a megabyte.
Shape square(DType weight) {
  return {256, 256, hw::info(weight).block > 1 || weight == i8 ? 2048u : weight == f32 ? 512u : 1024u};
}
// Few rows: nothing is used twice, so steps as deep as rows of weights are long. Two stages are two megabytes.
Shape thin(DType weight) { return {16, 128, weight == f32 ? 2048u : 4096u}; }

// Weights of eight-bit floats leave the activations their precision: bf16, which they are multiplied as anyhow.
DType activation(DType weight) {
  if (hw::is_fp8(weight) || weight == mxfp8) return bf16;
  return hw::info(weight).block > 1 ? q8_0 : weight;
}

// How much of `all` one of `programs` takes at a time.
Reg share(Builder& k, const Reg& all, const Reg& programs, uint32_t most) {
  return k.min(k.cdiv(k.cdiv(all, programs), kUnit) * kUnit, most);
}

// Everything between the pieces of C: which ones this program has, and the steps along the depth.
template <class Before, class After>
void pieces(Builder& k, const Tensor& A, const Tensor& W, const StagedTile& a, const StagedTile& w, const Tile& acc,
            const Shape& shape, Before before, After after) {
  Reg m = A.dim(0), n = W.dim(0), all = A.dim(1);
  Reg width = share(k, n, k.grid_x(), shape.columns), height = share(k, m, k.grid_y(), shape.rows);
  k.loop(k.pid_x(), k.cdiv(n, width), k.grid_x(), [&](Reg nt) {
    Reg n0 = nt * width, columns = k.min(n - n0, width);
    k.loop(k.pid_y(), k.cdiv(m, height), k.grid_y(), [&](Reg mt) {
      Reg m0 = mt * height, rows = k.min(m - m0, height);
      Tile c = k.slice(acc, 0, 0, rows, columns);
      before(m0, n0, rows, columns);
      k.zero(c);
      k.loop(0, k.cdiv(all, shape.depth), [&](Reg step) {
        Reg k0 = step * shape.depth, length = k.min(all - k0, shape.depth);
        Tile at = k.slice(a[step], 0, 0, rows, length), wt = k.slice(w[step], 0, 0, columns, length);
        k.load(at, A, {m0, k0});
        k.load(wt, W, {n0, k0});
        k.mma(c, at, wt);
      });
      after(m0, n0, rows, columns, c);
    });
  });
}
KernelCode product(const char* base, DType weight, bool add, const Shape& shape) {
  Builder k(std::string(base) + hw::info(weight).name + (add ? "_add" : ""));
  auto A = k.any_tensor("a", 2), W = k.tensor("w", weight, 2), C = k.tensor("c", f32, 2);
  auto a = k.spm(activation(weight), shape.rows, shape.depth, Stages(2)),
       w = k.spm(weight, shape.columns, shape.depth, Stages(2));
  auto acc = k.acc(shape.rows, shape.columns), out = k.spm(f32, shape.rows, shape.columns);
  pieces(
      k, A, W, a, w, acc, shape, [](const Reg&, const Reg&, const Reg&, const Reg&) {},
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

}  // namespace

KernelCode matmul(DType weight, bool add) { return product("matmul_", weight, add, square(weight)); }
KernelCode matvec(DType weight, bool add) { return product("matvec_", weight, add, thin(weight)); }

KernelCode matmul_i8() {
  Builder k("matmul_i8");
  const Shape shape = square(i8);
  auto A = k.tensor("a", i8, 2), W = k.tensor("w", i8, 2), SA = k.tensor("a_scale", f32, 1),
       SW = k.tensor("w_scale", f32, 1), C = k.tensor("c", f32, 2);
  auto a = k.spm(i8, shape.rows, shape.depth, Stages(2)), w = k.spm(i8, shape.columns, shape.depth, Stages(2));
  auto acc = k.acc(shape.rows, shape.columns, i32), out = k.spm(f32, shape.rows, shape.columns);
  auto sa = k.spm(f32, 1, shape.rows), sa_column = k.spm(f32, shape.rows, 1), sw = k.spm(f32, 1, shape.columns);
  pieces(
      k, A, W, a, w, acc, shape,
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
