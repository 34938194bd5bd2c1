// A record of everything that passes between driver and device: register accesses, DMA mappings, what is written into
// HBM through the aperture, packets with the host memory they read, signals, interrupts, and what came back. A person
// can read it (jalapeno-trace show) and a program can replay it on an emulated chip (jalapeno-trace replay).
// JAL_TRACE=FILE switches it on when a device is opened. Off, it costs a comparison with null at each doorbell.
#pragma once
#include <cstdint>
#include <jalapeno_hw/packets.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "transport.hpp"

namespace jalapeno::driver {

// ---- The file: a header, then records, each a head and its bytes, padded to 8. Little endian. ----
namespace trace_file {
inline constexpr uint64_t kMagic = 0x3145434152544C4A;  // "JLTRACE1"
struct Header {
  uint64_t magic = kMagic;
  uint32_t interface_version = 0, isa_version = 0;
  int64_t started_unix_ns = 0;
  char uri[256] = {}, command[256] = {};
};
enum class Kind : uint32_t {
  kRead = 1,        // Register
  kWrite = 2,       // Register
  kMap = 3,         // Range
  kUnmap = 4,       // Range
  kInterrupts = 5,  // u32 vector: an eventfd is attached
  kReset = 6,
  kHbm = 7,      // Range with an HBM physical address, then bytes
  kHost = 8,     // Range with an IOVA, then bytes: host memory that a packet reads
  kPackets = 9,  // Doorbell, then packets: they are in the ring and the doorbell rings
  kSignal = 10,  // Range {IOVA of a timeline, value}: the host raises it
  kRaised = 11,  // u32 vector: an interrupt came
  kDone = 12,    // Done, then Results: a waiter has seen that the queue reached a value
  kSeen = 14,    // Range {queue, value}: the host has seen that the queue reached it, and may use its memory again
  kEnd = 13,     // u64 records before it: the trace was closed, not cut off
};
struct Head {
  Kind kind;
  uint32_t bytes;  // without padding
  uint64_t ns;     // since the begin
};
struct Register {
  uint32_t offset, bytes;
  uint64_t value;
};
struct Range {
  uint64_t address, bytes;
};
struct Doorbell {
  uint32_t queue, count;
  uint64_t first;
};
struct Done {
  uint32_t queue, status, results, reserved;
  uint64_t value;
};
struct Result {  // what a packet wrote into host memory
  uint64_t iova, bytes, hash;
};
static_assert(sizeof(Header) == 536 && sizeof(Head) == 16 && sizeof(Register) == 16 && sizeof(Range) == 16 &&
              sizeof(Doorbell) == 16 && sizeof(Done) == 24 && sizeof(Result) == 24);
uint64_t hash(std::span<const std::byte> bytes);
}  // namespace trace_file

class Trace {
 public:
  // nullptr unless JAL_TRACE is set. The first device of the process writes to that file, others to FILE.1, FILE.2, ...
  // Throws Error when the file cannot be written.
  static std::unique_ptr<Trace> from_environment(const std::string& uri);
  explicit Trace(const std::string& file, const std::string& uri);
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  // All thread-safe. Calls come before what they record takes effect, so that a replay in this order never waits for
  // something that stands later.
  void versions(uint32_t interface, uint32_t isa);
  void access(bool write, uint32_t offset, uint32_t bytes, uint64_t value);
  void map(const Transport::HostMemory& memory, hw::Iova iova);
  void unmap(hw::Iova iova, uint64_t bytes);
  void interrupt_attached(uint32_t vector);
  void reset();
  void hbm(uint64_t physical, std::span<const std::byte> data);
  // Packets in device memory, for CALLs from now on: what they read of the host's is recorded with each. None: the
  // block is gone.
  void block(hw::DeviceAddr address, std::span<const hw::Packet> packets);
  // `completed`: how far the host knows the queue to be, by which it takes slots and memory again.
  void packets(uint32_t queue, const hw::Packet* ring, uint64_t entries, uint64_t first, uint64_t end,
               uint64_t completed);
  void host_written(const void* data, uint64_t bytes);  // memory the device reads, written outside of any packet
  void signal(const hw::Timeline& timeline, uint64_t value);
  void queue_reset(uint32_t queue,
                   const hw::Timeline& timeline);  // the host has set its timeline, packets were dropped
  void interrupt(uint32_t vector);
  void done(uint32_t queue, uint64_t value, uint32_t status);

 private:
  struct Pending {
    uint64_t index;
    std::vector<trace_file::Range> written;  // host memory its packet writes
  };
  void put(trace_file::Kind kind, std::initializer_list<std::span<const std::byte>> parts);
  void flush();
  uint64_t iova_of(const void* data) const;                    // 0: not mapped
  const std::byte* host(uint64_t iova, uint64_t bytes) const;  // nullptr: not mapped
  void capture(uint64_t address, uint64_t bytes, bool once);
  void operands(const hw::Packet& packet, std::vector<trace_file::Range>& written, int depth);
  void box(uint64_t address, uint64_t width, uint64_t height, uint64_t pitch, std::vector<trace_file::Range>* written);

  std::mutex mutex_;
  int fd_ = -1;
  std::string file_;
  int64_t begin_ns_;
  trace_file::Header header_;
  std::vector<std::byte> buffer_;
  uint64_t records_ = 0;
  bool full_ = false;                                          // the file could not be written: nothing more is
  std::map<uint64_t, Transport::HostMemory> maps_;             // by IOVA
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> written_;  // (address, bytes) to hash: blocks that stay the same
  std::map<uint64_t, std::vector<hw::Packet>> blocks_;         // in device memory, by address
  std::map<uint32_t, std::vector<Pending>> pending_;           // by queue
  std::map<uint32_t, uint64_t> seen_;                          // by queue
};

// A transport whose register accesses, mappings and interrupts go into the trace.
std::unique_ptr<Transport> traced(std::unique_ptr<Transport> transport, Trace& trace);

}  // namespace jalapeno::driver
