// The vfio-user wire format, as far as the chip's function needs it: what QEMU and our driver speak to the
// emulator. Little endian. Names are the protocol's.
#pragma once
#include <cstdint>

namespace jalapeno::hw::vfio_user {

enum Command : uint16_t {
  kVersion = 1,
  kDmaMap = 2,
  kDmaUnmap = 3,
  kDeviceGetInfo = 4,
  kDeviceGetRegionInfo = 5,
  kDeviceGetIrqInfo = 7,
  kDeviceSetIrqs = 8,
  kRegionRead = 9,
  kRegionWrite = 10,
  kDmaRead = 11,
  kDmaWrite = 12,
  kDeviceReset = 13,
};

inline constexpr uint32_t kTypeCommand = 0, kTypeReply = 1, kTypeMask = 0xF, kNoReply = 0x10, kError = 0x20;

struct Header {
  uint16_t id, command;
  uint32_t size;  // header included
  uint32_t flags, error;
};
struct Version {
  uint16_t major, minor;  // then JSON, zero terminated
};
struct DmaMap {
  uint32_t argsz, flags;
  uint64_t offset, address, size;
};
inline constexpr uint32_t kMapReadable = 1, kMapWritable = 2;  // DmaMap::flags
struct DmaUnmap {
  uint32_t argsz, flags;
  uint64_t address, size;
};
inline constexpr uint32_t kUnmapAll = 2;
struct DeviceInfo {
  uint32_t argsz, flags, regions, irqs;
};
inline constexpr uint32_t kDeviceResets = 1, kDevicePci = 2;
struct RegionInfo {
  uint32_t argsz, flags, index, cap_offset;
  uint64_t size, offset;
};
inline constexpr uint32_t kRegionReadable = 1, kRegionWritable = 2, kRegionMappable = 4;
struct IrqInfo {
  uint32_t argsz, flags, index, count;
};
inline constexpr uint32_t kIrqEventfd = 1, kIrqMsix = 2, kIrqError = 3;
struct IrqSet {
  uint32_t argsz, flags, index, start, count;
};
inline constexpr uint32_t kIrqDataNone = 1, kIrqDataEventfd = 4, kIrqTrigger = 32;
struct RegionAccess {
  uint64_t offset;
  uint32_t region, count;  // then data
};
struct DmaAccess {
  uint64_t address, count;  // then data
};
static_assert(sizeof(Header) == 16 && sizeof(Version) == 4 && sizeof(DmaMap) == 32 && sizeof(DmaUnmap) == 24);
static_assert(sizeof(DeviceInfo) == 16 && sizeof(RegionInfo) == 32 && sizeof(IrqInfo) == 16 && sizeof(IrqSet) == 20);
static_assert(sizeof(RegionAccess) == 16 && sizeof(DmaAccess) == 16);

inline constexpr uint32_t kRegions = 9, kConfigRegion = 7, kIrqs = 5;
inline constexpr uint32_t kMaxDescriptors = 16, kMaxMessage = 64 << 10;

}  // namespace jalapeno::hw::vfio_user
