#include "memory.hpp"

#include <cstring>
#include <iterator>

#include "context.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {
namespace {

constexpr uint64_t kUnit = 256, kLarge = uint64_t{1} << 20, kSlabUnits = hw::kPageBytes / kUnit;
uint64_t round_up(uint64_t v, uint64_t unit) { return (v + unit - 1) / unit * unit; }

std::vector<Fence> all_streams(Context& context) {
  std::vector<Fence> fences;
  for (auto& s : context.streams()) fences.push_back(s->fence());
  return fences;
}

}  // namespace

std::string pointer_text(const void* p) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", p);
  return text;
}

void Region::require(const void* p, uint64_t n, const std::string& what) const {
  if (!contains(p, n))
    invalid(what + " of " + std::to_string(n) + " bytes at offset " +
            std::to_string(reinterpret_cast<uint64_t>(p) - base) + " leaves its allocation of " +
            std::to_string(bytes));
}

Registry& Registry::get() {
  static Registry* r = new Registry;  // never destroyed: used while the program ends
  return *r;
}

void Registry::add(const Region& region) {
  std::lock_guard lock(mutex_);
  regions_[region.base] = region;
}

std::optional<Region> Registry::find(const void* p) const {
  std::lock_guard lock(mutex_);
  auto it = regions_.upper_bound(reinterpret_cast<uint64_t>(p));
  if (it == regions_.begin()) return std::nullopt;
  --it;
  if (!it->second.contains(p, 0)) return std::nullopt;
  return it->second;
}

std::optional<Region> Registry::nearest(uint64_t address, const Context* context) const {
  std::lock_guard lock(mutex_);
  std::optional<Region> best;
  uint64_t best_distance = ~uint64_t{0};
  for (const auto& [base, r] : regions_) {
    if (r.context != context || r.kind != MemoryKind::kDevice) continue;
    const uint64_t distance = address < base             ? base - address
                              : address - base < r.bytes ? 0
                                                         : address - base - r.bytes + 1;
    if (distance < best_distance) best = r, best_distance = distance;
  }
  return best;
}

std::optional<Region> Registry::remove(const void* base, std::optional<MemoryKind> kind) {
  std::lock_guard lock(mutex_);
  auto it = regions_.find(reinterpret_cast<uint64_t>(base));
  if (it == regions_.end() || (kind && it->second.kind != *kind)) return std::nullopt;
  Region r = it->second;
  regions_.erase(it);
  return r;
}

void Registry::remove_all(const Context* context) {
  std::lock_guard lock(mutex_);
  std::erase_if(regions_, [&](const auto& entry) { return entry.second.context == context; });
}

bool Fence::passed() const {
  auto s = stream.lock();
  return s == nullptr || s->completed() >= value || s->context().device().lost();
}

bool Fence::seen() const {
  if (!passed()) return false;
  if (auto s = stream.lock(); s != nullptr && !s->context().device().lost()) s->queue().wait(value, 0);
  return true;
}

void keep_last(std::vector<Fence>& fences, Fence fence) {
  for (Fence& f : fences)
    if (!f.stream.owner_before(fence.stream) && !fence.stream.owner_before(f.stream)) {
      f.value = fence.value;
      return;
    }
  std::erase_if(fences, [](const Fence& f) { return f.stream.expired(); });
  fences.push_back(std::move(fence));
}

bool Pool::Slab::empty() const { return units.available() == kSlabUnits; }

driver::HbmBlock Pool::from_slabs(uint64_t bytes, uint64_t permissions, driver::Reach reach) {
  const uint64_t units = round_up(bytes, kUnit) / kUnit;
  const auto part = [&](Slab& slab) {
    const uint64_t at = slab.units.take(units);
    if (at == driver::RangeAllocator::kNone) return driver::HbmBlock{};
    return driver::HbmBlock{slab.block.address + at * kUnit, units * kUnit, slab.block.physical + at * kUnit};
  };
  for (auto& [address, slab] : slabs_) {
    if (slab->permissions != permissions || slab->reach != reach) continue;
    if (const driver::HbmBlock block = part(*slab); block.bytes != 0) return block;
  }
  auto slab = std::make_unique<Slab>();
  slab->block = pages(hw::kPageBytes, permissions, reach), slab->permissions = permissions, slab->reach = reach;
  slab->units.add(0, kSlabUnits);
  return part(*(slabs_[hw::raw(slab->block.address)] = std::move(slab)));
}

