// The runtime's exception and the one boundary where it becomes a status. Owns the calling thread's error text.
#pragma once
#include <jalapeno/jalapeno.h>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_hw/types.hpp>
#include <new>
#include <stdexcept>
#include <string>

namespace jalapeno::runtime {

// Is it one of jalError_t? For what other processes send.
bool is_error(uint64_t code);

class Error : public std::runtime_error {
 public:
  Error(jalError_t code, const std::string& text) : std::runtime_error(text), code_(code) {}
  jalError_t code() const { return code_; }

 private:
  jalError_t code_;
};

[[noreturn]] inline void fail(jalError_t code, const std::string& text) { throw Error(code, text); }
[[noreturn]] inline void invalid(const std::string& text) { throw Error(jalErrorInvalidValue, text); }

jalError_t code_of(driver::Code code);
jalError_t code_of(hw::Status status);
void set_error_detail(const char* text) noexcept;
bool forked() noexcept;
void mark_used() noexcept;  // from now on a forked child is refused

template <class F>
jalError_t guard(F&& body) noexcept {
  try {
    if (forked())
      throw Error(jalErrorForkedChild,
                  "the process forked after it used libjalapeno; open devices in the child only after exec");
    body();
    return jalSuccess;
  } catch (const Error& e) {
    if (e.code() != jalErrorNotReady) set_error_detail(e.what());
    return e.code();
  } catch (const driver::Error& e) {
    set_error_detail(e.what());
    return code_of(e.code());
  } catch (const std::bad_alloc&) {
    set_error_detail("out of host memory");
    return jalErrorOutOfHostMemory;
  } catch (const std::exception& e) {
    set_error_detail(e.what());
    return jalErrorInvalidValue;
  } catch (...) {
    set_error_detail("unknown exception");
    return jalErrorUnknown;
  }
}

template <class T>
T& required(T* pointer, const char* name) {
  if (pointer == nullptr) invalid(std::string(name) + " is NULL");
  return *pointer;
}

// Option and result structs start with struct_size; they grow at the end only.
template <class T>
void check_struct(const T& s, const char* name) {
  if (s.struct_size != sizeof(T))
    invalid(std::string(name) + ".struct_size is " + std::to_string(s.struct_size) +
            ", expected sizeof = " + std::to_string(sizeof(T)));
}

template <size_t N>
void copy_text(char (&out)[N], const std::string& text) {
  const size_t n = std::min(N - 1, text.size());
  text.copy(out, n);
  out[n] = 0;
}

}  // namespace jalapeno::runtime
