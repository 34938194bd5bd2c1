// A window of a context into a context of another chip: its device addresses appear behind base(). Owns the window.
#pragma once
#include <jalapeno_hw/types.hpp>

#include "device.hpp"

namespace jalapeno::driver {

// What another chip must know to open a window to this context. Whoever has it may read and write all its memory.
struct FabricKey {
  uint64_t address, key;
};

class Window {
 public:
  // Throws Error(kNoDevice) when no such chip is on the fabric, Error(kInvalidValue) when the key is refused.
  Window(Device& device, uint32_t context, const FabricKey& peer);
  ~Window();
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  hw::DeviceAddr base() const { return hw::window_base(number_); }

 private:
  Device& device_;
  uint32_t number_;
};

}  // namespace jalapeno::driver
