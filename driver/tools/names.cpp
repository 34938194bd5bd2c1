#include "names.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <jalapeno_hw/registers.hpp>

namespace jalapeno::tools {

namespace {

using namespace hw::reg;
constexpr RegisterName kRegisters[] = {
    {kMagic, 4, "Magic"},
    {kInterfaceVersion, 4, "InterfaceVersion"},
    {kIsaVersion, 4, "IsaVersion"},
    {kCapabilities, 4, "Capabilities"},
    {kCores, 4, "Cores"},
    {kSpmBytes, 4, "SpmBytes"},
    {kAccBytes, 4, "AccBytes"},
    {kQueues, 4, "Queues"},
    {kContexts, 4, "Contexts"},
    {kLinks, 4, "Links"},
    {kHbmBytes, 8, "HbmBytes"},
    {kHbmMegabytesPerSecond, 4, "HbmMegabytesPerSecond"},
    {kCoreClockKhz, 4, "CoreClockKhz"},
    {kLinkMegabitsPerSecond, 4, "LinkMegabitsPerSecond"},
    {kPeakGigaflopsBf16, 4, "PeakGigaflopsBf16"},
    {kUuid, 8, "Uuid"},
    {kPowerLimitMilliwatts, 4, "PowerLimitMilliwatts"},
    {kDollarsPerHourMicro, 4, "DollarsPerHourMicro"},
    {kFabricAddress, 8, "FabricAddress"},
    {kWindows, 4, "Windows"},
    {kFunction, 4, "Function"},
    {kVirtualFunctions, 4, "VirtualFunctions"},
    {kConfigName, 8, "ConfigName"},
    {kControl, 4, "Control"},
    {kHealth, 4, "Health"},
    {kEpoch, 4, "Epoch"},
    {kHeartbeat, 4, "Heartbeat"},
    {kWake, 4, "Wake"},
    {kLinksUp, 4, "LinksUp"},
    {kContextSelect, 4, "ContextSelect"},
    {kContextPageTable, 8, "ContextPageTable"},
    {kContextCommand, 4, "ContextCommand"},
    {kContextFabricKey, 8, "ContextFabricKey"},
    {kQueueSelect, 4, "QueueSelect"},
    {kQueueContext, 4, "QueueContext"},
    {kQueueRing, 8, "QueueRing"},
    {kQueueRingLog2, 4, "QueueRingLog2"},
    {kQueuePriority, 4, "QueuePriority"},
    {kQueueTimeline, 8, "QueueTimeline"},
    {kQueueFault, 8, "QueueFault"},
    {kQueueCommand, 4, "QueueCommand"},
    {kQueueState, 4, "QueueState"},
    {kQueueStart, 8, "QueueStart"},
    {kWindowSelect, 4, "WindowSelect"},
    {kWindowContext, 4, "WindowContext"},
    {kWindowPeer, 8, "WindowPeer"},
    {kWindowKey, 8, "WindowKey"},
    {kWindowCommand, 4, "WindowCommand"},
    {kWindowState, 4, "WindowState"},
    {kTemperatureMillicelsius, 4, "TemperatureMillicelsius"},
    {kPowerMilliwatts, 4, "PowerMilliwatts"},
    {kEnergyMicrojoules, 8, "EnergyMicrojoules"},
    {kDeviceNanoseconds, 8, "DeviceNanoseconds"},
    {kBusyCoresNs, 8, "BusyCoresNs"},
    {kBusyMatrixNs, 8, "BusyMatrixNs"},
    {kBusyVectorNs, 8, "BusyVectorNs"},
    {kBusyDmaNs, 8, "BusyDmaNs"},
    {kBusyCopyNs, 8, "BusyCopyNs"},
    {kHbmReadBytes, 8, "HbmReadBytes"},
    {kHbmWriteBytes, 8, "HbmWriteBytes"},
    {kHostBytes, 8, "HostBytes"},
    {kPackets, 8, "Packets"},
    {kLaunches, 8, "Launches"},
    {kInstances, 8, "Instances"},
    {kInstructions, 8, "Instructions"},
    {kFaults, 8, "Faults"},
    {kEccCorrected, 8, "EccCorrected"},
    {kEccUncorrected, 8, "EccUncorrected"},
    {kBusyFabricNs, 8, "BusyFabricNs"},
    {kFabricReadBytes, 8, "FabricReadBytes"},
    {kFabricWriteBytes, 8, "FabricWriteBytes"},
    {kFabricErrors, 8, "FabricErrors"},
};
static_assert(std::is_sorted(std::begin(kRegisters), std::end(kRegisters),
                             [](const RegisterName& a, const RegisterName& b) { return a.offset < b.offset; }));

template <class P>
P as(const hw::Packet& packet) {
  P p;
  std::memcpy(&p, &packet, sizeof p);
  return p;
}

std::string address(hw::DeviceAddr a) {
  if (hw::is_host(a)) return fmt::format("host 0x{:x}", hw::raw(hw::iova_of(a)));
  if (hw::raw(a) & hw::kFabricWindow)
    return fmt::format("window {} 0x{:x}", (hw::raw(a) & ~hw::kFabricWindow) >> hw::kVaBits,
                       hw::raw(a) & ((uint64_t{1} << hw::kVaBits) - 1));
  return fmt::format("0x{:x}", hw::raw(a));
}

}  // namespace

std::span<const RegisterName> registers() { return kRegisters; }

std::string register_name(uint32_t offset) {
  // Uuid and ConfigName are wider than an access.
  if (offset >= kUuid && offset < kUuid + 16) return fmt::format("Uuid[{}]", (offset - kUuid) / 8);
  if (offset >= kConfigName && offset < kConfigName + 64)
    return fmt::format("ConfigName[{}]", (offset - kConfigName) / 8);
  for (const RegisterName& r : kRegisters)
    if (r.offset == offset) return r.name;
  return fmt::format("0x{:03x}", offset);
}

std::string describe(const hw::Packet& packet) {
  switch (packet.header.op) {
    case hw::PacketOp::kNop:
      return "NOP";
    case hw::PacketOp::kLaunch: {
      const auto p = as<hw::LaunchPacket>(packet);
      return fmt::format(
          "LAUNCH code {}, {} instructions, grid {} x {} x {}, {} bytes of arguments at {}, cookie 0x{:x}",
          address(p.code), p.instructions, p.grid[0], p.grid[1], p.grid[2], p.argument_bytes, address(p.arguments),
          p.cookie);
    }
    case hw::PacketOp::kCopy: {
      const auto p = as<hw::CopyPacket>(packet);
      const std::string size = p.height <= 1 ? fmt::format("{} bytes", p.width_bytes)
                                             : fmt::format("{} rows of {} bytes, pitches {} -> {}", p.height,
                                                           p.width_bytes, p.source_pitch, p.destination_pitch);
      return fmt::format("COPY {} -> {}, {}", address(p.source), address(p.destination), size);
    }
    case hw::PacketOp::kCopyBatch: {
      const auto p = as<hw::CopyBatchPacket>(packet);
      return fmt::format("COPY_BATCH {} copies listed at {}", p.count, address(p.list));
    }
    case hw::PacketOp::kFill: {
      const auto p = as<hw::FillPacket>(packet);
      return fmt::format("FILL {}, {} bytes with 0x{:0{}x}", address(p.destination), p.bytes, p.pattern,
                         2 * std::min(p.pattern_bytes, 4u));
    }
    case hw::PacketOp::kWait:
    case hw::PacketOp::kSignal: {
      const auto p = as<hw::TimelinePacket>(packet);
      return fmt::format("{} timeline {} {} {}", packet.header.op == hw::PacketOp::kWait ? "WAIT" : "SIGNAL",
                         address(p.timeline), packet.header.op == hw::PacketOp::kWait ? ">=" : "=", p.value);
    }
    case hw::PacketOp::kTimestamp:
      return "TIMESTAMP to " + address(as<hw::TimestampPacket>(packet).destination);
    case hw::PacketOp::kCall: {
      const auto p = as<hw::CallPacket>(packet);
      return fmt::format("CALL {} packets at {}", p.count, address(p.block));
    }
    case hw::PacketOp::kBarrier:
      return "BARRIER";
    case hw::PacketOp::kPost: {
      const auto p = as<hw::PostPacket>(packet);
      return fmt::format("POST to group {}, {} bytes from {}, signature 0x{:016x}", address(p.group), p.bytes,
                         address(p.source), p.signature);
    }
    case hw::PacketOp::kAwait:
      return "AWAIT group " + address(as<hw::AwaitPacket>(packet).group);
    case hw::PacketOp::kMove: {
      const auto p = as<hw::MovePacket>(packet);
      return fmt::format("MOVE of group {} -> {}, {} bytes from {}", address(p.group), address(p.destination), p.bytes,
                         p.rank == hw::kAllRanks ? "each rank" : fmt::format("rank {}", p.rank));
    }
    case hw::PacketOp::kReduce: {
      const auto p = as<hw::ReducePacket>(packet);
      return fmt::format("REDUCE of group {} -> {}, {} elements", address(p.group), address(p.destination), p.count);
    }
  }
  return fmt::format("operation {} (unknown)", static_cast<unsigned>(packet.header.op));
}

}  // namespace jalapeno::tools
