// What jalapeno-smi shows: every Jalapeno device of this machine, held or free, with what can be said of it.
#pragma once
#include <jalapeno_driver/monitor.hpp>
#include <jalapeno_driver/vfio.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace jalapeno::tools {

struct Entry {
  std::string uri;
  std::string state;    // "free", "held", "lost" or "unreachable"
  std::string problem;  // of the last two
  std::optional<driver::PciFunction> function;
  std::optional<driver::Snapshot> snapshot;
  std::vector<driver::Process> holders;
};

// `uris` empty: the PCI functions, and whatever devices processes hold. Opens those that are free for a moment.
std::vector<Entry> survey(const std::vector<std::string>& uris);

// The engines' shares of modelled device time: of the time between two snapshots, or since the device was switched on.
struct Utilisation {
  double cores, matrix, vector, dma, copy;  // 0 to 1
  double watts, hbm_bytes_per_second;       // of modelled time
};
std::optional<Utilisation> utilisation(const driver::Snapshot& now, const driver::Snapshot* before);

// Schema 1: fields are added, never renamed or removed. docs/tools.md lists them.
nlohmann::json to_json(const std::vector<Entry>& entries);
std::string to_prometheus(const std::vector<Entry>& entries);
std::string uuid_text(const driver::Snapshot& s);

}  // namespace jalapeno::tools
