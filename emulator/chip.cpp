// Registers and lifetime of a chip; packets are run in command_processor.cpp.
#include "chip.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <stdexcept>

namespace jalapeno::emu {
namespace {

uint64_t usable_hbm(const EmulatorOptions& options, const ChipConfig& config) {
  uint64_t bytes = std::bit_floor(std::min(options.hbm_bytes / options.functions, config.hbm_bytes));
  if (bytes < uint64_t{64} << 20)
    throw std::runtime_error("HBM of " + std::to_string(options.hbm_bytes) + " bytes" +
                             (options.functions > 1 ? " for " + std::to_string(options.functions) + " functions" : "") +
                             ": expected at least 64M" + (options.functions > 1 ? " for each" : ""));
  return bytes;
}

uint64_t usable_aperture(const EmulatorOptions& options, uint64_t hbm_bytes) {
  if (options.aperture_bytes < hw::kLeastApertureBytes)
    throw std::runtime_error("HBM aperture of " + std::to_string(options.aperture_bytes) +
                             " bytes: expected at least " + std::to_string(hw::kLeastApertureBytes >> 20) + "M");
  return std::bit_floor(std::min(options.aperture_bytes, hbm_bytes));
}

int sealed_memfd(const char* name, uint64_t bytes) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      posix_fallocate(fd, 0, static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    throw std::runtime_error(std::string(name) + ": " + std::strerror(errno));
  return fd;
}

uint64_t random_word() {
  static std::random_device random;
  return uint64_t{random()} << 32 | random();
}

}  // namespace

Chip::Chip(const EmulatorOptions& options)
    : options_(options),
      config_(share_of(load_config(options.config_file), options.functions)),
      plan_(options.faults),
      uuid_{random_word(), random_word()},
      memory_(usable_hbm(options, config_), usable_aperture(options, usable_hbm(options, config_))),
      doorbell_bytes_(std::bit_ceil(uint64_t{kQueueCount + 1} * sizeof(hw::DoorbellPage))),
      doorbell_fd_(sealed_memfd("jalapeno-doorbells", doorbell_bytes_)),
      doorbell_mapping_(std::make_shared<Mapping>(doorbell_fd_, 0, doorbell_bytes_, true)),
      doorbells_(reinterpret_cast<hw::DoorbellPage*>(doorbell_mapping_->data())),
      queues_(kQueueCount),
      contexts_(kContextCount),
      stale_(kContextCount),
      windows_(kWindowCount),
      interrupts_(kVectors, -1),
      pool_(config_, options_),
      lowers_(options_.lower && !options_.precise && !options_.check()),
      port_(uuid_[0], memory_.hbm(), [this](uint64_t key) { return lookup_export(key); }) {
  if (!options_.profile.empty()) try {
      write_profile();
    } catch (...) {
      close(doorbell_fd_);
      throw;
    }
  for (uint32_t q = 0; q < kQueueCount; ++q) doorbells_[q].interrupt_arm = hw::kNotArmed;
  Processors::of_process().add(*this, {doorbell_mapping_, &device_page().asleep});
}

// Of all chips of the process so far: whichever ends last writes the whole. Also written at the begin, so that a
// place that cannot be written is told at once.
void Chip::write_profile() const {
  const HostTime t = host_time();
  std::ofstream out(options_.profile);
  out << "{\"launches\": " << t.launches << ", \"launches_ns\": " << t.launches_ns << ", \"kernel_calls\": " << t.calls
      << ", \"kernels_ns\": " << t.calls_ns << ", \"timer_ns\": " << t.timer_ns << "}\n";
  if (!out.flush()) throw std::runtime_error("profile " + options_.profile + ": " + std::strerror(errno));
}

Chip::~Chip() {
  stop_.store(true);
  Processors::of_process().remove(*this);
  if (!options_.profile.empty()) try {
      write_profile();
    } catch (const std::runtime_error& e) {
      std::fprintf(stderr, "%s\n", e.what());
    }
  for (int fd : interrupts_)
    if (fd >= 0) close(fd);
  close(doorbell_fd_);
}

void Chip::map_host(int fd, uint64_t offset, uint64_t iova, uint64_t bytes, bool read, bool write) {
  memory_.map_host(fd, offset, iova, bytes, read, write);
  host_epoch_.fetch_add(1);
}

void Chip::map_host(const AskedRange& range) {
  memory_.map_host(range);
  host_epoch_.fetch_add(1);
}

void Chip::set_host_link(std::shared_ptr<HostLink> link) {
  memory_.set_host_link(std::move(link));
  host_epoch_.fetch_add(1);
}

void Chip::unmap_host(uint64_t iova, uint64_t bytes) {
  memory_.unmap_host(iova, bytes);
  host_epoch_.fetch_add(1);
}

void Chip::set_interrupt(uint32_t vector, int eventfd) {
  std::lock_guard lock(interrupt_mutex_);
  if (vector >= kVectors) {
    if (eventfd >= 0) close(eventfd);
    return;
  }
  if (interrupts_[vector] >= 0) close(interrupts_[vector]);
  interrupts_[vector] = eventfd;
}

void Chip::set_bus_master(bool on) {
  if (memory_.set_host_reachable(on)) host_epoch_.fetch_add(1);
}

void Chip::unplug() {
  memory_.unmap_all_host();
  host_epoch_.fetch_add(1);
  for (uint32_t v = 0; v < kVectors; ++v) set_interrupt(v, -1);
}

void Chip::reset_function() {
  control_waiting_.fetch_add(1);
  resetting_.store(true);
  end_unwanted();
  {
    std::lock_guard control(control_mutex_);
    std::lock_guard lock(mutex_);
    for (uint32_t q = 0; q < kQueueCount; ++q) {
      queues_[q] = Queue{};
      std::atomic_ref(doorbells_[q].tail).store(0, std::memory_order_relaxed);
      std::atomic_ref(doorbells_[q].interrupt_arm).store(hw::kNotArmed, std::memory_order_relaxed);
    }
    for (uint32_t c = 0; c < kContextCount; ++c) withdraw(c), contexts_[c] = Context{};
    for (Window& w : windows_) w = Window{};
    links_down_.store(0);
    order_.clear();
    host_map_ = memory_.host_map(), host_memory_ = Memory(host_map_.get());
    staged_ = Queue{};
    health_.store(hw::kHealthReady);
    epoch_.fetch_add(1);
    resetting_.store(false);
  }
  control_waiting_.fetch_sub(1);
}

// Whoever wants a program to end says so first and looks then whether it runs; a program that begins says that first
// and looks then: one of them sees the other. It ends at its next look at the clock.
void Chip::end_unwanted() {
  const uint32_t running = running_queue_.load();
  if (running != kQueueCount && (resetting_.load() || running == disabling_.load())) stop_.store(true);
}

void Chip::scrub() {
  std::lock_guard lock(mutex_);
  memory_.hbm().scrub();
}

uint64_t Chip::counter(uint32_t offset) const {
  auto whole = [](const std::atomic<double>& v) { return static_cast<uint64_t>(v.load(std::memory_order_relaxed)); };
  switch (offset) {
    case hw::reg::kEnergyMicrojoules:
      return static_cast<uint64_t>(counters_.picojoules.load(std::memory_order_relaxed) * 1e-6 +
                                   counters_.device_ns.load(std::memory_order_relaxed) * config_.idle_watts * 1e-3);
    case hw::reg::kDeviceNanoseconds:
      return whole(counters_.device_ns);
    case hw::reg::kBusyCoresNs:
      return whole(counters_.cores_ns);
    case hw::reg::kBusyMatrixNs:
      return whole(counters_.matrix_ns);
    case hw::reg::kBusyVectorNs:
      return whole(counters_.vector_ns);
    case hw::reg::kBusyDmaNs:
      return whole(counters_.dma_ns);
    case hw::reg::kBusyCopyNs:
      return whole(counters_.copy_ns);
    case hw::reg::kBusyFabricNs:
      return whole(counters_.fabric_ns);
    case hw::reg::kFabricReadBytes:
      return counters_.fabric_read;
    case hw::reg::kFabricWriteBytes:
      return counters_.fabric_write;
    case hw::reg::kFabricErrors:
      return counters_.fabric_errors;
    case hw::reg::kHbmReadBytes:
      return counters_.hbm_read;
    case hw::reg::kHbmWriteBytes:
      return counters_.hbm_write;
    case hw::reg::kHostBytes:
      return counters_.host_bytes;
    case hw::reg::kPackets:
      return counters_.packets;
    case hw::reg::kLaunches:
      return counters_.launches;
    case hw::reg::kInstances:
      return counters_.instances;
    case hw::reg::kInstructions:
      return counters_.instructions;
    case hw::reg::kFaults:
      return counters_.faults;
    case hw::reg::kEccCorrected:
      return counters_.ecc_corrected;
    case hw::reg::kEccUncorrected:
      return counters_.ecc_uncorrected;
    default:
      return ~uint64_t{0};
  }
}

bool Chip::read_register(uint64_t offset, uint32_t bytes, uint64_t& value) {
  namespace reg = hw::reg;
  if ((bytes != 4 && bytes != 8) || offset % bytes != 0 || offset + bytes > hw::kRegisterBarBytes) return false;
  const uint32_t at = static_cast<uint32_t>(offset);
  if (at >= reg::kConfigName && at < reg::kConfigName + 64) {
    char name[72] = {};
    std::strncpy(name, config_.name.c_str(), 63);
    value = 0;
    std::memcpy(&value, name + (at - reg::kConfigName), bytes);
    return true;
  }
  if (at >= reg::kEnergyMicrojoules && at < reg::kTelemetryEnd) {
    value = counter(at & ~7u);
    if (at & 4) value >>= 32;
    return true;
  }
  auto watts = [&] {  // over what happened since the last look; the same again when nothing did
    std::lock_guard lock(interrupt_mutex_);
    const double energy = counters_.picojoules, time = counters_.device_ns;
    if (time - power_time_ > 1000) {
      power_watts_ =
          std::min(config_.idle_watts + (energy - power_energy_) * 1e-3 / (time - power_time_), config_.limit_watts);
      power_energy_ = energy, power_time_ = time;
    }
    return std::max(power_watts_, config_.idle_watts);
  };
  switch (at) {
    case reg::kMagic:
      value = hw::kMagicValue;
      break;
    case reg::kInterfaceVersion:
      value = hw::kInterfaceVersion;
      break;
    case reg::kIsaVersion:
      value = hw::kIsaVersion;
      break;
    case reg::kCapabilities:
      value = hw::kCapabilityEmulated | hw::kCapabilityAssumedRates;
      break;
    case reg::kCores:
      value = config_.cores;
      break;
    case reg::kSpmBytes:
      value = config_.spm_bytes;
      break;
    case reg::kAccBytes:
      value = config_.acc_bytes;
      break;
    case reg::kQueues:
      value = kQueueCount;
      break;
    case reg::kContexts:
      value = kContextCount;
      break;
    case reg::kLinks:
      value = config_.links;
      break;
    case reg::kHbmBytes:
      value = memory_.hbm().bytes();
      break;
    case reg::kHbmBytes + 4:
      value = memory_.hbm().bytes() >> 32;
      break;
    case reg::kHbmMegabytesPerSecond:
      value = static_cast<uint64_t>(config_.hbm_gbytes_per_second * 1000);
      break;
    case reg::kCoreClockKhz:
      value = static_cast<uint64_t>(config_.core_clock_ghz * 1e6);
      break;
    case reg::kLinkMegabitsPerSecond:
      value = static_cast<uint64_t>(config_.link_gbits_per_second * 1000);
      break;
    case reg::kPeakGigaflopsBf16:
      value = static_cast<uint64_t>(2.0 * config_.array_rows * config_.array_columns * config_.core_clock_ghz *
                                    config_.cores);
      break;
    case reg::kUuid:
    case reg::kUuid + 8:
      value = uuid_[(at - reg::kUuid) / 8];
      break;
    case reg::kUuid + 4:
    case reg::kUuid + 12:
      value = uuid_[(at - reg::kUuid) / 8] >> 32;
      break;
    case reg::kPowerLimitMilliwatts:
      value = static_cast<uint64_t>(config_.limit_watts * 1000);
      break;
    case reg::kDollarsPerHourMicro:
      value = static_cast<uint64_t>(config_.dollars_per_hour * 1e6);
      break;
    case reg::kFabricAddress:
      value = uuid_[0];
      break;
    case reg::kFabricAddress + 4:
      value = uuid_[0] >> 32;
      break;
    case reg::kWindows:
      value = kWindowCount;
      break;
    case reg::kFunction:
      value = options_.function;
      break;
    case reg::kVirtualFunctions:
      value = options_.functions - 1;
      break;
    case reg::kLinksUp:
      value = ((uint64_t{1} << std::min(config_.links, 32u)) - 1) & ~uint64_t{links_down_.load()};
      break;
    case reg::kWindowState: {
      std::lock_guard control(control_mutex_);
      std::lock_guard lock(mutex_);
      value = window_select_ < kWindowCount ? windows_[window_select_].state : hw::kWindowOff;
      break;
    }
    case reg::kHealth:
      value = health_.load();
      break;
    case reg::kEpoch:
      value = epoch_.load();
      break;
    case reg::kHeartbeat:
      value = heartbeat_.load();
      break;
    case reg::kQueueState: {
      std::lock_guard control(control_mutex_);
      std::lock_guard lock(mutex_);
      value = queue_select_ < kQueueCount ? queues_[queue_select_].state : hw::kQueueStateOff;
      break;
    }
    case reg::kTemperatureMillicelsius:
      value = static_cast<uint64_t>(32000 + watts() * 50);
      break;
    case reg::kPowerMilliwatts:
      value = static_cast<uint64_t>(watts() * 1000);
      break;
    default:
      value = ~uint64_t{0};
      break;
  }
  return true;
}

bool Chip::write_register(uint64_t offset, uint32_t bytes, uint64_t value) {
  namespace reg = hw::reg;
  if ((bytes != 4 && bytes != 8) || offset % bytes != 0 || offset + bytes > hw::kRegisterBarBytes) return false;
  const uint32_t at = static_cast<uint32_t>(offset), word = static_cast<uint32_t>(value);
  if (at == reg::kWake) {
    FabricProcess::get().wake();
    return true;
  }
  if (at == reg::kWindowCommand) {
    window_command(word);
    return true;
  }
  if (at == reg::kControl) {
    if (word & hw::kControlReset) reset_function();
    return true;
  }
  std::lock_guard control(control_mutex_);
  switch (at) {
    case reg::kContextSelect:
      context_select_ = word;
      return true;
    case reg::kContextPageTable:
      context_root_ = value;
      return true;
    case reg::kContextFabricKey:
      context_key_ = value;
      return true;
    case reg::kWindowSelect:
      window_select_ = word;
      return true;
    case reg::kWindowContext:
      staged_window_.context = word;
      return true;
    case reg::kWindowPeer:
      staged_window_.peer = value;
      return true;
    case reg::kWindowKey:
      staged_window_.key = value;
      return true;
    case reg::kQueueSelect:
      queue_select_ = word;
      return true;
    case reg::kQueueContext:
      staged_.context = word;
      return true;
    case reg::kQueueRing:
      staged_.ring = value;
      return true;
    case reg::kQueueRingLog2:
      staged_.ring_log2 = word;
      return true;
    case reg::kQueuePriority:
      staged_.priority = word;
      return true;
    case reg::kQueueTimeline:
      staged_.timeline = value;
      return true;
    case reg::kQueueFault:
      staged_.fault = value;
      return true;
    case reg::kQueueStart:
      staged_.head = value;
      return true;
    case reg::kContextCommand:
      if (word != hw::kContextInvalidate) break;
      // At once, also while a program runs, which keeps the map it began with: the next packet looks.
      if (context_select_ < kContextCount) stale_[context_select_].store(true, std::memory_order_release);
      port_.changed();
      return true;
    case reg::kQueueCommand:
      break;
    default:
      return true;  // read-only and unknown registers ignore writes
  }
  control_waiting_.fetch_add(1);  // from here on no other program begins
  if (at == reg::kQueueCommand && word == hw::kQueueDisable) {
    disabling_.store(queue_select_);
    end_unwanted();
  }
  {
    std::lock_guard lock(mutex_);
    if (at == reg::kContextCommand)
      context_command(word);
    else
      queue_command(word);
    disabling_.store(kQueueCount);
  }
  control_waiting_.fetch_sub(1);
  return true;
}

void Chip::context_command(uint32_t command) {
  if (context_select_ >= kContextCount) return;
  Context& c = contexts_[context_select_];
  switch (command) {
    case hw::kContextEnable:
      withdraw(context_select_);
      c = Context{};
      c.enabled = true, c.root = context_root_;
      break;
    case hw::kContextDisable:
      withdraw(context_select_);
      for (Window& w : windows_)
        if (w.context == context_select_) w = Window{};
      c = Context{};
      break;
    case hw::kContextExport:
      export_context(context_select_);
      break;
    default:
      break;
  }
}

void Chip::export_context(uint32_t context) {
  Context& c = contexts_[context];
  withdraw(context);
  if (!c.enabled || context_key_ == 0) return;
  // Before anyone can know of it. Nobody else runs: the lock is held, and no window leads here yet.
  const bool shared = memory_.hbm().share([this](uint32_t count, const std::function<void(uint32_t)>& work) {
    pool_.run(count, [&](Core&, uint32_t k) { work(k); });
  });
  c.token = random_word() | 1;
  {
    std::lock_guard lock(exports_mutex_);
    exports_[context_key_] = {context, c.root, c.token};
  }
  std::atomic_ref(port_.page().exported[context]).store(c.token, std::memory_order_release);
  if (shared) port_.listen();  // otherwise only chips of this process reach it
}

// Windows that others have to it end: their chips look at the token before they build a map.
void Chip::withdraw(uint32_t context) {
  Context& c = contexts_[context];
  if (c.token == 0) return;
  c.token = 0;
  {
    std::lock_guard lock(exports_mutex_);
    std::erase_if(exports_, [&](const auto& e) { return e.second.context == context; });
  }
  std::atomic_ref(port_.page().exported[context]).store(0, std::memory_order_release);
  port_.changed();
}

// For other chips, which do not wait for what this one is running.
std::optional<FabricPort::Export> Chip::lookup_export(uint64_t key) {
  std::lock_guard lock(exports_mutex_);
  const auto found = exports_.find(key);
  return found == exports_.end() ? std::nullopt : std::optional(found->second);
}

// The other chip is asked without this chip's lock: it may be asking the same of this one.
void Chip::window_command(uint32_t command) {
  Window w;
  uint32_t number;
  {
    std::lock_guard control(control_mutex_);
    w = staged_window_, number = window_select_;
  }
  if (number >= kWindowCount || w.context >= kContextCount) return;
  if (command == hw::kWindowEnable) {
    auto [state, remote] = FabricPort::reach(w.peer, w.key);
    w.state = state, w.remote = std::move(remote);
  } else if (command == hw::kWindowDisable) {
    w = Window{};
  } else {
    return;
  }
  control_waiting_.fetch_add(1);
  {
    std::lock_guard lock(mutex_);
    for (uint32_t context : {windows_[number].context, w.context}) contexts_[context].map.reset();
    windows_[number] = std::move(w);
  }
  control_waiting_.fetch_sub(1);
}

bool Chip::windows_current(const Context& context) {
  for (const Context::Seen& s : context.seen)
    if (s.remote->generation() != s.generation) return false;
  return true;
}

void Chip::queue_command(uint32_t command) {
  if (queue_select_ >= kQueueCount) return;
  const uint32_t q = queue_select_;
  if (command == hw::kQueueDisable) return disable_queue(q);
  if (command != hw::kQueueEnable) return;
  if (queues_[q].state != hw::kQueueStateOff || staged_.ring_log2 > hw::kMaxRingLog2 ||
      staged_.context >= kContextCount || staged_.ring % 64 != 0 || staged_.timeline % 64 != 0 ||
      staged_.fault % 64 != 0 || staged_.priority > 3)
    return;  // the driver reads kQueueState back
  queues_[q] = Queue{};
  Queue& queue = queues_[q];
  queue.context = staged_.context, queue.ring = staged_.ring, queue.ring_log2 = staged_.ring_log2;
  queue.priority = staged_.priority, queue.timeline = staged_.timeline, queue.fault = staged_.fault;
  queue.head = staged_.head;
  queue.state = hw::kQueueStateRunning;
  // A recycled slot must not show the last owner's indices.
  std::atomic_ref(doorbells_[q].tail).store(queue.head, std::memory_order_release);
  std::atomic_ref(doorbells_[q].interrupt_arm).store(hw::kNotArmed, std::memory_order_release);
  auto at = order_.begin();
  while (at != order_.end() && queues_[*at].priority >= queue.priority) ++at;
  order_.insert(at, q);
}

void Chip::disable_queue(uint32_t q) {
  if (queues_[q].state == hw::kQueueStateOff) return;
  queues_[q] = Queue{};
  std::erase(order_, q);
  std::atomic_ref(doorbells_[q].tail).store(0, std::memory_order_release);
}

}  // namespace jalapeno::emu
