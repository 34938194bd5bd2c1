// Logs by part. Quiet by default; JAL_LOG=debug or JAL_LOG=warn,driver=trace sets levels.
#pragma once
#include <spdlog/spdlog.h>

namespace jalapeno::driver {

spdlog::logger& driver_log();
spdlog::logger& runtime_log();

}  // namespace jalapeno::driver
