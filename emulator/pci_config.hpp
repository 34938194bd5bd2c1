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

  struct Bars {
    uint64_t registers, doorbells, hbm;  // bytes: powers of two, 4 KiB or more
  };
  // Of the function with this number of so many that share the chip: 0 is the physical one, and all have equal BARs.
  PciConfig(const Bars& bars, uint32_t vectors, uint64_t serial, uint32_t function = 0, uint32_t functions = 1);

  // As after power-on and function level reset.
  void reset();
  void read(uint32_t offset, std::span<std::byte> out) const;
  // Only the bits that a function lets software write change. True: software asked for a function level reset.
  [[nodiscard]] bool write(uint32_t offset, std::span<const std::byte> data);
  // May the function read and write host memory?
  bool bus_master() const { return bytes_[hw::pci::kCommand] & hw::pci::kCommandBusMaster; }

 private:
  void put_bars(uint32_t at, const Bars& bars);
  void put(uint32_t at, uint64_t value, uint32_t bytes, uint64_t writable = 0);

  std::array<uint8_t, kBytes> initial_{}, writable_{}, bytes_{};
};

}  // namespace jalapeno::emu
