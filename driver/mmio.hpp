// The only volatile accesses of the driver: registers of a mapped BAR, naturally aligned, in program order.
#pragma once
#include <cstddef>
#include <cstdint>

namespace jalapeno::driver {

template <class T>
T mmio_read(const std::byte* bar, uint32_t offset) {
  return *reinterpret_cast<const volatile T*>(bar + offset);
}
template <class T>
void mmio_write(std::byte* bar, uint32_t offset, T value) {
  *reinterpret_cast<volatile T*>(bar + offset) = value;
}

}  // namespace jalapeno::driver
