// The only fences of the driver, named by purpose. Hand-off words themselves are std::atomic_ref acquire/release.
#pragma once
#include <atomic>

#if defined(JALAPENO_ADVERSARY)
#include "support/adversary.hpp"
#endif

namespace jalapeno::driver {

// Store, fence, load. Between publishing a tail (or arming an interrupt) and reading the word by which the
// other side says that it sleeps (or has already finished). Acquire and release are not enough: the load
// may pass the store, both sides go to sleep, and 60 to 547 wake-ups per million are lost on x86.
// Pairs with store_load_fence() of the device.
inline void before_second_look() {
#if defined(__SANITIZE_THREAD__)
  static std::atomic<int> word;  // TSan does not model fences; an RMW orders for it too
  word.fetch_add(0, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// Before a store to a doorbell or register: all packet and data stores are visible to the device first.
// Normal and write-back memory only; stores through a write-combining mapping need flush_write_combining().
inline void before_doorbell() {
#if defined(JALAPENO_ADVERSARY)
  adversary::fence(adversary::Kind::kMemory);
#endif
  std::atomic_thread_fence(std::memory_order_release);
}

// After stores through a write-combining mapping (the HBM aperture), before anything that makes the device read them.
inline void flush_write_combining() {
#if defined(JALAPENO_ADVERSARY)
  adversary::fence(adversary::Kind::kCombining);
#endif
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// One host thread signals a timeline, the device answers, another host thread acts on the answer. ThreadSanitizer
// cannot see that order when the device is another process; these two tell it, and nothing else needs them.
#if defined(__SANITIZE_THREAD__)
inline std::atomic<int> order_through_device;
inline void before_signal() { order_through_device.fetch_add(0, std::memory_order_release); }
inline void after_answer() { (void)order_through_device.load(std::memory_order_acquire); }
#else
inline void before_signal() {}
inline void after_answer() {}
#endif

inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace jalapeno::driver
