// The core's vector engine: row by row in f32, whatever the tiles hold.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "checker.hpp"
#include "core.hpp"
#include "fault.hpp"
#include "words.hpp"

namespace jalapeno::emu {

using hw::Instruction;
using hw::Op;
using hw::Status;

namespace {

void same_shape(const Instruction& i, const Tile& a, const Tile& b) {
  if (a.rows != b.rows || a.columns != b.columns)
    throw Fault(Status::kTileFault, "%s: %ux%u and %ux%u do not match", hw::find_op(i.op)->name.data(), a.rows,
                a.columns, b.rows, b.columns)
        .tile(i.t[0]);
}

[[noreturn]] void shapes(const Instruction& i, const char* what) {
  throw Fault(Status::kTileFault, "%s: %s", hw::find_op(i.op)->name.data(), what).tile(i.t[0]);
}

bool special(hw::UnaryOp op) {
  using U = hw::UnaryOp;
  switch (op) {
    case U::kExp:
    case U::kLog:
    case U::kSqrt:
    case U::kRsqrt:
    case U::kRcp:
    case U::kTanh:
    case U::kSigmoid:
    case U::kSilu:
    case U::kGelu:
    case U::kSin:
    case U::kCos:
      return true;
    case U::kCopy:
    case U::kNeg:
    case U::kAbs:
    case U::kRelu:
    case U::kFloor:
      return false;
  }
  return false;
}

// No NaN is.
bool all_below(const float* x, uint32_t n, float limit) {
  uint32_t others = 0;
  for (uint32_t i = 0; i < n; ++i) others += x[i] < limit ? 0 : 1;
  return others == 0;
}

// Philox4x32-10 (Salmon et al., SC'11).
void philox(uint64_t seed, uint64_t counter, uint32_t block, uint32_t out[4]) {
  uint32_t c[4] = {block, 0, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                        static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    std::memcpy(c, next, sizeof c);
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  std::memcpy(out, c, sizeof c);
}

}  // namespace

// Keeps the k largest; among equals the lower index comes first, so the result does not depend on merging order.
void Core::top_k(const Instruction& i) {
  const Tile& x = in(i, 2);
  const bool merge = i.flags & hw::kFlagAccumulate;
  if (merge) in(i, 0), in(i, 1);
  const Tile &values = out(i, 0), &indices = out(i, 1);
  const uint32_t k = values.columns;
  if (values.rows != x.rows || indices.rows != x.rows || indices.columns != k || k > hw::kMaxTopK ||
      values.dtype != hw::DType::kF32 || indices.dtype != hw::DType::kI32)
    shapes(i, "needs f32 values and i32 indices of the same shape, at most 1024 columns, and the input's rows");
  const int64_t base = reg(i.r[0]);
  auto before = [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  };
  for (uint32_t r = 0; r < x.rows; ++r) {
    const float* row = load_row(x, r, 0);
    auto* v = reinterpret_cast<float*>(data(values, r));
    auto* n = reinterpret_cast<int32_t*>(data(indices, r));
    candidates_.clear();
    if (merge)
      for (uint32_t c = 0; c < k; ++c)
        if (n[c] >= 0) candidates_.emplace_back(v[c], n[c]);
    if (candidates_.size() == k) std::make_heap(candidates_.begin(), candidates_.end(), before);
    for (uint32_t c = 0; c < x.columns; ++c) {
      // Most of a vocabulary is smaller than the least candidate: a look at many at once.
      constexpr uint32_t kMany = 64;
      while (candidates_.size() == k && c + kMany <= x.columns && all_below(row + c, kMany, candidates_.front().first))
        c += kMany;
      if (c == x.columns) break;
      if (row[c] == -std::numeric_limits<float>::infinity() || row[c] != row[c])
        continue;  // -inf is "absent", a NaN has no rank
      std::pair<float, int32_t> candidate(row[c], static_cast<int32_t>(base + c));
      if (candidates_.size() < k) {
        candidates_.push_back(candidate);
        if (candidates_.size() == k) std::make_heap(candidates_.begin(), candidates_.end(), before);
      } else if (before(candidate, candidates_.front())) {
        std::pop_heap(candidates_.begin(), candidates_.end(), before);
        candidates_.back() = candidate;
        std::push_heap(candidates_.begin(), candidates_.end(), before);
      }
    }
    std::sort(candidates_.begin(), candidates_.end(), before);
    for (uint32_t c = 0; c < k; ++c) {
      const bool have = c < candidates_.size();
      v[c] = have ? candidates_[c].first : -std::numeric_limits<float>::infinity();
      n[c] = have ? candidates_[c].second : -1;
    }
  }
}

void Core::softmax(const Instruction& i) {
  const Tile &s = in(i, 1), &state = in(i, 2);
  const Tile& p = out(i, 0);
  out(i, 2);
  same_shape(i, p, s);
  if (state.rows != s.rows || state.columns < 3 || state.dtype != hw::DType::kF32)
    shapes(i, "the state needs f32 columns max, sum, correction for each row");
  const float scale = i.r[0] == hw::kNone ? 1.f : reg_f32(i.r[0]);
  for (uint32_t r = 0; r < s.rows; ++r) {
    const float* x = load_row(s, r, 0);
    float* o = row_buffer(p, r, 1);
    auto* st = reinterpret_cast<float*>(data(state, r));
    const float peak = host_.reduce(scale < 0 ? hw::ReduceOp::kMin : hw::ReduceOp::kMax, x, s.columns) * scale;
    const float now = std::max(st[0], peak);
    if (now == -std::numeric_limits<float>::infinity()) {  // all masked so far
      std::fill_n(o, s.columns, 0.f);
      st[2] = 1;
    } else {
      const float behind = st[0] - now;
      host_.unary(hw::UnaryOp::kExp, &behind, &st[2], 1);
      st[1] = st[1] * st[2] + host_.exp_shifted(x, scale, now, o, s.columns);
      st[0] = now;
    }
    store_row(p, r, o);
  }
}

void Core::rope(const Instruction& i) {
  const Tile &x = in(i, 1), &cosine = in(i, 2), &sine = in(i, 3);
  const Tile& o = out(i, 0);
  same_shape(i, o, x);
  const uint32_t head = static_cast<uint32_t>(i.imm0), rotated = static_cast<uint32_t>(i.imm1), half = rotated / 2;
  if (i.imm0 == 0 || i.imm0 > x.columns || x.columns % head != 0 || i.imm1 > head || rotated % 2 != 0 || half == 0 ||
      cosine.columns != half || sine.columns != half || (cosine.rows != 1 && cosine.rows != x.rows) ||
      sine.rows != cosine.rows)
    shapes(i, "needs columns in whole heads, an even number of rotated columns, and cos and sin of half as many");
  for (uint32_t r = 0; r < x.rows; ++r) {
    const float* in_row = load_row(x, r, 0);
    const float* c = load_row(cosine, cosine.rows == 1 ? 0 : r, 2);
    const float* s = load_row(sine, sine.rows == 1 ? 0 : r, 3);
    float* out_row = scratch_[1].get();
    std::memcpy(out_row, in_row, size_t{x.columns} * 4);
    for (uint32_t h = 0; h < x.columns; h += head)
      for (uint32_t k = 0; k < half; ++k) {
        const bool pairs = static_cast<hw::RopeOp>(i.sub) == hw::RopeOp::kInterleaved;
        const uint32_t a = h + (pairs ? 2 * k : k), b = pairs ? a + 1 : a + half;
        out_row[a] = in_row[a] * c[k] - in_row[b] * s[k];
        out_row[b] = in_row[a] * s[k] + in_row[b] * c[k];
      }
    store_row(o, r, out_row);
  }
}

double Core::vector(const Instruction& i) {
  double passes = 1;
  const Tile* shape = nullptr;
  switch (static_cast<Op>(i.op)) {
    case Op::VUNI: {
      const Tile& a = in(i, 1);
      const Tile& o = out(i, 0);
      same_shape(i, o, a);
      shape = &a;
      const auto op = static_cast<hw::UnaryOp>(i.sub);
      if (special(op)) passes = config_.vector_cycles_special;
      for (uint32_t r = 0; r < o.rows; ++r) {
        float* d = row_buffer(o, r, 1);
        host_.unary(op, load_row(a, r, 0), d, o.columns);
        store_row(o, r, d);
      }
      break;
    }
    case Op::VBIN: {
      const bool by_register = i.flags & hw::kFlagScalar, reverse = i.flags & hw::kFlagReverse;
      const Tile& a = in(i, 1);
      const Tile* b = by_register ? nullptr : &in(i, 2);
      const Tile& o = out(i, 0);
      same_shape(i, o, a);
      if (b != nullptr && ((b->rows != 1 && b->rows != a.rows) || (b->columns != 1 && b->columns != a.columns)))
        throw Fault(Status::kTileFault, "VBIN: %ux%u does not broadcast to %ux%u", b->rows, b->columns, a.rows,
                    a.columns)
            .tile(i.t[2]);
      shape = &a;
      const auto op = static_cast<hw::BinaryOp>(i.sub);
      if (op == hw::BinaryOp::kDiv) passes = config_.vector_cycles_special;
      for (uint32_t r = 0; r < o.rows; ++r) {
        const float* x = load_row(a, r, 0);
        float* d = row_buffer(o, r, 1);
        if (b != nullptr && b->columns != 1) {
          const float* y = load_row(*b, b->rows == 1 ? 0 : r, 2);
          reverse ? host_.binary(op, y, x, d, o.columns) : host_.binary(op, x, y, d, o.columns);
        } else {
          const float y = b != nullptr          ? load_row(*b, b->rows == 1 ? 0 : r, 2)[0]
                          : i.r[0] == hw::kNone ? as_float(i.imm0)
                                                : reg_f32(i.r[0]);
          host_.binary_scalar(op, x, y, reverse, d, o.columns);
        }
        store_row(o, r, d);
      }
      break;
    }
    case Op::VTER: {
      const Tile &a = in(i, 1), &b = in(i, 2), &c = in(i, 3);
      const Tile& o = out(i, 0);
      same_shape(i, o, a), same_shape(i, o, b), same_shape(i, o, c);
      shape = &a;
      for (uint32_t r = 0; r < o.rows; ++r) {
        const float *x = load_row(a, r, 0), *y = load_row(b, r, 2), *z = load_row(c, r, 3);
        float* d = row_buffer(o, r, 1);
        const bool fma = static_cast<hw::TernaryOp>(i.sub) == hw::TernaryOp::kFma;
        for (uint32_t k = 0; k < o.columns; ++k) d[k] = fma ? x[k] * y[k] + z[k] : x[k] != 0 ? y[k] : z[k];
        store_row(o, r, d);
      }
      break;
    }
    case Op::VMASK: {
      const Tile& a = in(i, 1);
      const Tile& o = out(i, 0);
      same_shape(i, o, a);
      shape = &a;
      const int64_t column0 = reg(i.r[0]), limit0 = reg(i.r[1]), step = static_cast<int64_t>(i.imm0);
      for (uint32_t r = 0; r < o.rows; ++r) {
        const int64_t keep =
            std::clamp<int64_t>(static_cast<int64_t>(static_cast<uint64_t>(limit0) + r * static_cast<uint64_t>(step) -
                                                     static_cast<uint64_t>(column0)),
                                0, o.columns);
        float* d = row_buffer(o, r, 1);
        const float* x = load_row(a, r, 0);
        if (d != x) std::memcpy(d, x, static_cast<size_t>(keep) * 4);
        std::fill(d + keep, d + o.columns, as_float(i.imm1));
        store_row(o, r, d);
      }
      break;
    }
    case Op::VRED: {
      const Tile& a = in(i, 1);
      const Tile& o = out(i, 0);
      if (o.rows != a.rows || o.columns != 1) shapes(i, "needs a column vector of the input's rows");
      shape = &a;
      const auto op = static_cast<hw::ReduceOp>(i.sub);
      for (uint32_t r = 0; r < a.rows; ++r) {
        const float* x = load_row(a, r, 0);
        float v = op == hw::ReduceOp::kArgMax ? static_cast<float>(std::max_element(x, x + a.columns) - x)
                                              : host_.reduce(op, x, a.columns);
        store_row(o, r, &v);
      }
      break;
    }
    case Op::VNORM: {
      const Tile &a = in(i, 1), &w = in(i, 2);
      const Tile& o = out(i, 0);
      same_shape(i, o, a);
      if (w.rows != 1 || w.columns != a.columns) shapes(i, "the weight is a row vector of the input's columns");
      shape = &a, passes = 3;
      const float eps = i.r[0] == hw::kNone ? 0 : reg_f32(i.r[0]);
      const float* weight = load_row(w, 0, 2);
      for (uint32_t r = 0; r < a.rows; ++r) {
        const float* x = load_row(a, r, 0);
        float* d = row_buffer(o, r, 1);
        const float mean = host_.reduce(hw::ReduceOp::kSumSq, x, a.columns) / static_cast<float>(a.columns);
        host_.scale_by_row(x, 1.f / std::sqrt(mean + eps), weight, d, a.columns);
        store_row(o, r, d);
      }
      break;
    }
    case Op::VROPE:
      rope(i);
      shape = &tiles_[i.t[1]], passes = 2;
      break;
    case Op::VSMX:
      softmax(i);
      shape = &tiles_[i.t[1]], passes = 2 + config_.vector_cycles_special;
      break;
    case Op::VGLU: {
      const Tile &a = in(i, 1), &b = in(i, 2);
      const Tile& o = out(i, 0);
      same_shape(i, o, a), same_shape(i, o, b);
      shape = &a, passes = 1 + config_.vector_cycles_special;
      const auto act = static_cast<hw::ActOp>(i.sub);
      for (uint32_t r = 0; r < o.rows; ++r) {
        const float *x = load_row(a, r, 0), *y = load_row(b, r, 2);
        float* g = scratch_[3].get();
        if (act == hw::ActOp::kNone)
          std::memcpy(g, x, size_t{o.columns} * 4);
        else
          host_.unary(act == hw::ActOp::kSilu   ? hw::UnaryOp::kSilu
                      : act == hw::ActOp::kGelu ? hw::UnaryOp::kGelu
                                                : hw::UnaryOp::kRelu,
                      x, g, o.columns);
        float* d = row_buffer(o, r, 1);
        host_.binary(hw::BinaryOp::kMul, g, y, d, o.columns);
        store_row(o, r, d);
      }
      break;
    }
    case Op::VTOPK:
      top_k(i);
      shape = &tiles_[i.t[2]], passes = 4;
      break;
    case Op::VRNG: {
      const Tile& o = out(i, 0);
      shape = &o, passes = config_.vector_cycles_special;
      uint32_t bits[4] = {};
      for (uint32_t r = 0, n = 0; r < o.rows; ++r) {
        float* d = row_buffer(o, r, 1);
        for (uint32_t c = 0; c < o.columns; ++c, ++n) {
          if (n % 4 == 0) philox(static_cast<uint64_t>(reg(i.r[0])), static_cast<uint64_t>(reg(i.r[1])), n / 4, bits);
          d[c] = static_cast<float>(bits[n % 4] >> 8) * 0x1p-24f;
        }
        store_row(o, r, d);
      }
      break;
    }
    case Op::VSCAN: {
      const Tile& a = in(i, 1);
      const Tile& o = out(i, 0);
      same_shape(i, o, a);
      shape = &a, passes = 2;
      for (uint32_t r = 0; r < o.rows; ++r) {
        const float* x = load_row(a, r, 0);
        float* d = row_buffer(o, r, 1);
        float sum = 0;
        for (uint32_t c = 0; c < o.columns; ++c) d[c] = sum += x[c];
        store_row(o, r, d);
      }
      break;
    }
    case Op::VIOTA: {
      const Tile& o = out(i, 0);
      shape = &o;
      for (uint32_t r = 0; r < o.rows; ++r) {
        float* d = row_buffer(o, r, 1);
        for (uint32_t c = 0; c < o.columns; ++c)
          d[c] = static_cast<float>(static_cast<int64_t>(static_cast<uint64_t>(reg(i.r[0])) + r * i.imm0 + c * i.imm1));
        store_row(o, r, d);
      }
      break;
    }
    case Op::VFILL: {
      const Tile& o = out(i, 0);
      shape = &o;
      for (uint32_t r = 0; r < o.rows; ++r) {
        float* d = row_buffer(o, r, 1);
        std::fill_n(d, o.columns, as_float(i.imm0));
        store_row(o, r, d);
      }
      break;
    }
    default:
      throw Fault(Status::kIllegalInstruction, "opcode %u on the vector engine", i.op);
  }
  const double elements = static_cast<double>(shape->rows) * shape->columns;
  tally_.picojoules += elements * passes * config_.pj_per_vector_op;
  return std::ceil(elements / config_.vector_lanes) * passes / config_.core_clock_ghz;
}

}  // namespace jalapeno::emu
