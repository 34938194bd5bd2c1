#include "device.hpp"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.hpp"
#include "fences.hpp"
#include "log.hpp"
#include "mmio.hpp"
#include "os.hpp"

namespace jalapeno::driver {
namespace {

constexpr int64_t kEagerNs = 2'000, kSpinNs = 20'000;
// An interrupt that got lost costs at most this; so does noticing that the device went away.
constexpr int64_t kPollNs = 20'000'000;

// What the listener's thread waits for, besides the vectors of the queues, which go by their numbers.
constexpr uint64_t kStop = ~uint64_t{0}, kLiveness = kStop - 1, kMonitor = kStop - 2, kDeviceEvent = kStop - 3;

std::string version_text(uint32_t v) { return std::to_string(v >> 16) + "." + std::to_string(v & 0xFFFF); }

}  // namespace

Device::Device(const std::string& uri)
    : uri_(uri), full_uri_(full_uri(uri)), trace_(Trace::from_environment(uri)), transport_(open_transport(uri)) {
#if defined(JALAPENO_ADVERSARY)
  transport_ = adversary::ordered(std::move(transport_));
#endif
  if (trace_) transport_ = traced(std::move(transport_), *trace_);
  read_identity();
  if (trace_) trace_->versions(identity_.interface_version, identity_.isa_version);
  doorbells_ = transport_->map_bar(hw::kBarDoorbells);
  hbm_ = transport_->map_bar(hw::kBarHbm);
  if (doorbells_.size() < size_t{identity_.queues + 1} * sizeof(hw::DoorbellPage) ||
      hbm_.size() < hw::kLeastApertureBytes)
    throw Error(Code::kNoDevice, uri + ": BARs of " + std::to_string(doorbells_.size()) + " and " +
                                     std::to_string(hbm_.size()) + " bytes are smaller than " +
                                     std::to_string(identity_.queues) + " queues and an aperture of " +
                                     std::to_string(hw::kLeastApertureBytes) + " need");
  hbm_pages_.add(0, identity_.hbm_bytes / hw::kPageBytes);
  contexts_.resize(identity_.contexts), queues_.resize(identity_.queues), queue_events_.resize(identity_.queues, -1);
  windows_.resize(identity_.windows);
  interrupts_ = std::vector<std::atomic<uint64_t>>(identity_.queues);
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  stop_event_ = os().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  device_event_ = os().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_ < 0 || stop_event_ < 0 || device_event_ < 0) {
    const int error = errno;
    for (int fd : {epoll_, stop_event_, device_event_})
      if (fd >= 0) os().close(fd);
    throw Error(Code::kOperatingSystem, uri + ": epoll and eventfd: " + error_text(error));
  }
  epoll_event e{EPOLLIN, {.u64 = kStop}};
  epoll_ctl(epoll_, EPOLL_CTL_ADD, stop_event_, &e);
  e = {EPOLLIN, {.u64 = kLiveness}};
  epoll_ctl(epoll_, EPOLL_CTL_ADD, transport_->liveness_fd(), &e);
  e = {EPOLLIN, {.u64 = kDeviceEvent}};
  epoll_ctl(epoll_, EPOLL_CTL_ADD, device_event_, &e);
  try {
    transport_->set_interrupt(identity_.queues, device_event_);
  } catch (const Error& e) {
    driver_log().warn("{}: without device events, a fatal error shows as timeouts: {}", uri, e.what());
  }
  e = {EPOLLIN, {.u64 = kMonitor}};
  if (monitor_.fd() >= 0) epoll_ctl(epoll_, EPOLL_CTL_ADD, monitor_.fd(), &e);
  opened_unix_ns_ = unix_ns();
  listener_ = std::thread([this] { listen(); });
  driver_log().debug("opened {}: {} cores, {} MiB HBM, configuration {}", uri, identity_.cores,
                     identity_.hbm_bytes >> 20, identity_.config_name);
}

Device::~Device() {
  const uint64_t one = 1;
  (void)os().write(stop_event_, &one, sizeof one);
  listener_.join();
  for (int fd : queue_events_)
    if (fd >= 0) os().close(fd);
  for (int fd : {epoll_, stop_event_, device_event_}) os().close(fd);
}

