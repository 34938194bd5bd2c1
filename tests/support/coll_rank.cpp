// A rank for the tests of several processes: joins through the launcher and reduces, checking every result, until its
// time is over or a rank fails. Then, with "shrink", it goes on with the survivors. With "operations" its number says
// how many random ones to run instead. Says what happened in JSON lines.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <jalapeno/jalapeno.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/coll_operations.hpp"

using namespace jalapeno;
using Clock = std::chrono::steady_clock;

namespace {

void say(const nlohmann::json& j) {
  const std::string text = j.dump() + "\n";
  (void)!write(1, text.data(), text.size());  // whole lines, also when killed behind it
}

struct Outcome {
  uint64_t operations = 0, wrong = 0;
  jalError_t error = jalSuccess;
  std::string detail;
  uint64_t failed_ns = 0;  // CLOCK_REALTIME
};

uint64_t unix_ns() {
  timespec t{};
  clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

Outcome work(const Communicator& comm, const Device& device, const Stream& stream, double seconds) {
  Outcome out;
  const int n = comm.ranks(), rank = comm.rank();
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  // The sizes take turns, so that every algorithm is met at every moment.
  constexpr size_t kMost = 200'000;
  Buffer<float> in(device, kMost), result(device, kMost);
  std::vector<float> host(kMost);
  try {
    for (uint64_t turn = 0;; ++turn) {
      // Rank 0's clock decides for all: the number of turns must be the same everywhere.
      const size_t count = turn % 3 == 0 ? 2 : turn % 3 == 1 ? 3000 : kMost;
      float go = rank == 0 && Clock::now() > end ? 1.f : 0.f;
      for (size_t i = 0; i < count; ++i) host[i] = static_cast<float>((turn + i + static_cast<size_t>(rank)) % 100);
      host[0] = go;
      check(jalMemcpy(in.data(), host.data(), count * 4));
      comm.all_reduce(in.data(), result.data(), count, jalSum, stream);
      stream.synchronize();
      check(jalMemcpy(host.data(), result.data(), count * 4));
      for (size_t i = 1; i < count; ++i) {
        float expected = 0;
        for (int r = 0; r < n; ++r) expected += static_cast<float>((turn + i + static_cast<size_t>(r)) % 100);
        out.wrong += host[i] != expected;
      }
      ++out.operations;
      if (host[0] > 0) break;
    }
  } catch (const Error& e) {
    out.failed_ns = unix_ns();
    out.error = e.code(), out.detail = e.what();
    // The stream says what ended it; the communicator says why.
    if (const jalError_t c = comm.error(); c != jalSuccess) out.error = c;
  }
  return out;
}

nlohmann::json told(const char* what, const Outcome& o, const Communicator& comm) {
  nlohmann::json j{{"what", what},
                   {"rank", comm.rank()},
                   {"ranks", comm.ranks()},
                   {"pid", getpid()},
                   {"operations", o.operations},
                   {"wrong", o.wrong},
                   {"error", jalGetErrorName(o.error)},
                   {"detail", o.detail},
                   {"failed_ns", o.failed_ns}};
  jalCommErrorRecord r{};
  r.struct_size = sizeof r;
  if (jalCommGetErrorRecord(comm.get(), &r) == jalSuccess)
    j["culprit"] = r.rank, j["culprit_pid"] = r.pid, j["evidence"] = r.evidence, j["noticed_ns"] = r.unix_ns;
  return j;
}

}  // namespace

int main(int argc, char** argv) try {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 1;
  const std::string mode = argc > 2 ? argv[2] : "";
  const bool shrink = mode == "shrink";
  Device device("emu:?hbm=256M&aperture=64M&threads=1");
  Stream stream(device);
  auto comm = Communicator::from_launcher(device);
  const jalCommInfo info = comm.info();
  char algorithm[32];
  check(jalCommGetAlgorithm(comm.get(), "all_reduce", 100'000, algorithm, sizeof algorithm));
  say({{"what", "joined"},
       {"rank", info.rank},
       {"ranks", info.ranks},
       {"pid", getpid()},
       {"launcher", info.launcher},
       {"hosts", info.hosts},
       {"transport", info.transport},
       {"algorithm", algorithm}});
  Outcome o;
  if (mode == "operations") {
    const auto done = jalapeno::test::Operations(comm, device, stream).run(static_cast<int>(seconds));
    o.operations = done.operations, o.wrong = done.wrong;
  } else {
    o = work(comm, device, stream, seconds);
  }
  say(told("done", o, comm));
  while (shrink && o.error != jalSuccess && o.error != jalErrorCommAborted) {
    stream.reset();
    Communicator next = comm.shrink();
    comm = std::move(next);
    o = work(comm, device, stream, 0.3);
    say(told("shrunk", o, comm));
  }
  if (o.error == jalSuccess) comm.finalize();
  return o.wrong != 0 ? 3 : o.error != jalSuccess ? 1 : 0;
} catch (const std::exception& e) {
  say({{"what", "refused"}, {"detail", e.what()}});
  return 2;
}
