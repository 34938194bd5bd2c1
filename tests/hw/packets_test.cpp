// Words, registers, doorbells, page table and packets against numbers typed by hand from docs/hardware.md,
// sections 1 to 5. Nothing expected here may be taken from include/jalapeno_hw: that is what is under test.
#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <jalapeno_hw/packets.hpp>
#include <jalapeno_hw/registers.hpp>
#include <jalapeno_hw/types.hpp>
#include <type_traits>

#include "support/golden.hpp"

namespace {

namespace hw = jalapeno::hw;
namespace reg = jalapeno::hw::reg;
using hw::DeviceAddr;
using hw::DType;
using hw::Iova;
using hw::Status;

using jalapeno::test::header;
using jalapeno::test::number;
using jalapeno::test::stores;

// ---- Section 1: words

TEST(Words, ElementTypesHaveTheDataSheetsNumbers) {
  EXPECT_EQ(number(DType::kF32), 0u);
  EXPECT_EQ(number(DType::kBF16), 1u);
  EXPECT_EQ(number(DType::kF16), 2u);
  EXPECT_EQ(number(DType::kI8), 3u);
  EXPECT_EQ(number(DType::kI32), 4u);
  EXPECT_EQ(number(DType::kQ8_0), 5u);
  EXPECT_EQ(number(DType::kQ4_0), 6u);
  EXPECT_EQ(number(DType::kE4M3), 7u);
  EXPECT_EQ(number(DType::kE5M2), 8u);
  EXPECT_EQ(number(DType::kMXFP4), 10u);
  EXPECT_EQ(number(DType::kMXFP8), 11u);
  EXPECT_EQ(sizeof(DType), 1u);
}

TEST(Words, ElementTypesPastTheLastAreNotValidNorIsTheFabrics) {
  EXPECT_EQ(hw::kDTypes, 12);
  for (int t = 0; t < 256; ++t) EXPECT_EQ(hw::valid(static_cast<DType>(t)), t <= 11 && t != 9) << t;
}

TEST(Words, ElementTypesCarryTheDataSheetsNames) {
  const char* const names[] = {"f32",  "bf16", "f16",  "i8",  "i32",   "q8_0",
                               "q4_0", "e4m3", "e5m2", "i64", "mxfp4", "mxfp8"};
  for (size_t t = 0; t < std::size(names); ++t) EXPECT_STREQ(hw::info(static_cast<DType>(t)).name, names[t]);
}

TEST(Words, BlockTypesHold32ElementsInTheirBytes) {
  EXPECT_EQ(hw::info(DType::kQ8_0).block, 32u);
  EXPECT_EQ(hw::info(DType::kQ8_0).bytes, 34u);
  EXPECT_EQ(hw::info(DType::kQ4_0).block, 32u);
  EXPECT_EQ(hw::info(DType::kQ4_0).bytes, 18u);
  EXPECT_EQ(hw::info(DType::kMXFP4).block, 32u);
  EXPECT_EQ(hw::info(DType::kMXFP4).bytes, 17u);
  EXPECT_EQ(hw::info(DType::kMXFP8).block, 32u);
  EXPECT_EQ(hw::info(DType::kMXFP8).bytes, 33u);
}

TEST(Words, PlainTypesHoldOneElementOfTheirWidth) {
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kI32, DType::kE4M3, DType::kE5M2})
    EXPECT_EQ(hw::info(t).block, 1u);
  EXPECT_EQ(hw::info(DType::kF32).bytes, 4u);
  EXPECT_EQ(hw::info(DType::kBF16).bytes, 2u);
  EXPECT_EQ(hw::info(DType::kF16).bytes, 2u);
  EXPECT_EQ(hw::info(DType::kI8).bytes, 1u);
  EXPECT_EQ(hw::info(DType::kI32).bytes, 4u);
  EXPECT_EQ(hw::info(DType::kE4M3).bytes, 1u);
  EXPECT_EQ(hw::info(DType::kE5M2).bytes, 1u);
}

