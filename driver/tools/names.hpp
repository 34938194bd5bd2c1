// The data sheet's names, for people: registers by offset, packets field by field.
#pragma once
#include <cstdint>
#include <jalapeno_hw/packets.hpp>
#include <span>
#include <string>

namespace jalapeno::tools {

struct RegisterName {
  uint32_t offset, bytes;
  const char* name;
};
std::span<const RegisterName> registers();   // by offset, docs/hardware.md section 3
std::string register_name(uint32_t offset);  // "HbmBytes", or "0x7f0" for what the data sheet does not have
// "COPY host 0x100000000 -> 0x200000, 4096 bytes"; its flags and sequence number not included.
std::string describe(const hw::Packet& packet);

}  // namespace jalapeno::tools
