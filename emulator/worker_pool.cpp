#include "worker_pool.hpp"

#include <algorithm>
#include <cfenv>

#include "placement.hpp"
#include "words.hpp"

namespace jalapeno::emu {
namespace {
constexpr int kSpins = 4000;  // about 50 us: launches of one graph follow each other faster than a futex wakes
}  // namespace

WorkerPool::WorkerPool(const ChipConfig& config, const EmulatorOptions& options) {
  uint32_t n = options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  n = std::min(n, config.cores);
  for (uint32_t i = 0; i < n; ++i) cores_.push_back(std::make_unique<Core>(config, options, i));
  for (uint32_t i = 1; i < n; ++i)
    threads_.emplace_back([this, i] {
      Placement::host().bind_thread(i);
      serve(*cores_[i]);
    });
}

WorkerPool::~WorkerPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void WorkerPool::drain(Core& core) {
  for (;;) {
    uint64_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= count_) return;
    (*work_)(core, static_cast<uint32_t>(index));
  }
}

void WorkerPool::serve(Core& core) {
  std::fesetenv(FE_DFL_ENV);
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    uint32_t now;
    while ((now = generation_.load(std::memory_order_acquire)) == seen) {
      if (++spins < kSpins)
        relax();
      else
        generation_.wait(seen, std::memory_order_acquire);
    }
    seen = now;
    if (stop_.load()) return;
    // Enter, then look whether there is still something to enter: run() closes, then looks who is inside.
    active_.fetch_add(1, std::memory_order_seq_cst);
    if (open_.load(std::memory_order_seq_cst)) drain(core);
    if (active_.fetch_sub(1, std::memory_order_acq_rel) == 1) active_.notify_one();
  }
}

void WorkerPool::run(uint32_t count, const std::function<void(Core&, uint32_t)>& work) {
  if (count == 1 || threads_.empty()) {
    for (uint32_t i = 0; i < count; ++i) work(*cores_[0], i);
    return;
  }
  work_ = &work, count_ = count;
  next_.store(0, std::memory_order_relaxed);
  open_.store(true, std::memory_order_seq_cst);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  drain(*cores_[0]);
  open_.store(false, std::memory_order_seq_cst);
  // A helper that has not woken by now finds the door closed: only those inside are waited for.
  uint32_t inside;
  for (int spins = 0; (inside = active_.load(std::memory_order_seq_cst)) != 0;) {
    if (++spins < kSpins)
      relax();
    else
      active_.wait(inside, std::memory_order_acquire);
  }
}

}  // namespace jalapeno::emu
