// What a PCIe slot carries: BAR access, DMA mapping, interrupts, reset. One class for each way to reach a device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <jalapeno_hw/types.hpp>
#include <memory>
#include <span>
#include <string>

namespace jalapeno::driver {

class Transport {
 public:
  virtual ~Transport() = default;

  // Registers: 4- or 8-byte accesses, in program order. Thread-safe. Throw Error(kDeviceLost or kTimeout).
  virtual uint32_t read32(uint32_t offset) = 0;
  virtual uint64_t read64(uint32_t offset) = 0;
  virtual void write32(uint32_t offset, uint32_t value) = 0;
  virtual void write64(uint32_t offset, uint64_t value) = 0;
  // Posted: returns before the device has seen it, never waits, loses nothing it could report later.
  virtual void post32(uint32_t offset, uint32_t value) noexcept = 0;

  // A mappable BAR; the mapping lives as long as the transport and stays readable when the device is gone.
  virtual std::span<std::byte> map_bar(uint32_t bar) = 0;

  // Host memory to be reached by the device: `bytes` at `data`, which are the file's from its begin. Page-aligned.
  struct HostMemory {
    std::byte* data;
    int fd;
    uint64_t bytes;
  };
  virtual void map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) = 0;
  virtual void unmap_dma(hw::Iova iova, uint64_t bytes) noexcept = 0;

  virtual void set_interrupt(uint32_t vector, int eventfd) = 0;  // the descriptor stays the caller's
  // Function level reset. DMA mappings and interrupts stay.
  virtual void reset() = 0;

  // Readable when something happened to the device itself. gone() says what, "" when it is still there; it never waits.
  virtual int liveness_fd() const = 0;
  virtual std::string gone() = 0;
  // Gives the device up: no register access and no DMA from now on, mapped BARs become plain memory. Idempotent.
  virtual void revoke() noexcept = 0;
  virtual std::string describe() const = 0;
};

// The URI kinds: "vfio:0000:3b:00.0", "emu:/path/to.sock". "emu:" and "emu:?key=value&..." start an emulator inside
// this process through the launcher below. Throws Error.
// The URI by which any process would name the device: paths are absolute.
std::string full_uri(const std::string& uri);
std::unique_ptr<Transport> open_transport(const std::string& uri);

// An emulator inside this process: a connected socket, and what keeps it running. Destroying `keep` after the
// socket is closed returns when the emulator's threads have ended.
struct Embedded {
  int socket = -1;
  std::shared_ptr<void> keep;
};
// Set once by the one file that knows both sides. `options` is the text behind the question mark.
using EmbeddedLauncher = Embedded (*)(const std::string& options);
void set_embedded_launcher(EmbeddedLauncher launcher);

}  // namespace jalapeno::driver
