#include "pci_config.hpp"

#include <algorithm>

namespace jalapeno::emu {

namespace pci = hw::pci;

void PciConfig::put(uint32_t at, uint64_t value, uint32_t bytes, uint64_t writable) {
  for (uint32_t k = 0; k < bytes; ++k) {
    initial_[at + k] = static_cast<uint8_t>(value >> 8 * k);
    writable_[at + k] = static_cast<uint8_t>(writable >> 8 * k);
  }
}

// 64-bit memory; doorbells and HBM may be prefetched and merged. Size: the lowest address bit that can be written.
void PciConfig::put_bars(uint32_t at, const Bars& bars) {
  put(at, 0x4, 8, ~(bars.registers - 1));
  put(at + 8, 0x4 | 0x8, 8, ~(bars.doorbells - 1));
  put(at + 16, 0x4 | 0x8, 8, ~(bars.hbm - 1));
}

PciConfig::PciConfig(const Bars& bars, uint32_t vectors, uint64_t serial, uint32_t function, uint32_t functions) {
  put(0x00, hw::kPciVendorId, 2);
  put(0x02, function == 0 ? hw::kPciDeviceId : hw::kPciVirtualDeviceId, 2);
  put(pci::kCommand, 0, 2, pci::kCommandMemory | pci::kCommandBusMaster | 0x0540);  // and parity, SERR#, no INTx
  put(0x06, 0x0010, 2);                                                             // has a capability list
  put(0x08, hw::kPciClass << 8 | 1, 4);                                             // revision 1
  put(0x0C, 0, 1, 0xFF);                                                            // cache line size
  put_bars(0x10, bars);
  put(0x2C, hw::kPciVendorId, 2);
  put(0x2E, 1, 2);
  put(pci::kCapabilities, pci::kPowerCap, 1);
  put(0x3C, 0, 1, 0xFF);

  put(pci::kPowerCap, pci::kPowerId | pci::kMsixCap << 8, 2);
  put(pci::kPowerCap + 2, 3, 2);       // version 1.2; D0 and D3hot only
  put(pci::kPowerCap + 4, 8, 2, 0x3);  // no soft reset

  put(pci::kMsixCap, pci::kMsixId | pci::kExpressCap << 8, 2);
  put(pci::kMsixCap + 2, vectors - 1, 2, 0xC000);
  put(pci::kMsixCap + 4, hw::kMsixTableOffset | hw::kBarRegisters, 4);
  put(pci::kMsixCap + 8, hw::kMsixPendingOffset | hw::kBarRegisters, 4);

  const uint32_t link = pci::kAssumedLinkSpeed | pci::kAssumedLinkWidth << 4;
  put(pci::kExpressCap, pci::kExpressId, 2);
  put(pci::kExpressCap + 2, 2, 2);                        // version 2, endpoint
  put(pci::kExpressCap + 4, 1u << 28 | 1u << 15 | 1, 4);  // function level reset, role-based errors, payload 256
  put(pci::kExpressCap + pci::kDeviceControl, 0x2810, 2, 0x7FFF);  // the reset bit reads 0
  put(pci::kExpressCap + 12, link, 4);
  put(pci::kExpressCap + 16, 0, 2, 0x00C3);
  put(pci::kExpressCap + pci::kLinkStatus, link, 2);
  put(pci::kExpressCap + 36, 0x1F, 4);  // completion timeout ranges A to D, may be disabled
  put(pci::kExpressCap + 40, 0, 2, 0x1F);
  put(pci::kExpressCap + 44, 0x3E, 4);  // 2.5 to 32 GT/s
  put(pci::kExpressCap + 48, pci::kAssumedLinkSpeed, 2, 0xF);

  const bool shares = function == 0 && functions > 1;
  put(pci::kSerialCap, 0x0001'0003 | (shares ? pci::kSriovCap << 20 : 0), 4);
  put(pci::kSerialCap + 4, serial, 8);
  if (shares) {  // whoever owns the slot has enabled them before anybody looks: a driver reads how many there are
    const uint32_t at = pci::kSriovCap, virtual_functions = functions - 1;
    put(at, 0x0001'0000 | pci::kSriovId, 4);
    put(at + 0x08, 0x9, 2);  // enabled, their memory too
    put(at + 0x0C, virtual_functions, 2);
    put(at + 0x0E, virtual_functions, 2);
    put(at + 0x10, virtual_functions, 2);
    put(at + 0x14, 1, 2), put(at + 0x16, 1, 2);  // the first one's routing ID, and from one to the next
    put(at + 0x1A, hw::kPciVirtualDeviceId, 2);
    put(at + 0x1C, 0x553, 4);
    put(at + 0x20, 1, 4, 0x553);
    put_bars(at + 0x24, bars);
  }
  reset();
}

void PciConfig::reset() { bytes_ = initial_; }

void PciConfig::read(uint32_t offset, std::span<std::byte> out) const {
  for (size_t k = 0; k < out.size(); ++k) out[k] = std::byte{offset + k < kBytes ? bytes_[offset + k] : uint8_t{0xFF}};
}

bool PciConfig::write(uint32_t offset, std::span<const std::byte> data) {
  bool reset = false;
  for (size_t k = 0; k < data.size() && offset + k < kBytes; ++k) {
    const size_t at = offset + k;
    const auto value = std::to_integer<uint8_t>(data[k]);
    bytes_[at] = static_cast<uint8_t>((bytes_[at] & ~writable_[at]) | (value & writable_[at]));
    reset |= at == pci::kExpressCap + pci::kDeviceControl + 1 && (value & pci::kDeviceControlReset >> 8) != 0;
  }
  return reset;
}

}  // namespace jalapeno::emu
