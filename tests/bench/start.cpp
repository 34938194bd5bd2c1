// From the start of a process to the end of its first launch, with the emulator in the process.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jalapeno/jalapeno.hpp>
#include <jalapeno/tile.hpp>
#include <stdexcept>

#include "bench.hpp"

extern char** environ;

namespace bench {
namespace {

// Milliseconds until the program says a byte.
double first_byte_ms(std::vector<std::string> words) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  posix_spawn_file_actions_addclose(&actions, ends[1]);
  const auto begin = Clock::now();
  pid_t child = 0;
  const int error = posix_spawn(&child, argv[0], &actions, nullptr, argv.data(), environ);
  close(ends[1]);
  posix_spawn_file_actions_destroy(&actions);
  char byte = 0;
  const bool said = error == 0 && read(ends[0], &byte, 1) == 1;
  const double ms = seconds_since(begin) * 1e3;
  close(ends[0]);
  if (error == 0) waitpid(child, nullptr, 0);
  if (!said) throw std::runtime_error(words[0] + " did not start");
  return ms;
}

Row start(const Options& options) {
  const auto m = interleave(options, {[] { return first_byte_ms({"/bin/echo"}); },
                                      [] {
                                        return first_byte_ms({"/proc/self/exe", "--start-probe"});
                                      }});
  return {"",
          "process start to first launch done",
          *m[1],
          "ms",
          Reference{"start of /bin/echo", *m[0]},
          {},
          "<= 30 ms",
          m[1]->median <= 30};
}

}  // namespace

int start_probe() {
  const jalapeno::Device device("emu:");
  const jalapeno::Stream stream(device);
  jalapeno::tile::Builder k("nothing");
  const jalapeno::Module module(device, jalapeno::tile::write_module({k.finish()}));
  jalapeno::launch(stream, {1}, module.kernel("nothing"));
  stream.synchronize();
  return write(1, "\n", 1) == 1 ? 0 : 1;
}

std::vector<Case> start_cases(const Options&) { return {{"start", "process start to first launch done", start}}; }

}  // namespace bench
