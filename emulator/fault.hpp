// How an operation of the chip fails: thrown by value inside the emulator, written to the queue's fault record.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <jalapeno_hw/packets.hpp>

namespace jalapeno::emu {

struct Fault {
  hw::FaultRecord record{};

  __attribute__((format(printf, 3, 4))) Fault(hw::Status status, const char* format, ...) {
    record.status = static_cast<uint32_t>(status);
    record.instruction = record.other = record.block = hw::kNoInstruction;
    record.tile = 0xFF;
    va_list list;
    va_start(list, format);
    std::vsnprintf(record.detail, sizeof record.detail, format, list);
    va_end(list);
  }
  Fault&& at(uint64_t address, uint64_t bytes, hw::Access access) && {
    record.address = address, record.bytes = bytes, record.access = access;
    return static_cast<Fault&&>(*this);
  }
  Fault&& value(uint64_t v) && {
    record.value = v;
    return static_cast<Fault&&>(*this);
  }
  Fault&& tile(uint32_t t) && {
    record.tile = t;
    return static_cast<Fault&&>(*this);
  }
};

}  // namespace jalapeno::emu
