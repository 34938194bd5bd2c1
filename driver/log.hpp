// Logs by part. Quiet by default; JAL_LOG=debug or JAL_LOG=warn,driver=trace sets levels. spdlog writes them; it stays
// out of this header, which everybody includes.
#pragma once
#include <fmt/core.h>

#include <cstdint>

namespace jalapeno::driver {

enum class LogLevel : uint8_t { kTrace, kDebug, kInfo, kWarn, kError, kOff };

class Log {
 public:
  explicit Log(const char* part);  // its level: what JAL_LOG says now

  template <class... A>
  void debug(fmt::format_string<A...> text, A&&... values) {
    put(LogLevel::kDebug, text, values...);
  }
  template <class... A>
  void info(fmt::format_string<A...> text, A&&... values) {
    put(LogLevel::kInfo, text, values...);
  }
  template <class... A>
  void warn(fmt::format_string<A...> text, A&&... values) {
    put(LogLevel::kWarn, text, values...);
  }
  template <class... A>
  void error(fmt::format_string<A...> text, A&&... values) {
    put(LogLevel::kError, text, values...);
  }

 private:
  template <class... A>
  void put(LogLevel level, fmt::string_view text, const A&... values) {
    if (level >= level_) write(level, text, fmt::make_format_args(values...));
  }
  void write(LogLevel level, fmt::string_view text, fmt::format_args values);

  LogLevel level_;
  void* logger_;  // spdlog::logger, never destroyed: a program may log from its own destructors at exit
};

Log& driver_log();
Log& runtime_log();

}  // namespace jalapeno::driver
