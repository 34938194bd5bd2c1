#include "error.hpp"

#include <pthread.h>

#include <atomic>
#include <cstring>

namespace jalapeno::runtime {
namespace {

std::atomic<bool> in_forked_child{false};
thread_local char error_detail[1024] = "";

struct Entry {
  jalError_t code;
  const char *name, *text;
};
constexpr Entry kErrors[] = {
    {jalSuccess, "jalSuccess", "no error"},
    {jalErrorInvalidValue, "jalErrorInvalidValue", "an argument is out of range or impossible"},
    {jalErrorOutOfMemory, "jalErrorOutOfMemory", "not enough device memory"},
    {jalErrorNoDevice, "jalErrorNoDevice", "no such device"},
    {jalErrorInvalidDevice, "jalErrorInvalidDevice", "the objects belong to different devices"},
    {jalErrorInvalidImage, "jalErrorInvalidImage",
     "the module is damaged, of another version, or breaks a rule of the instruction set"},
    {jalErrorEccUncorrectable, "jalErrorEccUncorrectable", "memory returned data that could not be corrected"},
    {jalErrorOperatingSystem, "jalErrorOperatingSystem", "the operating system refused a call"},
    {jalErrorInvalidHandle, "jalErrorInvalidHandle", "the handle is null, freed or of another kind"},
    {jalErrorIllegalState, "jalErrorIllegalState", "the object is not in a state for this call"},
    {jalErrorNotFound, "jalErrorNotFound", "nothing by that name"},
    {jalErrorNotReady, "jalErrorNotReady", "work is still running"},
    {jalErrorIllegalAddress, "jalErrorIllegalAddress", "the device accessed memory that is not mapped for it"},
    {jalErrorLaunchTimeout, "jalErrorLaunchTimeout", "the watchdog ended a kernel that made no progress"},
    {jalErrorAssert, "jalErrorAssert", "the kernel stopped itself with TRAP"},
    {jalErrorIllegalInstruction, "jalErrorIllegalInstruction",
     "the kernel contains an instruction the device does not know"},
    {jalErrorMisalignedAddress, "jalErrorMisalignedAddress", "a pointer is not aligned as its use requires"},
    {jalErrorLaunchFailure, "jalErrorLaunchFailure", "the device could not run the packet"},
    {jalErrorNotSupported, "jalErrorNotSupported", "not supported by this version or device"},
    {jalErrorStreamCaptureUnsupported, "jalErrorStreamCaptureUnsupported", "the call cannot be captured"},
    {jalErrorStreamCaptureInvalidated, "jalErrorStreamCaptureInvalidated",
     "the capture contains a call that cannot be captured"},
    {jalErrorUnknown, "jalErrorUnknown", "unknown error"},
    {jalErrorOutOfHostMemory, "jalErrorOutOfHostMemory", "not enough host memory"},
    {jalErrorDeviceLost, "jalErrorDeviceLost", "the device is gone; close it and open it again"},
    {jalErrorWaitTimeout, "jalErrorWaitTimeout", "the wait's time is over; the work goes on"},
    {jalErrorDependencyFailed, "jalErrorDependencyFailed", "what the operation depended on failed"},
    {jalErrorVersionMismatch, "jalErrorVersionMismatch", "library and device speak different versions"},
    {jalErrorForkedChild, "jalErrorForkedChild", "called in a child forked after the library was used"},
    {jalErrorBusy, "jalErrorBusy", "the device or resource is in use"},
    {jalErrorDivideByZero, "jalErrorDivideByZero", "the kernel divided an integer by zero"},
    {jalErrorSemaphoreLeak, "jalErrorSemaphoreLeak", "the kernel ended with a semaphore that is not zero"},
    {jalErrorDeadlock, "jalErrorDeadlock", "the kernel waits for a signal that can never come"},
    {jalErrorTileFault, "jalErrorTileFault", "a tile leaves its memory, or shapes and types do not fit the operation"},
    {jalErrorRace, "jalErrorRace", "checked level: two engines touch the same bytes without an order"},
    {jalErrorUninitialized, "jalErrorUninitialized", "checked level: the kernel reads scratchpad bytes it never wrote"},
    {jalErrorOutOfBounds, "jalErrorOutOfBounds", "checked level: a DMA box lies wholly outside its tensor"},
    {jalErrorPeerLost, "jalErrorPeerLost", "a rank of the communicator is gone"},
    {jalErrorCollectiveMismatch, "jalErrorCollectiveMismatch", "the ranks called for different operations"},
    {jalErrorCommAborted, "jalErrorCommAborted", "the communicator was aborted"},
    {jalErrorCollectiveTimeout, "jalErrorCollectiveTimeout", "a rank did not come within the deadline"},
    {jalErrorLinkDown, "jalErrorLinkDown", "no fabric link is up"},
};

const Entry* find(uint64_t code) {
  for (const Entry& e : kErrors)
    if (static_cast<uint64_t>(e.code) == code) return &e;
  return nullptr;
}

const bool kForkHandler = [] {
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  return true;
}();
std::atomic<bool> used{false};

}  // namespace

// A child that was forked before the parent used the library starts clean.
bool forked() noexcept {
  if (in_forked_child.load(std::memory_order_relaxed)) {
    if (used.load(std::memory_order_relaxed)) return true;
    in_forked_child.store(false, std::memory_order_relaxed);
  }
  return (void)kForkHandler, false;
}

void mark_used() noexcept { used.store(true, std::memory_order_relaxed); }

void set_error_detail(const char* text) noexcept {
  std::strncpy(error_detail, text, sizeof error_detail - 1);
  error_detail[sizeof error_detail - 1] = 0;
}

jalError_t code_of(driver::Code code) {
  switch (code) {
    case driver::Code::kInvalidValue:
      return jalErrorInvalidValue;
    case driver::Code::kOutOfHostMemory:
      return jalErrorOutOfHostMemory;
    case driver::Code::kOutOfDeviceMemory:
      return jalErrorOutOfMemory;
    case driver::Code::kNoDevice:
      return jalErrorNoDevice;
    case driver::Code::kNotSupported:
      return jalErrorNotSupported;
    case driver::Code::kVersionMismatch:
      return jalErrorVersionMismatch;
    case driver::Code::kDeviceLost:
      return jalErrorDeviceLost;
    case driver::Code::kTimeout:
      return jalErrorWaitTimeout;
    case driver::Code::kBusy:
      return jalErrorBusy;
    case driver::Code::kOperatingSystem:
      return jalErrorOperatingSystem;
  }
  return jalErrorUnknown;
}

jalError_t code_of(hw::Status status) {
  switch (status) {
    case hw::Status::kOk:
      return jalSuccess;
    case hw::Status::kAddressFault:
    case hw::Status::kDmaFault:
      return jalErrorIllegalAddress;
    case hw::Status::kIllegalInstruction:
      return jalErrorIllegalInstruction;
    case hw::Status::kDivideByZero:
      return jalErrorDivideByZero;
    case hw::Status::kSemaphoreLeak:
      return jalErrorSemaphoreLeak;
    case hw::Status::kDeadlock:
      return jalErrorDeadlock;
    case hw::Status::kWatchdog:
      return jalErrorLaunchTimeout;
    case hw::Status::kTrap:
      return jalErrorAssert;
    case hw::Status::kTileFault:
      return jalErrorTileFault;
    case hw::Status::kBadPacket:
      return jalErrorLaunchFailure;
    case hw::Status::kDependencyFailed:
    case hw::Status::kDiscarded:
      return jalErrorDependencyFailed;
    case hw::Status::kEccUncorrectable:
      return jalErrorEccUncorrectable;
    case hw::Status::kRace:
      return jalErrorRace;
    case hw::Status::kUninitialized:
      return jalErrorUninitialized;
    case hw::Status::kOutOfBounds:
      return jalErrorOutOfBounds;
    case hw::Status::kPeerLost:
      return jalErrorPeerLost;
    case hw::Status::kMismatch:
      return jalErrorCollectiveMismatch;
    case hw::Status::kAborted:
      return jalErrorCommAborted;
    case hw::Status::kNoAnswer:
      return jalErrorCollectiveTimeout;
    case hw::Status::kLinkDown:
      return jalErrorLinkDown;
  }
  return jalErrorUnknown;
}

bool is_error(uint64_t code) { return find(code) != nullptr; }

}  // namespace jalapeno::runtime

using namespace jalapeno::runtime;

int jalGetVersion(void) { return JAL_VERSION_MAJOR * 10000 + JAL_VERSION_MINOR * 100 + JAL_VERSION_PATCH; }
const char* jalGetErrorName(jalError_t error) {
  const Entry* e = find(error);
  return e != nullptr ? e->name : "jalErrorUnrecognized";
}
const char* jalGetErrorString(jalError_t error) {
  const Entry* e = find(error);
  return e != nullptr ? e->text : "not an error code of this library";
}
const char* jalGetLastErrorDetail(void) { return error_detail; }
