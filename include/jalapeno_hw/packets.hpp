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
  // Between the chips of a fabric group
  kPost = 10,    // put a line, and data ahead of it, to the peers: begins the group's next exchange
  kAwait = 11,   // until the lines of that exchange are here
  kMove = 12,    // copy from where the peers said
  kReduce = 13,  // combine what the ranks have, in an order that depends on their number alone
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

// What one rank tells another in an exchange: one cache line, the sequence written last.
struct alignas(64) FabricLine {
  uint64_t sequence;   // of the exchange
  uint64_t signature;  // of the call; the ranks' must be equal
  DeviceAddr address[2];
  uint64_t device_ns;  // when it arrives, by the sender's clock
  uint32_t status;     // Status: not 0 when the sender's queue failed before this exchange
  uint32_t bytes;      // of data in the slot
  uint64_t data[2];    // up to kFabricInlineBytes of the sender's data
};
inline constexpr uint64_t kFabricInlineBytes = 16;
inline constexpr uint32_t kFabricRelayed = 1;  // the host carries lines and slots on: POST raises the queue's vector

// A member as one rank sees it. Lines and slots are in pairs: exchanges use them in turn.
struct alignas(64) FabricPeer {
  DeviceAddr lines;           // at the peer: FabricLine[2] that this rank writes
  DeviceAddr inbox;           // here: FabricLine[2] that the peer writes
  DeviceAddr slot;            // at the peer: where this rank's data goes; the second one is slot_bytes * ranks behind
  DeviceAddr window;          // added to an address that the peer told
  uint64_t waits, waited_ns;  // how often an AWAIT stood still for this peer, and how long: the device's
  uint32_t number;            // what fault records call it
  uint32_t flags;             // kFabricRelayed
  uint64_t waiting;           // 1 while an AWAIT stands still for this peer; the device's
};

// A group in the memory of one of its ranks; FabricPeer[ranks] follow.
struct alignas(64) FabricGroup {
  uint32_t ranks, rank;
  uint64_t sequence;  // of the last exchange; the device's
  DeviceAddr slots;   // here: [2][ranks][slot_bytes], what the peers put
  uint64_t slot_bytes;
  DeviceAddr control;  // FabricControl
  uint64_t cookie;     // comes back in the fault record
  uint64_t reserved[2];
};
inline constexpr uint32_t kMaxFabricRanks = 1024;

// The host's word to every group of a communicator.
struct alignas(64) FabricControl {
  uint32_t status;   // Status: not 0 ends every wait of the group with it
  uint32_t rank;     // whose fault it is
  uint32_t watched;  // 1: the host looks at relayed lines by itself, POST raises no vector for them
  uint32_t reserved0;
  uint64_t reserved[6];
};

struct alignas(64) PostPacket {
  PacketHeader header;
  DeviceAddr group, source;
  uint64_t bytes;   // of source, to every peer's slot; 0: only lines
  uint64_t stride;  // peer k gets what is k * stride behind source
  uint64_t signature;
  DeviceAddr address[2];
};

struct alignas(64) AwaitPacket {
  PacketHeader header;
  DeviceAddr group;
  uint32_t deadline_ms, reserved0;  // 0: none
  uint64_t reserved[5];
};

inline constexpr uint32_t kAllRanks = 0xFFFFFFFF;
enum FabricFlags : uint32_t {
  kFromSlots = 1,  // what was posted, not what the posted addresses name
  kToAll = 2,      // REDUCE: to address[1] of every rank
  kToRoot = 4,     // REDUCE: to address[1] of `rank`
  kAverage = 8,    // REDUCE: the result over `divisor`
  kRanges = 16,    // MOVE: address[1] and `offset` name tables of FabricRange
  kStream = 32,    // MOVE, REDUCE: results are not read again soon: write around the caches
  // REDUCE: operands, or the result, are of wide_type(type): neither rounded nor divided yet. Not with kToAll, kToRoot.
  kPartialIn = 64,
  kPartialOut = 128,
};

struct alignas(64) MovePacket {
  PacketHeader header;
  DeviceAddr group, destination;
  DeviceAddr source;  // of the own part
  uint64_t offset;    // bytes behind address[0] of each peer, and behind source
  uint64_t bytes;     // from each rank
  uint64_t stride;    // what rank k gave goes k * stride behind destination
  uint32_t rank;      // from this one only, or kAllRanks
  uint32_t flags;
};

struct FabricRange {
  uint64_t offset, bytes;
};

enum class FabricType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3, kI32 = 4, kE4M3 = 7, kE5M2 = 8, kI64 = 9 };
constexpr uint32_t element_bytes(FabricType type) {  // 0: no type of a reduction
  switch (type) {
    case FabricType::kI8:
    case FabricType::kE4M3:
    case FabricType::kE5M2:
      return 1;
    case FabricType::kBF16:
    case FabricType::kF16:
      return 2;
    case FabricType::kF32:
    case FabricType::kI32:
      return 4;
    case FabricType::kI64:
      return 8;
  }
  return 0;
}
// What a reduction is computed in.
constexpr FabricType wide_type(FabricType type) {
  const bool integer = type == FabricType::kI8 || type == FabricType::kI32 || type == FabricType::kI64;
  return integer ? FabricType::kI64 : FabricType::kF32;
}
enum class FabricOp : uint8_t { kSum = 0, kProduct = 1, kMin = 2, kMax = 3 };

struct alignas(64) ReducePacket {
  PacketHeader header;
  DeviceAddr group;
  DeviceAddr source;       // of the own part
  DeviceAddr destination;  // without kToAll and kToRoot, and the own one with them
  uint64_t offset;         // bytes behind address[0], address[1] and source; behind destination with kToAll, kToRoot
  uint64_t count;          // elements
  FabricType type;
  FabricOp op;
  uint16_t reserved0;
  uint32_t rank;  // kToRoot
  uint32_t flags;
  uint32_t divisor;  // kAverage; 0: the number of ranks
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
static_assert(PacketType<PostPacket> && PacketType<AwaitPacket> && PacketType<MovePacket> && PacketType<ReducePacket>);
static_assert(sizeof(FabricLine) == 64 && sizeof(FabricPeer) == 64 && sizeof(FabricGroup) == 64 &&
              sizeof(FabricControl) == 64);
static_assert(offsetof(FabricLine, device_ns) == 32 && offsetof(FabricLine, data) == 48 &&
              offsetof(FabricGroup, control) == 32 && offsetof(MovePacket, rank) == 56 &&
              offsetof(ReducePacket, type) == 48 && offsetof(ReducePacket, flags) == 56 &&
              offsetof(ReducePacket, divisor) == 60);
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