TEST(Words, ARowTakesItsBlocksBytes) {
  EXPECT_EQ(hw::row_bytes(DType::kF32, 96), 384u);
  EXPECT_EQ(hw::row_bytes(DType::kBF16, 96), 192u);
  EXPECT_EQ(hw::row_bytes(DType::kF16, 96), 192u);
  EXPECT_EQ(hw::row_bytes(DType::kI8, 96), 96u);
  EXPECT_EQ(hw::row_bytes(DType::kI32, 96), 384u);
  EXPECT_EQ(hw::row_bytes(DType::kQ8_0, 96), 102u);
  EXPECT_EQ(hw::row_bytes(DType::kQ4_0, 96), 54u);
  EXPECT_EQ(hw::row_bytes(DType::kE4M3, 96), 96u);
  EXPECT_EQ(hw::row_bytes(DType::kE5M2, 96), 96u);
  EXPECT_EQ(hw::row_bytes(DType::kMXFP4, 96), 51u);
  EXPECT_EQ(hw::row_bytes(DType::kMXFP8, 96), 99u);
}

TEST(Words, ARowsBytesDoNotOverflow32Bits) {
  EXPECT_EQ(hw::row_bytes(DType::kF32, 0x1'0000'0000), 0x4'0000'0000u);
  EXPECT_EQ(hw::row_bytes(DType::kQ8_0, 0x20'0000'0000), 0x22'0000'0000u);
}

TEST(Words, StatusesHaveTheDataSheetsNumbers) {
  EXPECT_EQ(number(Status::kOk), 0u);
  EXPECT_EQ(number(Status::kAddressFault), 1u);
  EXPECT_EQ(number(Status::kDmaFault), 2u);
  EXPECT_EQ(number(Status::kIllegalInstruction), 3u);
  EXPECT_EQ(number(Status::kDivideByZero), 4u);
  EXPECT_EQ(number(Status::kSemaphoreLeak), 5u);
  EXPECT_EQ(number(Status::kDeadlock), 6u);
  EXPECT_EQ(number(Status::kWatchdog), 7u);
  EXPECT_EQ(number(Status::kTrap), 8u);
  EXPECT_EQ(number(Status::kTileFault), 9u);
  EXPECT_EQ(number(Status::kBadPacket), 10u);
  EXPECT_EQ(number(Status::kDependencyFailed), 11u);
  EXPECT_EQ(number(Status::kEccUncorrectable), 12u);
  EXPECT_EQ(number(Status::kDiscarded), 13u);
  EXPECT_EQ(number(Status::kRace), 14u);
  EXPECT_EQ(number(Status::kUninitialized), 15u);
  EXPECT_EQ(number(Status::kOutOfBounds), 16u);
  EXPECT_EQ(number(Status::kPeerLost), 17u);
  EXPECT_EQ(number(Status::kMismatch), 18u);
  EXPECT_EQ(number(Status::kAborted), 19u);
  EXPECT_EQ(number(Status::kNoAnswer), 20u);
  EXPECT_EQ(number(Status::kLinkDown), 21u);
  EXPECT_EQ(sizeof(Status), 4u);
}

