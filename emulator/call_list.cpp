#include "call_list.hpp"

#include "core.hpp"

namespace jalapeno::emu {
namespace {

constexpr uint32_t kMostJoinedRows = 16;  // of A: more share a cache with a piece of B, not with all of it
constexpr uint32_t kMostAddedRows = 3;    // of A: as many are added when their sums are complete (kernels.hpp)

// A drain that changes nothing but the place.
bool plain_drain(const StepCall& call) {
  const hw::Instruction& i = call.step->instruction;
  return i.op == uint8_t(hw::Op::MDRAIN) && i.sub == uint8_t(hw::ActOp::kNone) && i.r[0] == hw::kNone &&
         i.t[2] == hw::kNone && i.t[3] == hw::kNone && call.tiles[0].dtype == hw::DType::kF32 &&
         call.tiles[1].dtype == hw::DType::kF32;
}

// Whether rows that the multiplication reads may lie where the store writes.
bool overlap(const Place& source, size_t pitch, uint32_t rows, uint64_t row_bytes, const StoreCall& store) {
  if (source.base != Place::Base::kMemory) return false;
  const auto begin = reinterpret_cast<uintptr_t>(store.memory);
  const uint64_t reach = store.stride * (store.tile.rows - 1) + store.tile.row_bytes;
  return source.at < begin + reach && begin < source.at + pitch * (rows - 1) + row_bytes;
}

// Whether the multiplication may leave its result where the store would have brought it: from the same rows, which do
// not overlap there, nor are they read on the way.
bool may_write_at_once(const MultiplyCall& m, const StoreCall& store) {
  const MultiplyArgs& x = m.args;
  const Tile& t = store.tile;
  const bool same = !x.accumulate && m.c == Place::of(t) && x.m == t.rows && x.n == t.columns;
  const bool apart = t.rows == 1 || (x.c_pitch == t.pitch && store.stride >= t.row_bytes);
  const bool added = !store.add || (t.rows <= kMostAddedRows && !x.rows_are_k);
  const bool plain = added && store.hbm && store.type == hw::DType::kF32 &&
                     reinterpret_cast<uintptr_t>(store.memory) % 4 == 0 && store.stride % 4 == 0;
  return same && apart && plain && !overlap(m.a, x.a_pitch, x.m, hw::row_bytes(x.a_type, x.k), store) &&
         !overlap(m.b, x.b_pitch, x.rows_are_k ? x.k : x.n, hw::row_bytes(x.b_type, x.rows_are_k ? x.n : x.k), store);
}

}  // namespace

void CallList::add(Call call) {
  if (!usable_) return;
  if (calls_.size() == most_) {
    calls_ = {}, usable_ = false;
    return;
  }
  // The first multiplication into zeroed accumulators overwrites them.
  if (auto* m = std::get_if<MultiplyCall>(&call); m != nullptr && m->args.accumulate && !calls_.empty())
    if (const auto* zero = std::get_if<ZeroCall>(&calls_.back());
        zero != nullptr && m->c == Place::of(zero->tile) && zero->tile.pitch == m->args.c_pitch &&
        zero->tile.rows == m->args.m && zero->tile.columns == m->args.n) {
      m->args.accumulate = false;
      calls_.pop_back();
    }
  calls_.push_back(call);
}

void CallList::fuse() {
  if (calls_.size() < 2) return;
  auto* store = std::get_if<StoreCall>(&calls_.back());
  const auto* drain = std::get_if<StepCall>(&calls_[calls_.size() - 2]);
  if (store == nullptr || drain == nullptr || !plain_drain(*drain) || store->tile != drain->tiles[0]) return;
  StoreCall direct = *store;
  direct.tile = drain->tiles[1];
  calls_.pop_back(), calls_.pop_back();
  if (!calls_.empty())
    if (auto* m = std::get_if<MultiplyCall>(&calls_.back()); m != nullptr && may_write_at_once(*m, direct)) {
      m->c = Place::of(direct.memory), m->args.c_pitch = direct.stride, m->args.accumulate = direct.add;
      return;
    }
  calls_.emplace_back(direct);
}

bool CallList::absorb(const CallList& next) {
  if (calls_.size() != 1 || next.calls_.size() != 1) return false;
  auto* left = std::get_if<MultiplyCall>(&calls_[0]);
  const auto* right = std::get_if<MultiplyCall>(&next.calls_[0]);
  if (left == nullptr || right == nullptr) return false;
  MultiplyArgs& x = left->args;
  const MultiplyArgs& y = right->args;
  // Four columns at a time have a sum of their own: those that are left over would have another.
  if (x.n % 4 != 0 || x.m > kMostJoinedRows || x.rows_are_k || y.rows_are_k || x.accumulate != y.accumulate ||
      x.m != y.m || x.k != y.k || x.a_type != y.a_type || x.b_type != y.b_type || x.a_pitch != y.a_pitch ||
      x.b_pitch != y.b_pitch || x.c_pitch != y.c_pitch || left->a != right->a || left->b.base != Place::Base::kMemory ||
      right->b != Place{Place::Base::kMemory, left->b.at + x.b_pitch * x.n} || left->c.base != Place::Base::kMemory ||
      right->c != Place{Place::Base::kMemory, left->c.at + sizeof(float) * x.n})
    return false;
  x.n += y.n;
  return true;
}

uint64_t CallList::weight_bytes() const {
  const auto* m = calls_.size() == 1 ? std::get_if<MultiplyCall>(&calls_[0]) : nullptr;
  return m == nullptr || m->args.rows_are_k ? 0 : m->args.n * hw::row_bytes(m->args.b_type, m->args.k);
}

}  // namespace jalapeno::emu
