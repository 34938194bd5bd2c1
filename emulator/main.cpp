// jalapeno-emulator: the chip in a process of its own, one socket a chip.
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "server.hpp"

namespace {

using namespace jalapeno::emu;

// Binds PATH; a stale socket is replaced only while holding the lock beside it, so that two servers never share one.
int listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    throw std::runtime_error("--socket " + path + ": longer than " + std::to_string(sizeof address.sun_path - 1) +
                             " characters");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int lock = open((path + ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (lock < 0) throw std::runtime_error("--socket " + path + ": " + std::strerror(errno));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0)
    throw std::runtime_error("--socket " + path + ": another emulator serves it");
  struct stat there {};
  if (lstat(path.c_str(), &there) == 0 && !S_ISSOCK(there.st_mode))
    throw std::runtime_error("--socket " + path + ": is there already and is no socket");
  unlink(path.c_str());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const mode_t old = umask(0177);
  const bool bound =
      fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && listen(fd, 4) == 0;
  umask(old);
  if (!bound) throw std::runtime_error("--socket " + path + ": " + std::strerror(errno));
  return fd;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{
      "The Jalapeno chip as a process: serves vfio-user on a UNIX socket per chip.\n"
      "With --chips N > 1 the sockets are PATH.0 .. PATH.N-1; with --vfs N each chip's virtual functions are at its "
      "socket's name and .vf1 .. .vfN. Ends on SIGTERM, SIGINT or when its parent asked with "
      "--until-eof closes standard input."};
  std::string socket_path, hbm, aperture, check;
  EmulatorOptions options;
  uint32_t chips = 1, virtual_functions = 0;
  bool until_eof = false;
  app.add_option("--socket", socket_path, "where to listen")->required();
  app.add_option("--chips", chips, "how many chips")->check(CLI::Range(1, 64));
  app.add_option("--vfs", virtual_functions,
                 "virtual functions of each chip; they and the physical one have equal shares of cores and HBM")
      ->check(CLI::Range(0, 7));
  app.add_option("--config", options.config_file, "chip configuration, JSON (default: the built-in assumed chip)");
  app.add_option("--hbm", hbm, "HBM to emulate, as in 8G; mapped on demand");
  app.add_option("--aperture", aperture, "of it that the host sees through a BAR, at most (2G)");
  app.add_option("--threads", options.threads, "host threads per chip");
  app.add_option("--watchdog-ms", options.watchdog_ms, "processor time a program instance may take")
      ->check(CLI::Range(1, 100000000));
  app.add_flag("--precise", options.precise, "the same bits on every host and processor: the portable kernels only");
  app.add_flag("--lower,!--no-lower", options.lower,
               "write down launches that come again and run the list (the default)");
  app.add_option("--fault", options.faults, "faults to inject, as in ecc_uncorrectable@launch:3");
  app.add_option("--check", check, "checked level: races,uninit,oob");
  app.add_flag("--until-eof", until_eof, "end when standard input is closed");
  CLI11_PARSE(app, argc, argv);
  options = options_from_environment(options);
  if (!hbm.empty()) options.hbm_bytes = parse_size(hbm);
  if (!aperture.empty()) options.aperture_bytes = parse_size(aperture);
  if (!check.empty()) set_checks(options, check);

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM), sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);

  std::vector<std::unique_ptr<Chip>> functions;
  std::vector<std::unique_ptr<Server>> servers;
  std::vector<std::thread> threads;
  std::vector<std::string> paths;
  options.functions = virtual_functions + 1;
  for (uint32_t i = 0; i < chips; ++i) {
    const std::string path = chips == 1 ? socket_path : socket_path + "." + std::to_string(i);
    options.serial = 0;
    const size_t physical = servers.size();
    for (options.function = 0; options.function < options.functions; ++options.function) {
      functions.push_back(std::make_unique<Chip>(options));
      if (options.function == 0) options.serial = functions.back()->serial();
      servers.push_back(std::make_unique<Server>(*functions.back()));
      if (options.function > 0) servers[physical]->adopt(*servers.back());
      paths.push_back(options.function == 0 ? path : path + ".vf" + std::to_string(options.function));
    }
  }
  for (size_t k = 0; k < servers.size(); ++k) {
    const int listener = listen_at(paths[k]);
    threads.emplace_back([server = servers[k].get(), listener] { server->serve_listener(listener); });
  }
  for (const std::string& path : paths) std::printf("listening on %s\n", path.c_str());
  std::fflush(stdout);

  pollfd p[2] = {{signal_fd, POLLIN, 0}, {until_eof ? 0 : -1, POLLIN, 0}};
  for (;;) {
    if (poll(p, 2, -1) < 0 && errno != EINTR) break;
    if (p[0].revents != 0) break;
    char byte;
    if (p[1].revents != 0 && read(0, &byte, 1) <= 0) break;
  }
  for (auto& server : servers) server->stop();
  for (std::thread& thread : threads) thread.join();
  for (const std::string& path : paths) unlink(path.c_str()), unlink((path + ".lock").c_str());
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-emulator: %s\n", e.what());
  return 1;
}