bool Pool::give_to_slab(uint64_t address, uint64_t bytes) {
  auto it = slabs_.upper_bound(address);
  if (it == slabs_.begin()) return false;
  --it;
  if (address - it->first >= hw::kPageBytes) return false;
  it->second->units.give((address - it->first) / kUnit, bytes / kUnit);
  return true;
}

Region Pool::allocate(uint64_t bytes, const Stream* stream) {
  if (bytes == 0) invalid("allocation of 0 bytes");
  std::lock_guard lock(mutex_);
  reap();
  std::optional<Region> region;
  const uint64_t capacity = bytes >= kLarge ? round_up(bytes, hw::kPageBytes) : round_up(bytes, kUnit);
  if (stream != nullptr) {
    for (auto it = pending_.begin(); it != pending_.end(); ++it) {
      if (it->capacity != capacity || it->fences.size() != 1 || it->fences[0].stream.lock().get() != stream) continue;
      region = it->region;
      region->bytes = bytes;
      pending_.erase(it);
      break;
    }
  }
  constexpr uint64_t kPermissions = hw::pte::kRead | hw::pte::kWrite;
  if (!region && bytes < kLarge)
    region = Region{0, bytes, MemoryKind::kDevice, &context_,
                    from_slabs(bytes, kPermissions, driver::Reach::kDevice).address};
  if (!region) {
    driver::HbmBlock block;
    if (auto it = cached_.lower_bound(capacity); it != cached_.end() && it->first <= capacity + capacity / 4) {
      block = it->second;
      cached_.erase(it);
    } else {
      block = pages(bytes, kPermissions, driver::Reach::kDevice);
    }
    large_[hw::raw(block.address)] = block;
    region = Region{0, bytes, MemoryKind::kDevice, &context_, block.address};
  }
  region->base = reinterpret_cast<uint64_t>(device_pointer(context_.ordinal(), region->address));
  Registry::get().add(*region);
  return *region;
}

driver::HbmBlock Pool::allocate_for_host(uint64_t bytes, uint64_t permissions) {
  context_.device().throw_if_lost();
  std::lock_guard lock(mutex_);
  reap();
  return bytes < kLarge ? from_slabs(bytes, permissions, driver::Reach::kHost)
                        : pages(bytes, permissions, driver::Reach::kHost);
}

void Pool::free_for_host(const driver::HbmBlock& block) {
  auto fences = all_streams(context_);
  std::lock_guard lock(returned_mutex_);
  returned_.push_back({block, std::move(fences)});
}

driver::HbmBlock Pool::pages_for_host(uint64_t bytes, uint64_t permissions) {
  std::lock_guard lock(mutex_);
  reap();
  return pages(bytes, permissions, driver::Reach::kHost);
}

driver::HbmBlock Pool::pages(uint64_t bytes, uint64_t permissions, driver::Reach reach) {
  try {
    return context_.space().allocate(bytes, permissions, reach);
  } catch (const driver::Error& e) {
    if (e.code() != driver::Code::kOutOfDeviceMemory) throw;
  }
  trim_locked(0);
  return context_.space().allocate(bytes, permissions, reach);
}

void Pool::free(const Region& region, std::vector<Fence> fences) {
  std::lock_guard lock(mutex_);
  std::erase_if(fences, [](const Fence& f) { return f.passed(); });
  const uint64_t capacity =
      region.bytes >= kLarge ? round_up(region.bytes, hw::kPageBytes) : round_up(region.bytes, kUnit);
  if (fences.empty())
    recycle(region, capacity);
  else
    pending_.push_back({region, capacity, std::move(fences)});
}

