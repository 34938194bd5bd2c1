// The PCI configuration space of the function: what BIOS, kernel and QEMU see of the chip before its driver does.
// Docs: hardware.md, section 2. Knows no chip: the server acts on what a write asks for.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <jalapeno_hw/registers.hpp>
#include <span>

namespace jalapeno::emu {

class PciConfig {
 public:
  static constexpr uint32_t kBytes = 4096;

  // Bytes of the BARs (powers of two, 4 KiB or more), the last interrupt vector's number plus one, a serial number.
  PciConfig(uint64_t registers, uint64_t doorbells, uint64_t hbm, uint32_t vectors, uint64_t serial);

  // As after power-on and function level reset.
  void reset();
  void read(uint32_t offset, std::span<std::byte> out) const;
  // Only the bits that a function lets software write change. True: software asked for a function level reset.
  [[nodiscard]] bool write(uint32_t offset, std::span<const std::byte> data);
  // May the function read and write host memory?
  bool bus_master() const { return bytes_[hw::pci::kCommand] & hw::pci::kCommandBusMaster; }

 private:
  void put(uint32_t at, uint64_t value, uint32_t bytes, uint64_t writable = 0);

  std::array<uint8_t, kBytes> initial_{}, writable_{}, bytes_{};
};

}  // namespace jalapeno::emu
