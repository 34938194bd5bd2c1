#include "stream.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <utility>

#include "collectives/communicator.hpp"
#include "prepared_launch.hpp"

namespace jalapeno::runtime {
namespace {

constexpr uint64_t kArgumentRing = 256 << 10;                             // bytes
constexpr uint64_t kCallLines = 128, kOwnerBytes = 4096 + kArgumentRing;  // two timelines, then arguments from 4096 on

template <class P>
P make(hw::PacketOp op) {
  P p{};
  p.header.op = op;
  return p;
}

}  // namespace

Stream::Stream(std::shared_ptr<Context> context, uint32_t priority, uint32_t ring_log2)
    : context_(std::move(context)),
      queue_(context_->device(), context_->space().context(), priority, ring_log2, kOwnerBytes),
      operations_(size_t{1} << ring_log2),
      call_request_(new (queue_.extra()) hw::Timeline{}),
      call_done_(new (queue_.extra() + 64) hw::Timeline{}) {}

std::shared_ptr<Stream> Stream::create(std::shared_ptr<Context> context, uint32_t priority, uint32_t ring_log2) {
  auto stream = std::make_shared<Stream>(std::move(context), priority, ring_log2);
  stream->context_->add(stream);
  return stream;
}

void Stream::check_failed() {
  if (failed()) throw_failure();
  context_->device().throw_if_lost();
}

void Stream::throw_failure() {
  const jalErrorRecord r = record();
  std::string text;
  if (r.kernel[0] != 0)
    text += std::string("kernel ") + r.kernel;
  else
    text += r.operation[0] != 0 ? r.operation : "operation";
  if (r.source_file[0] != 0)
    text += std::string(" (") + r.source_file + ":" + std::to_string(r.source_line) + ", instruction " +
            std::to_string(r.instruction) + ")";
  else if (r.instruction != UINT32_MAX)
    text += " (instruction " + std::to_string(r.instruction) + ")";
  if (r.kernel[0] != 0)
    text += " at grid (" + std::to_string(r.grid_position[0]) + ", " + std::to_string(r.grid_position[1]) + ", " +
            std::to_string(r.grid_position[2]) + ")";
  text += std::string(": ") + r.detail;
  if (r.allocation != 0) {
    text += "; nearest allocation " + pointer_text(reinterpret_cast<void*>(r.allocation)) + " of " +
            std::to_string(r.allocation_bytes) + " bytes, offset " + std::to_string(r.allocation_offset);
  }
  if (r.call_site[0] != 0) text += std::string("; launched at ") + r.call_site;
  fail(r.code, text);
}

jalErrorRecord Stream::record() { return context_->describe(queue_.fault(), *this); }

void Stream::wait_until(std::unique_lock<std::mutex>& lock, uint64_t value) {
  lock.unlock();
  const auto result = queue_.wait(value, driver_timeout(default_timeout_ns()));
  lock.lock();
  if (result == driver::WaitResult::kTimeout)
    fail(jalErrorWaitTimeout,
         "the stream's ring stayed full for " + std::to_string(default_timeout_ns() / 1'000'000) + " ms");
}

template <hw::PacketType P>
void Stream::submit(std::unique_lock<std::mutex>& lock, const P& packet, Operation operation, bool ring) {
  if (capture_ != nullptr) {
    Node node{};
    std::memcpy(&node.packet, &packet, sizeof packet);
    node.operation = operation;
    capture_->nodes.push_back(std::move(node));
    return;
  }
  check_failed();
  while (queue_.full()) {
    queue_.ring();
    wait_until(lock, queue_.next() - queue_.capacity() / 2);
    check_failed();
  }
  operation.arguments_end = arguments_head_;
  operations_[queue_.next() & (operations_.size() - 1)] = operation;
  queue_.push(packet);
  std::atomic_ref(submitted_).store(queue_.next(), std::memory_order_release);
  if (ring) queue_.ring();
}

hw::DeviceAddr Stream::place_arguments(std::unique_lock<std::mutex>& lock, const std::byte* data, uint32_t bytes,
                                       uint64_t& end) {
  const uint64_t size = (bytes + 63) & ~uint64_t{63};
  for (;;) {
    uint64_t begin = arguments_head_;
    if (begin % kArgumentRing + size > kArgumentRing)
      begin = (begin / kArgumentRing + 1) * kArgumentRing;  // not across the seam
    const uint64_t done = queue_.completed();
    const uint64_t tail = done == 0               ? 0
                          : done >= queue_.next() ? begin
                                                  : operations_[(done - 1) & (operations_.size() - 1)].arguments_end;
    if (begin + size - std::min(tail, begin) <= kArgumentRing) {
      std::memcpy(queue_.extra() + 4096 + begin % kArgumentRing, data, bytes);
      end = begin + size;
      return queue_.extra_address() + (4096 + begin % kArgumentRing);
    }
    wait_until(lock, done + 1);
    check_failed();
  }
}

void Stream::launch(const std::shared_ptr<const KernelImage>& kernel, const jalLaunchConfig& config, const jalArg* args,
                    uint32_t count) {
  hw::LaunchPacket p = kernel->packet(config);
  alignas(8) std::byte packed[hw::kArgumentBytes];
  kernel->pack(args, count, *context_, packed);
  const Operation operation{"launch", config.call_file, config.call_line, 0};
  std::unique_lock lock(mutex_);
  if (capture_ != nullptr) {
    submit(lock, p, operation);
    capture_->nodes.back().kernel = kernel;
    capture_->nodes.back().arguments.assign(packed, packed + kernel->argument_bytes);
    return;
  }
  check_failed();
  uint64_t end = arguments_head_;
  if (kernel->argument_bytes > 0) p.arguments = place_arguments(lock, packed, kernel->argument_bytes, end);
  arguments_head_ = end;
  submit(lock, p, operation);
}

void Stream::launch(const PreparedLaunch& prepared) {
  if (&prepared.context() != context_.get())
    fail(jalErrorInvalidDevice, "kernel " + prepared.kernel()->name + " was prepared for another device");
  std::unique_lock lock(mutex_);
  submit(lock, prepared.packet(), prepared.operation());
  if (capture_ == nullptr) return;
  capture_->nodes.back().kernel = prepared.kernel();
  capture_->nodes.back().arguments = prepared.arguments();
}

void Stream::copy(void* destination, const void* source, uint64_t width, uint64_t height, uint64_t destination_pitch,
                  uint64_t source_pitch, const char* name) {
  if (width == 0 || height == 0) return;
  if (destination == nullptr || source == nullptr)
    invalid(std::string(name) + ": " + (source == nullptr ? "source" : "destination") + " is NULL");
  if (height > 1 && (destination_pitch < width || source_pitch < width))
    invalid(std::string(name) + ": pitches " + std::to_string(destination_pitch) + " and " +
            std::to_string(source_pitch) + " are smaller than the width " + std::to_string(width));
  if (height > 1u << 24 || width > uint64_t{1} << 46)
    invalid(std::string(name) + ": " + std::to_string(height) + " rows of " + std::to_string(width) + " bytes");
  auto side = [&](const void* p, uint64_t pitch, const char* which) {
    const uint64_t bytes = pitch * (height - 1) + width;
    auto r = Registry::get().find(p);
    if (!r && is_device_pointer(p))
      invalid(std::string(name) + ": " + which + " " + pointer_text(p) + " is not in any allocation of a device");
    if (r) r->require(p, bytes, std::string(name) + ": " + which);
    return r;
  };
  const auto from = side(source, source_pitch, "source"), to = side(destination, destination_pitch, "destination");
  if (from && to && from->context != to->context) {
    if (height != 1) fail(jalErrorNotSupported, std::string(name) + ": 2-D copies between devices");
    return copy_peer(destination, source, width, *from->context, *to->context);
  }
  for (const auto& r : {from, to})
    if (r && r->kind != MemoryKind::kRegistered && r->context != context_.get())
      fail(jalErrorInvalidDevice, std::string(name) + ": the memory belongs to another device than the stream");
  const bool from_direct = from && from->kind != MemoryKind::kRegistered,
             to_direct = to && to->kind != MemoryKind::kRegistered;
  if (from_direct && to_direct) {
    auto p = make<hw::CopyPacket>(hw::PacketOp::kCopy);
    p.source = from->at(source), p.destination = to->at(destination);
    p.width_bytes = width, p.height = height, p.source_pitch = source_pitch, p.destination_pitch = destination_pitch;
    std::unique_lock lock(mutex_);
    return submit(lock, p, {"copy"});
  }
  refuse_capture(name);
  if (!from_direct && !to_direct) {  // host to host, in the stream's order
    return host_function(
        [=] {
          for (uint64_t r = 0; r < height; ++r)
            std::memcpy(static_cast<char*>(destination) + r * destination_pitch,
                        static_cast<const char*>(source) + r * source_pitch, width);
        },
        name);
  }
  if ((from && !from_direct) || (to && !to_direct))
    return copy_registered(destination, source, width, height, destination_pitch, source_pitch, to_direct);
  std::lock_guard staging(staging_mutex_);
  std::unique_lock lock(mutex_);
  copy_plain(lock, destination, source, width, height, destination_pitch, source_pitch, to_direct);
}

// Through pinned chunks: some fill while the device moves the others. A chunk holds a part of a row, or many short
// rows.
void Stream::copy_plain(std::unique_lock<std::mutex>& lock, void* destination, const void* source, uint64_t width,
                        uint64_t height, uint64_t destination_pitch, uint64_t source_pitch, bool to_device) {
  if (staging_ == nullptr)
    staging_ = std::make_unique<driver::DmaMemory>(context_->device().transport(), context_->device().iova_space(),
                                                   kStagingSlots * kStagingChunk);
  auto move_rows = [](char* to, uint64_t to_pitch, const char* from, uint64_t from_pitch, uint64_t n, uint64_t rows) {
    if (to_pitch == n && from_pitch == n) n *= rows, rows = 1;
    for (uint64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_pitch, from + r * from_pitch, n);
  };
  auto chunk = [&](uint64_t k) { return reinterpret_cast<char*>(staging_->data()) + k * kStagingChunk; };
  auto finish = [&](uint64_t k) {
    const StagingSlot s = std::exchange(staging_slots_[k], {});  // also when this throws: the caller's memory may go
    if (s.done == 0) return;
    wait_until(lock, s.done);
    if (driver::failure(queue_.timeline(), s.done) != hw::Status::kOk) check_failed();
    if (s.host != nullptr) move_rows(s.host, s.pitch, chunk(k), s.width, s.width, s.rows);
  };
  for (uint64_t r = 0, rows = 1; r < height; r += rows) {
    rows = std::clamp<uint64_t>(kStagingChunk / std::max<uint64_t>(width, 1), 1, height - r);
    for (uint64_t at = 0, n = 0; at < width; at += n, ++staging_piece_) {
      n = std::min(width - at, kStagingChunk);
      const uint64_t k = staging_piece_ % kStagingSlots;
      finish(k);
      char* d = static_cast<char*>(destination) + r * destination_pitch + at;
      const char* s = static_cast<const char*>(source) + r * source_pitch + at;
      auto p = make<hw::CopyPacket>(hw::PacketOp::kCopy);
      p.width_bytes = n, p.height = rows;
      if (to_device) {
        move_rows(chunk(k), n, s, source_pitch, n, rows);
        p.source = staging_->device_address(k * kStagingChunk), p.source_pitch = n;
        p.destination = Registry::get().find(d)->at(d), p.destination_pitch = destination_pitch;
      } else {
        p.source = Registry::get().find(s)->at(s), p.source_pitch = source_pitch;
        p.destination = staging_->device_address(k * kStagingChunk), p.destination_pitch = n;
      }
      submit(lock, p, {"copy"});
      staging_slots_[k] = {queue_.next(), rows, n, destination_pitch, to_device ? nullptr : d};
    }
  }
  // Down: the caller's memory is complete when the call returns. Up: the chunks stay in flight.
  if (!to_device)
    for (uint64_t k = staging_piece_; k < staging_piece_ + kStagingSlots; ++k) finish(k % kStagingSlots);
}

// The transport cannot reach the caller's pages: each copy gets a pinned twin, filled or emptied in the stream's order.
void Stream::copy_registered(void* destination, const void* source, uint64_t width, uint64_t height,
                             uint64_t destination_pitch, uint64_t source_pitch, bool to_device) {
  auto twin = std::make_shared<driver::DmaMemory>(context_->device().transport(), context_->device().iova_space(),
                                                  width * height);
  auto p = make<hw::CopyPacket>(hw::PacketOp::kCopy);
  p.width_bytes = width, p.height = height;
  auto rows = [=](std::byte* out, uint64_t out_pitch, const std::byte* in, uint64_t in_pitch) {
    for (uint64_t r = 0; r < height; ++r) std::memcpy(out + r * out_pitch, in + r * in_pitch, width);
  };
  if (to_device) {
    host_function([=] { rows(twin->data(), width, static_cast<const std::byte*>(source), source_pitch); }, "copy");
    p.source = twin->device_address(), p.source_pitch = width;
    p.destination = Registry::get().find(destination)->at(destination), p.destination_pitch = destination_pitch;
    std::unique_lock lock(mutex_);
    submit(lock, p, {"copy"});
    lock.unlock();
    host_function([twin] {}, "copy");  // holds the twin until the copy is done
  } else {
    p.source = Registry::get().find(source)->at(source), p.source_pitch = source_pitch;
    p.destination = twin->device_address(), p.destination_pitch = width;
    std::unique_lock lock(mutex_);
    submit(lock, p, {"copy"});
    lock.unlock();
    host_function([=] { rows(static_cast<std::byte*>(destination), destination_pitch, twin->data(), width); }, "copy");
  }
}

void Stream::copy_peer(void* destination, const void* source, uint64_t bytes, Context& from, Context& to) {
  refuse_capture("jalMemcpyPeerAsync");
  if (context_.get() != &from && context_.get() != &to)
    fail(jalErrorInvalidDevice, "peer copy: the stream belongs to neither device");
  auto hold_from = from.shared_from_this(), hold_to = to.shared_from_this();
  host_function(
      [=] {
        std::vector<std::byte> chunk(std::min<uint64_t>(bytes, 8 * kStagingChunk));
        for (uint64_t at = 0; at < bytes; at += chunk.size()) {
          const uint64_t n = std::min<uint64_t>(chunk.size(), bytes - at);
          {
            std::lock_guard guard(hold_from->transfer_mutex());
            hold_from->transfer_stream().copy(chunk.data(), static_cast<const char*>(source) + at, n, 1, n, n,
                                              "peer copy");
          }
          std::lock_guard guard(hold_to->transfer_mutex());
          hold_to->transfer_stream().copy(static_cast<char*>(destination) + at, chunk.data(), n, 1, n, n, "peer copy");
          hold_to->transfer_stream().synchronize(default_timeout_ns());
        }
      },
      "peer copy");
}

void Stream::copy_batch(void* const* destinations, const void* const* sources, const size_t* bytes, size_t count) {
  if (count == 0) return;
  required(destinations, "destinations"), required(sources, "sources"), required(bytes, "bytes");
  std::vector<hw::CopyPacket> packets;
  packets.reserve(count);
  std::optional<Region> from, to;  // batches mostly stay inside one allocation
  for (size_t k = 0; k < count; ++k) {
    if (!from || !from->contains(sources[k], bytes[k])) from = Registry::get().find(sources[k]);
    if (!to || !to->contains(destinations[k], bytes[k])) to = Registry::get().find(destinations[k]);
    if (!from || !to || from->kind == MemoryKind::kRegistered || to->kind == MemoryKind::kRegistered ||
        from->context != context_.get() || to->context != context_.get() || !from->contains(sources[k], bytes[k]) ||
        !to->contains(destinations[k], bytes[k]))
      invalid("batch copy " + std::to_string(k) + " of " + std::to_string(bytes[k]) +
              " bytes: both sides must lie in device or pinned memory of the stream's device");
    if (bytes[k] == 0) continue;
    auto p = make<hw::CopyPacket>(hw::PacketOp::kCopy);
    p.source = from->at(sources[k]), p.destination = to->at(destinations[k]), p.width_bytes = bytes[k], p.height = 1;
    packets.push_back(p);
  }
  std::unique_lock lock(mutex_);
  // One doorbell for the first few, so that the device starts, and one for all.
  for (size_t k = 0; k < packets.size(); ++k) submit(lock, packets[k], {"copy"}, k == 7);
  if (capture_ == nullptr) queue_.ring();
}

void Stream::fill(void* pointer, uint32_t pattern, uint32_t pattern_bytes, uint64_t bytes) {
  if (bytes == 0) return;
  if (pattern_bytes != 1 && pattern_bytes != 2 && pattern_bytes != 4)
    invalid("fill with a pattern of " + std::to_string(pattern_bytes) + " bytes, expected 1, 2 or 4");
  if (reinterpret_cast<uint64_t>(pointer) % pattern_bytes != 0 || bytes % pattern_bytes != 0)
    fail(jalErrorMisalignedAddress, "fill of " + std::to_string(bytes) + " bytes at " + pointer_text(pointer) +
                                        ": both must be multiples of the pattern's " + std::to_string(pattern_bytes) +
                                        " bytes");
  const auto r = Registry::get().find(pointer);
  if (!r || r->kind == MemoryKind::kRegistered)
    invalid("fill: " + pointer_text(pointer) + " is neither device nor pinned memory");
  r->require(pointer, bytes, "fill");
  if (r->context != context_.get())
    fail(jalErrorInvalidDevice, "fill: the memory belongs to another device than the stream");
  auto p = make<hw::FillPacket>(hw::PacketOp::kFill);
  p.destination = r->at(pointer), p.bytes = bytes, p.pattern = pattern, p.pattern_bytes = pattern_bytes;
  std::unique_lock lock(mutex_);
  submit(lock, p, {"fill"});
}

void Stream::wait_for(hw::DeviceAddr timeline, uint64_t value) {
  auto p = make<hw::TimelinePacket>(hw::PacketOp::kWait);
  p.timeline = timeline, p.value = value;
  std::unique_lock lock(mutex_);
  submit(lock, p, {"wait"});
}

void Stream::signal(hw::DeviceAddr timeline, uint64_t value) {
  auto p = make<hw::TimelinePacket>(hw::PacketOp::kSignal);
  p.header.flags = hw::kPacketInterrupt;
  p.timeline = timeline, p.value = value;
  std::unique_lock lock(mutex_);
  submit(lock, p, {"signal"});
}

void Stream::timestamp(hw::DeviceAddr destination) {
  auto p = make<hw::TimestampPacket>(hw::PacketOp::kTimestamp);
  p.destination = destination;
  std::unique_lock lock(mutex_);
  submit(lock, p, {"timestamp"});
}

void Stream::call(hw::DeviceAddr block, uint64_t count) {
  auto p = make<hw::CallPacket>(hw::PacketOp::kCall);
  p.block = block, p.count = count;
  std::unique_lock lock(mutex_);
  submit(lock, p, {"graph"});
}

void Stream::submit(std::span<const hw::Packet> packets, const char* name) {
  std::unique_lock lock(mutex_);
  for (size_t k = 0; k < packets.size(); ++k) submit(lock, packets[k], {name}, k + 1 == packets.size());
}

void Stream::host_function(std::function<void()> function, const char* name) {
  refuse_capture(name);
  std::unique_lock lock(mutex_);
  check_failed();
  const uint64_t value = ++calls_;
  context_->enqueue({shared_from_this(), call_request_, call_done_, value, std::move(function)});
  auto request = make<hw::TimelinePacket>(hw::PacketOp::kSignal);
  request.header.flags = hw::kPacketInterrupt;
  request.timeline = queue_.extra_address(), request.value = value;
  auto done = make<hw::TimelinePacket>(hw::PacketOp::kWait);
  done.timeline = queue_.extra_address() + 64, done.value = value;
  submit(lock, request, {name}, false);
  submit(lock, done, {name});
}

void Stream::synchronize(uint64_t timeout_ns, bool check) {
  if (capture_ != nullptr) refuse_capture("jalStreamSynchronize");
  const uint64_t target = submitted();
  if (queue_.wait(target, driver_timeout(timeout_ns)) == driver::WaitResult::kTimeout)
    fail(jalErrorWaitTimeout, "stream: " + std::to_string(target - queue_.completed()) + " of " +
                                  std::to_string(target) + " operations are not done after " +
                                  std::to_string(timeout_ns / 1'000'000) + " ms");
  see_finished_calls();
  if (check && failed()) throw_failure();
}

void Stream::query() {
  if (failed()) throw_failure();
  if (queue_.completed() < submitted()) {
    context_->device().throw_if_lost();
    throw Error(jalErrorNotReady, "");
  }
  see_finished_calls();
}

uint64_t Stream::reset() {
  std::unique_lock lock(mutex_);
  context_->device().throw_if_lost();
  capture_.reset();
  std::vector<hw::TimelinePacket> signals;
  std::vector<hw::DeviceAddr> groups;
  bool graphs = false;
  queue_.each_pending([&](const hw::Packet& packet) {
    if (packet.header.op == hw::PacketOp::kPost || packet.header.op == hw::PacketOp::kAwait)
      groups.push_back(hw::DeviceAddr{packet.word[0]});
    graphs |= packet.header.op == hw::PacketOp::kCall;
    if (packet.header.op != hw::PacketOp::kSignal) return;
    hw::TimelinePacket p;
    std::memcpy(&p, &packet, sizeof p);
    signals.push_back(p);
  });
  const uint64_t dropped = queue_.reset();
  // What the dropped packets would have signalled has failed: nobody may wait for it for ever.
  for (const hw::TimelinePacket& p : signals) context_->poison(p.timeline, p.value);
  // Host functions of dropped packets still run once (see jalLaunchHostFunc), and nothing waits for them any more.
  auto raise = [&](hw::Timeline* t) {
    std::atomic_ref(t->status).store(0, std::memory_order_relaxed);
    std::atomic_ref(t->value).store(calls_, std::memory_order_release);
  };
  raise(call_request_);
  context_->device().notify();
  lock.unlock();
  // The other ranks of dropped collectives must not wait for this one. After a failure the device has told them.
  if (!groups.empty() || graphs)
    for (const auto& c : context_->communicators()) c->dropped(groups, graphs);
  context_->drop_calls_of(this);
  raise(call_done_);
  lock.lock();
  arguments_head_ = 0;
  for (Operation& o : operations_) o = {};
  return dropped;
}

void Stream::begin_capture() {
  std::lock_guard lock(mutex_);
  check_failed();
  if (capture_ != nullptr) fail(jalErrorIllegalState, "jalStreamBeginCapture: the stream is capturing already");
  capture_ = std::make_unique<Capture>();
}

Capture Stream::end_capture() {
  std::lock_guard lock(mutex_);
  if (capture_ == nullptr) fail(jalErrorIllegalState, "jalStreamEndCapture: the stream is not capturing");
  Capture c = std::move(*capture_);
  capture_.reset();
  if (!c.offence.empty()) fail(jalErrorStreamCaptureInvalidated, "the capture was invalidated by " + c.offence);
  return c;
}

void Stream::refuse_capture(const char* call) {
  std::lock_guard lock(mutex_);
  if (capture_ == nullptr) return;
  if (capture_->offence.empty())
    capture_->offence = std::string(call) + " after " + std::to_string(capture_->nodes.size()) + " recorded operations";
  fail(jalErrorStreamCaptureUnsupported, std::string(call) + " cannot be captured");
}

Stream& stream_of(jalStream_t stream) { return HandleTable<Stream>::get(stream); }

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

jalError_t jalStreamCreate(jalDevice_t device, const jalStreamOptions* options, jalStream_t* stream) {
  return guard([&] {
    Context& c = context_of(device);
    required(stream, "stream");
    uint32_t priority = 0, ring_log2 = 10;
    if (options != nullptr) {
      check_struct(*options, "jalStreamOptions");
      if (options->priority < 0 || options->priority > 3)
        invalid("stream priority " + std::to_string(options->priority) + ", expected 0 to 3");
      priority = static_cast<uint32_t>(options->priority);
      if (options->ring_entries != 0) {
        if (!std::has_single_bit(options->ring_entries) || options->ring_entries < 16 || options->ring_entries > 65536)
          invalid("ring_entries " + std::to_string(options->ring_entries) +
                  ", expected a power of two from 16 to 65536");
        ring_log2 = static_cast<uint32_t>(std::countr_zero(options->ring_entries));
      }
    }
    *stream =
        static_cast<jalStream_t>(HandleTable<Stream>::add(Stream::create(c.shared_from_this(), priority, ring_log2)));
  });
}

jalError_t jalStreamDestroy(jalStream_t stream) {
  return guard([&] {
    auto s = HandleTable<Stream>::remove(stream);
    if (s->capturing()) return;
    try {
      s->synchronize(default_timeout_ns(), false);
    } catch (const std::exception&) {
      // The device is lost or hangs: the queue is stopped by its destructor.
    }
  });
}

jalError_t jalStreamQuery(jalStream_t stream) {
  return guard([&] { stream_of(stream).query(); });
}
jalError_t jalStreamSynchronize(jalStream_t stream) {
  return guard([&] { stream_of(stream).synchronize(default_timeout_ns()); });
}
jalError_t jalStreamSynchronizeUntil(jalStream_t stream, uint64_t timeout_ns) {
  return guard([&] { stream_of(stream).synchronize(timeout_ns); });
}
jalError_t jalStreamGetPosition(jalStream_t stream, uint64_t* submitted, uint64_t* completed) {
  return guard([&] {
    Stream& s = stream_of(stream);
    if (submitted != nullptr) *submitted = s.submitted();
    if (completed != nullptr) *completed = s.completed();
  });
}
jalError_t jalStreamReset(jalStream_t stream, uint64_t* discarded) {
  return guard([&] {
    const uint64_t n = stream_of(stream).reset();
    if (discarded != nullptr) *discarded = n;
  });
}
jalError_t jalStreamGetErrorRecord(jalStream_t stream, jalErrorRecord* record) {
  return guard([&] {
    Stream& s = stream_of(stream);
    check_struct(required(record, "record"), "jalErrorRecord");
    if (!s.failed()) fail(jalErrorNotFound, "the stream has not failed");
    *record = s.record();
  });
}
jalError_t jalLaunchHostFunc(jalStream_t stream, void (*function)(void*), void* data) {
  return guard([&] {
    if (function == nullptr) invalid("function is NULL");
    stream_of(stream).host_function([function, data] { function(data); }, "jalLaunchHostFunc");
  });
}
jalError_t jalStreamNotifyEventfd(jalStream_t stream, int eventfd) {
  return guard([&] {
    if (fcntl(eventfd, F_GETFD) < 0) invalid("eventfd " + std::to_string(eventfd) + " is not an open descriptor");
    stream_of(stream).host_function(
        [eventfd] {
          const uint64_t one = 1;
          (void)!write(eventfd, &one, sizeof one);
        },
        "jalStreamNotifyEventfd");
  });
}
jalError_t jalStreamBeginCapture(jalStream_t stream) {
  return guard([&] { stream_of(stream).begin_capture(); });
}

jalError_t jalMemcpyAsync(void* destination, const void* source, size_t bytes, jalStream_t stream) {
  return guard([&] { stream_of(stream).copy(destination, source, bytes, 1, bytes, bytes, "jalMemcpyAsync"); });
}
jalError_t jalMemcpyPeerAsync(void* destination, const void* source, size_t bytes, jalStream_t stream) {
  return guard([&] { stream_of(stream).copy(destination, source, bytes, 1, bytes, bytes, "jalMemcpyPeerAsync"); });
}
jalError_t jalMemcpy2DAsync(void* destination, size_t destination_pitch, const void* source, size_t source_pitch,
                            size_t width_bytes, size_t height, jalStream_t stream) {
  return guard([&] {
    stream_of(stream).copy(destination, source, width_bytes, height, destination_pitch, source_pitch,
                           "jalMemcpy2DAsync");
  });
}
jalError_t jalMemcpyBatchAsync(void* const* destinations, const void* const* sources, const size_t* bytes, size_t count,
                               jalStream_t stream) {
  return guard([&] { stream_of(stream).copy_batch(destinations, sources, bytes, count); });
}
jalError_t jalMemFillAsync(void* pointer, uint32_t pattern, unsigned pattern_bytes, size_t bytes, jalStream_t stream) {
  return guard([&] { stream_of(stream).fill(pointer, pattern, pattern_bytes, bytes); });
}
jalError_t jalMemsetAsync(void* pointer, int value, size_t bytes, jalStream_t stream) {
  return guard([&] { stream_of(stream).fill(pointer, static_cast<uint32_t>(value) & 255, 1, bytes); });
}

namespace {
// A copy or fill without a stream: on the device's own, and done when the call returns.
template <class F>
void with_transfer_stream(const void* a, const void* b, F body) {
  for (const void* p : {a, b}) {
    if (auto r = Registry::get().find(p); r && r->kind == MemoryKind::kDevice) {
      std::lock_guard lock(r->context->transfer_mutex());
      Stream& s = r->context->transfer_stream();
      if (s.failed()) s.reset();  // its failures were told to whoever caused them
      body(s);
      s.synchronize(default_timeout_ns());
      return;
    }
  }
  for (const void* p : {a, b})
    if (is_device_pointer(p)) invalid("device pointer belongs to no allocation");
  fail(jalErrorInvalidValue, "neither side is device memory; use memcpy or memset");
}
}  // namespace

jalError_t jalMemcpy(void* destination, const void* source, size_t bytes) {
  return guard([&] {
    if (bytes == 0) return;
    auto from = Registry::get().find(source), to = Registry::get().find(destination);
    if (from && to && from->kind == MemoryKind::kDevice && to->kind == MemoryKind::kDevice &&
        from->context != to->context) {
      auto s = Stream::create(from->context->shared_from_this(), 0, 4);
      s->copy(destination, source, bytes, 1, bytes, bytes, "jalMemcpy");
      return s->synchronize(default_timeout_ns());
    }
    with_transfer_stream(destination, source,
                         [&](Stream& s) { s.copy(destination, source, bytes, 1, bytes, bytes, "jalMemcpy"); });
  });
}
jalError_t jalMemset(void* pointer, int value, size_t bytes) {
  return guard([&] {
    if (bytes == 0) return;
    with_transfer_stream(pointer, nullptr,
                         [&](Stream& s) { s.fill(pointer, static_cast<uint32_t>(value) & 255, 1, bytes); });
  });
}
