// Handles: a slot number and a generation in the shape of a pointer, so that a freed or foreign handle is
// recognised without touching freed memory. Lookups take no lock.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "error.hpp"

namespace jalapeno::runtime {

// What frees the handles of one kind that belong to a device, when the device is closed.
using Closer = void (*)(const void* owner);
void register_closer(Closer closer);
void close_all_of(const void* owner);

// T has kHandleTag, kHandleName and owner(), the context it belongs to.
template <class T>
class HandleTable {
 public:
  static void* add(std::shared_ptr<T> object) {
    void* handle = reserve();
    fill(handle, std::move(object));
    return handle;
  }
  // A handle for an object that is still to come: of no use before fill(), and given back by give_up().
  static void* reserve() {
    static const bool registered = (register_closer(close_owned), true);
    (void)registered;
    Table& t = table();
    std::lock_guard lock(t.mutex);
    uint32_t index;
    if (!t.free.empty()) {
      index = t.free.back();
      t.free.pop_back();
    } else {
      index = t.size++;
      if (index / kChunk >= kChunks) fail(jalErrorOutOfHostMemory, "more than a million handles of one kind");
      if (t.chunks[index / kChunk].load(std::memory_order_relaxed) == nullptr)
        t.chunks[index / kChunk].store(new Slot[kChunk], std::memory_order_release);
    }
    Slot& slot = t.chunks[index / kChunk].load(std::memory_order_relaxed)[index % kChunk];
    return reinterpret_cast<void*>(uint64_t{T::kHandleTag} << 56 | (++slot.generation & 0xFFFFFFFF) << 20 | index);
  }
  static void fill(void* handle, std::shared_ptr<T> object) {
    Table& t = table();
    std::lock_guard lock(t.mutex);
    const uint32_t index = index_of(handle);
    Slot& slot = t.chunks[index / kChunk].load(std::memory_order_relaxed)[index % kChunk];
    slot.object = std::move(object);
    slot.handle.store(reinterpret_cast<uint64_t>(handle), std::memory_order_release);
  }
  static void give_up(void* handle) {
    std::lock_guard lock(table().mutex);
    table().free.push_back(index_of(handle));
  }

  static T& get(const void* handle) {
    Slot* slot = find(handle);
    if (slot == nullptr) refuse(handle);
    return *slot->object;
  }

  // Frees the handle; the object lives on while somebody holds it.
  static std::shared_ptr<T> remove(const void* handle) {
    Table& t = table();
    std::lock_guard lock(t.mutex);
    Slot* slot = find(handle);
    if (slot == nullptr) refuse(handle);
    slot->handle.store(0, std::memory_order_release);
    t.free.push_back(index_of(handle));
    return std::move(slot->object);
  }

 private:
  static void close_owned(const void* owner) {
    std::vector<std::shared_ptr<T>> objects;  // destroyed outside the lock: destructors free other handles
    Table& t = table();
    std::unique_lock lock(t.mutex);
    for (uint32_t index = 0; index < t.size; ++index) {
      Slot& slot = t.chunks[index / kChunk].load(std::memory_order_relaxed)[index % kChunk];
      if (slot.object == nullptr || slot.object->owner() != owner) continue;
      slot.handle.store(0, std::memory_order_release);
      t.free.push_back(index);
      objects.push_back(std::move(slot.object));
    }
    lock.unlock();
    objects.clear();
  }
  static constexpr uint32_t kChunk = 1024, kChunks = 1024;
  struct Slot {
    std::atomic<uint64_t> handle{0};
    uint64_t generation = 0;
    std::shared_ptr<T> object;
  };
  struct Table {
    std::mutex mutex;
    std::atomic<Slot*> chunks[kChunks] = {};
    std::vector<uint32_t> free;
    uint32_t size = 0;
  };
  static Table& table() {
    static Table* t = new Table;  // never destroyed: handles may be used while the program ends
    return *t;
  }
  static uint32_t index_of(const void* handle) {
    return static_cast<uint32_t>(reinterpret_cast<uint64_t>(handle) & 0xFFFFF);
  }
  static Slot* find(const void* handle) {
    const uint64_t h = reinterpret_cast<uint64_t>(handle);
    if (h >> 56 != T::kHandleTag) return nullptr;
    const uint32_t index = h & 0xFFFFF;
    Slot* chunk = table().chunks[index / kChunk].load(std::memory_order_acquire);
    if (chunk == nullptr || chunk[index % kChunk].handle.load(std::memory_order_acquire) != h) return nullptr;
    return &chunk[index % kChunk];
  }
  [[noreturn]] static void refuse(const void* handle) {
    char text[96];
    const uint64_t h = reinterpret_cast<uint64_t>(handle);
    std::snprintf(text, sizeof text, "%s handle 0x%llx is %s", T::kHandleName, static_cast<unsigned long long>(h),
                  h == 0                     ? "NULL"
                  : h >> 56 == T::kHandleTag ? "already freed (or of a group that has not ended)"
                                             : "of another kind or no handle");
    fail(jalErrorInvalidHandle, text);
  }
};

}  // namespace jalapeno::runtime
