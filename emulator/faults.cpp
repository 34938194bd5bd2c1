#include "faults.hpp"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace jalapeno::emu {
namespace {

struct Kind {
  const char* name;
  FaultKind kind;
};
constexpr Kind kKinds[] = {{"ecc_uncorrectable", FaultKind::kEccUncorrectable},
                           {"ecc_corrected", FaultKind::kEccCorrected},
                           {"hang", FaultKind::kHang},
                           {"drop_interrupt", FaultKind::kDropInterrupt},
                           {"fatal", FaultKind::kFatal},
                           {"link_down", FaultKind::kLinkDown},
                           {"link_error", FaultKind::kLinkError}};
struct Trigger {
  const char* name;
  FaultTrigger trigger;
};
constexpr Trigger kTriggers[] = {{"launch", FaultTrigger::kLaunch},
                                 {"packet", FaultTrigger::kPacket},
                                 {"interrupt", FaultTrigger::kInterrupt},
                                 {"put", FaultTrigger::kPut}};

}  // namespace

FaultPlan::FaultPlan(const std::string& text) {
  std::stringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    if (word.empty()) continue;
    const size_t at = word.find('@'), colon = word.find(':');
    auto refuse = [&] {
      throw std::runtime_error(
          "fault \"" + word +
          "\": expected KIND@TRIGGER:N with KIND ecc_uncorrectable, ecc_corrected, hang, drop_interrupt, fatal, "
          "link_down or link_error, TRIGGER launch, packet, interrupt or put, and N counted from 1");
    };
    if (at == std::string::npos || colon == std::string::npos || colon < at) refuse();
    Order order{};
    bool have_kind = false, have_trigger = false;
    for (const Kind& k : kKinds)
      if (word.substr(0, at) == k.name) order.kind = k.kind, have_kind = true;
    for (const Trigger& t : kTriggers)
      if (word.substr(at + 1, colon - at - 1) == t.name) order.trigger = t.trigger, have_trigger = true;
    char* end = nullptr;
    order.nth = std::strtoull(word.c_str() + colon + 1, &end, 10);
    if (!have_kind || !have_trigger || *end != 0 || order.nth == 0) refuse();
    orders_.push_back(order);
  }
}

bool FaultPlan::due(FaultKind kind, FaultTrigger trigger, uint64_t count) const {
  for (const Order& o : orders_)
    if (o.kind == kind && o.trigger == trigger && o.nth == count) return true;
  return false;
}

}  // namespace jalapeno::emu