void Device::read_identity() {
  namespace reg = hw::reg;
  Transport& t = *transport_;
  Identity& i = identity_;
  if (const uint32_t magic = t.read32(reg::kMagic); magic != hw::kMagicValue)
    throw Error(Code::kNoDevice, uri_ + ": identity register reads " + std::to_string(magic) +
                                     (magic == ~0u ? " (all ones: the device does not answer)" : ", not a Jalapeno"));
  i.interface_version = t.read32(reg::kInterfaceVersion);
  i.isa_version = t.read32(reg::kIsaVersion);
  if (i.interface_version >> 16 != hw::kInterfaceVersion >> 16 || i.interface_version < hw::kInterfaceVersion)
    throw Error(Code::kVersionMismatch, uri_ + ": the device's interface is " + version_text(i.interface_version) +
                                            ", this driver needs " + version_text(hw::kInterfaceVersion) +
                                            " or a newer minor; use a matching emulator or firmware");
  if (i.isa_version >> 16 != hw::kIsaVersion >> 16 || i.isa_version < hw::kIsaVersion)
    throw Error(Code::kVersionMismatch, uri_ + ": the device's instruction set is " + version_text(i.isa_version) +
                                            ", this driver needs " + version_text(hw::kIsaVersion));
  i.capabilities = t.read32(reg::kCapabilities);
  i.cores = t.read32(reg::kCores);
  i.spm_bytes = t.read32(reg::kSpmBytes);
  i.acc_bytes = t.read32(reg::kAccBytes);
  i.queues = t.read32(reg::kQueues);
  i.contexts = t.read32(reg::kContexts);
  i.links = t.read32(reg::kLinks);
  i.hbm_bytes = t.read64(reg::kHbmBytes);
  i.hbm_megabytes_per_second = t.read32(reg::kHbmMegabytesPerSecond);
  i.core_clock_khz = t.read32(reg::kCoreClockKhz);
  i.link_megabits_per_second = t.read32(reg::kLinkMegabitsPerSecond);
  i.peak_gigaflops_bf16 = t.read32(reg::kPeakGigaflopsBf16);
  i.power_limit_milliwatts = t.read32(reg::kPowerLimitMilliwatts);
  i.dollars_per_hour_micro = t.read32(reg::kDollarsPerHourMicro);
  i.fabric_address = t.read64(reg::kFabricAddress);
  i.windows = t.read32(reg::kWindows);
  i.function = t.read32(reg::kFunction), i.virtual_functions = t.read32(reg::kVirtualFunctions);
  i.uuid[0] = t.read64(reg::kUuid), i.uuid[1] = t.read64(reg::kUuid + 8);
  char name[65] = {};
  for (uint32_t k = 0; k < 8; ++k) {
    const uint64_t word = t.read64(reg::kConfigName + 8 * k);
    std::memcpy(name + 8 * k, &word, 8);
  }
  i.config_name = name;
  if (i.queues == 0 || i.queues > 4096 || i.contexts == 0 || i.windows > 1u << 14 || i.hbm_bytes < 2 * hw::kPageBytes)
    throw Error(Code::kNoDevice, uri_ + ": reports " + std::to_string(i.queues) + " queues, " +
                                     std::to_string(i.contexts) + " contexts, " + std::to_string(i.hbm_bytes) +
                                     " bytes of HBM");
}

Telemetry Device::telemetry() {
  namespace reg = hw::reg;
  throw_if_lost();
  Transport& t = *transport_;
  auto u64 = [&](uint32_t offset) { return t.read64(offset); };
  return Telemetry{t.read32(reg::kTemperatureMillicelsius),
                   t.read32(reg::kPowerMilliwatts),
                   u64(reg::kEnergyMicrojoules),
                   u64(reg::kDeviceNanoseconds),
                   u64(reg::kBusyCoresNs),
                   u64(reg::kBusyMatrixNs),
                   u64(reg::kBusyVectorNs),
                   u64(reg::kBusyDmaNs),
                   u64(reg::kBusyCopyNs),
                   u64(reg::kHbmReadBytes),
                   u64(reg::kHbmWriteBytes),
                   u64(reg::kHostBytes),
                   u64(reg::kPackets),
                   u64(reg::kLaunches),
                   u64(reg::kInstances),
                   u64(reg::kInstructions),
                   u64(reg::kFaults),
                   u64(reg::kEccCorrected),
                   u64(reg::kEccUncorrected),
                   u64(reg::kBusyFabricNs),
                   u64(reg::kFabricReadBytes),
                   u64(reg::kFabricWriteBytes),
                   u64(reg::kFabricErrors),
                   t.read32(reg::kLinksUp)};
}

