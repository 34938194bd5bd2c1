// The vfio-user client: a device behind a UNIX socket.
#pragma once
#include <jalapeno_hw/vfio_user.hpp>
#include <mutex>
#include <vector>

#include "transport.hpp"

namespace jalapeno::driver {

class VfioUserTransport final : public Transport {
 public:
  // Takes the connected socket; `name` is what messages call the device. Throws Error.
  VfioUserTransport(int socket, std::string name, std::shared_ptr<void> keep = nullptr);
  ~VfioUserTransport() override;
  // Connects to a listening socket. Throws Error(kNoDevice) when nobody listens there.
  static std::unique_ptr<Transport> connect(const std::string& path);

  uint32_t read32(uint32_t offset) override;
  uint64_t read64(uint32_t offset) override;
  void write32(uint32_t offset, uint32_t value) override;
  void write64(uint32_t offset, uint64_t value) override;
  void post32(uint32_t offset, uint32_t value) noexcept override;
  std::span<std::byte> map_bar(uint32_t bar) override;
  void map_dma(const HostMemory& memory, hw::Iova iova, bool device_writes) override;
  void unmap_dma(hw::Iova iova, uint64_t bytes) noexcept override;
  void set_interrupt(uint32_t vector, int eventfd) override;
  void reset() override;
  int liveness_fd() const override { return liveness_; }
  std::string gone() override;
  void revoke() noexcept override {}  // nobody waits for the device to be let go
  std::string describe() const override { return name_; }

 private:
  // Sends a command and waits for its reply, at most kReplyTimeout. Returns the reply's payload; a descriptor
  // that came with it goes to *reply_fd. Throws Error.
  std::vector<std::byte> request(hw::vfio_user::Command command, const void* payload, size_t bytes, int fd = -1,
                                 int* reply_fd = nullptr, uint32_t flags = 0);
  void transmit(const hw::vfio_user::Header& header, const void* payload, size_t bytes, int fd, int64_t deadline);
  void receive(void* out, size_t bytes, int* fd, int64_t deadline);
  void region_access(bool write, uint32_t region, uint32_t offset, void* data, uint32_t bytes);
  void set_command();  // memory accesses and bus mastering on
  [[noreturn]] void lost(const std::string& what);

  std::shared_ptr<void> keep_;  // an embedded emulator: ends after the socket is closed
  int socket_, liveness_ = -1;
  std::string name_;
  std::mutex mutex_;
  uint16_t next_id_ = 1;
  bool broken_ = false;  // a reply was given up on: the stream of messages can no longer be trusted
  std::vector<std::span<std::byte>> bars_;
};

}  // namespace jalapeno::driver
