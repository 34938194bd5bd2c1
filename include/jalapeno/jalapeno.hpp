// libjalapeno for C++: header-only, calls nothing but jalapeno.h, owns what it creates.
//
// Handles are move-only and free themselves; get() gives the C handle, which stays owned. Failures throw
// jalapeno::Error with the code and the library's text. Destructors do not throw. Blocking, threads and errors are
// those of the C functions of the same name.
#pragma once
#include <jalapeno/jalapeno.h>

#include <array>
#include <chrono>
#include <cstring>
#include <initializer_list>
#include <source_location>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace jalapeno {

class Error : public std::runtime_error {
 public:
  explicit Error(jalError_t code)
      : std::runtime_error(std::string(jalGetErrorName(code)) + ": " + text(code)), code_(code) {}
  jalError_t code() const noexcept { return code_; }

 private:
  static std::string text(jalError_t code) {
    const char* detail = jalGetLastErrorDetail();
    return *detail != 0 ? detail : jalGetErrorString(code);
  }
  jalError_t code_;
};

inline void check(jalError_t code) {
  if (code != jalSuccess) throw Error(code);
}

namespace detail {
template <class Handle, jalError_t (*Destroy)(Handle)>
class Owner {
 public:
  Owner() = default;
  explicit Owner(Handle handle) : handle_(handle) {}
  Owner(Owner&& o) noexcept : handle_(std::exchange(o.handle_, Handle{})) {}
  Owner& operator=(Owner&& o) noexcept {
    if (this != &o) reset(std::exchange(o.handle_, Handle{}));
    return *this;
  }
  ~Owner() { reset({}); }
  Handle get() const { return handle_; }
  Handle release() { return std::exchange(handle_, Handle{}); }

 private:
  void reset(Handle next) {
    if (handle_ != Handle{}) (void)Destroy(handle_);
    handle_ = next;
  }
  Handle handle_{};
};
// Bytes of `size` elements; throws when that is no size.
inline size_t bytes_of(size_t size, size_t element) {
  if (size > SIZE_MAX / element)
    throw std::length_error(std::to_string(size) + " elements of " + std::to_string(element) + " bytes");
  return size * element;
}
inline uint64_t nanoseconds(std::chrono::nanoseconds t) { return t.count() < 0 ? 0 : static_cast<uint64_t>(t.count()); }
}  // namespace detail

class Device : public detail::Owner<jalDevice_t, jalDeviceClose> {
 public:
  Device() : Owner(open(nullptr)) {}
  explicit Device(const std::string& uri) : Owner(open(uri.c_str())) {}
  explicit Device(jalDevice_t handle) : Owner(handle) {}  // takes it over; release() gives it back
  jalDeviceProperties properties() const {
    jalDeviceProperties p{};
    p.struct_size = sizeof p;
    check(jalDeviceGetProperties(get(), &p));
    return p;
  }
  jalTelemetry telemetry() const {
    jalTelemetry t{};
    t.struct_size = sizeof t;
    check(jalDeviceGetTelemetry(get(), &t));
    return t;
  }
  void synchronize() const { check(jalDeviceSynchronize(get())); }

 private:
  static jalDevice_t open(const char* uri) {
    jalDevice_t d{};
    check(jalDeviceOpen(uri, &d));
    return d;
  }
};

class Timeline : public detail::Owner<jalTimeline_t, jalTimelineDestroy> {
 public:
  explicit Timeline(const Device& device, uint64_t initial = 0) : Owner(create(device, initial)) {}
  uint64_t value() const {
    uint64_t v;
    check(jalTimelineGetValue(get(), &v));
    return v;
  }
  void signal(uint64_t value) const { check(jalTimelineSignal(get(), value)); }
  void wait(uint64_t value, std::chrono::nanoseconds timeout) const {
    check(jalTimelineWait(get(), value, detail::nanoseconds(timeout)));
  }

 private:
  static jalTimeline_t create(const Device& device, uint64_t initial) {
    jalTimeline_t t{};
    check(jalTimelineCreate(device.get(), initial, &t));
    return t;
  }
};

class Stream;