Snapshot Device::snapshot() {
  Snapshot s;
  auto text = [](char* out, size_t size, const std::string& in) { in.copy(out, size - 1); };
  s.pid = getpid();
  s.opened_unix_ns = opened_unix_ns_;
  text(s.uri, sizeof s.uri, full_uri_);
  text(s.config_name, sizeof s.config_name, identity_.config_name);
  const Identity& i = identity_;
  s.interface_version = i.interface_version, s.isa_version = i.isa_version, s.capabilities = i.capabilities;
  s.cores = i.cores, s.queues = i.queues, s.contexts = i.contexts, s.links = i.links;
  s.hbm_megabytes_per_second = i.hbm_megabytes_per_second, s.core_clock_khz = i.core_clock_khz;
  s.link_megabits_per_second = i.link_megabits_per_second, s.peak_gigaflops_bf16 = i.peak_gigaflops_bf16;
  s.power_limit_milliwatts = i.power_limit_milliwatts;
  s.hbm_bytes = i.hbm_bytes, s.hbm_free_bytes = free_hbm() * hw::kPageBytes;
  s.uuid[0] = i.uuid[0], s.uuid[1] = i.uuid[1];
  s.function = i.function, s.virtual_functions = i.virtual_functions;
  {
    std::lock_guard lock(mutex_);
    s.queues_used = static_cast<uint32_t>(std::count(queues_.begin(), queues_.end(), true));
  }
  for (const auto& n : interrupts_) s.interrupts += n.load(std::memory_order_relaxed);
  try {
    s.telemetry = telemetry();
    s.health = health(), s.epoch = epoch();
  } catch (const Error& e) {
    text(s.lost, sizeof s.lost, e.what());
  }
  return s;
}

void Device::throw_if_lost() const {
  if (!lost()) return;
  std::lock_guard lock(lost_mutex_);
  throw Error(Code::kDeviceLost, lost_cause_);
}

void Device::declare_lost(const std::string& cause) {
  {
    std::lock_guard lock(lost_mutex_);
    if (lost_.load()) return;
    lost_cause_ = uri_ + ": device lost: " + cause;
    if (identity_.function != 0 &&
        (cause.find("is gone") != std::string::npos || cause.find("was reset") != std::string::npos))
      lost_cause_ += " (a reset of the physical function does that to a virtual one)";
    lost_.store(true, std::memory_order_release);
  }
  driver_log().error("{}", lost_cause_);
  transport_->revoke();
  notify();
}

void Device::wake() {
  if (identity_.capabilities & hw::kCapabilityDoorbellEvents) return;
  before_second_look();
  if (load_word(device_page().asleep) != 0) transport_->post32(hw::reg::kWake, 1);
}

void Device::signal(hw::Timeline& timeline, uint64_t value) {
  if (trace_) trace_->signal(timeline, value);
  before_signal();
  std::atomic_ref word(timeline.value);
  uint64_t old = word.load(std::memory_order_relaxed);
  while (old < value && !word.compare_exchange_weak(old, value, std::memory_order_release)) {
  }
  wake();
}

void Device::notify() {
  std::atomic_ref(events_).fetch_add(1, std::memory_order_acq_rel);
  os().futex_wake_all(&events_);
}

void Device::wait_event(uint32_t seen, int64_t timeout_ns) {
  os().futex_wait(&events_, seen, timeout_ns < 0 ? kPollNs : std::min(timeout_ns, kPollNs));
}

WaitResult Device::wait(const hw::Timeline& timeline, uint64_t value, int64_t timeout_ns, uint32_t queue) {
  std::atomic_ref word(const_cast<uint64_t&>(timeline.value));
  auto reached = [&] { return word.load(std::memory_order_acquire) >= value; };
  if (reached()) return WaitResult::kReached;
  if (timeout_ns == 0) return throw_if_lost(), WaitResult::kTimeout;
  const int64_t begin = monotonic_ns(), deadline = timeout_ns < 0                   ? INT64_MAX
                                                   : begin > INT64_MAX - timeout_ns ? INT64_MAX
                                                                                    : begin + timeout_ns;
  const int64_t spin_end = std::min(deadline, begin + kSpinNs);
  for (int64_t now = begin; now < spin_end; now = monotonic_ns()) {
    for (int k = 0; k < 32; ++k) {
      if (reached()) return WaitResult::kReached;
      spin_pause();
    }
    if (now - begin > kEagerNs) sched_yield();  // an emulated device may be waiting for this very core
  }
  for (;;) {
    const uint32_t seen = event_count();
    if (queue != kNoQueue) {
      // Several waiters: the earliest value counts, the others arm again. A lock, because there are no atomic
      // read-modify-writes across PCI Express.
      std::lock_guard lock(arm_mutex_);
      uint64_t& arm = doorbell(queue).interrupt_arm;
      if (load_word(arm) > value) post_word(arm, value);
      before_second_look();
      (void)load_word(arm);  // it has arrived: a device that polls looks at it before it publishes what comes next
    }
    if (reached()) return WaitResult::kReached;
    throw_if_lost();
    const int64_t left = deadline - monotonic_ns();
    if (left <= 0) return WaitResult::kTimeout;
    wait_event(seen, left);
    if (event_count() == seen && !lost())  // nothing for a while: is it there at all?
      if (const std::string cause = transport_->gone(); !cause.empty()) declare_lost(cause);
  }
}

