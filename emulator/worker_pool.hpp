// Host threads over program instances. The caller works too. Owns threads and cores; knows no launches.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core.hpp"

namespace jalapeno::emu {

class WorkerPool {
 public:
  WorkerPool(const ChipConfig& config, const EmulatorOptions& options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Calls work(core, index) for every index below count, each once, on all threads; returns when all are done.
  void run(uint32_t count, const std::function<void(Core&, uint32_t)>& work);
  uint32_t threads() const { return static_cast<uint32_t>(cores_.size()); }
  Core& first() { return *cores_[0]; }  // the caller's own

 private:
  void serve(Core& core);
  void drain(Core& core);

  std::vector<std::unique_ptr<Core>> cores_;
  std::vector<std::thread> threads_;
  const std::function<void(Core&, uint32_t)>* work_ = nullptr;
  std::atomic<uint64_t> next_{0};  // index to take, checked against count_
  uint32_t count_ = 0;
  std::atomic<uint32_t> generation_{0}, active_{0};
  std::atomic<bool> open_{false}, stop_{false};
};

}  // namespace jalapeno::emu
