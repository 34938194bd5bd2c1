#include "lowered.hpp"

#include <algorithm>
#include <cstring>

namespace jalapeno::emu {
namespace {

constexpr uint64_t kMostBytes = 16 << 20;  // of lists; then it begins anew
constexpr uint64_t kMostCalls = 2048;      // of an instance
constexpr uint32_t kMostInstances = 1 << 14;
constexpr size_t kMostEntries = 1 << 14, kSeen = 1 << 12, kBucket = 8;
// Several pieces for each thread, because they are not equally fast, but none so small that beginning it is most of it.
constexpr uint32_t kPiecesPerThread = 4;
constexpr uint64_t kPieceBytes = 64 << 10;  // of weights
constexpr uint32_t kShort = 16;             // instructions, of all instances: looking it up costs as much

uint64_t hash_of(const Launch& l) {
  uint64_t h = reinterpret_cast<uintptr_t>(l.program);
  const auto mix = [&](uint64_t word) {
    h = (h ^ word) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
  };
  for (uint32_t at = 0; at < l.argument_bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, l.arguments.data() + at, std::min<size_t>(8, l.argument_bytes - at));
    mix(word);
  }
  mix(uint64_t{l.grid[0]} << 32 | l.grid[1]), mix(l.grid[2]);
  return h;
}

}  // namespace

bool LoweredLaunches::Entry::is(const Launch& l) const {
  return program == l.program && grid == l.grid && arguments.size() == l.argument_bytes &&
         std::memcmp(arguments.data(), l.arguments.data(), arguments.size()) == 0;
}

LoweredLaunches::Way LoweredLaunches::way(const Launch& launch, uint32_t count) {
  if (!launch.program->lowers || count > kMostInstances || uint64_t{count} * launch.program->steps.size() < kShort)
    return Way::kInterpret;
  hash_ = hash_of(launch);
  if (const auto known = entries_.find(hash_); known != entries_.end()) {
    if (known->second.lowered == nullptr || !known->second.is(launch)) return Way::kInterpret;
    found_ = known->second.lowered.get();
    return Way::kReplay;
  }
  if (seen_.empty()) seen_.resize(kSeen);
  const auto bucket = seen_.begin() + static_cast<std::ptrdiff_t>(hash_ % kSeen / kBucket * kBucket);
  if (std::find(bucket, bucket + kBucket, hash_) != bucket + kBucket) return Way::kRecord;
  bucket[next_seen_++ % kBucket] = hash_;
  return Way::kInterpret;
}

std::vector<CallList> LoweredLaunches::lists(uint32_t count) {
  return std::vector<CallList>(count, CallList(std::min<uint64_t>(kMostCalls, kMostBytes / sizeof(Call) / count)));
}

void LoweredLaunches::keep(const Launch& launch, std::vector<CallList>&& instances, const Tally& total, double longest,
                           uint32_t threads) {
  auto lowered = std::make_unique<LoweredLaunch>();
  lowered->total = total, lowered->longest = longest;
  const auto count = static_cast<uint32_t>(instances.size());
  uint64_t bytes = launch.argument_bytes, weights = 0;
  uint32_t multiplications = 0;  // a grid may have instances with nothing to do
  for (CallList& list : instances) {
    list.fuse();
    weights += list.weight_bytes(), multiplications += list.weight_bytes() > 0 ? 1 : 0;
  }
  const uint64_t each = std::clamp<uint64_t>(weights / kPieceBytes / threads, 1, threads == 1 ? 1 : kPiecesPerThread);
  const auto most = static_cast<uint32_t>((multiplications + threads * each - 1) / (threads * each));
  const bool usable = std::all_of(instances.begin(), instances.end(), [](const CallList& l) { return l.usable(); });
  for (uint32_t k = 0, in_piece = 0; usable && k < count; ++k) {
    CallList& list = instances[k];
    if (in_piece > 0 && in_piece < most && lowered->pieces.back().list.absorb(list)) {
      ++in_piece;
      continue;
    }
    in_piece = 1;
    bytes += sizeof(LoweredLaunch::Piece) + list.calls().capacity() * sizeof(Call);
    lowered->pieces.push_back({k, std::move(list)});
  }
  std::sort(lowered->pieces.begin(), lowered->pieces.end(),
            [&](const auto& a, const auto& b) { return launch.turn_of(a.instance) < launch.turn_of(b.instance); });
  // One that cannot be kept takes nobody's place.
  const bool kept = usable && bytes <= kMostBytes;
  if ((kept && bytes_ + bytes > kMostBytes) || entries_.size() == kMostEntries) clear();
  Entry& e = entries_[hash_];
  e.program = launch.program, e.grid = launch.grid;
  if (!kept) return;
  e.arguments.assign(launch.arguments.begin(), launch.arguments.begin() + launch.argument_bytes);
  e.lowered = std::move(lowered);
  bytes_ += bytes;
}

void LoweredLaunches::clear() {
  entries_.clear();
  seen_.clear();
  bytes_ = 0, found_ = nullptr;
}

}  // namespace jalapeno::emu