void Device::listen() {
  epoll_event events[64];
  for (;;) {
    const int n = epoll_wait(epoll_, events, 64, -1);
    if (n < 0 && errno != EINTR) return declare_lost("epoll: " + error_text(errno));
    bool interrupted = false;
    for (int k = 0; k < n; ++k) {
      const uint64_t what = events[k].data.u64;
      if (what == kStop) return;
      if (what == kLiveness) {
        if (const std::string cause = transport_->gone(); !cause.empty()) {
          declare_lost(cause);
          epoll_ctl(epoll_, EPOLL_CTL_DEL, transport_->liveness_fd(), nullptr);
        }
        continue;
      }
      if (what == kMonitor) {
        monitor_.answer([this] { return snapshot(); });
        continue;
      }
      uint64_t count = 0;
      if (what == kDeviceEvent) {
        (void)os().read(device_event_, &count, sizeof count);
        look_at_health();
        continue;
      }
      if (os().read(queue_events_[what], &count, sizeof count) == sizeof count && trace_)
        trace_->interrupt(static_cast<uint32_t>(what));
      interrupts_[what].fetch_add(count, std::memory_order_relaxed);
      interrupted = true;
    }
    if (interrupted) notify();
  }
}

void Device::look_at_health() {
  try {
    if (const uint32_t h = health(); h & hw::kHealthFatal)
      declare_lost("it reports a fatal error (health " + std::to_string(h) + "); a reset may bring it back");
  } catch (const Error& e) {
    declare_lost(std::string("its health cannot be read: ") + e.what());
  }
}

uint32_t Device::first_free(const std::vector<bool>& used, const char* what) const {
  const auto it = std::find(used.begin(), used.end(), false);
  if (it == used.end())
    throw Error(Code::kBusy, uri_ + ": all " + std::to_string(used.size()) + " " + what + " are in use");
  return static_cast<uint32_t>(it - used.begin());
}

uint32_t Device::take_context() {
  std::lock_guard lock(mutex_);
  const uint32_t c = first_free(contexts_, "contexts");
  contexts_[c] = true;
  return c;
}

void Device::give_context(uint32_t context) {
  std::lock_guard lock(mutex_);
  contexts_[context] = false;
  if (lost()) return;
  try {
    transport_->write32(hw::reg::kContextSelect, context);
    transport_->write32(hw::reg::kContextCommand, hw::kContextDisable);
  } catch (const Error& e) {
    driver_log().debug("disabling context {}: {}", context, e.what());
  }
}

void Device::enable_context(uint32_t context, uint64_t root) {
  std::lock_guard lock(mutex_);
  transport_->write32(hw::reg::kContextSelect, context);
  transport_->write64(hw::reg::kContextPageTable, root);
  transport_->write32(hw::reg::kContextCommand, hw::kContextEnable);
}

void Device::invalidate_context(uint32_t context) {
  throw_if_lost();
  std::lock_guard lock(mutex_);
  transport_->write32(hw::reg::kContextSelect, context);
  transport_->write32(hw::reg::kContextCommand, hw::kContextInvalidate);
}

void Device::export_context(uint32_t context, uint64_t key) {
  throw_if_lost();
  std::lock_guard lock(mutex_);
  transport_->write32(hw::reg::kContextSelect, context);
  transport_->write64(hw::reg::kContextFabricKey, key);
  transport_->write32(hw::reg::kContextCommand, hw::kContextExport);
}

uint32_t Device::take_window() {
  throw_if_lost();
  std::lock_guard lock(mutex_);
  const uint32_t w = first_free(windows_, "fabric windows");
  windows_[w] = true;
  return w;
}

void Device::give_window(uint32_t window) {
  std::lock_guard lock(mutex_);
  windows_[window] = false;
}

