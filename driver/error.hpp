// How the driver says that an operation stopped: a code callers can act on, and what was attempted with which numbers.
#pragma once
#include <stdexcept>
#include <string>

namespace jalapeno::driver {

enum class Code {
  kInvalidValue,
  kOutOfHostMemory,
  kOutOfDeviceMemory,
  kNoDevice,
  kNotSupported,
  kVersionMismatch,
  kDeviceLost,
  kTimeout,
  kBusy,
  kOperatingSystem,
};

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& text) : std::runtime_error(text), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

}  // namespace jalapeno::driver
