// The embedded emulator: the one file that sees both the driver's and the emulator's side.
#include <sys/socket.h>
#include <unistd.h>
#include <jalapeno_driver/transport.hpp>

#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "chip.hpp"
#include "server.hpp"

namespace jalapeno {
namespace {

struct Running {
  std::unique_ptr<emu::Chip> chip;
  std::unique_ptr<emu::Server> server;
  std::thread thread;
  ~Running() {
    if (server) server->stop();
    if (thread.joinable()) thread.join();
  }
};

emu::EmulatorOptions parse(const std::string& text) {
  emu::EmulatorOptions options = emu::options_from_environment();
  std::stringstream words(text);
  for (std::string word; std::getline(words, word, '&');) {
    if (word.empty()) continue;
    const size_t equals = word.find('=');
    const std::string key = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    auto number = [&] {
      char* end = nullptr;
      const unsigned long v = std::strtoul(value.c_str(), &end, 10);
      if (value.empty() || *end != 0 || v == 0 || v > 100'000'000)
        throw std::runtime_error("\"" + word + "\": expected a positive number");
      return static_cast<uint32_t>(v);
    };
    if (key == "hbm")
      options.hbm_bytes = emu::parse_size(value);
    else if (key == "aperture")
      options.aperture_bytes = emu::parse_size(value);
    else if (key == "threads")
      options.threads = number();
    else if (key == "watchdog_ms")
      options.watchdog_ms = number();
    else if (key == "lower")
      options.lower = emu::parse_switch(key, value);
    else if (key == "precise")
      options.precise = emu::parse_switch(key, value);
    else if (key == "config")
      options.config_file = value;
    else if (key == "fault")
      options.faults = value;
    else if (key == "check")
      emu::set_checks(options, value);
    else
      throw std::runtime_error(
          "\"" + word + "\": expected hbm, aperture, threads, watchdog_ms, lower, precise, config, fault or check");
  }
  return options;
}

driver::Embedded launch(const std::string& text) try {
  auto running = std::make_shared<Running>();
  running->chip = std::make_unique<emu::Chip>(parse(text));
  running->server = std::make_unique<emu::Server>(*running->chip);
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    throw std::runtime_error(std::string("socketpair: ") + std::strerror(errno));
  running->thread = std::thread([server = running->server.get(), fd = pair[1]] { server->serve(fd); });
  return {pair[0], std::move(running)};
} catch (const std::runtime_error& e) {
  throw std::runtime_error((text.empty() ? "emu: " : "emu:?" + text + ": ") + e.what());
}

}  // namespace

// Called by the runtime before it opens its first device.
void install_embedded_emulator() { driver::set_embedded_launcher(launch); }

}  // namespace jalapeno