uint32_t Device::enable_window(uint32_t window, uint32_t context, uint64_t peer, uint64_t key) {
  throw_if_lost();
  std::lock_guard lock(mutex_);
  transport_->write32(hw::reg::kWindowSelect, window);
  transport_->write32(hw::reg::kWindowContext, context);
  transport_->write64(hw::reg::kWindowPeer, peer);
  transport_->write64(hw::reg::kWindowKey, key);
  transport_->write32(hw::reg::kWindowCommand, hw::kWindowEnable);
  return transport_->read32(hw::reg::kWindowState);
}

void Device::disable_window(uint32_t window) {
  if (lost()) return;
  std::lock_guard lock(mutex_);
  transport_->write32(hw::reg::kWindowSelect, window);
  transport_->write32(hw::reg::kWindowCommand, hw::kWindowDisable);
}

uint64_t Device::take_hbm(uint64_t pages, Reach reach) {
  throw_if_lost();
  std::lock_guard lock(mutex_);
  // What the device alone uses leaves the aperture to those that cannot do without.
  const uint64_t visible = hbm_.size() / hw::kPageBytes;
  uint64_t page = reach == Reach::kHost ? hbm_pages_.take(pages, 0, visible) : hbm_pages_.take(pages, visible);
  if (page == RangeAllocator::kNone && reach == Reach::kDevice) page = hbm_pages_.take_last(pages);
  if (page == RangeAllocator::kNone)
    throw Error(Code::kOutOfDeviceMemory,
                uri_ + ": no " + std::to_string(pages * hw::kPageBytes) + " bytes of HBM" +
                    (reach == Reach::kHost ? " within the aperture of " + std::to_string(hbm_.size()) : "") + ": " +
                    std::to_string(hbm_pages_.available() * hw::kPageBytes) + " of " +
                    std::to_string(identity_.hbm_bytes) + " are free, the largest run " +
                    (reach == Reach::kHost ? "there " : "") + "is " +
                    std::to_string(hbm_pages_.largest(reach == Reach::kHost ? visible : RangeAllocator::kNone) *
                                   hw::kPageBytes));
  return page;
}

void Device::give_hbm(uint64_t page, uint64_t pages) {
  std::lock_guard lock(mutex_);
  hbm_pages_.give(page, pages);
}

uint64_t Device::free_hbm() const {
  std::lock_guard lock(mutex_);
  return hbm_pages_.available();
}

uint32_t Device::take_queue() {
  throw_if_lost();
  std::lock_guard lock(mutex_);
  const uint32_t q = first_free(queues_, "hardware queues");
  if (queue_events_[q] < 0) {
    const int fd = os().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
      throw Error(Code::kOperatingSystem, uri_ + ": eventfd for queue " + std::to_string(q) + ": " + error_text(errno));
    queue_events_[q] = fd;
    transport_->set_interrupt(q, fd);
    epoll_event e{EPOLLIN, {.u64 = q}};
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &e);
  }
  queues_[q] = true;
  return q;
}

void Device::give_queue(uint32_t queue) {
  std::lock_guard lock(mutex_);
  queues_[queue] = false;
}

void Device::enable_queue(uint32_t queue, const QueueSetup& s) {
  namespace reg = hw::reg;
  throw_if_lost();
  std::lock_guard lock(mutex_);
  Transport& t = *transport_;
  t.write32(reg::kQueueSelect, queue);
  t.write32(reg::kQueueContext, s.context);
  t.write64(reg::kQueueRing, hw::raw(s.ring));
  t.write32(reg::kQueueRingLog2, s.ring_log2);
  t.write32(reg::kQueuePriority, s.priority);
  t.write64(reg::kQueueTimeline, hw::raw(s.timeline));
  t.write64(reg::kQueueFault, hw::raw(s.fault));
  t.write64(reg::kQueueStart, s.start);
  t.write32(reg::kQueueCommand, hw::kQueueEnable);
  if (const uint32_t state = t.read32(reg::kQueueState); state != hw::kQueueStateRunning)
    throw Error(Code::kInvalidValue,
                uri_ + ": queue " + std::to_string(queue) + " did not start, its state is " + std::to_string(state));
}

void Device::disable_queue(uint32_t queue) {
  if (lost()) return;
  std::lock_guard lock(mutex_);
  transport_->write32(hw::reg::kQueueSelect, queue);
  transport_->write32(hw::reg::kQueueCommand, hw::kQueueDisable);
}

}  // namespace jalapeno::driver