void Pool::reap() {
  std::erase_if(pending_, [&](Pending& p) {
    std::erase_if(p.fences, [](const Fence& f) { return f.passed(); });
    if (!p.fences.empty()) return false;
    recycle(p.region, p.capacity);
    return true;
  });
  std::vector<Returned> returned;  // looked at without the lock: the last look at a stream may end it, and more come
  {
    std::lock_guard lock(returned_mutex_);
    returned.swap(returned_);
  }
  if (returned.empty()) return;
  std::erase_if(returned, [&](Returned& r) {
    std::erase_if(r.fences, [](const Fence& f) { return f.seen(); });
    if (!r.fences.empty()) return false;
    if (!give_to_slab(hw::raw(r.block.address), r.block.bytes)) context_.space().free(r.block);
    return true;
  });
  std::lock_guard lock(returned_mutex_);
  returned_.insert(returned_.end(), std::make_move_iterator(returned.begin()), std::make_move_iterator(returned.end()));
}

void Pool::recycle(const Region& region, uint64_t capacity) {
  if (auto it = large_.find(hw::raw(region.address)); it != large_.end()) {
    cached_.emplace(it->second.bytes, it->second);
    large_.erase(it);
    return;
  }
  give_to_slab(hw::raw(region.address), capacity);
}

void Pool::trim_locked(uint64_t keep_bytes) {
  uint64_t have = 0;
  for (const auto& [bytes, block] : cached_) have += bytes;
  for (auto it = cached_.begin(); it != cached_.end() && have > keep_bytes;) {
    context_.space().free(it->second);
    have -= it->first;
    it = cached_.erase(it);
  }
  std::erase_if(slabs_, [&](const auto& entry) {
    if (!entry.second->empty()) return false;
    context_.space().free(entry.second->block);
    return true;
  });
}

void Pool::trim(uint64_t keep_bytes) {
  std::lock_guard lock(mutex_);
  reap();
  trim_locked(keep_bytes);
}

uint64_t Pool::cached_bytes() {
  std::lock_guard lock(mutex_);
  reap();
  uint64_t have = 0;
  for (const auto& [bytes, block] : cached_) have += bytes;
  for (const auto& [address, slab] : slabs_)
    if (slab->empty()) have += hw::kPageBytes;
  return have;
}

namespace {

// Pinned memory by its host address.
struct PinnedTable {
  std::mutex mutex;
  std::map<uint64_t, std::unique_ptr<driver::DmaMemory>> blocks;
};
PinnedTable& pinned() {
  static PinnedTable* t = new PinnedTable;
  return *t;
}

Region device_region(const void* p, const char* what) {
  auto r = Registry::get().find(p);
  if (!r || r->kind != MemoryKind::kDevice)
    invalid(std::string(what) + ": " + pointer_text(p) + " is not device memory of jalMalloc");
  if (r->base != reinterpret_cast<uint64_t>(p))
    invalid(std::string(what) + ": " + pointer_text(p) + " is inside an allocation; free its base " +
            pointer_text(reinterpret_cast<void*>(r->base)));
  return *r;
}

}  // namespace

void give_back(const Region& r) {
  auto fences = all_streams(*r.context);
  if (Registry::get().remove(reinterpret_cast<void*>(r.base), MemoryKind::kDevice))
    r.context->pool().free(r, std::move(fences));
}

void free_pinned_of(const Context* context) {
  PinnedTable& t = pinned();
  std::lock_guard lock(t.mutex);
  for (auto it = t.blocks.begin(); it != t.blocks.end();) {
    auto r = Registry::get().find(reinterpret_cast<void*>(it->first));
    it = r && r->context == context ? t.blocks.erase(it) : std::next(it);
  }
}

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

jalError_t jalMalloc(jalDevice_t device, void** pointer, size_t bytes) {
  return guard([&] {
    required(pointer, "pointer");
    *pointer = reinterpret_cast<void*>(context_of(device).pool().allocate(bytes, nullptr).base);
  });
}

jalError_t jalFree(void* pointer) {
  return guard([&] {
    if (pointer == nullptr) return;
    give_back(device_region(pointer, "jalFree"));
  });
}

jalError_t jalMallocAsync(void** pointer, size_t bytes, jalStream_t stream) {
  return guard([&] {
    required(pointer, "pointer");
    Stream& s = stream_of(stream);
    s.refuse_capture("jalMallocAsync");
    *pointer = reinterpret_cast<void*>(s.context().pool().allocate(bytes, &s).base);
  });
}

