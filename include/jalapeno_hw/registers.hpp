// BARs, registers and doorbells in the data sheet's order (docs/hardware.md, sections 2 to 4).
#pragma once
#include <jalapeno_hw/isa.hpp>
#include <jalapeno_hw/types.hpp>

namespace jalapeno::hw {

inline constexpr uint16_t kPciVendorId = 0x1DA1;                                // assumed: no id is public
inline constexpr uint16_t kPciDeviceId = 0x4A4C, kPciVirtualDeviceId = 0x4A4D;  // of the physical, a virtual function
constexpr bool is_jalapeno(uint32_t vendor, uint32_t device) {
  return vendor == kPciVendorId && (device == kPciDeviceId || device == kPciVirtualDeviceId);
}

inline constexpr uint32_t kPciClass = 0x120000;  // processing accelerator

// Configuration space, as far as the driver reads or writes it.
namespace pci {
inline constexpr uint32_t kCommand = 0x04;  // u16
inline constexpr uint16_t kCommandMemory = 1u << 1, kCommandBusMaster = 1u << 2;
inline constexpr uint32_t kStatus = 0x06, kCapabilities = 0x34;
inline constexpr uint32_t kPowerId = 0x01, kExpressId = 0x10, kMsixId = 0x11;
// Where this function has its capabilities; a driver follows the list.
inline constexpr uint32_t kPowerCap = 0x40, kMsixCap = 0x48, kExpressCap = 0x60;
// In the PCI Express capability
inline constexpr uint32_t kDeviceControl = 0x08, kLinkStatus = 0x12;
inline constexpr uint16_t kDeviceControlReset = 1u << 15;
inline constexpr uint32_t kAssumedLinkSpeed = 5, kAssumedLinkWidth = 16;  // 32 GT/s x16
// Extended capabilities: serial number, and SR-IOV where the chip is shared.
inline constexpr uint32_t kSerialCap = 0x100, kSriovCap = 0x140;
inline constexpr uint32_t kSriovId = 0x0010;
}  // namespace pci

inline constexpr uint32_t kBarRegisters = 0;  // trapped, 32- and 64-bit accesses, naturally aligned
inline constexpr uint32_t kBarDoorbells = 2;  // mapped by the driver
inline constexpr uint32_t kBarHbm = 4;  // mapped by the driver; HBM physical address 0 upwards: all of it or its begin
inline constexpr uint64_t kLeastApertureBytes = 16 << 20;
inline constexpr uint32_t kRegisterBarBytes = 0x1000;  // of registers; behind them in the BAR:
inline constexpr uint32_t kMsixTableOffset = 0x2000, kMsixPendingOffset = 0x3800, kBar0Bytes = 0x4000;

// Versions are major << 16 | minor. Majors must match; the device's minor may be newer.
inline constexpr uint32_t kInterfaceVersion = 1u << 16 | 2;

namespace reg {
// Identity (read only)
inline constexpr uint32_t kMagic = 0x000;  // u32, kMagicValue
inline constexpr uint32_t kInterfaceVersion = 0x004;
inline constexpr uint32_t kIsaVersion = 0x008;
inline constexpr uint32_t kCapabilities = 0x00C;
inline constexpr uint32_t kCores = 0x010;
inline constexpr uint32_t kSpmBytes = 0x014;  // scratchpad of one core
inline constexpr uint32_t kAccBytes = 0x018;  // accumulators of one core
inline constexpr uint32_t kQueues = 0x01C;
inline constexpr uint32_t kContexts = 0x020;
inline constexpr uint32_t kLinks = 0x024;
inline constexpr uint32_t kHbmBytes = 0x028;  // u64, what this function can address
inline constexpr uint32_t kHbmMegabytesPerSecond = 0x030;
inline constexpr uint32_t kCoreClockKhz = 0x034;
inline constexpr uint32_t kLinkMegabitsPerSecond = 0x038;
inline constexpr uint32_t kPeakGigaflopsBf16 = 0x03C;
inline constexpr uint32_t kUuid = 0x040;  // u64[2]
inline constexpr uint32_t kPowerLimitMilliwatts = 0x050;
inline constexpr uint32_t kDollarsPerHourMicro = 0x054;  // what an hour of this chip costs, in 1e-6 USD; 0: unknown
inline constexpr uint32_t kFabricAddress = 0x058;        // u64, of this chip among the chips it is linked with
inline constexpr uint32_t kWindows = 0x060;
inline constexpr uint32_t kFunction = 0x064;          // 0: the physical function, otherwise the virtual one's number
inline constexpr uint32_t kVirtualFunctions = 0x068;  // that share the chip with the physical one; 0: it is not shared
inline constexpr uint32_t kConfigName = 0x080;        // 64 bytes of text, zero padded

// Control and health
inline constexpr uint32_t kControl = 0x100;    // write kControlReset
inline constexpr uint32_t kHealth = 0x104;     // kHealth* bits
inline constexpr uint32_t kEpoch = 0x108;      // counts resets
inline constexpr uint32_t kHeartbeat = 0x10C;  // moves at least ten times a second while the chip is well
inline constexpr uint32_t kWake = 0x110;       // any write wakes a sleeping command processor
inline constexpr uint32_t kLinksUp = 0x114;    // a bit for each link

// Contexts: write Select, then the fields, then Command (the driver serialises)
inline constexpr uint32_t kContextSelect = 0x200;
inline constexpr uint32_t kContextPageTable = 0x208;  // u64, HBM physical address of the root table
inline constexpr uint32_t kContextCommand = 0x210;    // kContext*
inline constexpr uint32_t kContextFabricKey = 0x218;  // u64; see kContextExport

// Queues: write Select, then the fields, then Command
inline constexpr uint32_t kQueueSelect = 0x240;
inline constexpr uint32_t kQueueContext = 0x244;
inline constexpr uint32_t kQueueRing = 0x248;      // u64 IOVA, 64-byte aligned
inline constexpr uint32_t kQueueRingLog2 = 0x250;  // entries
inline constexpr uint32_t kQueuePriority = 0x254;  // 0 lowest .. 3
inline constexpr uint32_t kQueueTimeline = 0x258;  // u64 IOVA of the queue's own timeline
inline constexpr uint32_t kQueueFault = 0x260;     // u64 IOVA of its fault record
inline constexpr uint32_t kQueueCommand = 0x268;   // kQueue*
inline constexpr uint32_t kQueueState = 0x26C;     // read: kQueueState*
inline constexpr uint32_t kQueueStart = 0x270;     // u64, index of the first packet

// Windows into contexts of other chips: write Select, then the fields, then Command, and read State
inline constexpr uint32_t kWindowSelect = 0x280;
inline constexpr uint32_t kWindowContext = 0x284;
inline constexpr uint32_t kWindowPeer = 0x288;  // u64, its kFabricAddress
inline constexpr uint32_t kWindowKey = 0x290;   // u64, of its context
inline constexpr uint32_t kWindowCommand = 0x298;
inline constexpr uint32_t kWindowState = 0x29C;  // kWindow*

// Telemetry (read only; 64-bit counters never go back, not even at a reset)
inline constexpr uint32_t kTemperatureMillicelsius = 0x400;
inline constexpr uint32_t kPowerMilliwatts = 0x404;
inline constexpr uint32_t kEnergyMicrojoules = 0x408;  // modelled
inline constexpr uint32_t kDeviceNanoseconds = 0x410;  // the chip's clock: modelled time
inline constexpr uint32_t kBusyCoresNs = 0x418;        // sum over cores, modelled
inline constexpr uint32_t kBusyMatrixNs = 0x420;       // sum over cores
inline constexpr uint32_t kBusyVectorNs = 0x428;       // sum over cores
inline constexpr uint32_t kBusyDmaNs = 0x430;          // sum over cores
inline constexpr uint32_t kBusyCopyNs = 0x438;
inline constexpr uint32_t kHbmReadBytes = 0x440;
inline constexpr uint32_t kHbmWriteBytes = 0x448;
inline constexpr uint32_t kHostBytes = 0x450;  // crossed the host link, both directions
inline constexpr uint32_t kPackets = 0x458;
inline constexpr uint32_t kLaunches = 0x460;
inline constexpr uint32_t kInstances = 0x468;
inline constexpr uint32_t kInstructions = 0x470;
inline constexpr uint32_t kFaults = 0x478;
inline constexpr uint32_t kEccCorrected = 0x480;
inline constexpr uint32_t kEccUncorrected = 0x488;
inline constexpr uint32_t kBusyFabricNs = 0x490;
inline constexpr uint32_t kFabricReadBytes = 0x498;   // fetched from other chips
inline constexpr uint32_t kFabricWriteBytes = 0x4A0;  // put to other chips
inline constexpr uint32_t kFabricErrors = 0x4A8;      // of links
inline constexpr uint32_t kTelemetryEnd = 0x4B0;
}  // namespace reg

inline constexpr uint32_t kMagicValue = 0x504C414A;  // "JALP"
inline constexpr uint32_t kCapabilityEmulated = 1u << 0;
inline constexpr uint32_t kCapabilityAssumedRates = 1u << 1;  // rates come from a configuration, not from a data sheet
inline constexpr uint32_t kCapabilityDoorbellEvents = 1u << 2;  // a store to a doorbell page is an event: never asleep
inline constexpr uint32_t kControlReset = 1;
inline constexpr uint32_t kHealthReady = 1u << 0;
inline constexpr uint32_t kHealthFatal = 1u << 1;
inline constexpr uint32_t kContextEnable = 1;
inline constexpr uint32_t kContextDisable = 2;
inline constexpr uint32_t kContextInvalidate = 3;  // page table or code changed: drop what is cached
inline constexpr uint32_t kContextExport = 4;  // whoever knows the fabric key may open a window to it; key 0: nobody
inline constexpr uint32_t kWindowEnable = 1;
inline constexpr uint32_t kWindowDisable = 2;
inline constexpr uint32_t kWindowOff = 0;
inline constexpr uint32_t kWindowUp = 1;
inline constexpr uint32_t kWindowUnreachable = 2;  // no such chip on this fabric
inline constexpr uint32_t kWindowRefused = 3;      // the chip is there; the key is not right
inline constexpr uint32_t kQueueEnable = 1;
inline constexpr uint32_t kQueueDisable = 2;  // ends the program it runs; what is left is discarded
inline constexpr uint32_t kQueueStateOff = 0;
inline constexpr uint32_t kQueueStateRunning = 1;
inline constexpr uint32_t kQueueStateFailed = 2;
inline constexpr uint32_t kMaxRingLog2 = 16;

// One 4 KiB page per queue, then one page of the whole device.
struct alignas(64) DoorbellPage {
  uint64_t tail;  // driver: packets below this index may be fetched
  uint8_t pad0[56];
  uint64_t interrupt_arm;  // driver: raise the queue's vector once its timeline reaches this value; kNotArmed: never
  uint8_t pad1[56];
  uint8_t pad2[4096 - 128];
};
static_assert(sizeof(DoorbellPage) == 4096 && offsetof(DoorbellPage, interrupt_arm) == 64);
inline constexpr uint64_t kNotArmed = ~uint64_t{0};

struct alignas(64) DevicePage {
  uint32_t asleep;  // device: 1 while a store to a doorbell page is not looked at; then write reg::kWake
  uint8_t pad[4092];
};
static_assert(sizeof(DevicePage) == 4096);

// Page table: three levels of 512 entries over 48-bit addresses, pages of 2 MiB.
inline constexpr uint64_t kPageBytes = uint64_t{2} << 20;
inline constexpr uint32_t kTableEntries = 512;
inline constexpr uint64_t kVaBits = 48;
namespace pte {
inline constexpr uint64_t kValid = 1, kRead = 2, kWrite = 4, kExecute = 8;
inline constexpr uint64_t kAddressMask = 0x000F'FFFF'FFFF'F000;  // HBM physical address of the page or next table
}  // namespace pte
constexpr uint32_t table_index(uint64_t va, int level) {  // level 0 is the root
  return static_cast<uint32_t>(va >> (39 - 9 * level)) & (kTableEntries - 1);
}

}  // namespace jalapeno::hw
