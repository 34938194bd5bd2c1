#include "context.hpp"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <jalapeno_driver/fences.hpp>
#include <jalapeno_driver/log.hpp>
#include <jalapeno_driver/vfio.hpp>
#include <sstream>

#include "collectives/communicator.hpp"
#include "module.hpp"
#include "stream.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

namespace jalapeno::runtime {

void free_pinned_of(const Context* context);

namespace {

constexpr uint64_t kLinesPerPage = 1024;

std::mutex closers_mutex;
std::vector<Closer>& closers() {
  static auto* list = new std::vector<Closer>;
  return *list;
}

uint32_t next_ordinal() {
  static std::atomic<uint32_t> next{1};
  return next.fetch_add(1) & 0x3FFF;  // 14 bits of a device pointer
}

}  // namespace

void register_closer(Closer closer) {
  std::lock_guard lock(closers_mutex);
  closers().push_back(closer);
}

void close_all_of(const void* owner) {
  std::vector<Closer> all;
  {
    std::lock_guard lock(closers_mutex);
    all = closers();
  }
  for (Closer close : all) close(owner);
}

uint64_t default_timeout_ns() {
  static const uint64_t value = [] {
    const char* text = std::getenv("JAL_WAIT_TIMEOUT_MS");
    char* end = nullptr;
    const uint64_t ms = text != nullptr ? std::strtoull(text, &end, 10) : 0;
    if (text != nullptr && (*text == 0 || *end != 0 || ms == 0))
      driver::runtime_log().warn("JAL_WAIT_TIMEOUT_MS={}: expected milliseconds; using 60000", text);
    return (ms == 0 || ms > 1'000'000'000'000 ? 60'000 : ms) * 1'000'000;
  }();
  return value;
}

int64_t driver_timeout(uint64_t timeout_ns) { return timeout_ns > INT64_MAX ? -1 : static_cast<int64_t>(timeout_ns); }

Context::Context(const std::string& uri) : ordinal_(next_ordinal()), device_(uri), space_(device_), pool_(*this) {}

Context::~Context() {
  close();
  free_pinned_of(this);
  Registry::get().remove_all(this);
}

void Context::add(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(mutex_);
  std::erase_if(streams_, [](const auto& s) { return s.expired(); });
  streams_.push_back(stream);
}

std::vector<std::shared_ptr<Stream>> Context::streams() {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Stream>> out;
  for (const auto& s : streams_)
    if (auto shared = s.lock()) out.push_back(std::move(shared));
  return out;
}

Stream& Context::transfer_stream() {
  if (transfer_ == nullptr) transfer_ = Stream::create(shared_from_this(), 0, 6);
  return *transfer_;
}

uint64_t Context::add_kernel(const std::shared_ptr<const KernelImage>& image) {
  std::lock_guard lock(mutex_);
  std::erase_if(kernels_, [](const auto& entry) { return entry.second.expired(); });
  kernels_[next_cookie_] = image;
  return next_cookie_++;
}

std::shared_ptr<const KernelImage> Context::find_kernel(uint64_t cookie) {
  std::lock_guard lock(mutex_);
  auto it = kernels_.find(cookie);
  return it == kernels_.end() ? nullptr : it->second.lock();
}

Context::Line Context::take_line() {
  std::lock_guard lock(lines_mutex_);
  if (free_lines_.empty()) {
    auto page = std::make_unique<driver::DmaMemory>(device_.transport(), device_.iova_space(),
                                                    kLinesPerPage * sizeof(hw::Timeline));
    for (uint64_t k = 0; k < kLinesPerPage; ++k)
      free_lines_.push_back(
          {reinterpret_cast<hw::Timeline*>(page->data()) + k, page->device_address(k * sizeof(hw::Timeline))});
    line_pages_.push_back(std::move(page));
  }
  Line line = free_lines_.back();
  free_lines_.pop_back();
  std::memset(static_cast<void*>(line.host), 0, sizeof *line.host);
  if (driver::Trace* t = device_.trace()) t->host_written(line.host, sizeof *line.host);
  return line;
}

void Context::give_line(Line line) {
  std::lock_guard lock(lines_mutex_);
  free_lines_.push_back(line);
}

void Context::poison(hw::DeviceAddr address, uint64_t value) {
  std::lock_guard lock(lines_mutex_);
  for (const auto& page : line_pages_) {
    const uint64_t offset = hw::raw(address) - hw::raw(page->device_address());
    if (offset >= page->bytes()) continue;
    auto& t = *reinterpret_cast<hw::Timeline*>(page->data() + offset);
    std::atomic_ref word(t.value);
    if (word.load(std::memory_order_acquire) >= value) return;
    std::atomic_ref(t.failed_value).store(value, std::memory_order_relaxed);
    std::atomic_ref(t.status).store(static_cast<uint32_t>(hw::Status::kDiscarded), std::memory_order_relaxed);
    word.store(value, std::memory_order_release);
    if (driver::Trace* trace = device_.trace()) trace->host_written(&t, sizeof t);
  }
}

void Context::enqueue(HostCall call) {
  std::lock_guard lock(calls_mutex_);
  if (closed()) fail(jalErrorIllegalState, "the device is being closed");
  calls_.push_back(std::move(call));
  if (!calls_thread_started_) {
    calls_thread_ = std::thread([this] { run_host_calls(); });
    calls_thread_started_ = true;
  }
  calls_changed_.notify_one();
}

void Context::run_host_calls() {
  std::unique_lock lock(calls_mutex_);
  for (;;) {
    calls_changed_.wait(lock, [&] { return closed() || !calls_.empty(); });
    // What still waits when the device is closed or lost is called too: somebody may sleep until it is.
    if (closed() && calls_.empty()) return;
    const uint32_t seen = device_.event_count();
    bool ran = false;
    for (size_t k = 0; k < calls_.size(); ++k) {
      // Calls of one stream stand in order: only its first can be due.
      bool first = true;
      for (size_t j = 0; j < k && first; ++j) first = calls_[j].request != calls_[k].request;
      if (!first || (std::atomic_ref(calls_[k].request->value).load(std::memory_order_acquire) < calls_[k].value &&
                     !device_.lost() && !closed()))
        continue;
      HostCall call = std::move(calls_[k]);
      calls_.erase(calls_.begin() + static_cast<std::ptrdiff_t>(k));
      lock.unlock();
      driver::after_answer();
      try {
        call.function();
      } catch (const std::exception& e) {
        driver::runtime_log().error("host function: {}", e.what());
      }
      call.stream->call_finished(call.value);
      device_.signal(*call.done, call.value);
      call.function = nullptr;
      std::shared_ptr<Stream> last = std::move(call.stream);
      lock.lock();
      calls_changed_.notify_all();
      // The stream may die here, and with it the last owner of this context: not on this thread, which it would join.
      if (last.use_count() == 1) graveyard_.push_back(std::move(last));
      ran = true;
      break;
    }
    if (ran) continue;
    lock.unlock();
    device_.wait_event(seen, 1'000'000'000);
    lock.lock();
  }
}

void Context::drop_calls_of(const Stream* stream) {
  std::unique_lock lock(calls_mutex_);
  calls_changed_.wait_for(lock, std::chrono::seconds(10), [&] {
    for (const HostCall& c : calls_)
      if (c.stream.get() == stream) return false;
    return true;
  });
}

void Context::close() {
  {
    std::lock_guard lock(calls_mutex_);
    closed_.store(true, std::memory_order_release);
    calls_changed_.notify_all();
  }
  device_.notify();
  if (calls_thread_.joinable()) calls_thread_.join();
  {
    std::lock_guard lock(transfer_mutex_);
    transfer_.reset();
  }
  graveyard_.clear();
}

void Context::add(const std::shared_ptr<Communicator>& communicator) {
  std::lock_guard lock(mutex_);
  std::erase_if(communicators_, [](const auto& c) { return c.expired(); });
  communicators_.push_back(communicator);
}

std::vector<std::shared_ptr<Communicator>> Context::communicators() {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Communicator>> out;
  for (const auto& weak : communicators_)
    if (auto c = weak.lock()) out.push_back(std::move(c));
  return out;
}

void* Context::library_kernel(const std::string& name) {
  std::lock_guard lock(library_mutex_);
  if (auto it = library_.find(name); it != library_.end()) return it->second;
  const std::vector<std::byte> image = build_library_module(name);
  auto module = std::make_shared<Module>(*this, image.data(), image.size(), "library:" + name);
  Module& m = *module;
  HandleTable<Module>::add(std::move(module));  // freed with the device
  return library_[name] = m.kernel(name);
}

jalErrorRecord Context::describe(const hw::FaultRecord& f, const Stream& stream) {
  jalErrorRecord r{};
  r.struct_size = sizeof r;
  const auto status = static_cast<hw::Status>(f.status);
  r.code = code_of(status);
  r.root_code = status == hw::Status::kDependencyFailed ? code_of(static_cast<hw::Status>(f.value)) : r.code;
  r.sequence = f.packet;
  const Operation& o = stream.operation(f.packet);
  copy_text(r.operation, o.kind);
  if (o.call_file != nullptr) copy_text(r.call_site, std::string(o.call_file) + ":" + std::to_string(o.call_line));
  r.instruction = f.instruction;
  std::copy(f.pid, f.pid + 3, r.grid_position);
  r.core = f.core, r.tile = f.tile, r.access = f.access, r.bytes = f.bytes, r.address = f.address;
  copy_text(r.detail, f.detail);
  if (f.cookie & Communicator::kCookieBit)
    for (const auto& c : communicators())
      if (c->cookie() == f.cookie) copy_text(r.detail, c->explain(f));
  if (auto kernel = find_kernel(f.cookie)) {
    copy_text(r.kernel, kernel->name);
    if (const SourceLine* line = f.instruction != hw::kNoInstruction ? kernel->line_of(f.instruction) : nullptr;
        line != nullptr && line->line != 0) {
      copy_text(r.source_file, line->file);
      r.source_line = line->line;
    }
  }
  if (status == hw::Status::kAddressFault && !(f.address & hw::kFabricWindow)) {
    r.address = reinterpret_cast<uint64_t>(device_pointer(ordinal_, hw::DeviceAddr{f.address}));
    if (auto near = Registry::get().nearest(r.address, this)) {
      r.allocation = near->base, r.allocation_bytes = near->bytes;
      r.allocation_offset = static_cast<int64_t>(r.address - near->base);
    }
  }
  return r;
}

namespace {

std::vector<std::string> device_uris() {
  std::vector<std::string> out;
  if (const char* text = std::getenv("JAL_DEVICE_URI"); text != nullptr && *text != 0) {
    std::stringstream in(text);
    for (std::string uri; std::getline(in, uri, ';');)
      if (!uri.empty()) out.push_back(uri);
    return out;
  }
  for (const driver::PciFunction& f : driver::pci_functions())
    if (f.is_jalapeno()) out.push_back("vfio:" + f.address);
  if (out.empty()) out.push_back("emu:");
  return out;
}

}  // namespace

Context& context_of(jalDevice_t device) {
  Context& c = HandleTable<Context>::get(device);
  return c;
}

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

jalError_t jalGetDeviceCount(int* count) {
  return guard([&] { required(count, "count") = static_cast<int>(device_uris().size()); });
}

jalError_t jalGetDeviceUri(int index, char* uri, size_t size) {
  return guard([&] {
    required(uri, "uri");
    const auto all = device_uris();
    if (index < 0 || static_cast<size_t>(index) >= all.size())
      fail(jalErrorNoDevice, "device " + std::to_string(index) + ", there are " + std::to_string(all.size()));
    if (size <= all[static_cast<size_t>(index)].size())
      invalid("uri needs " + std::to_string(all[static_cast<size_t>(index)].size() + 1) + " bytes, got " +
              std::to_string(size));
    std::strcpy(uri, all[static_cast<size_t>(index)].c_str());
  });
}

jalError_t jalDeviceOpen(const char* uri, jalDevice_t* device) {
  return guard([&] {
    required(device, "device");
    jalapeno::install_embedded_emulator();
    std::string chosen = uri != nullptr ? uri : device_uris().at(0);
    mark_used();
    auto context = std::make_shared<Context>(chosen);
    if (uri == nullptr && chosen == "emu:" && std::getenv("JAL_DEVICE_URI") == nullptr) {
      static std::once_flag once;
      std::call_once(once, [&] {
        jalapeno::driver::runtime_log().warn(
            "no Jalapeno device on this machine: using the embedded emulator, chip configuration {}",
            context->device().identity().config_name);
      });
    }
    *device = static_cast<jalDevice_t>(HandleTable<Context>::add(std::move(context)));
  });
}

jalError_t jalDeviceClose(jalDevice_t device) {
  return guard([&] {
    auto context = HandleTable<Context>::remove(device);
    close_all_of(context.get());
    context->close();
    Registry::get().remove_all(context.get());
  });
}

jalError_t jalDeviceGetProperties(jalDevice_t device, jalDeviceProperties* p) {
  return guard([&] {
    Context& c = context_of(device);
    check_struct(required(p, "properties"), "jalDeviceProperties");
    const auto& i = c.device().identity();
    copy_text(p->uri, c.device().uri());
    copy_text(p->config_name, i.config_name);
    p->emulated = (i.capabilities & jalapeno::hw::kCapabilityEmulated) != 0;
    p->assumed = (i.capabilities & jalapeno::hw::kCapabilityAssumedRates) != 0;
    p->cores = i.cores, p->spm_bytes = i.spm_bytes, p->acc_bytes = i.acc_bytes, p->links = i.links,
    p->queues = i.queues;
    p->interface_version = i.interface_version, p->isa_version = i.isa_version, p->hbm_bytes = i.hbm_bytes;
    p->core_clock_ghz = i.core_clock_khz * 1e-6, p->hbm_gbytes_per_second = i.hbm_megabytes_per_second * 1e-3;
    p->link_gbits_per_second = i.link_megabits_per_second * 1e-3, p->peak_tflops_bf16 = i.peak_gigaflops_bf16 * 1e-3;
    p->function = i.function, p->virtual_functions = i.virtual_functions;
    p->power_limit_watts = i.power_limit_milliwatts * 1e-3, p->dollars_per_hour = i.dollars_per_hour_micro * 1e-6;
    p->uuid[0] = i.uuid[0], p->uuid[1] = i.uuid[1];
  });
}

jalError_t jalDeviceGetTelemetry(jalDevice_t device, jalTelemetry* out) {
  return guard([&] {
    Context& c = context_of(device);
    check_struct(required(out, "telemetry"), "jalTelemetry");
    const auto t = c.device().telemetry();
    *out = jalTelemetry{sizeof *out,
                        t.temperature_millicelsius * 1e-3,
                        t.power_milliwatts * 1e-3,
                        static_cast<double>(t.energy_microjoules) * 1e-6,
                        t.device_ns,
                        t.busy_cores_ns,
                        t.busy_matrix_ns,
                        t.busy_vector_ns,
                        t.busy_dma_ns,
                        t.busy_copy_ns,
                        t.hbm_read_bytes,
                        t.hbm_write_bytes,
                        t.host_bytes,
                        t.packets,
                        t.launches,
                        t.instances,
                        t.instructions,
                        t.faults,
                        t.ecc_corrected,
                        t.ecc_uncorrected,
                        c.device().health() == jalapeno::hw::kHealthReady,
                        static_cast<uint32_t>(std::popcount(t.links_up)),
                        t.busy_fabric_ns,
                        t.fabric_read_bytes,
                        t.fabric_write_bytes,
                        t.fabric_errors};
  });
}

jalError_t jalDeviceGetMemoryInfo(jalDevice_t device, size_t* free_bytes, size_t* total_bytes) {
  return guard([&] {
    Context& c = context_of(device);
    const uint64_t cached = c.pool().cached_bytes();  // gives back what it does not keep
    if (free_bytes != nullptr) *free_bytes = c.space().free_bytes() + cached;
    if (total_bytes != nullptr) *total_bytes = c.device().identity().hbm_bytes;
  });
}

jalError_t jalDeviceSynchronizeUntil(jalDevice_t device, uint64_t timeout_ns) {
  return guard([&] {
    for (auto& s : context_of(device).streams())
      if (!s->capturing()) s->synchronize(timeout_ns);
  });
}
jalError_t jalDeviceSynchronize(jalDevice_t device) { return jalDeviceSynchronizeUntil(device, default_timeout_ns()); }

jalError_t jalDeviceReset(jalDevice_t device) {
  return guard([&] {
    for (auto& s : context_of(device).streams()) s->reset();
  });
}
