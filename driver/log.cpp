#include "log.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace jalapeno::driver {
namespace {

// In the order of LogLevel.
constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::trace, spdlog::level::debug, spdlog::level::info,
                                                 spdlog::level::warn,  spdlog::level::err,   spdlog::level::off};

LogLevel parse(const std::string& word) {
  if (word == "critical") return LogLevel::kOff;  // nothing here is
  for (int k = 0; k < 6; ++k)
    if (spdlog::level::from_str(word) == kLevels[k] && (kLevels[k] != spdlog::level::off || word == "off"))
      return static_cast<LogLevel>(k);
  std::fprintf(stderr, "JAL_LOG: \"%s\" is no level; expected trace, debug, info, warn, error, critical or off\n",
               word.c_str());
  return LogLevel::kWarn;
}

LogLevel level_of(const std::string& part) {
  auto level = LogLevel::kWarn;
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

}  // namespace

Log::Log(const char* part) : level_(level_of(part)) {
  auto* logger = new spdlog::logger(std::string("jalapeno.") + part, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("[%H:%M:%S.%e] %n %l: %v");
  logger->set_level(spdlog::level::trace);
  logger->flush_on(spdlog::level::debug);
  logger_ = logger;
}

void Log::write(LogLevel level, fmt::string_view text, fmt::format_args values) {
  static_cast<spdlog::logger*>(logger_)->log(kLevels[static_cast<int>(level)], fmt::vformat(text, values));
}

Log& driver_log() {
  static auto* const log = new Log("driver");
  return *log;
}
Log& runtime_log() {
  static auto* const log = new Log("runtime");
  return *log;
}

}  // namespace jalapeno::driver
