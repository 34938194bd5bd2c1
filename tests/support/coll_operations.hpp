// Random operations of a rank that is one of many in as many processes. Every rank knows what the others give and
// computes what must come out, to the bit: values are no whole numbers, so that another order of a sum would show.
#pragma once
#include <algorithm>
#include <cstring>
#include <functional>
#include <jalapeno/jalapeno.hpp>
#include <random>
#include <vector>

namespace jalapeno::test {

class Operations {
 public:
  Operations(const Communicator& comm, const Device& device, const Stream& stream)
      : comm_(comm),
        device_(device),
        stream_(stream),
        ranks_(static_cast<size_t>(comm.ranks())),
        rank_(static_cast<size_t>(comm.rank())) {}

  struct Outcome {
    uint64_t operations = 0, wrong = 0;  // wrong elements
  };
  Outcome run(int operations) {
    Outcome o;
    uint64_t& wrong = o.wrong;
    for (; operations > 0; --operations, ++o.operations) switch (pick(3)) {
        case 0:
          wrong += one<float>();
          break;
        case 1:
          wrong += one<bf16>();
          break;
        default:
          wrong += one<int32_t>();
      }
    return o;
  }

 private:
  size_t pick(size_t below) { return random_() % below; }

  static float wide(float x) { return x; }
  static uint32_t wide(int32_t x) { return static_cast<uint32_t>(x); }
  static float wide(bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  static void narrow(float f, float& out) { out = f; }
  static void narrow(uint32_t v, int32_t& out) { out = static_cast<int32_t>(v); }
  static void narrow(float f, bf16& out) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    out.bits = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }

  template <class W>
  static W apply(jalReduceOp op, W a, W b) {
    return op == jalMin ? std::min(a, b) : op == jalMax ? std::max(a, b) : op == jalProd ? a * b : a + b;
  }

  // A binary tree over the ranks, cut at powers of two.
  template <class W>
  static W tree(jalReduceOp op, const std::vector<W>& v, size_t low, size_t high) {
    if (high - low == 1) return v[low];
    size_t half = 1;
    while (2 * half < high - low) half *= 2;
    return apply(op, tree(op, v, low, low + half), tree(op, v, low + half, high));
  }

  template <class T>
  uint64_t one() {
    constexpr size_t kCounts[] = {0, 1, 3, 40, 999, 5000, 40'000, 150'001, 600'001};
    const size_t n = ranks_, count = kCounts[pick(9)], part = count == 0 ? 1 : count;
    const size_t what = pick(7), root = pick(n);
    const bool in_place = pick(3) == 0 && what < 5, graph = pick(4) == 0;
    // Unsigned words stand for the integers: their order and their division would be others.
    constexpr jalReduceOp kOps[] = {jalSum, jalSum, jalProd, jalAvg, jalMin, jalMax};
    const jalReduceOp op = kOps[pick(std::is_same_v<T, int32_t> ? 3 : 6)];
    std::vector<std::vector<T>> in(n, std::vector<T>(part * n));
    for (auto& v : in)
      for (T& x : v) {
        if constexpr (std::is_same_v<T, int32_t>)
          x = static_cast<int32_t>(random_());
        else
          narrow(static_cast<float>(static_cast<int32_t>(random_())) * 1e-7f, x);
      }
    using W = decltype(wide(T{}));
    auto sum = [&](size_t i) {
      std::vector<W> v;
      for (const auto& x : in) v.push_back(wide(x[i]));
      W s = tree(op, v, 0, n);
      if (op == jalAvg) s = s / static_cast<W>(n);
      T out;
      narrow(s, out);
      return out;
    };
    Buffer<T> send(device_, std::span<const T>(in[rank_])), receive(device_, part * n);
    std::vector<T> expected = in[rank_];
    if (!in_place) check(jalMemcpy(receive.data(), in[rank_].data(), part * n * sizeof(T)));
    T *a = send.data(), *b = in_place ? send.data() : receive.data();
    const int next = static_cast<int>((rank_ + 1) % n), before = static_cast<int>((rank_ + n - 1) % n);
    auto call = [&] {
      switch (what) {
        case 0:
          return comm_.all_reduce(a, b, count, op, stream_);
        case 1:
          return comm_.reduce(a, b, count, op, static_cast<int>(root), stream_);
        case 2:
          return comm_.broadcast(a, b, count, static_cast<int>(root), stream_);
        case 3:
          return comm_.all_gather(a + (in_place ? rank_ * count : 0), b, count, stream_);
        case 4:
          return comm_.reduce_scatter(a, b + (in_place ? rank_ * count : 0), count, op, stream_);
        case 5:
          return comm_.all_to_all(a, b, count, stream_);
        default:
          return group([&] {
            comm_.send(a, count, next, stream_);
            comm_.receive(b, count, before, stream_);
          });
      }
    };
    for (size_t k = 0; k < n; ++k)
      for (size_t i = 0; i < count; ++i) switch (what) {
          case 0:
            if (k == 0) expected[i] = sum(i);
            break;
          case 1:
            if (k == 0 && rank_ == root) expected[i] = sum(i);
            break;
          case 2:
            if (k == root) expected[i] = in[k][i];
            break;
          case 3:
            expected[k * count + i] = in[k][(in_place ? k * count : 0) + i];
            break;
          case 4:
            if (k == rank_) expected[(in_place ? k * count : 0) + i] = sum(k * count + i);
            break;
          case 5:
            expected[k * count + i] = in[k][rank_ * count + i];
            break;
          default:
            if (k == static_cast<size_t>(before)) expected[i] = in[k][i];
        }
    if (graph) {
      const Graph recorded(stream_, call);
      for (int replay = 0; replay < (in_place ? 1 : 3); ++replay) recorded.launch(stream_);
      stream_.synchronize();
    } else {
      call();
      stream_.synchronize();
    }
    const auto got = (in_place ? send : receive).to_host();
    uint64_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) wrong += std::memcmp(&got[i], &expected[i], sizeof(T)) != 0;
    return wrong;
  }

  const Communicator& comm_;
  const Device& device_;
  const Stream& stream_;
  size_t ranks_, rank_;
  std::mt19937 random_{7};  // the same on every rank
};

}  // namespace jalapeno::test
