// What a queue carries and what comes back: packets, timelines, fault records (docs/hardware.md, section 5).
#pragma once
#include <jalapeno_hw/types.hpp>
#include <type_traits>

namespace jalapeno::hw {

enum class PacketOp : uint8_t {
  kNop = 0,
  kLaunch = 1,
  kCopy = 2,       // 1-D and 2-D
  kCopyBatch = 3,  // a list of 1-D copies
  kFill = 4,
  kWait = 5,    // until a timeline reaches a value
  kSignal = 6,  // set a timeline to a value
  kTimestamp = 7,
  kCall = 8,     // run a block of packets in memory
  kBarrier = 9,  // everything before it is done and visible before anything after it starts
};
inline constexpr uint8_t kPacketInterrupt = 1;  // flag: raise the queue's vector when done

struct PacketHeader {
  PacketOp op;
  uint8_t flags;
  uint16_t reserved;
  uint32_t sequence;  // low 32 bits of the packet's index in its queue, or of its position in its block
};

struct alignas(64) Packet {
  PacketHeader header;
  uint64_t word[7];
};

struct alignas(64) LaunchPacket {
  PacketHeader header;
  DeviceAddr code;       // first instruction; HBM, execute permission
  DeviceAddr arguments;  // kernel arguments, 8-byte aligned
  uint32_t instructions;
  uint32_t argument_bytes;
  uint32_t grid[3];
  uint32_t deadline_ms;  // 0: the device's watchdog
  uint64_t cookie;       // comes back in the fault record
  uint64_t reserved;
};

struct alignas(64) CopyPacket {
  PacketHeader header;
  DeviceAddr source, destination;
  uint64_t width_bytes, height;  // height 1: a 1-D copy
  uint64_t source_pitch, destination_pitch;
  uint64_t reserved;
};

struct CopyDescriptor {
  DeviceAddr source, destination;
  uint64_t bytes, reserved;
};

struct alignas(64) CopyBatchPacket {
  PacketHeader header;
  DeviceAddr list;
  uint64_t count, reserved[5];
};

struct alignas(64) FillPacket {
  PacketHeader header;
  DeviceAddr destination;
  uint64_t bytes;
  uint32_t pattern, pattern_bytes;  // 1, 2 or 4
  uint64_t reserved[4];
};

struct alignas(64) TimelinePacket {  // kWait and kSignal
  PacketHeader header;
  DeviceAddr timeline;
  uint64_t value, reserved[5];
};

struct alignas(64) TimestampPacket {
  PacketHeader header;
  DeviceAddr destination;  // receives a Timestamp
  uint64_t reserved[6];
};

struct alignas(64) CallPacket {
  PacketHeader header;
  DeviceAddr block;
  uint64_t count, reserved[5];
};

struct Timestamp {
  uint64_t device_ns;  // the chip's clock (modelled time on an emulated chip)
  uint64_t host_ns;    // CLOCK_MONOTONIC where the device can read it, otherwise 0
};

// One cache line in host memory; a monotonic value with the status of what raised it. Values from failed_value on,
// below resume_value, were reached by failing: whoever waits for one of them fails too.
struct alignas(64) Timeline {
  uint64_t value;
  uint64_t failed_value;  // valid when status is not 0
  uint32_t status;        // Status of the last failure
  uint32_t reserved0;
  uint64_t device_ns, host_ns;
  uint64_t resume_value;  // 0: everything from failed_value on has failed
  uint64_t reserved1[2];
};

enum Access : uint32_t { kAccessNone = 0, kAccessRead = 1, kAccessWrite = 2, kAccessExecute = 3 };

inline constexpr uint32_t kNoInstruction = 0xFFFFFFFF;

struct alignas(64) FaultRecord {
  uint32_t status;  // Status; written last
  uint32_t queue;
  uint64_t packet;  // index in the queue
  uint64_t cookie;  // of the launch; 0 when the packet was none
  uint32_t pid[3];  // program instance
  uint32_t core;
  uint32_t instruction;  // kNoInstruction: not in a program
  uint32_t other;        // the instruction it collides with (kRace), the last one that signalled (kDeadlock)
  uint32_t access;       // Access
  uint32_t tile;         // tile register, 0xFF: none
  uint64_t address;      // device address, or scratchpad offset for kTileFault and the checked level
  uint64_t bytes;
  uint64_t value;  // semaphore number, trap code, or the operand that was wrong
  uint64_t device_ns, host_ns;
  uint32_t block;  // position in a called block, kNoInstruction: none
  uint32_t reserved[7];
  char detail[128];  // zero-terminated text
};

template <class P>
concept PacketType = sizeof(P) == 64 &&
                     alignof(P) == 64 && std::is_trivially_copyable_v<P>&& std::is_standard_layout_v<P>;
static_assert(PacketType<Packet> && PacketType<LaunchPacket> && PacketType<CopyPacket> && PacketType<CopyBatchPacket>);
static_assert(PacketType<FillPacket> && PacketType<TimelinePacket> && PacketType<TimestampPacket> &&
              PacketType<CallPacket>);
static_assert(sizeof(PacketHeader) == 8 && sizeof(CopyDescriptor) == 32 && sizeof(Timestamp) == 16);
static_assert(offsetof(LaunchPacket, code) == 8 && offsetof(LaunchPacket, arguments) == 16 &&
              offsetof(LaunchPacket, instructions) == 24);
static_assert(offsetof(LaunchPacket, grid) == 32 && offsetof(LaunchPacket, deadline_ms) == 44 &&
              offsetof(LaunchPacket, cookie) == 48);
static_assert(offsetof(CopyPacket, width_bytes) == 24 && offsetof(CopyPacket, source_pitch) == 40);
static_assert(offsetof(FillPacket, pattern) == 24 && offsetof(TimelinePacket, value) == 16 &&
              offsetof(CallPacket, count) == 16);
static_assert(sizeof(Timeline) == 64 && offsetof(Timeline, failed_value) == 8 && offsetof(Timeline, status) == 16);
static_assert(offsetof(Timeline, device_ns) == 24 && sizeof(FaultRecord) == 256 && offsetof(FaultRecord, pid) == 24);
static_assert(offsetof(FaultRecord, instruction) == 40 && offsetof(FaultRecord, address) == 56 &&
              offsetof(FaultRecord, detail) == 128);

}  // namespace jalapeno::hw
