#include "log.hpp"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace jalapeno::driver {
namespace {

spdlog::level::level_enum parse(const std::string& word) {
  const auto level = spdlog::level::from_str(word);  // "off" for what it does not know
  if (level == spdlog::level::off && word != "off") {
    std::fprintf(stderr, "JAL_LOG: \"%s\" is no level; expected trace, debug, info, warn, error, critical or off\n",
                 word.c_str());
    return spdlog::level::warn;
  }
  return level;
}

spdlog::level::level_enum level_of(const std::string& part) {
  auto level = spdlog::level::warn;
  const char* text = std::getenv("JAL_LOG");
  std::stringstream words(text == nullptr ? "" : text);
  for (std::string word; std::getline(words, word, ',');) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos)
      level = parse(word);
    else if (word.substr(0, equals) == part)
      return parse(word.substr(equals + 1));
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
