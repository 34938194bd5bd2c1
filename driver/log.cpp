#include "log.hpp"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>
#include <sstream>
#include <string>

namespace jalapeno::driver {
namespace {

spdlog::level::level_enum level_of(const std::string& part) {
  auto level = spdlog::level::warn;
  const char* text = std::getenv("JAL_LOG");
  std::stringstream words(text == nullptr ? "" : text);
  for (std::string word; std::getline(words, word, ',');) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos)
      level = spdlog::level::from_str(word);
    else if (word.substr(0, equals) == part)
      return spdlog::level::from_str(word.substr(equals + 1));
  }
  return level;
}

// Never destroyed: a program may log from its own destructors at exit.
spdlog::logger* make(const char* part) {
  auto* logger = new spdlog::logger(std::string("jalapeno.") + part, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("[%H:%M:%S.%e] %n %l: %v");
  logger->set_level(level_of(part));
  logger->flush_on(spdlog::level::debug);
  return logger;
}

}  // namespace

spdlog::logger& driver_log() {
  static spdlog::logger* logger = make("driver");
  return *logger;
}
spdlog::logger& runtime_log() {
  static spdlog::logger* logger = make("runtime");
  return *logger;
}

}  // namespace jalapeno::driver
