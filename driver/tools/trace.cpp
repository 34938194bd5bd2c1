// jalapeno-trace: record what passes between driver and device, read it, play it again.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <jalapeno_driver/error.hpp>
#include <jalapeno_driver/transport.hpp>

#include "names.hpp"
#include "replay.hpp"

namespace jalapeno {
void install_embedded_emulator();
}

namespace {

using namespace jalapeno;
using namespace driver::trace_file;

template <class T>
T take(const tools::TraceReader::Record& r, size_t at = 0) {
  T t;
  std::memcpy(&t, r.bytes.data() + at, sizeof t);
  return t;
}

int show(const std::string& file) {
  tools::TraceReader reader(file);
  const Header& h = reader.header();
  const std::time_t when = h.started_unix_ns / 1'000'000'000;
  char time[32];
  std::strftime(time, sizeof time, "%Y-%m-%d %H:%M:%S", std::gmtime(&when));
  fmt::print("# {} on {}, {} UTC; interface {}.{}, instruction set {}.{}\n", h.command, h.uri, time,
             h.interface_version >> 16, h.interface_version & 0xFFFF, h.isa_version >> 16, h.isa_version & 0xFFFF);
  fmt::print("# microseconds since the begin, then what happened\n");
  for (tools::TraceReader::Record r; reader.next(r);) {
    fmt::print("{:12.1f}  ", static_cast<double>(r.ns) * 1e-3);
    switch (r.kind) {
      case Kind::kRead:
      case Kind::kWrite: {
        const auto a = take<Register>(r);
        fmt::print("{} {} {} 0x{:x}\n", r.kind == Kind::kRead ? "read " : "write", tools::register_name(a.offset),
                   r.kind == Kind::kRead ? "->" : "<-", a.value);
        break;
      }
      case Kind::kMap:
      case Kind::kUnmap: {
        const auto m = take<Range>(r);
        fmt::print("{} iova 0x{:x}, {} bytes\n", r.kind == Kind::kMap ? "map  " : "unmap", m.address, m.bytes);
        break;
      }
      case Kind::kInterrupts:
        fmt::print("irq   vector {} attached\n", take<uint32_t>(r));
        break;
      case Kind::kRaised:
        fmt::print("irq   vector {} raised\n", take<uint32_t>(r));
        break;
      case Kind::kReset:
        fmt::print("reset\n");
        break;
      case Kind::kHbm:
      case Kind::kHost: {
        const auto m = take<Range>(r);
        if (r.kind == Kind::kHbm && m.bytes == 8)
          fmt::print("hbm   0x{:x} <- 0x{:x}\n", m.address, take<uint64_t>(r, sizeof m));
        else
          fmt::print("{} 0x{:x}, {} bytes, hash {:016x}\n", r.kind == Kind::kHbm ? "hbm  " : "host  iova", m.address,
                     m.bytes, hash(r.bytes.subspan(sizeof m)));
        break;
      }
      case Kind::kPackets: {
        const auto d = take<Doorbell>(r);
        fmt::print("ring  queue {}, {} packet{} from {}\n", d.queue, d.count, d.count == 1 ? "" : "s", d.first);
        for (uint32_t k = 0; k < d.count; ++k) {
          const auto p = take<hw::Packet>(r, sizeof d + k * sizeof(hw::Packet));
          fmt::print("{:14}  {:>8} {}{}\n", "", d.first + k, tools::describe(p),
                     p.header.flags & hw::kPacketInterrupt ? ", interrupt" : "");
        }
        break;
      }
      case Kind::kSignal: {
        const auto s = take<Range>(r);
        fmt::print("signal timeline iova 0x{:x} = {}\n", s.address, s.bytes);
        break;
      }
      case Kind::kSeen: {
        const auto s = take<Range>(r);
        fmt::print("seen  queue {} at {}\n", s.address, s.bytes);
        break;
      }
      case Kind::kDone: {
        const auto d = take<Done>(r);
        fmt::print("done  queue {} reached {}, status {}\n", d.queue, d.value, d.status);
        for (uint32_t k = 0; k < d.results; ++k) {
          const auto x = take<Result>(r, sizeof d + k * sizeof(Result));
          fmt::print("{:14}  wrote iova 0x{:x}, {} bytes, hash {:016x}\n", "", x.iova, x.bytes, x.hash);
        }
        break;
      }
      case Kind::kEnd:
        fmt::print("end   of {} records\n", take<uint64_t>(r));
        break;
    }
  }
  if (!reader.complete()) fmt::print("# cut off here: the process ended without closing the device\n");
  return 0;
}

int dump(const std::string& uri) {
  install_embedded_emulator();
  const auto transport = driver::open_transport(uri);
  fmt::print("# registers of {}\n", uri);
  for (const auto& r : tools::registers()) {
    const uint64_t v = r.bytes == 4 ? transport->read32(r.offset) : transport->read64(r.offset);
    fmt::print("0x{:03x} {:26} 0x{:0{}x}\n", r.offset, r.name, v, 2 * r.bytes);
  }
  return 0;
}

int record(const std::string& file, std::vector<std::string> command) {
  setenv("JAL_TRACE", file.c_str(), 1);
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  fmt::print(stderr, "jalapeno-trace: {}: {}\n", command[0], std::strerror(errno));
  return 127;
}

int play(const std::string& file, const std::string& uri) {
  install_embedded_emulator();
  const tools::Replay r = tools::replay(file, uri);
  fmt::print("{} records, {} packets, {} results compared in {:.2f} s: {}\n", r.records, r.packets, r.results,
             r.seconds, r.differences == 0 ? "all as recorded" : fmt::format("{} differ", r.differences));
  if (r.differences > 0) fmt::print("the first {}\n", r.first_difference);
  if (!r.complete)
    fmt::print(
        "the trace was cut off: it is not the whole file, or the recorded process ended without closing the device\n");
  return r.differences == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{
      "Records every register access, DMA mapping, packet and interrupt of a program, with the memory the device "
      "reads, so that a "
      "problem in the field becomes a test here.\nA trace holds what went to the device, weights and texts included."};
  app.require_subcommand(1);
  std::string file = "jalapeno.trace", uri;
  std::vector<std::string> command;
  auto* record_command = app.add_subcommand("record", "run COMMAND with recording on (as JAL_TRACE=FILE does)");
  record_command->add_option("-o,--output", file, "the trace; a second device of the process goes to FILE.1")
      ->capture_default_str();
  record_command->add_option("command", command, "program and arguments, after --")->required();
  auto* show_command = app.add_subcommand("show", "print it, with the data sheet's names");
  show_command->add_option("file", file)->required();
  auto* replay_command =
      app.add_subcommand("replay", "play it on an emulated chip and compare. Exit code: 0 all as recorded, 1 not");
  replay_command->add_option("file", file)->required();
  replay_command->add_option("--device", uri, "on this device (default: an embedded chip with as much HBM)");
  auto* registers_command = app.add_subcommand("registers", "print the registers of a device that nobody holds");
  registers_command->add_option("device", uri)->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (*record_command) return record(file, command);
  if (*show_command) return show(file);
  if (*replay_command) return play(file, uri);
  return dump(uri);
} catch (const std::exception& e) {
  fmt::print(stderr, "jalapeno-trace: {}\n", e.what());
  return 2;
}