class Event : public detail::Owner<jalEvent_t, jalEventDestroy> {
 public:
  explicit Event(const Device& device, bool timing = false) : Owner(create(device, timing)) {}
  inline void record(const Stream& stream) const;
  bool done() const {
    const jalError_t e = jalEventQuery(get());
    if (e == jalErrorNotReady) return false;
    check(e);
    return true;
  }
  void synchronize() const { check(jalEventSynchronize(get())); }
  // Both need timing events that are done.
  jalElapsed elapsed_since(const Event& begin) const {
    jalElapsed e{};
    e.struct_size = sizeof e;
    check(jalEventElapsed(&e, begin.get(), get()));
    return e;
  }

 private:
  static jalEvent_t create(const Device& device, bool timing) {
    jalEvent_t e{};
    check(jalEventCreate(device.get(), timing ? JAL_EVENT_TIMING : 0, &e));
    return e;
  }
};

class Stream : public detail::Owner<jalStream_t, jalStreamDestroy> {
 public:
  explicit Stream(const Device& device, int priority = 0) : Owner(create(device, priority)) {}
  void synchronize() const { check(jalStreamSynchronize(get())); }
  // False when the time is over; the work goes on.
  bool synchronize_for(std::chrono::nanoseconds timeout) const {
    const jalError_t e = jalStreamSynchronizeUntil(get(), detail::nanoseconds(timeout));
    if (e == jalErrorWaitTimeout) return false;
    check(e);
    return true;
  }
  void wait(const Event& event) const { check(jalStreamWaitEvent(get(), event.get())); }
  void wait(const Timeline& timeline, uint64_t value) const {
    check(jalStreamWaitTimeline(get(), timeline.get(), value));
  }
  void signal(const Timeline& timeline, uint64_t value) const {
    check(jalStreamSignalTimeline(get(), timeline.get(), value));
  }
  void copy(void* to, const void* from, size_t bytes) const { check(jalMemcpyAsync(to, from, bytes, get())); }
  void fill(void* pointer, int value, size_t bytes) const { check(jalMemsetAsync(pointer, value, bytes, get())); }
  uint64_t reset() const {
    uint64_t discarded = 0;
    check(jalStreamReset(get(), &discarded));
    return discarded;
  }
  jalErrorRecord error_record() const {
    jalErrorRecord r{};
    r.struct_size = sizeof r;
    check(jalStreamGetErrorRecord(get(), &r));
    return r;
  }

 private:
  static jalStream_t create(const Device& device, int priority) {
    jalStreamOptions o{};
    o.struct_size = sizeof o, o.priority = priority;
    jalStream_t s{};
    check(jalStreamCreate(device.get(), &o, &s));
    return s;
  }
};

inline void Event::record(const Stream& stream) const { check(jalEventRecord(get(), stream.get())); }

// Element types that C++ has no type for.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct e4m3 {
  uint8_t bits;
};
struct e5m2 {
  uint8_t bits;
};
template <class T>
constexpr jalDType dtype_of() {
  if constexpr (std::is_same_v<T, float>)
    return jalF32;
  else if constexpr (std::is_same_v<T, bf16>)
    return jalBF16;
  else if constexpr (std::is_same_v<T, f16>)
    return jalF16;
  else if constexpr (std::is_same_v<T, e4m3>)
    return jalE4M3;
  else if constexpr (std::is_same_v<T, e5m2>)
    return jalE5M2;
  else if constexpr (std::is_same_v<T, int8_t>)
    return jalI8;
  else if constexpr (std::is_same_v<T, int64_t>)
    return jalI64;
  else {
    static_assert(std::is_same_v<T, int32_t>, "no device type for this element type");
    return jalI32;
  }
}

// A dense tensor argument.
inline jalTensor tensor(void* data, jalDType dtype, std::initializer_list<uint32_t> shape) {
  jalTensor t{};
  t.data = data, t.dtype = dtype, t.rank = static_cast<uint32_t>(shape.size());
  uint32_t k = 0;
  for (uint32_t n : shape)
    if (k < 4) t.shape[k++] = n;
  return t;
}

