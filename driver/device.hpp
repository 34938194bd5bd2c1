// An open device: identity, BARs, health, the thread that listens to its interrupts, and the waiting built on it.
// Knows queues by number and timelines by address; knows no streams.
#pragma once
#include <atomic>
#include <cstdint>
#include <jalapeno_hw/packets.hpp>
#include <jalapeno_hw/registers.hpp>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "address_space.hpp"
#include "dma_memory.hpp"
#include "monitor.hpp"
#include "trace.hpp"
#include "transport.hpp"

namespace jalapeno::driver {

struct Identity {
  uint32_t interface_version, isa_version, capabilities, cores, spm_bytes, acc_bytes, queues, contexts, links;
  uint32_t hbm_megabytes_per_second, core_clock_khz, link_megabits_per_second, peak_gigaflops_bf16,
      power_limit_milliwatts, dollars_per_hour_micro, windows, function, virtual_functions;
  uint64_t hbm_bytes, uuid[2], fabric_address;
  std::string config_name;
};

enum class WaitResult { kReached, kTimeout };

class Device {
 public:
  explicit Device(const std::string& uri);  // throws Error
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Identity& identity() const { return identity_; }
  const std::string& uri() const { return uri_; }
  Transport& transport() { return *transport_; }
  IovaSpace& iova_space() { return iova_space_; }
  std::span<std::byte> hbm() const { return hbm_; }  // the aperture: its begin, or all of it
  hw::DoorbellPage& doorbell(uint32_t queue) { return reinterpret_cast<hw::DoorbellPage*>(doorbells_.data())[queue]; }

  Telemetry telemetry();
  // For whoever looks from outside. Does not throw: of a lost device it says why.
  Snapshot snapshot();
  uint32_t health() { return transport_->read32(hw::reg::kHealth); }
  uint32_t epoch() { return transport_->read32(hw::reg::kEpoch); }

  // Sticky: once lost, every operation that needs the device throws Error(kDeviceLost) with the first cause.
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  void throw_if_lost() const;
  void declare_lost(const std::string& cause);

  // Tells a sleeping device to look at the doorbells. One load when it is awake.
  void wake();
  // Raises a timeline from the host's side, and wakes a device that may wait for it. Never lowers it.
  void signal(hw::Timeline& timeline, uint64_t value);
  Trace* trace() const { return trace_.get(); }  // nullptr: nobody records
  // Waits until *timeline >= value: spins briefly, then sleeps on the device's interrupts. `queue` is the one whose
  // completion raises the value (its interrupt gets armed), or kNoQueue for a timeline that is signalled with an
  // interrupt. timeout_ns < 0 waits for ever. Throws Error(kDeviceLost).
  WaitResult wait(const hw::Timeline& timeline, uint64_t value, int64_t timeout_ns, uint32_t queue);
  static constexpr uint32_t kNoQueue = ~uint32_t{0};
  // Counts interrupts and host-side signals; changes before every wake-up. For waiting on several things at once.
  uint32_t event_count() const {
    return std::atomic_ref(const_cast<uint32_t&>(events_)).load(std::memory_order_acquire);
  }
  void wait_event(uint32_t seen, int64_t timeout_ns);
  void notify();  // counts an event and wakes all waiters
  // Interrupts of a queue's vector since the device was opened.
  uint64_t interrupts(uint32_t queue) const { return interrupts_[queue].load(std::memory_order_relaxed); }

  // For AddressSpace and Queue
  uint32_t take_context();
  void give_context(uint32_t context);
  void enable_context(uint32_t context, uint64_t root);
  void invalidate_context(uint32_t context);
  uint64_t take_hbm(uint64_t pages, Reach reach);  // the first page; throws Error(kOutOfDeviceMemory)
  void give_hbm(uint64_t page, uint64_t pages);
  uint64_t free_hbm() const;
  struct QueueSetup {
    uint32_t context, ring_log2, priority;
    hw::Iova ring, timeline, fault;
    uint64_t start;
  };
  void export_context(uint32_t context, uint64_t key);
  uint32_t take_window();
  void give_window(uint32_t window);
  uint32_t enable_window(uint32_t window, uint32_t context, uint64_t peer, uint64_t key);  // its state
  void disable_window(uint32_t window);
  uint32_t take_queue();
  void give_queue(uint32_t queue);
  void enable_queue(uint32_t queue, const QueueSetup& setup);
  void disable_queue(uint32_t queue);

 private:
  void read_identity();
  uint32_t first_free(const std::vector<bool>& used, const char* what) const;  // throws Error(kBusy)
  void listen();
  void look_at_health();
  hw::DevicePage& device_page() {
    return *reinterpret_cast<hw::DevicePage*>(doorbells_.data() + size_t{identity_.queues} * sizeof(hw::DoorbellPage));
  }

  std::string uri_, full_uri_;
  std::unique_ptr<Trace> trace_;  // before the transport, which writes to it
  std::unique_ptr<Transport> transport_;
  Identity identity_{};
  std::span<std::byte> doorbells_, hbm_;
  IovaSpace iova_space_;

  mutable std::mutex mutex_;  // register sequences and the allocators below
  RangeAllocator hbm_pages_;
  std::vector<bool> contexts_, queues_, windows_;
  std::vector<int> queue_events_;  // eventfd of each vector that was ever used
  std::vector<std::atomic<uint64_t>> interrupts_;

  std::atomic<bool> lost_{false};
  mutable std::mutex lost_mutex_;
  std::string lost_cause_;

  std::mutex arm_mutex_;
  Monitor monitor_;
  int64_t opened_unix_ns_ = 0;
  uint32_t events_ = 0;
  int epoll_ = -1, stop_event_ = -1, device_event_ = -1;
  std::thread listener_;
};

}  // namespace jalapeno::driver
