// A stream: one hardware queue, the memory of what its packets were, and capture.
#pragma once
#include <jalapeno_driver/queue.hpp>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "context.hpp"
#include "kernel.hpp"

namespace jalapeno::runtime {

class PreparedLaunch;

// What a packet was, for error records. Fixed text only: recording it costs no allocation.
struct Operation {
  const char* kind = "";
  const char* call_file = nullptr;
  uint32_t call_line = 0;
  uint64_t arguments_end = 0;  // of the argument ring, once this packet is done
};

// A node of a captured graph.
struct Node {
  hw::Packet packet;
  Operation operation;
  std::shared_ptr<const KernelImage> kernel;  // launches
  std::vector<std::byte> arguments;
};

struct Capture {
  std::vector<Node> nodes;
  std::string offence;  // the first call that could not be recorded
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static constexpr uint8_t kHandleTag = 0x52;
  static constexpr const char* kHandleName = "stream";

  // Known to its context from then on.
  static std::shared_ptr<Stream> create(std::shared_ptr<Context> context, uint32_t priority, uint32_t ring_log2);
  Stream(std::shared_ptr<Context> context, uint32_t priority, uint32_t ring_log2);

  Context& context() const { return *context_; }
  const void* owner() const { return context_.get(); }
  const std::shared_ptr<Context>& shared_context() const { return context_; }
  uint64_t submitted() const {
    return std::atomic_ref(const_cast<uint64_t&>(submitted_)).load(std::memory_order_acquire);
  }
  uint64_t completed() const { return queue_.completed(); }
  Fence fence() { return {weak_from_this(), submitted()}; }
  const driver::Queue& queue() const { return queue_; }

  // Each throws the stream's error if it has failed.
  void launch(const std::shared_ptr<const KernelImage>& kernel, const jalLaunchConfig& config, const jalArg* args,
              uint32_t count);
  void launch(const PreparedLaunch& prepared);
  void copy(void* destination, const void* source, uint64_t width, uint64_t height, uint64_t destination_pitch,
            uint64_t source_pitch, const char* name);
  void copy_batch(void* const* destinations, const void* const* sources, const size_t* bytes, size_t count);
  void fill(void* pointer, uint32_t pattern, uint32_t pattern_bytes, uint64_t bytes);
  void wait_for(hw::DeviceAddr timeline, uint64_t value);
  void signal(hw::DeviceAddr timeline, uint64_t value);
  void timestamp(hw::DeviceAddr destination);
  void call(hw::DeviceAddr block, uint64_t count);
  void submit(std::span<const hw::Packet> packets, const char* name);  // one doorbell
  void host_function(std::function<void()> function, const char* name);

  // Throws the stream's error (check: also that of finished work), or Error(jalErrorWaitTimeout).
  void synchronize(uint64_t timeout_ns, bool check = true);
  void query();
  // What host functions wrote is visible to whoever saw the stream pass them. The device carries that order from one
  // mapping of the memory to another, where no compiler (nor ThreadSanitizer) can follow it; this carries it inside
  // the process.
  void call_finished(uint64_t value) { calls_finished_.store(value, std::memory_order_release); }
  void see_finished_calls() const { (void)calls_finished_.load(std::memory_order_acquire); }
  bool failed() const { return queue_.status() != hw::Status::kOk; }
  [[noreturn]] void throw_failure();
  jalErrorRecord record();
  uint64_t reset();

  void begin_capture();
  Capture end_capture();
  bool capturing() const { return capture_ != nullptr; }
  void refuse_capture(const char* call);

  const Operation& operation(uint64_t index) const { return operations_[index & (operations_.size() - 1)]; }

 private:
  template <hw::PacketType P>
  void submit(std::unique_lock<std::mutex>& lock, const P& packet, Operation operation, bool ring = true);
  void check_failed();
  hw::DeviceAddr place_arguments(std::unique_lock<std::mutex>& lock, const std::byte* data, uint32_t bytes,
                                 uint64_t& end);
  void copy_plain(std::unique_lock<std::mutex>& lock, void* destination, const void* source, uint64_t width,
                  uint64_t height, uint64_t destination_pitch, uint64_t source_pitch, bool to_device);
  void copy_registered(void* destination, const void* source, uint64_t width, uint64_t height,
                       uint64_t destination_pitch, uint64_t source_pitch, bool to_device);
  void copy_peer(void* destination, const void* source, uint64_t bytes, Context& from, Context& to);
  void wait_until(std::unique_lock<std::mutex>& lock, uint64_t value);

  std::shared_ptr<Context> context_;
  driver::Queue queue_;
  std::mutex mutex_;
  std::vector<Operation> operations_;  // a ring like the queue's
  uint64_t submitted_ = 0;
  uint64_t arguments_head_ = 0;
  hw::Timeline *call_request_, *call_done_;
  uint64_t calls_ = 0;
  std::atomic<uint64_t> calls_finished_{0};
  struct StagingSlot {
    uint64_t done = 0;                        // position after which the chunk is free again, 0: it is
    uint64_t rows = 0, width = 0, pitch = 0;  // of what came down
    char* host = nullptr;                     // and where it goes
  };
  static constexpr uint64_t kStagingSlots = 4, kStagingChunk = 512 << 10;
  std::mutex staging_mutex_;  // held for a whole copy, and taken before mutex_, which waits let go
  std::unique_ptr<driver::DmaMemory> staging_;
  StagingSlot staging_slots_[kStagingSlots];
  uint64_t staging_piece_ = 0;
  std::unique_ptr<Capture> capture_;
};

Stream& stream_of(jalStream_t stream);

}  // namespace jalapeno::runtime