jalError_t jalFreeAsync(void* pointer, jalStream_t stream) {
  return guard([&] {
    Stream& s = stream_of(stream);
    s.refuse_capture("jalFreeAsync");
    if (pointer == nullptr) return;
    const Region r = device_region(pointer, "jalFreeAsync");
    if (r.context != &s.context())
      fail(jalErrorInvalidDevice, "jalFreeAsync: the memory belongs to another device than the stream");
    Registry::get().remove(pointer, MemoryKind::kDevice);
    r.context->pool().free(r, {s.fence()});
  });
}

jalError_t jalMemPoolTrim(jalDevice_t device, size_t keep_bytes) {
  return guard([&] { context_of(device).pool().trim(keep_bytes); });
}

jalError_t jalHostAlloc(jalDevice_t device, void** pointer, size_t bytes) {
  return guard([&] {
    required(pointer, "pointer");
    Context& c = context_of(device);
    c.device().throw_if_lost();
    auto block = std::make_unique<jalapeno::driver::DmaMemory>(c.device().transport(), c.device().iova_space(), bytes);
    Registry::get().add(
        {reinterpret_cast<uint64_t>(block->data()), bytes, MemoryKind::kPinned, &c, block->device_address()});
    void* p = block->data();
    std::lock_guard lock(pinned().mutex);
    pinned().blocks[reinterpret_cast<uint64_t>(p)] = std::move(block);
    *pointer = p;
  });
}

jalError_t jalHostFree(void* pointer) {
  return guard([&] {
    if (pointer == nullptr) return;
    auto r = Registry::get().find(pointer);
    if (!r || r->kind != MemoryKind::kPinned || r->base != reinterpret_cast<uint64_t>(pointer))
      invalid("jalHostFree: " + pointer_text(pointer) + " is not memory of jalHostAlloc");
    for (auto& s : r->context->streams())
      s->synchronize(default_timeout_ns(), false);  // the device may still be using it
    Registry::get().remove(pointer, MemoryKind::kPinned);
    std::lock_guard lock(pinned().mutex);
    pinned().blocks.erase(reinterpret_cast<uint64_t>(pointer));
  });
}

jalError_t jalHostRegister(jalDevice_t device, void* pointer, size_t bytes) {
  return guard([&] {
    Context& c = context_of(device);
    required(static_cast<char*>(pointer), "pointer");
    if (bytes == 0 || is_device_pointer(pointer)) invalid("jalHostRegister: expected host memory of at least one byte");
    if (Registry::get().find(pointer))
      invalid("jalHostRegister: " + pointer_text(pointer) + " is registered or pinned already");
    Registry::get().add({reinterpret_cast<uint64_t>(pointer), bytes, MemoryKind::kRegistered, &c, {}});
  });
}

jalError_t jalHostUnregister(void* pointer) {
  return guard([&] {
    auto r = Registry::get().find(pointer);
    if (!r || r->kind != MemoryKind::kRegistered || r->base != reinterpret_cast<uint64_t>(pointer))
      invalid("jalHostUnregister: " + pointer_text(pointer) + " is not registered");
    for (auto& s : r->context->streams()) s->synchronize(default_timeout_ns(), false);
    Registry::get().remove(pointer, MemoryKind::kRegistered);
  });
}

jalError_t jalHostGetDevicePointer(void** out, void* host_pointer) {
  return guard([&] {
    required(out, "device_pointer");
    auto r = Registry::get().find(host_pointer);
    if (!r || r->kind != MemoryKind::kPinned)
      invalid("jalHostGetDevicePointer: " + pointer_text(host_pointer) + " is not memory of jalHostAlloc");
    *out = host_pointer;  // the runtime tells them apart by address; a kernel argument may use it as it is
  });
}

jalError_t jalPointerGetRange(const void* pointer, void** base, size_t* bytes) {
  return guard([&] {
    auto r = Registry::get().find(pointer);
    if (!r) fail(jalErrorNotFound, "jalPointerGetRange: " + pointer_text(pointer) + " belongs to no allocation");
    if (base != nullptr) *base = reinterpret_cast<void*>(r->base);
    if (bytes != nullptr) *bytes = r->bytes;
  });
}
