// The threads that run the command processors of a process. Its chips take turns on few threads: what they tell one
// another is seen at the next turn, and no thread has to be woken for it. A turn that lasts, of a long kernel or a hung
// one, leaves the other chips to another thread. Knows of a chip only that it has turns.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace jalapeno::emu {

class Processor {
 public:
  struct Turn {
    bool progress = false;
    bool blocked = false;  // on what another device may do
  };
  virtual Turn turn() = 0;  // a look at all queues; by one thread at a time, not always the same

 protected:
  ~Processor() = default;
};

class Processors {
 public:
  static Processors& of_process();
  Processors();
  Processors(const Processors&) = delete;
  Processors& operator=(const Processors&) = delete;

  // asleep: set while no thread looks at the processor, which then needs FabricProcess::wake.
  void add(Processor& processor, std::shared_ptr<uint32_t> asleep);
  void remove(Processor& processor);  // returns when its last turn is over

 private:
  struct Seat {
    Seat(Processor& p, std::shared_ptr<uint32_t> word) : processor(p), asleep(std::move(word)) {}
    Processor& processor;
    std::shared_ptr<uint32_t> asleep;
    std::atomic<bool> busy{false};
  };

  bool stand_by();  // until this thread is needed; false: it is to end
  void run();       // until it is one too many

  const uint32_t wanted_;  // threads that run while none of them is held up
  std::mutex membership_;  // one add or remove at a time
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Seat>> seats_;
  bool watched_ = false;  // the threads that run, by one that stands by
  std::atomic<uint32_t> running_{0};
  std::atomic<uint64_t> version_{1}, rounds_{0};
};

}  // namespace jalapeno::emu
