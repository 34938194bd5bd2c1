// Address kinds, data types and statuses: the words every other part of the data sheet uses
// (docs/hardware.md, section 1). Constexpr types only: no state, no I/O.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace jalapeno::hw {

// An address as the device's DMA engines see host memory; denied unless the driver mapped it.
enum class Iova : uint64_t {};
// An address as a context on the device sees memory. Bit 63 clear: HBM through the context's page
// table. Bit 63 set: the rest is an IOVA, so that one address field reaches both memories. Bit 62 set: bits 48 to 61
// are the number of a window, the rest is an address in the context of another chip behind it.
enum class DeviceAddr : uint64_t {};

inline constexpr uint64_t kHostWindow = uint64_t{1} << 63;
inline constexpr uint64_t kFabricWindow = uint64_t{1} << 62;
constexpr DeviceAddr window_base(uint32_t window) { return DeviceAddr{kFabricWindow | uint64_t{window} << 48}; }

constexpr DeviceAddr host_address(Iova iova) { return DeviceAddr{static_cast<uint64_t>(iova) | kHostWindow}; }
constexpr bool is_host(DeviceAddr a) { return (static_cast<uint64_t>(a) & kHostWindow) != 0; }
constexpr Iova iova_of(DeviceAddr a) { return Iova{static_cast<uint64_t>(a) & ~kHostWindow}; }
constexpr uint64_t raw(DeviceAddr a) { return static_cast<uint64_t>(a); }
constexpr uint64_t raw(Iova a) { return static_cast<uint64_t>(a); }
constexpr DeviceAddr operator+(DeviceAddr a, uint64_t bytes) { return DeviceAddr{raw(a) + bytes}; }
constexpr Iova operator+(Iova a, uint64_t bytes) { return Iova{raw(a) + bytes}; }

// Element types of tiles and tensors. In block types 32 elements along a row share a scale: ggml's q8_0 and q4_0, and
// the OCP's MXFP4 (stored as ggml does) and MXFP8. e4m3 and e5m2 are the OCP's eight-bit floats. In between is i64,
// which only the fabric has.
enum class DType : uint8_t {
  kF32 = 0,
  kBF16 = 1,
  kF16 = 2,
  kI8 = 3,
  kI32 = 4,
  kQ8_0 = 5,
  kQ4_0 = 6,
  kE4M3 = 7,
  kE5M2 = 8,
  kMXFP4 = 10,
  kMXFP8 = 11
};
inline constexpr int kDTypes = 12, kFabricOnlyType = 9;

struct DTypeInfo {
  const char* name;
  uint32_t block;  // elements that are stored together
  uint32_t bytes;  // bytes a block takes
};
inline constexpr std::array<DTypeInfo, kDTypes> kDTypeInfo = {{
    {"f32", 1, 4},
    {"bf16", 1, 2},
    {"f16", 1, 2},
    {"i8", 1, 1},
    {"i32", 1, 4},
    {"q8_0", 32, 34},  // f16 scale, int8[32]
    {"q4_0", 32,
     18},  // f16 scale, 16 bytes: low nibbles are elements 0..15, high nibbles 16..31, value = (nibble - 8) * scale
    {"e4m3", 1, 1},
    {"e5m2", 1, 1},
    {"i64", 1, 8},
    {"mxfp4", 32, 17},  // e8m0 scale, then as q4_0; a nibble is an e2m1
    {"mxfp8", 32, 33},  // e8m0 scale, e4m3[32]
}};
constexpr const DTypeInfo& info(DType t) { return kDTypeInfo[static_cast<size_t>(t)]; }
constexpr bool is_fp8(DType t) { return t == DType::kE4M3 || t == DType::kE5M2; }
constexpr bool valid(DType t) { return static_cast<int>(t) < kDTypes && static_cast<int>(t) != kFabricOnlyType; }
constexpr uint64_t row_bytes(DType t, uint64_t columns) { return columns / info(t).block * info(t).bytes; }

// How a packet or a kernel ended. Values are part of the interface and never change.
enum class Status : uint32_t {
  kOk = 0,
  kAddressFault = 1,        // HBM access outside every mapping of the context, or without the permission
  kDmaFault = 2,            // host access outside every mapped IOVA, or without the permission
  kIllegalInstruction = 3,  // an opcode, operand or encoding the core does not know
  kDivideByZero = 4,        // integer division or remainder by zero
  kSemaphoreLeak = 5,       // a program ended with a semaphore that is not zero
  kDeadlock = 6,            // a wait that nothing left in the program can satisfy
  kWatchdog = 7,            // a program instance ran longer than the watchdog allows
  kTrap = 8,                // the program asked to stop (TRAP)
  kTileFault = 9,   // a tile outside scratchpad or accumulators, or shapes and types that do not fit the operation
  kBadPacket = 10,  // a packet with an unknown opcode, a wrong sequence number or impossible fields
  kDependencyFailed = 11,  // the timeline this packet waited for is poisoned
  kEccUncorrectable = 12,  // memory returned data that could not be corrected
  kDiscarded = 13,         // never ran: an earlier packet of its queue failed
  kRace = 14,              // checked level: two engines touch the same bytes without an order
  kUninitialized = 15,     // checked level: scratchpad bytes read before they were written
  kOutOfBounds = 16,       // checked level: a DMA box wholly outside its tensor
  kPeerLost = 17,          // a rank of the group is gone
  kMismatch = 18,          // the ranks of a group called for different things
  kAborted = 19,           // the host ended the group
  kNoAnswer = 20,          // a rank did not come within the deadline
  kLinkDown = 21,          // no link of the fabric is up
};

}  // namespace jalapeno::hw
