// What a machine may do with stores until the right fence, done as badly as it may: stores to host memory stay with
// their core (kMemory), stores through a write-combining mapping go out in pieces and in any order (kCombining), stores
// to a BAR arrive late, in order (kPosted). A fence of a thread sends out the thread's own stores of its kind; a read
// of a BAR or a register access brings all that was posted before it. Late stores arrive in the end, by a clock of some
// 50 us. One adversary for a process; JAL_ADVERSARY_SEED makes its choices.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace jalapeno::driver {
class Transport;
}

namespace jalapeno::driver::adversary {

enum class Kind { kMemory, kCombining, kPosted };

void store(Kind kind, void* at, const void* data, size_t bytes);
void fence(Kind kind);
// Before a load of a BAR: what was posted arrives, and what this thread itself stored there.
void arrive(const void* at, size_t bytes);
void reseed(uint64_t seed);
void hold(bool on);  // no store arrives by the clock: what is missing does not depend on how fast the machine is
// Register accesses keep their order with what was posted.
std::unique_ptr<Transport> ordered(std::unique_ptr<Transport> transport);

}  // namespace jalapeno::driver::adversary
