// A rank dies in the middle of the work. The others are told which one, and why they know, and go on without it.
// Three processes: this one and two children that it starts, as a launcher would.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <jalapeno/jalapeno.hpp>
#include <string>

namespace {

int work() {
  const jalapeno::Device device("emu:?hbm=64M&threads=1");
  const jalapeno::Stream stream(device);
  const auto comm = jalapeno::Communicator::from_launcher(device);
  const float one = 1;
  const jalapeno::Buffer<float> x(device, std::span<const float>(&one, 1)), sum(device, 1);
  try {
    for (int step = 0;; ++step) {
      if (comm.rank() == 1 && step == 100) _exit(9);  // as if killed: no goodbye
      comm.all_reduce(x.data(), sum.data(), 1, jalSum, stream);
      stream.synchronize();
    }
  } catch (const jalapeno::Error& e) {
    if (e.code() != jalErrorPeerLost) throw;
    const jalCommErrorRecord r = comm.error_record();
    std::printf("rank %d: lost rank %d (pid %d on %s) during %s\n", comm.rank(), r.rank, r.pid, r.host, r.operation);
  }
  stream.reset();                   // the stream is well again
  const auto left = comm.shrink();  // asks nothing of the dead
  left.all_reduce(x.data(), sum.data(), 1, jalSum, stream);
  stream.synchronize();
  const float got = sum.to_host()[0];
  std::printf("rank %d goes on as rank %d of %d: sum %g\n", comm.rank(), left.rank(), left.ranks(),
              static_cast<double>(got));
  left.finalize();
  return got == 2 ? 0 : 1;
}

}  // namespace

int main(int, char** argv) try {
  if (std::getenv("RANK") != nullptr) return work();
  for (const char* launcher : {"PMI_RANK", "PMI_FD", "PMIX_NAMESPACE", "SLURM_PROCID"})
    if (std::getenv(launcher) != nullptr) {
      std::printf("this program starts its three ranks itself; run it without a launcher (%s is set)\n", launcher);
      return 2;
    }
  setenv("WORLD_SIZE", "3", 1), setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", std::to_string(20000 + getpid() % 20000).c_str(), 1);
  pid_t children[3];
  for (int r = 0; r < 3; ++r) {
    children[r] = fork();
    if (children[r] == 0) {
      setenv("RANK", std::to_string(r).c_str(), 1);
      execv("/proc/self/exe", argv);
      _exit(127);
    }
  }
  bool good = true;
  for (int r = 0; r < 3; ++r) {
    int status = 0;
    waitpid(children[r], &status, 0);
    good &= WIFEXITED(status) && WEXITSTATUS(status) == (r == 1 ? 9 : 0);
  }
  return good ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