// Device memory of `size` elements.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Device& device, size_t size)
      : memory_(allocate(device, detail::bytes_of(size, sizeof(T)))), size_(size) {}
  // Returns when the values are on the device.
  Buffer(const Device& device, std::span<const T> values) : Buffer(device, values.size()) {
    check(jalMemcpy(data(), values.data(), bytes()));
  }
  T* data() const { return static_cast<T*>(memory_.get()); }  // a device pointer: not to be read through
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }
  std::vector<T> to_host() const {
    std::vector<T> out(size_);
    if (size_ != 0) check(jalMemcpy(out.data(), data(), bytes()));
    return out;
  }
  jalTensor as(std::initializer_list<uint32_t> shape) const { return tensor(data(), dtype_of<T>(), shape); }
  jalTensor as() const {
    if (size_ > UINT32_MAX)
      throw std::length_error(std::to_string(size_) + " elements are more than one dimension holds");
    return as({static_cast<uint32_t>(size_)});
  }

 private:
  static void* allocate(const Device& device, size_t bytes) {
    void* p = nullptr;
    if (bytes != 0) check(jalMalloc(device.get(), &p, bytes));
    return p;
  }
  detail::Owner<void*, jalFree> memory_;
  size_t size_ = 0;
};

// Pinned host memory of `size` elements, zeroed.
template <class T>
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(const Device& device, size_t size)
      : memory_(allocate(device, detail::bytes_of(size, sizeof(T)))), size_(size) {}
  T* data() const { return static_cast<T*>(memory_.get()); }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }
  T& operator[](size_t i) const { return data()[i]; }
  T* begin() const { return data(); }
  T* end() const { return data() + size_; }

 private:
  static void* allocate(const Device& device, size_t bytes) {
    void* p = nullptr;
    if (bytes != 0) check(jalHostAlloc(device.get(), &p, bytes));
    return p;
  }
  detail::Owner<void*, jalHostFree> memory_;
  size_t size_ = 0;
};

// A kernel of a module or of the library. A plain view: the module (or the device) owns it.
class Kernel {
 public:
  Kernel() = default;
  explicit Kernel(jalKernel_t handle) : handle_(handle) {}
  jalKernel_t get() const { return handle_; }
  jalKernelInfo info() const {
    jalKernelInfo i{};
    i.struct_size = sizeof i;
    check(jalKernelGetInfo(handle_, &i));
    return i;
  }

 private:
  jalKernel_t handle_{};
};

inline Kernel library_kernel(const Device& device, const std::string& name) {
  jalKernel_t k{};
  check(jalLibraryGetKernel(device.get(), name.c_str(), &k));
  return Kernel(k);
}

class Module : public detail::Owner<jalModule_t, jalModuleUnload> {
 public:
  Module(const Device& device, const std::string& path) : Owner(load(device, path)) {}
  Module(const Device& device, std::span<const std::byte> image) : Owner(load(device, image)) {}
  Kernel kernel(const std::string& name) const {
    jalKernel_t k{};
    check(jalModuleGetKernel(get(), name.c_str(), &k));
    return Kernel(k);
  }

 private:
  static jalModule_t load(const Device& device, const std::string& path) {
    jalModule_t m{};
    check(jalModuleLoad(device.get(), path.c_str(), &m));
    return m;
  }
  static jalModule_t load(const Device& device, std::span<const std::byte> image) {
    jalModule_t m{};
    check(jalModuleLoadData(device.get(), image.data(), image.size(), &m));
    return m;
  }
};

inline jalArg argument(int32_t v) {
  jalArg a{};
  a.kind = jalArgI32, a.value.i32 = v;
  return a;
}
inline jalArg argument(int64_t v) {
  jalArg a{};
  a.kind = jalArgI64, a.value.i64 = v;
  return a;
}
inline jalArg argument(float v) {
  jalArg a{};
  a.kind = jalArgF32, a.value.f32 = v;
  return a;
}
inline jalArg argument(const jalTensor& v) {
  jalArg a{};
  a.kind = jalArgTensor, a.value.tensor = v;
  return a;
}
template <class T>
jalArg argument(const Buffer<T>& v) {
  return argument(v.as());
}

struct Grid {
  uint32_t x = 1, y = 1, z = 1;
  // Where the launch is written, for error records.
  std::source_location where = std::source_location::current();
  Grid(uint32_t gx = 1, uint32_t gy = 1, uint32_t gz = 1, std::source_location w = std::source_location::current())
      : x(gx), y(gy), z(gz), where(w) {}
};

