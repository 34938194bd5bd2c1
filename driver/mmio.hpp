// What the driver stores where a device sees it, by the kind of memory, and the volatile accesses to registers. Which
// fence stands between a store and what makes the device look is in fences.hpp. A build with JALAPENO_ADVERSARY hands
// them to an adversary (tests/support/adversary.hpp) that delays, reorders and tears what the rules allow.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(JALAPENO_ADVERSARY)
#include "support/adversary.hpp"
#endif

namespace jalapeno::driver {

template <class T>
T mmio_read(const std::byte* bar, uint32_t offset) {
  return *reinterpret_cast<const volatile T*>(bar + offset);
}
template <class T>
void mmio_write(std::byte* bar, uint32_t offset, T value) {
  *reinterpret_cast<volatile T*>(bar + offset) = value;
}

// A word of a mapped BAR: posted, behind what was stored to BARs before, when fences say so behind other memory too.
template <class T>
void post_word(T& word, T value) {
#if defined(JALAPENO_ADVERSARY)
  adversary::store(adversary::Kind::kPosted, &word, &value, sizeof value);
#else
  std::atomic_ref(word).store(value, std::memory_order_release);
#endif
}
// A read of a BAR pushes the posted stores before it: they have arrived when it returns.
template <class T>
T load_word(T& word) {
#if defined(JALAPENO_ADVERSARY)
  adversary::arrive(&word, sizeof word);
#endif
  return std::atomic_ref(word).load(std::memory_order_acquire);  // and what is loaded later is loaded later
}

// The HBM aperture, which may be write-combining: in any order, in pieces, until flush_write_combining().
inline void store_aperture(std::byte* at, const void* data, size_t bytes) {
#if defined(JALAPENO_ADVERSARY)
  adversary::store(adversary::Kind::kCombining, at, data, bytes);
#else
  std::memcpy(at, data, bytes);
#endif
}
// Words that the device reads at any time, such as tables: never torn.
inline void store_aperture(uint64_t& at, uint64_t value) {
#if defined(JALAPENO_ADVERSARY)
  adversary::store(adversary::Kind::kCombining, &at, &value, sizeof value);
#else
  std::atomic_ref(at).store(value, std::memory_order_relaxed);
#endif
}

// Host memory that the device reads once it is told to: in any order until before_doorbell().
inline void store_for_device(void* at, const void* data, size_t bytes) {
#if defined(JALAPENO_ADVERSARY)
  adversary::store(adversary::Kind::kMemory, at, data, bytes);
#else
  __builtin_memcpy(at, data, bytes);
#endif
}

}  // namespace jalapeno::driver
