// The core's side of call lists: writes down what an instruction did, and does it again without its program.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core.hpp"
#include "fault.hpp"

namespace jalapeno::emu {

void Core::record(const Step& step) {
  if (std::exchange(recorded_, false)) return;
  StepCall call{&step, {}, {}};
  for (size_t k = 0; k < 4; ++k) {
    if (step.instruction.t[k] != hw::kNone) call.tiles[k] = tiles_[step.instruction.t[k]];
    call.registers[k] = reg(step.instruction.r[k]);
  }
  list_->add(call);
}

std::byte* Core::at(const Place& p) const {
  switch (p.base) {
    case Place::Base::kMemory:
      return reinterpret_cast<std::byte*>(p.at);
    case Place::Base::kSpm:
      return spm_ + p.at;
    case Place::Base::kAcc:
      return acc_ + p.at;
  }
  return nullptr;
}

void Core::play(const ZeroCall& call) {
  for (uint32_t r = 0; r < call.tile.rows; ++r) std::memset(data(call.tile, r), 0, call.tile.row_bytes);
}

void Core::play(const CopyCall& call) {
  const std::byte* from = at(call.from);
  std::byte* to = at(call.to);
  for (uint32_t r = 0; r < call.rows; ++r) std::memcpy(to + call.to_pitch * r, from + call.from_pitch * r, call.bytes);
}

void Core::play(const MultiplyCall& call) {
  MultiplyArgs x = call.args;
  x.a = at(call.a), x.b = at(call.b), x.c = reinterpret_cast<float*>(at(call.c));
  host_.multiply(x);
}

void Core::play(const StoreCall& call) {
  const Tile& t = call.tile;
  for (uint32_t r = 0; r < t.rows; ++r)
    store_converted(call.type, call.memory + call.stride * r, t.columns, data(t, r), t.dtype, call.add);
}

void Core::play(const StepCall& call) {
  const hw::Instruction& i = call.step->instruction;
  for (size_t k = 0; k < 4; ++k) {
    if (i.t[k] != hw::kNone) tiles_[i.t[k]] = call.tiles[k];
    if (i.r[k] != hw::kNone) set(i.r[k], call.registers[k]);
  }
  pc_ = static_cast<uint32_t>(call.step - launch_->program->steps.data());
  switch (call.step->unit) {
    case hw::EngineClass::Control:
      control(i);
      break;
    case hw::EngineClass::Dma:
      dma(i);
      break;
    case hw::EngineClass::Matrix:
      matrix(i);
      break;
    case hw::EngineClass::Vector:
      vector(i);
      break;
  }
}

namespace {
// In instructions that would have looked at the clock: a multiplication as long as it takes.
uint32_t weight(const Call& call) {
  constexpr uint32_t kOfAny = 8;
  if (const auto* m = std::get_if<MultiplyCall>(&call)) {
    const uint64_t products = uint64_t{m->args.m} * m->args.n * m->args.k;
    return kOfAny + static_cast<uint32_t>(std::min<uint64_t>(products >> 18, 1 << 20));
  }
  return kOfAny;
}
}  // namespace

void Core::replay(const Launch& launch, std::array<uint32_t, 3> pid, const CallList& list) {
  begin(launch, pid);
  try {
    if (launch.stop->load(std::memory_order_relaxed)) look_at_the_clock();
    for (const Call& call : list.calls()) {
      const uint32_t w = weight(call);
      if (budget_ <= w)
        look_at_the_clock();
      else
        budget_ -= w;
      std::visit([this](const auto& c) { play(c); }, call);
    }
  } catch (Fault& f) {
    rethrow(f);
  }
}

}  // namespace jalapeno::emu