namespace detail {
inline jalLaunchConfig config(const Grid& grid) {
  jalLaunchConfig c{};
  c.struct_size = sizeof c;
  c.grid[0] = grid.x, c.grid[1] = grid.y, c.grid[2] = grid.z;
  c.call_file = grid.where.file_name(), c.call_line = grid.where.line();
  return c;
}
}  // namespace detail

template <class... Args>
void launch(const Stream& stream, Grid grid, const Kernel& kernel, const Args&... args) {
  const std::array<jalArg, sizeof...(Args)> list{argument(args)...};
  const jalLaunchConfig c = detail::config(grid);
  check(jalLaunchKernelEx(kernel.get(), &c, list.data(), static_cast<uint32_t>(list.size()), stream.get()));
}

// A launch with everything fixed, made ready once.
class PreparedLaunch : public detail::Owner<jalPreparedLaunch_t, jalPreparedLaunchDestroy> {
 public:
  PreparedLaunch() = default;
  template <class... Args>
  PreparedLaunch(Grid grid, const Kernel& kernel, const Args&... args) : Owner(prepare(grid, kernel, args...)) {}
  void launch(const Stream& stream) const { check(jalLaunchPrepared(get(), stream.get())); }

 private:
  template <class... Args>
  static jalPreparedLaunch_t prepare(Grid grid, const Kernel& kernel, const Args&... args) {
    const std::array<jalArg, sizeof...(Args)> list{argument(args)...};
    const jalLaunchConfig c = detail::config(grid);
    jalPreparedLaunch_t launch{};
    check(jalLaunchPrepare(kernel.get(), &c, list.data(), static_cast<uint32_t>(list.size()), &launch));
    return launch;
  }
};

// What `record` enqueues on the stream, instantiated.
class Graph : public detail::Owner<jalGraphExec_t, jalGraphExecDestroy> {
 public:
  Graph() = default;
  template <class F>
  Graph(const Stream& stream, F record) : Owner(capture(stream, record)) {}
  void launch(const Stream& stream) const { check(jalGraphLaunch(get(), stream.get())); }
  template <class... Args>
  void set_arguments(uint32_t node, const Args&... args) const {
    const std::array<jalArg, sizeof...(Args)> list{argument(args)...};
    check(jalGraphExecSetKernelArgs(get(), node, list.data(), static_cast<uint32_t>(list.size())));
  }

 private:
  template <class F>
  static jalGraphExec_t capture(const Stream& stream, F record) {
    check(jalStreamBeginCapture(stream.get()));
    jalGraph_t graph{};
    try {
      record();
    } catch (...) {
      if (jalStreamEndCapture(stream.get(), &graph) == jalSuccess) (void)jalGraphDestroy(graph);
      throw;
    }
    check(jalStreamEndCapture(stream.get(), &graph));
    jalGraphExec_t exec{};
    const jalError_t e = jalGraphInstantiate(graph, &exec);
    (void)jalGraphDestroy(graph);
    check(e);
    return exec;
  }
};

// This rank of a group of ranks. Calls enqueue on the stream; counts are elements.
class Communicator : public detail::Owner<jalComm_t, jalCommDestroy> {
 public:
  explicit Communicator(jalComm_t handle) : Owner(handle) {}  // takes it over
  // Joins as `rank` of `ranks`; blocks until all have come.
  Communicator(const Device& device, int ranks, const jalUniqueId& id, int rank,
               const jalCommOptions* options = nullptr)
      : Owner(join(device, ranks, id, rank, options)) {}
  // Rank and size from the launcher: mpirun, srun, torchrun. One rank without one.
  static Communicator from_launcher(const Device& device, const jalCommOptions* options = nullptr) {
    jalComm_t c{};
    check(jalCommInitLauncher(&c, device.get(), options));
    return Communicator(c);
  }
  // All ranks in this process, rank i on devices[i].
  static std::vector<Communicator> all(std::span<const Device> devices, const jalCommOptions* options = nullptr) {
    std::vector<jalDevice_t> handles;
    for (const Device& d : devices) handles.push_back(d.get());
    std::vector<jalComm_t> made(handles.size());
    check(jalCommInitAll(made.data(), handles.data(), static_cast<int>(handles.size()), options));
    std::vector<Communicator> out;
    for (jalComm_t c : made) out.emplace_back(c);
    return out;
  }
  static jalUniqueId unique_id() {
    jalUniqueId id;
    check(jalGetUniqueId(&id));
    return id;
  }