TEST(Words, AHostAddressIsTheIovaWithBit63Set) {
  EXPECT_EQ(hw::raw(hw::host_address(Iova{0x0123'4567'89AB'CDE0})), 0x8123'4567'89AB'CDE0u);
  EXPECT_EQ(hw::raw(hw::host_address(Iova{0})), 0x8000'0000'0000'0000u);
  EXPECT_EQ(hw::kHostWindow, 0x8000'0000'0000'0000u);
}

TEST(Words, OnlyBit63TellsHostFromHbm) {
  EXPECT_TRUE(hw::is_host(DeviceAddr{0x8000'0000'0000'0000}));
  EXPECT_TRUE(hw::is_host(DeviceAddr{0xFFFF'FFFF'FFFF'FFFF}));
  EXPECT_FALSE(hw::is_host(DeviceAddr{0x7FFF'FFFF'FFFF'FFFF}));
  EXPECT_FALSE(hw::is_host(DeviceAddr{0}));
}

TEST(Words, TheIovaOfAHostAddressIsItsOther63Bits) {
  EXPECT_EQ(hw::raw(hw::iova_of(DeviceAddr{0x8123'4567'89AB'CDE0})), 0x0123'4567'89AB'CDE0u);
  EXPECT_EQ(hw::raw(hw::iova_of(DeviceAddr{0xFFFF'FFFF'FFFF'FFFF})), 0x7FFF'FFFF'FFFF'FFFFu);
}

TEST(Words, AddingBytesMovesAnAddressAndKeepsItsMemory) {
  EXPECT_EQ(hw::raw(DeviceAddr{0x0000'0000'FFFF'FFF0} + 0x20), 0x0000'0001'0000'0010u);
  EXPECT_EQ(hw::raw(DeviceAddr{0x8000'0000'FFFF'FFF0} + 0x20), 0x8000'0001'0000'0010u);
  EXPECT_EQ(hw::raw(Iova{0x0000'0000'FFFF'FFF0} + 0x20), 0x0000'0001'0000'0010u);
}

// ---- Section 2: PCI function

TEST(PciFunction, IdentityAndBarsAreTheDataSheets) {
  EXPECT_EQ(hw::kPciVendorId, 0x1DA1);
  EXPECT_EQ(hw::kPciDeviceId, 0x4A4C);
  EXPECT_EQ(hw::kPciVirtualDeviceId, 0x4A4D);
  EXPECT_EQ(hw::kBarRegisters, 0u);
  EXPECT_EQ(hw::kBarDoorbells, 2u);
  EXPECT_EQ(hw::kBarHbm, 4u);
}

TEST(PciFunction, VersionsAreMajorInTheUpperHalf) {
  EXPECT_EQ(hw::kInterfaceVersion, 0x0001'0002u);
  EXPECT_EQ(hw::kIsaVersion, 0x0001'0001u);
}

// ---- Section 3: registers

struct Register {
  const char* name;
  uint32_t header;  // under test
  uint32_t offset;  // the data sheet's
  uint32_t bytes;
};
const Register kRegisters[] = {
    {"Magic", reg::kMagic, 0x000, 4},
    {"InterfaceVersion", reg::kInterfaceVersion, 0x004, 4},
    {"IsaVersion", reg::kIsaVersion, 0x008, 4},
    {"Capabilities", reg::kCapabilities, 0x00C, 4},
    {"Cores", reg::kCores, 0x010, 4},
    {"SpmBytes", reg::kSpmBytes, 0x014, 4},
    {"AccBytes", reg::kAccBytes, 0x018, 4},
    {"Queues", reg::kQueues, 0x01C, 4},
    {"Contexts", reg::kContexts, 0x020, 4},
    {"Links", reg::kLinks, 0x024, 4},
    {"HbmBytes", reg::kHbmBytes, 0x028, 8},
    {"HbmMegabytesPerSecond", reg::kHbmMegabytesPerSecond, 0x030, 4},
    {"CoreClockKhz", reg::kCoreClockKhz, 0x034, 4},
    {"LinkMegabitsPerSecond", reg::kLinkMegabitsPerSecond, 0x038, 4},
    {"PeakGigaflopsBf16", reg::kPeakGigaflopsBf16, 0x03C, 4},
    {"Uuid", reg::kUuid, 0x040, 16},
    {"PowerLimitMilliwatts", reg::kPowerLimitMilliwatts, 0x050, 4},
    {"DollarsPerHourMicro", reg::kDollarsPerHourMicro, 0x054, 4},
    {"FabricAddress", reg::kFabricAddress, 0x058, 8},
    {"Windows", reg::kWindows, 0x060, 4},
    {"Function", reg::kFunction, 0x064, 4},
    {"VirtualFunctions", reg::kVirtualFunctions, 0x068, 4},
    {"ConfigName", reg::kConfigName, 0x080, 64},
    {"Control", reg::kControl, 0x100, 4},
    {"Health", reg::kHealth, 0x104, 4},
    {"Epoch", reg::kEpoch, 0x108, 4},
    {"Heartbeat", reg::kHeartbeat, 0x10C, 4},
    {"Wake", reg::kWake, 0x110, 4},
    {"LinksUp", reg::kLinksUp, 0x114, 4},
    {"ContextSelect", reg::kContextSelect, 0x200, 4},
    {"ContextPageTable", reg::kContextPageTable, 0x208, 8},
    {"ContextCommand", reg::kContextCommand, 0x210, 4},
    {"ContextFabricKey", reg::kContextFabricKey, 0x218, 8},
    {"QueueSelect", reg::kQueueSelect, 0x240, 4},
    {"QueueContext", reg::kQueueContext, 0x244, 4},
    {"QueueRing", reg::kQueueRing, 0x248, 8},
    {"QueueRingLog2", reg::kQueueRingLog2, 0x250, 4},
    {"QueuePriority", reg::kQueuePriority, 0x254, 4},
    {"QueueTimeline", reg::kQueueTimeline, 0x258, 8},
    {"QueueFault", reg::kQueueFault, 0x260, 8},
    {"QueueCommand", reg::kQueueCommand, 0x268, 4},
    {"QueueState", reg::kQueueState, 0x26C, 4},
    {"QueueStart", reg::kQueueStart, 0x270, 8},
    {"WindowSelect", reg::kWindowSelect, 0x280, 4},
    {"WindowContext", reg::kWindowContext, 0x284, 4},
    {"WindowPeer", reg::kWindowPeer, 0x288, 8},
    {"WindowKey", reg::kWindowKey, 0x290, 8},
    {"WindowCommand", reg::kWindowCommand, 0x298, 4},
    {"WindowState", reg::kWindowState, 0x29C, 4},
    {"TemperatureMillicelsius", reg::kTemperatureMillicelsius, 0x400, 4},
    {"PowerMilliwatts", reg::kPowerMilliwatts, 0x404, 4},
    {"EnergyMicrojoules", reg::kEnergyMicrojoules, 0x408, 8},
    {"DeviceNanoseconds", reg::kDeviceNanoseconds, 0x410, 8},
    {"BusyCoresNs", reg::kBusyCoresNs, 0x418, 8},
    {"BusyMatrixNs", reg::kBusyMatrixNs, 0x420, 8},
    {"BusyVectorNs", reg::kBusyVectorNs, 0x428, 8},
    {"BusyDmaNs", reg::kBusyDmaNs, 0x430, 8},
    {"BusyCopyNs", reg::kBusyCopyNs, 0x438, 8},
    {"HbmReadBytes", reg::kHbmReadBytes, 0x440, 8},
    {"HbmWriteBytes", reg::kHbmWriteBytes, 0x448, 8},
    {"HostBytes", reg::kHostBytes, 0x450, 8},
    {"Packets", reg::kPackets, 0x458, 8},
    {"Launches", reg::kLaunches, 0x460, 8},
    {"Instances", reg::kInstances, 0x468, 8},
    {"Instructions", reg::kInstructions, 0x470, 8},
    {"Faults", reg::kFaults, 0x478, 8},
    {"EccCorrected", reg::kEccCorrected, 0x480, 8},
    {"EccUncorrected", reg::kEccUncorrected, 0x488, 8},
    {"BusyFabricNs", reg::kBusyFabricNs, 0x490, 8},
    {"FabricReadBytes", reg::kFabricReadBytes, 0x498, 8},
    {"FabricWriteBytes", reg::kFabricWriteBytes, 0x4A0, 8},
    {"FabricErrors", reg::kFabricErrors, 0x4A8, 8},
};

TEST(Registers, SitAtTheDataSheetsOffsets) {
  for (const Register& r : kRegisters) EXPECT_EQ(r.header, r.offset) << r.name;
}

TEST(Registers, AreNaturallyAlignedAndDoNotOverlap) {
  uint32_t end = 0;
  for (const Register& r : kRegisters) {
    EXPECT_EQ(r.header % (r.bytes == 4 ? 4 : 8), 0u) << r.name;
    EXPECT_GE(r.header, end) << r.name;
    end = r.header + r.bytes;
  }
  EXPECT_EQ(end, 0x4B0u);
  EXPECT_EQ(reg::kTelemetryEnd, 0x4B0u);
  EXPECT_GE(hw::kRegisterBarBytes, 0x4B0u);
}

TEST(Registers, MagicReadsJalpInMemoryOrder) {
  EXPECT_TRUE(stores(hw::kMagicValue, {'J', 'A', 'L', 'P'}));
  EXPECT_EQ(hw::kMagicValue, 0x504C414Au);
}

TEST(Registers, CapabilityAndHealthBitsAreTheDataSheets) {
  EXPECT_EQ(hw::kCapabilityEmulated, 0x1u);
  EXPECT_EQ(hw::kCapabilityAssumedRates, 0x2u);
  EXPECT_EQ(hw::kHealthReady, 0x1u);
  EXPECT_EQ(hw::kHealthFatal, 0x2u);
}

TEST(Registers, CommandsAndStatesAreTheDataSheets) {
  EXPECT_EQ(hw::kControlReset, 1u);
  EXPECT_EQ(hw::kContextEnable, 1u);
  EXPECT_EQ(hw::kContextDisable, 2u);
  EXPECT_EQ(hw::kContextInvalidate, 3u);
  EXPECT_EQ(hw::kContextExport, 4u);
  EXPECT_EQ(hw::kWindowEnable, 1u);
  EXPECT_EQ(hw::kWindowDisable, 2u);
  EXPECT_EQ(hw::kWindowOff, 0u);
  EXPECT_EQ(hw::kWindowUp, 1u);
  EXPECT_EQ(hw::kWindowUnreachable, 2u);
  EXPECT_EQ(hw::kWindowRefused, 3u);
  EXPECT_EQ(hw::kQueueEnable, 1u);
  EXPECT_EQ(hw::kQueueDisable, 2u);
  EXPECT_EQ(hw::kQueueStateOff, 0u);
  EXPECT_EQ(hw::kQueueStateRunning, 1u);
  EXPECT_EQ(hw::kQueueStateFailed, 2u);
}

TEST(Registers, ARingHasAtMost65536Entries) { EXPECT_EQ(hw::kMaxRingLog2, 16u); }

// ---- Section 4: doorbells and page table

TEST(Doorbells, AQueuesPageHasTailAt0AndInterruptArmAt64) {
  hw::DoorbellPage page{};
  page.tail = 0x1112131415161718;
  page.interrupt_arm = 0x2122232425262728;
  const uint8_t tail[] = {0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11};
  const uint8_t arm[] = {0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21};
  uint8_t golden[4096] = {};
  std::memcpy(golden, tail, 8);
  std::memcpy(golden + 64, arm, 8);
  EXPECT_TRUE(stores(page, golden));
}

TEST(Doorbells, TheDevicesPageHasAsleepAt0) {
  hw::DevicePage page{};
  page.asleep = 0x31323334;
  const uint8_t asleep[] = {0x34, 0x33, 0x32, 0x31};
  uint8_t golden[4096] = {};
  std::memcpy(golden, asleep, 4);
  EXPECT_TRUE(stores(page, golden));
}

TEST(Doorbells, TheDevicesPageFollowsTheLastQueues) {
  struct Bar {
    hw::DoorbellPage queue[3];
    hw::DevicePage device;
  };
  EXPECT_EQ(offsetof(Bar, queue[1].tail), 4096u);
  EXPECT_EQ(offsetof(Bar, queue[2].interrupt_arm), 8256u);
  EXPECT_EQ(offsetof(Bar, device.asleep), 12288u);
  EXPECT_EQ(sizeof(Bar), 16384u);
}

TEST(Doorbells, AllOnesIsNeverArmed) { EXPECT_EQ(hw::kNotArmed, 0xFFFF'FFFF'FFFF'FFFFu); }

TEST(PageTable, HasThreeLevelsOf512EntriesOver48BitsAndPagesOf2MiB) {
  EXPECT_EQ(hw::kTableEntries, 512u);
  EXPECT_EQ(hw::kVaBits, 48u);
  EXPECT_EQ(hw::kPageBytes, 2'097'152u);
}

TEST(PageTable, IndicesAreBits47To39And38To30And29To21) {
  // Indices 0x101, 0x0A5, 0x1FE and the last byte of the page.
  EXPECT_EQ(hw::table_index(0x80A9'7FDF'FFFF, 0), 0x101u);
  EXPECT_EQ(hw::table_index(0x80A9'7FDF'FFFF, 1), 0x0A5u);
  EXPECT_EQ(hw::table_index(0x80A9'7FDF'FFFF, 2), 0x1FEu);
}

TEST(PageTable, TheEndsOfEachIndexAreItsFirstAndLastBit) {
  struct {
    uint64_t address;
    uint32_t root, middle, leaf;
  } const cases[] = {
      {0x0001'0000'0000'0000, 0, 0, 0},  // bit 48: above the address
      {0x0000'8000'0000'0000, 256, 0, 0},     {0x0000'0080'0000'0000, 1, 0, 0},   {0x0000'0040'0000'0000, 0, 256, 0},
      {0x0000'0000'4000'0000, 0, 1, 0},       {0x0000'0000'2000'0000, 0, 0, 256}, {0x0000'0000'0020'0000, 0, 0, 1},
      {0x0000'0000'0010'0000, 0, 0, 0},  // bit 20: inside the page
      {0x0000'FFFF'FFFF'FFFF, 511, 511, 511},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(hw::table_index(c.address, 0), c.root) << std::hex << c.address;
    EXPECT_EQ(hw::table_index(c.address, 1), c.middle) << std::hex << c.address;
    EXPECT_EQ(hw::table_index(c.address, 2), c.leaf) << std::hex << c.address;
  }
}

TEST(PageTable, EntryBitsAreTheDataSheets) {
  EXPECT_EQ(hw::pte::kValid, 0x1u);
  EXPECT_EQ(hw::pte::kRead, 0x2u);
  EXPECT_EQ(hw::pte::kWrite, 0x4u);
  EXPECT_EQ(hw::pte::kExecute, 0x8u);
  EXPECT_EQ(hw::pte::kAddressMask, 0x000F'FFFF'FFFF'F000u);
}

TEST(PageTable, AReadableExecutablePageIsThisEntry) {
  const uint64_t entry = 0x12'3460'0000 | hw::pte::kValid | hw::pte::kRead | hw::pte::kExecute;
  EXPECT_TRUE(stores(entry, {0x0B, 0x00, 0x60, 0x34, 0x12, 0x00, 0x00, 0x00}));
  EXPECT_EQ(entry & hw::pte::kAddressMask, 0x12'3460'0000u);
}

// ---- Section 5: packets

TEST(Packets, OpcodesAreTheDataSheets) {
  EXPECT_EQ(number(hw::PacketOp::kNop), 0u);
  EXPECT_EQ(number(hw::PacketOp::kLaunch), 1u);
  EXPECT_EQ(number(hw::PacketOp::kCopy), 2u);
  EXPECT_EQ(number(hw::PacketOp::kCopyBatch), 3u);
  EXPECT_EQ(number(hw::PacketOp::kFill), 4u);
  EXPECT_EQ(number(hw::PacketOp::kWait), 5u);
  EXPECT_EQ(number(hw::PacketOp::kSignal), 6u);
  EXPECT_EQ(number(hw::PacketOp::kTimestamp), 7u);
  EXPECT_EQ(number(hw::PacketOp::kCall), 8u);
  EXPECT_EQ(number(hw::PacketOp::kBarrier), 9u);
  EXPECT_EQ(number(hw::PacketOp::kPost), 10u);
  EXPECT_EQ(number(hw::PacketOp::kAwait), 11u);
  EXPECT_EQ(number(hw::PacketOp::kMove), 12u);
  EXPECT_EQ(number(hw::PacketOp::kReduce), 13u);
}

TEST(Packets, TheInterruptFlagIsBit0) { EXPECT_EQ(hw::kPacketInterrupt, 0x01); }

TEST(Packets, HeaderIsOpcodeFlagsReservedSequence) {
  hw::PacketHeader h{};
  h.op = hw::PacketOp::kBarrier;
  h.flags = 0x81;
  h.reserved = 0x4243;
  h.sequence = 0xA1A2A3A4;
  EXPECT_TRUE(stores(h, {0x09, 0x81, 0x43, 0x42, 0xA4, 0xA3, 0xA2, 0xA1}));
}

TEST(Packets, NopIsAHeaderAndZeros) {
  hw::Packet p{};
  p.header = header(hw::PacketOp::kNop);
  EXPECT_TRUE(stores(p, {
                            0x00, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 8
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 16
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, TheUntypedPacketsWordsFollowTheHeader) {
  hw::Packet p{};
  p.header = header(hw::PacketOp::kNop);
  p.word[0] = 0x1112131415161718;
  p.word[1] = 0x2122232425262728;
  p.word[2] = 0x3132333435363738;
  p.word[3] = 0x4142434445464748;
  p.word[4] = 0x5152535455565758;
  p.word[5] = 0x6162636465666768;
  p.word[6] = 0x7172737475767778;
  EXPECT_TRUE(stores(p, {
                            0x00, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16
                            0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // 24
                            0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41,  // 32
                            0x58, 0x57, 0x56, 0x55, 0x54, 0x53, 0x52, 0x51,  // 40
                            0x68, 0x67, 0x66, 0x65, 0x64, 0x63, 0x62, 0x61,  // 48
                            0x78, 0x77, 0x76, 0x75, 0x74, 0x73, 0x72, 0x71   // 56
                        }));
}

TEST(Packets, LaunchIsThese64Bytes) {
  hw::LaunchPacket p{};
  p.header = header(hw::PacketOp::kLaunch);
  p.code = DeviceAddr{0x1112131415161718};
  p.arguments = DeviceAddr{0x2122232425262728};
  p.instructions = 0x31323334;
  p.argument_bytes = 0x41424344;
  p.grid[0] = 0x51525354;
  p.grid[1] = 0x61626364;
  p.grid[2] = 0x71727374;
  p.deadline_ms = 0x81828384;
  p.cookie = 0x9192939495969798;
  EXPECT_TRUE(stores(p, {
                            0x01, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: code
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16: arguments
                            0x34, 0x33, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41,  // 24: instructions, argument bytes
                            0x54, 0x53, 0x52, 0x51, 0x64, 0x63, 0x62, 0x61,  // 32: grid x, y
                            0x74, 0x73, 0x72, 0x71, 0x84, 0x83, 0x82, 0x81,  // 40: grid z, deadline
                            0x98, 0x97, 0x96, 0x95, 0x94, 0x93, 0x92, 0x91,  // 48: cookie
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56: reserved
                        }));
}

TEST(Packets, CopyIsThese64Bytes) {
  hw::CopyPacket p{};
  p.header = header(hw::PacketOp::kCopy);
  p.source = DeviceAddr{0x1112131415161718};
  p.destination = DeviceAddr{0x2122232425262728};
  p.width_bytes = 0x3132333435363738;
  p.height = 0x4142434445464748;
  p.source_pitch = 0x5152535455565758;
  p.destination_pitch = 0x6162636465666768;
  EXPECT_TRUE(stores(p, {
                            0x02, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: source
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16: destination
                            0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // 24: width in bytes
                            0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41,  // 32: height
                            0x58, 0x57, 0x56, 0x55, 0x54, 0x53, 0x52, 0x51,  // 40: source pitch
                            0x68, 0x67, 0x66, 0x65, 0x64, 0x63, 0x62, 0x61,  // 48: destination pitch
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56: reserved
                        }));
}

TEST(Packets, CopyBatchIsThese64Bytes) {
  hw::CopyBatchPacket p{};
  p.header = header(hw::PacketOp::kCopyBatch);
  p.list = DeviceAddr{0x1112131415161718};
  p.count = 0x2122232425262728;
  EXPECT_TRUE(stores(p, {
                            0x03, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: list
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16: count
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, ACopyDescriptorIsThese32Bytes) {
  hw::CopyDescriptor d{};
  d.source = DeviceAddr{0x1112131415161718};
  d.destination = DeviceAddr{0x2122232425262728};
  d.bytes = 0x3132333435363738;
  EXPECT_TRUE(stores(d, {
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 0: source
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 8: destination
                            0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // 16: bytes
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 24: reserved
                        }));
}

TEST(Packets, FillIsThese64Bytes) {
  hw::FillPacket p{};
  p.header = header(hw::PacketOp::kFill);
  p.destination = DeviceAddr{0x1112131415161718};
  p.bytes = 0x2122232425262728;
  p.pattern = 0x31323334;
  p.pattern_bytes = 4;
  EXPECT_TRUE(stores(p, {
                            0x04, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: destination
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16: bytes
                            0x34, 0x33, 0x32, 0x31, 0x04, 0x00, 0x00, 0x00,  // 24: pattern, pattern bytes
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, WaitIsThese64Bytes) {
  hw::TimelinePacket p{};
  p.header = header(hw::PacketOp::kWait);
  p.timeline = DeviceAddr{0x1112131415161718};
  p.value = 0x2122232425262728;
  EXPECT_TRUE(stores(p, {
                            0x05, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: timeline
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16: value
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, SignalIsThese64Bytes) {
  hw::TimelinePacket p{};
  p.header = header(hw::PacketOp::kSignal);
  p.timeline = DeviceAddr{0x3132333435363738};
  p.value = 0x4142434445464748;
  EXPECT_TRUE(stores(p, {
                            0x06, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // 8: timeline
                            0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41,  // 16: value
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, TimestampIsThese64Bytes) {
  hw::TimestampPacket p{};
  p.header = header(hw::PacketOp::kTimestamp);
  p.destination = DeviceAddr{0x1112131415161718};
  EXPECT_TRUE(stores(p, {
                            0x07, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: destination
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 16: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, AReceivedTimestampIsDeviceThenHostNanoseconds) {
  hw::Timestamp t{};
  t.device_ns = 0x1112131415161718;
  t.host_ns = 0x2122232425262728;
  EXPECT_TRUE(stores(t, {
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 0: device ns
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21   // 8: host ns
                        }));
}

TEST(Packets, CallIsThese64Bytes) {
  hw::CallPacket p{};
  p.header = header(hw::PacketOp::kCall);
  p.block = DeviceAddr{0x1112131415161718};
  p.count = 0x2122232425262728;
  EXPECT_TRUE(stores(p, {
                            0x08, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 8: block
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 16: packets
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Packets, BarrierIsAHeaderAndZeros) {
  hw::Packet p{};
  p.header = header(hw::PacketOp::kBarrier);
  EXPECT_TRUE(stores(p, {
                            0x09, 0x01, 0x00, 0x00, 0xA4, 0xA3, 0xA2, 0xA1,  // 0: opcode, flags, reserved, sequence
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 8
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 16
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 24
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 32
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(Timelines, ATimelineIsThese64Bytes) {
  hw::Timeline t{};
  t.value = 0x1112131415161718;
  t.failed_value = 0x2122232425262728;
  t.status = 0x31323334;
  t.device_ns = 0x4142434445464748;
  t.host_ns = 0x5152535455565758;
  t.resume_value = 0x6162636465666768;
  EXPECT_TRUE(stores(t, {
                            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // 0: value
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 8: failed_value
                            0x34, 0x33, 0x32, 0x31, 0x00, 0x00, 0x00, 0x00,  // 16: status, reserved
                            0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41,  // 24: device ns
                            0x58, 0x57, 0x56, 0x55, 0x54, 0x53, 0x52, 0x51,  // 32: host ns
                            0x68, 0x67, 0x66, 0x65, 0x64, 0x63, 0x62, 0x61,  // 40: resume_value
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 48: reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00   // 56
                        }));
}

TEST(FaultRecords, AFaultRecordIsThese256Bytes) {
  hw::FaultRecord f{};
  f.status = 0x01020304;
  f.queue = 0x11121314;
  f.packet = 0x2122232425262728;
  f.cookie = 0x3132333435363738;
  f.pid[0] = 0x41424344;
  f.pid[1] = 0x51525354;
  f.pid[2] = 0x61626364;
  f.core = 0x71727374;
  f.instruction = 0x81828384;
  f.other = 0x91929394;
  f.access = 0xA1A2A3A4;
  f.tile = 0xB1B2B3B4;
  f.address = 0xC1C2C3C4C5C6C7C8;
  f.bytes = 0xD1D2D3D4D5D6D7D8;
  f.value = 0xE1E2E3E4E5E6E7E8;
  f.device_ns = 0xF1F2F3F4F5F6F7F8;
  f.host_ns = 0x191A1B1C1D1E1F10;
  f.block = 0x292A2B2C;
  f.detail[0] = 'o';
  f.detail[1] = 'u';
  f.detail[2] = 't';
  f.detail[127] = '!';
  EXPECT_TRUE(stores(f, {
                            0x04, 0x03, 0x02, 0x01, 0x14, 0x13, 0x12, 0x11,  // 0: status, queue
                            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // 8: packet index
                            0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // 16: cookie
                            0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51,  // 24: program instance x, y
                            0x64, 0x63, 0x62, 0x61, 0x74, 0x73, 0x72, 0x71,  // 32: program instance z, core
                            0x84, 0x83, 0x82, 0x81, 0x94, 0x93, 0x92, 0x91,  // 40: instruction, other instruction
                            0xA4, 0xA3, 0xA2, 0xA1, 0xB4, 0xB3, 0xB2, 0xB1,  // 48: access, tile
                            0xC8, 0xC7, 0xC6, 0xC5, 0xC4, 0xC3, 0xC2, 0xC1,  // 56: address
                            0xD8, 0xD7, 0xD6, 0xD5, 0xD4, 0xD3, 0xD2, 0xD1,  // 64: bytes
                            0xE8, 0xE7, 0xE6, 0xE5, 0xE4, 0xE3, 0xE2, 0xE1,  // 72: value
                            0xF8, 0xF7, 0xF6, 0xF5, 0xF4, 0xF3, 0xF2, 0xF1,  // 80: device ns
                            0x10, 0x1F, 0x1E, 0x1D, 0x1C, 0x1B, 0x1A, 0x19,  // 88: host ns
                            0x2C, 0x2B, 0x2A, 0x29, 0x00, 0x00, 0x00, 0x00,  // 96: position in a block, reserved
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 104
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 112
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 120
                            0x6F, 0x75, 0x74, 0x00, 0x00, 0x00, 0x00, 0x00,  // 128: text
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 136
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 144
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 152
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 160
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 168
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 176
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 184
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 192
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 200
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 208
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 216
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 224
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 232
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 240
                            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x21   // 248
                        }));
}

TEST(FaultRecords, TheTextHas128Characters) { EXPECT_EQ(sizeof(hw::FaultRecord::detail), 128u); }

TEST(FaultRecords, AccessesAreReadWriteFetchFrom1) {
  EXPECT_EQ(number(hw::kAccessRead), 1u);
  EXPECT_EQ(number(hw::kAccessWrite), 2u);
  EXPECT_EQ(number(hw::kAccessExecute), 3u);
}

TEST(FaultRecords, AllOnesIsNoInstruction) { EXPECT_EQ(hw::kNoInstruction, 0xFFFF'FFFFu); }

}  // namespace
