#include "peers.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bench {

Peers* peers() {
#ifdef BENCH_PEER_LIBRARY
  static Peers* const found = [] {
    // Idle workers must not spin while others are measured, and OpenBLAS chooses its own core type.
    setenv("GOMP_SPINCOUNT", "20000", 1);
    setenv("OPENBLAS_THREAD_TIMEOUT", "14", 1);
    unsetenv("OPENBLAS_CORETYPE");
    void* library = dlopen(BENCH_PEER_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<Peers* (*)()>(dlsym(library, "bench_peers"))();
  }();
  return found;
#else
  return nullptr;
#endif
}

}  // namespace bench
