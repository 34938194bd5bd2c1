#include "window.hpp"

#include "error.hpp"
#include "log.hpp"

namespace jalapeno::driver {

Window::Window(Device& device, uint32_t context, const FabricKey& peer)
    : device_(device), number_(device.take_window()) {
  uint32_t state = hw::kWindowOff;
  try {
    state = device_.enable_window(number_, context, peer.address, peer.key);
  } catch (...) {
    device_.give_window(number_);
    throw;
  }
  if (state == hw::kWindowUp) return;
  device_.give_window(number_);
  char address[24];
  std::snprintf(address, sizeof address, "%016llx", static_cast<unsigned long long>(peer.address));
  if (state == hw::kWindowRefused)
    throw Error(Code::kInvalidValue, device.uri() + ": chip " + address + " refuses the fabric key");
  throw Error(Code::kNoDevice, device.uri() + ": no chip " + address + " on its fabric");
}

Window::~Window() {
  try {
    device_.disable_window(number_);
  } catch (const Error& e) {
    driver_log().debug("disabling window {}: {}", number_, e.what());
  }
  device_.give_window(number_);
}

}  // namespace jalapeno::driver
