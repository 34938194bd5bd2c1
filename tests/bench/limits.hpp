// What this machine can do at best: the limits that the rows are compared with. Each function measures once.
#pragma once
#include <cstddef>
#include <memory>
#include <string>

namespace bench {

// Round trip of two threads over shared cache lines, a 64-byte descriptor and a doorbell one way, in ns.
double ping_pong_ns();
// One 64-byte entry and a released index, written into a ring that another thread reads, in ns.
double ring_write_ns();

enum class Peak { kFma, kBf16, kInt8 };  // with the host's best instructions for the type
const char* peak_name(Peak peak);
bool has_peak();  // an x86 host with AVX2
// The instruction that multiplies the type and adds up; a host without it converts first, or takes three.
bool has_dot(Peak peak);
double peak_gops(Peak peak, int threads);

// Memory of the process in huge pages where the system gives them, touched.
class Pages {
 public:
  explicit Pages(size_t bytes);
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages();
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// GB/s of reading 256 MiB in several streams per thread.
double stream_read_gbs(int threads);
// GB/s of memcpy from one half to the other.
double memcpy_gbs(const Pages& pages);

}  // namespace bench
