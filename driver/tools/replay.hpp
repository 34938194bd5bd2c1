// Reading a trace, and playing it again on another device.
#pragma once
#include <cstdio>
#include <functional>
#include <jalapeno_driver/trace.hpp>
#include <span>
#include <string>

namespace jalapeno::tools {

// A trace file, record by record. Throws driver::Error naming the file, the offset and what was expected there.
class TraceReader {
 public:
  explicit TraceReader(const std::string& file);
  ~TraceReader();
  TraceReader(const TraceReader&) = delete;
  TraceReader& operator=(const TraceReader&) = delete;

  const driver::trace_file::Header& header() const { return header_; }
  struct Record {
    driver::trace_file::Kind kind;
    uint64_t ns, offset;
    std::span<const std::byte> bytes;  // lives as long as the reader
  };
  // False at the end. A trace that was cut off ends at its last whole record; complete() tells.
  bool next(Record& record);
  bool complete() const { return complete_; }

 private:
  [[noreturn]] void fail(uint64_t offset, const std::string& what) const;
  std::string file_;
  std::span<const std::byte> data_;
  driver::trace_file::Header header_;
  uint64_t at_ = 0, records_ = 0;
  bool complete_ = false;
};

struct Replay {
  uint64_t records = 0, packets = 0, results = 0, differences = 0;
  std::string first_difference;  // "" when there was none
  bool complete = false;         // the recording was closed, not cut off
  double seconds = 0;
};
// On `uri`, or on an embedded chip with as much HBM as the recorded one. Throws driver::Error.
Replay replay(const std::string& file, const std::string& uri);

}  // namespace jalapeno::tools
