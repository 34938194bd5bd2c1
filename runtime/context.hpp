// A device opened by the application: its driver objects, streams, memory, loaded kernels, and the thread that runs
// host functions. Owns all of them; streams, events and modules hold it alive until their handles are gone.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <jalapeno_driver/device.hpp>
#include <jalapeno_driver/queue.hpp>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "handle.hpp"
#include "memory.hpp"

namespace jalapeno::runtime {

class Stream;
class Module;
class Kernel;
struct KernelImage;
class Communicator;

inline constexpr uint64_t kForever = JAL_FOREVER;

class Context : public std::enable_shared_from_this<Context> {
 public:
  static constexpr uint8_t kHandleTag = 0x51;
  static constexpr const char* kHandleName = "device";

  explicit Context(const std::string& uri);
  const void* owner() const { return nullptr; }  // devices belong to nobody
  ~Context();

  driver::Device& device() { return device_; }
  driver::AddressSpace& space() { return space_; }
  Pool& pool() { return pool_; }
  uint32_t ordinal() const { return ordinal_; }

  // Streams
  void add(const std::shared_ptr<Stream>& stream);
  std::vector<std::shared_ptr<Stream>> streams();
  Stream& transfer_stream();  // for copies without a stream; the caller holds transfer_mutex()
  std::mutex& transfer_mutex() { return transfer_mutex_; }

  // Kernels by the cookie of their launches.
  uint64_t add_kernel(const std::shared_ptr<const KernelImage>& image);
  std::shared_ptr<const KernelImage> find_kernel(uint64_t cookie);
  void* library_kernel(const std::string& name);  // handle

  void add(const std::shared_ptr<Communicator>& communicator);
  std::vector<std::shared_ptr<Communicator>> communicators();

  // A cache line of pinned memory for a timeline.
  struct Line {
    hw::Timeline* host;
    hw::DeviceAddr device;
  };
  Line take_line();
  void give_line(Line line);
  void poison(hw::DeviceAddr timeline, uint64_t value);  // raises it by failing, unless it is there already

  // Runs when *request >= value; see jalLaunchHostFunc.
  struct HostCall {
    std::shared_ptr<Stream> stream;
    hw::Timeline* request;
    hw::Timeline* done;
    uint64_t value;
    std::function<void()> function;
  };
  void enqueue(HostCall call);
  void drop_calls_of(const Stream* stream);
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  void close();  // ends the host-function thread; streams must be gone or idle

  jalErrorRecord describe(const hw::FaultRecord& fault, const Stream& stream);

 private:
  void run_host_calls();

  uint32_t ordinal_;
  driver::Device device_;
  driver::AddressSpace space_;
  Pool pool_;

  std::mutex mutex_;
  std::vector<std::weak_ptr<Stream>> streams_;
  std::unordered_map<uint64_t, std::weak_ptr<const KernelImage>> kernels_;
  uint64_t next_cookie_ = 1;
  std::vector<std::weak_ptr<Communicator>> communicators_;
  std::mutex library_mutex_;
  std::unordered_map<std::string, void*> library_;

  std::mutex transfer_mutex_;
  std::shared_ptr<Stream> transfer_;

  std::mutex lines_mutex_;
  std::vector<std::unique_ptr<driver::DmaMemory>> line_pages_;
  std::vector<Line> free_lines_;

  std::mutex calls_mutex_;
  std::deque<HostCall> calls_;
  bool calls_thread_started_ = false;
  std::atomic<bool> closed_{false};
  std::condition_variable calls_changed_;
  std::vector<std::shared_ptr<Stream>> graveyard_;  // streams that ended on the host-function thread
  std::thread calls_thread_;
};

// Nanoseconds of JAL_WAIT_TIMEOUT_MS, default one minute.
uint64_t default_timeout_ns();
int64_t driver_timeout(uint64_t timeout_ns);
Context& context_of(jalDevice_t device);

}  // namespace jalapeno::runtime
