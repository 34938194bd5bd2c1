// Faults that can be ordered by name: "ecc_uncorrectable@launch:3,hang@launch:5".
// Owns the grammar and the counting; the chip asks at each trigger what to do.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace jalapeno::emu {

enum class FaultKind { kEccUncorrectable, kEccCorrected, kHang, kDropInterrupt, kFatal, kLinkDown, kLinkError };
enum class FaultTrigger { kLaunch, kPacket, kInterrupt, kPut };

class FaultPlan {
 public:
  explicit FaultPlan(const std::string& text);  // throws std::runtime_error naming the word and what was expected
  // Counts one event of the trigger; true when a fault of this kind is due at it.
  bool due(FaultKind kind, FaultTrigger trigger, uint64_t count) const;
  bool empty() const { return orders_.empty(); }

 private:
  struct Order {
    FaultKind kind;
    FaultTrigger trigger;
    uint64_t nth;  // counted from 1
  };
  std::vector<Order> orders_;
};

}  // namespace jalapeno::emu
