// The vfio-user server of one chip: one client at a time, on a connected socket. Trusts nothing it reads:
// sizes and descriptors are checked, what cannot be understood ends the connection, never the process.
#pragma once
#include <atomic>
#include <thread>

#include "chip.hpp"

namespace jalapeno::emu {

class Server {
 public:
  explicit Server(Chip& chip);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Serves until the client leaves or stop() is called; then the chip is reset. Takes the descriptor.
  void serve(int socket);
  // Accepts clients one after another until stop() is called. Takes the listening descriptor.
  void serve_listener(int listener);
  void stop();

 private:
  struct Message;
  bool handle(int socket, Message& message);  // false: end the connection
  void refuse(int client);
  Chip& chip_;
  int listener_ = -1;  // while serving: who else knocks is told that the chip is in use
  int stop_event_;
  uint8_t config_[256];  // PCI configuration space, the first 256 of 4096 bytes
  void reset_config();
};

}  // namespace jalapeno::emu