  jalCommInfo info() const {
    jalCommInfo i{};
    i.struct_size = sizeof i;
    check(jalCommGetInfo(get(), &i));
    return i;
  }
  int rank() const { return info().rank; }
  int ranks() const { return info().ranks; }
  // jalSuccess while the communicator is well.
  jalError_t error() const {
    jalError_t e{};
    check(jalCommGetAsyncError(get(), &e));
    return e;
  }
  jalCommErrorRecord error_record() const {
    jalCommErrorRecord r{};
    r.struct_size = sizeof r;
    check(jalCommGetErrorRecord(get(), &r));
    return r;
  }
  void abort() const { check(jalCommAbort(get())); }
  void finalize() const { check(jalCommFinalize(get())); }
  // The survivors of a failure.
  Communicator shrink(std::span<const int> excluded = {}) const {
    jalComm_t c{};
    check(jalCommShrink(get(), excluded.data(), static_cast<int>(excluded.size()), &c));
    return Communicator(c);
  }
  Communicator split(int color, int key = 0) const {
    jalComm_t c{};
    check(jalCommSplit(get(), color, key, &c));
    return Communicator(c);
  }
  std::string dump() const {  // JSON
    size_t needed = 0;
    check(jalCommDump(get(), nullptr, 0, &needed));
    std::string text(needed + 4096, 0);  // it grows while others call
    check(jalCommDump(get(), text.data(), text.size(), &needed));
    text.resize(needed - 1);
    return text;
  }

  template <class T>
  void all_reduce(const T* send, T* receive, size_t count, jalReduceOp op, const Stream& stream) const {
    check(jalAllReduce(send, receive, count, dtype_of<T>(), op, get(), stream.get()));
  }
  template <class T>
  void reduce(const T* send, T* receive, size_t count, jalReduceOp op, int root, const Stream& stream) const {
    check(jalReduce(send, receive, count, dtype_of<T>(), op, root, get(), stream.get()));
  }
  template <class T>
  void broadcast(const T* send, T* receive, size_t count, int root, const Stream& stream) const {
    check(jalBroadcast(send, receive, count, dtype_of<T>(), root, get(), stream.get()));
  }
  template <class T>
  void all_gather(const T* send, T* receive, size_t count, const Stream& stream) const {
    check(jalAllGather(send, receive, count, dtype_of<T>(), get(), stream.get()));
  }
  template <class T>
  void reduce_scatter(const T* send, T* receive, size_t count, jalReduceOp op, const Stream& stream) const {
    check(jalReduceScatter(send, receive, count, dtype_of<T>(), op, get(), stream.get()));
  }
  template <class T>
  void all_to_all(const T* send, T* receive, size_t count, const Stream& stream) const {
    check(jalAllToAll(send, receive, count, dtype_of<T>(), get(), stream.get()));
  }
  template <class T>
  void send(const T* data, size_t count, int peer, const Stream& stream) const {
    check(jalSend(data, count, dtype_of<T>(), peer, get(), stream.get()));
  }
  template <class T>
  void receive(T* data, size_t count, int peer, const Stream& stream) const {
    check(jalRecv(data, count, dtype_of<T>(), peer, get(), stream.get()));
  }
  void barrier(const Stream& stream) const { check(jalBarrier(get(), stream.get())); }

 private:
  static jalComm_t join(const Device& device, int ranks, const jalUniqueId& id, int rank,
                        const jalCommOptions* options) {
    jalComm_t c{};
    check(jalCommInitRank(&c, device.get(), ranks, &id, rank, options));
    return c;
  }
};

// Issues what `calls` calls together: see jalGroupStart. Nothing of it when `calls` throws.
template <class F>
void group(F calls) {
  check(jalGroupStart());
  try {
    calls();
  } catch (...) {
    (void)jalGroupCancel();
    throw;
  }
  check(jalGroupEnd());
}

}  // namespace jalapeno
