// The vfio-user server of one chip: one client at a time, on a connected socket. Trusts nothing it reads:
// sizes and descriptors are checked, what cannot be understood ends the connection, never the process.
#pragma once
#include <jalapeno_hw/vfio_user.hpp>
#include <thread>

#include "chip.hpp"
#include "connection.hpp"
#include "pci_config.hpp"

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
  // Of the same chip, when this serves its physical function: a reset of that one takes them from their owners. Before
  // any of them serves.
  void adopt(Server& virtual_function) { virtual_functions_.push_back(&virtual_function); }

 private:
  bool handle(Connection& connection, Message& message);  // false: end the connection
  void refuse(int client);
  bool access(const hw::vfio_user::RegionAccess& at, std::byte* data, bool write);  // false: not possible
  void reset_function();
  void send_away_others();  // whoever is connected to the virtual functions: after a reset that the owner asked for
  Chip& chip_;
  int listener_ = -1;  // while serving: who else knocks is told that the chip is in use
  int stop_event_, away_event_;
  std::vector<Server*> virtual_functions_;
  PciConfig config_;
};

}  // namespace jalapeno::emu
