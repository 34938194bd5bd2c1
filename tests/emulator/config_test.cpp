// What the emulator is told: chip configurations, sizes, checks and fault orders. Bad ones are named.
#include "config.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "chip.hpp"
#include "faults.hpp"

namespace jalapeno::emu {
namespace {

std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

TEST(Config, BuiltInIsCompleteAndSaysAssumed) {
  const ChipConfig c = load_config("");
  EXPECT_EQ(c.name, "assumed-1");
  EXPECT_GT(c.cores, 0u);
}

TEST(Config, ValueWithoutSourceIsRefusedByName) {
  const std::string path = ::testing::TempDir() + "config" + std::to_string(getpid()) + ".json";
  std::ofstream(path) << R"({"name": "x", "cores": {"value": 4}})";
  EXPECT_NE(message([&] { load_config(path); }).find("\"cores\" has no source"), std::string::npos);
  std::ofstream(path) << R"({"name": "x", "cores": {"value": -4, "source": "assumed"}})";
  EXPECT_NE(message([&] { load_config(path); }).find("\"cores\" is -4"), std::string::npos);
  std::ofstream(path) << "not json";
  EXPECT_NE(message([&] { load_config(path); }).find("not a JSON object"), std::string::npos);
  EXPECT_NE(message([] { load_config("/nonexistent.json"); }).find("/nonexistent.json"), std::string::npos);
}

TEST(Config, SizesAndChecksAreParsedOrNamed) {
  EXPECT_EQ(parse_size("512M"), 512u << 20);
  EXPECT_EQ(parse_size("1.5G"), 3ull << 29);
  for (const char* bad : {"", "x", "-1G", "1Q", "1G2"}) EXPECT_NE(message([&] { parse_size(bad); }), "") << bad;
  EmulatorOptions o;
  set_checks(o, "races,oob");
  EXPECT_TRUE(o.check_races && o.check_bounds && !o.check_uninitialized);
  EXPECT_NE(message([&] { set_checks(o, "speed"); }).find("speed"), std::string::npos);
}

TEST(Faults, OrdersAreCountedAtTheirTrigger) {
  const FaultPlan p("ecc_uncorrectable@launch:3,hang@packet:1");
  EXPECT_FALSE(p.due(FaultKind::kEccUncorrectable, FaultTrigger::kLaunch, 2));
  EXPECT_TRUE(p.due(FaultKind::kEccUncorrectable, FaultTrigger::kLaunch, 3));
  EXPECT_FALSE(p.due(FaultKind::kHang, FaultTrigger::kLaunch, 1));
  for (const char* bad :
       {"ecc", "ecc_uncorrectable@launch", "x@launch:1", "hang@x:1", "hang@launch:0", "hang@launch:1x"})
    EXPECT_NE(message([&] { FaultPlan plan(bad); }).find(bad), std::string::npos) << bad;
}

TEST(Memory, DmaMapRefusesFilesThatAreTooSmallOrCanShrink) {
  MemorySystem m(64 << 20, 64 << 20);
  const int fd = memfd_create("x", MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(fd, 8192), 0);
  EXPECT_NE(message([&] { m.map_host(fd, 0, 0x10000, 8192, true, true); }).find("seal"), std::string::npos);
  ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_NE(message([&] { m.map_host(fd, 0, 0x10000, 65536, true, true); }).find("too small"), std::string::npos);
  EXPECT_NE(message([&] { m.map_host(fd, 100, 0x10000, 4096, true, true); }).find("aligned"), std::string::npos);
  EXPECT_EQ(message([&] { m.map_host(fd, 0, 0x10000, 8192, true, false); }), "");
  EXPECT_NE(message([&] { m.map_host(fd, 0, 0x11000, 4096, true, true); }).find("already mapped"), std::string::npos);
  EXPECT_TRUE(m.host_map()->extents().empty()) << "no bus master: host memory is out of reach";
  EXPECT_TRUE(m.set_host_reachable(true));
  EXPECT_FALSE(m.set_host_reachable(true)) << "no change";
  const auto map = m.host_map();
  Memory view(map.get());
  EXPECT_NE(view.span(0x10000 | hw::kHostWindow, 8192, hw::kAccessRead), nullptr);
  EXPECT_EQ(view.span(0x10000 | hw::kHostWindow, 8193, hw::kAccessRead), nullptr);
  EXPECT_EQ(view.span(0x10000 | hw::kHostWindow, 16, hw::kAccessWrite), nullptr) << "mapped for reading only";
  close(fd);
}

// A virtual machine maps page by page, all from one file: that must cost neither a mapping nor an extent each.
TEST(Memory, PagesOfOneFileThatFollowEachOtherAreOneExtent) {
  constexpr uint64_t kPages = 70'000;  // more than the kernel lets a process map
  MemorySystem m(64 << 20, 64 << 20);
  const int fd = memfd_create("x", MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(fd, kPages * 4096), 0);
  ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  m.set_host_reachable(true);
  for (uint64_t p = 0; p < kPages; ++p) m.map_host(fd, p * 4096, 0x100000 + p * 4096, 4096, true, true);
  m.map_host(fd, 0, 0x80000000, 4096, true, true);
  EXPECT_EQ(m.host_map()->extents().size(), 2u);
  m.unmap_host(0x100000 + 4096, 4096);
  EXPECT_EQ(m.host_map()->extents().size(), 3u);
  m.unmap_host(0, UINT64_MAX);
  EXPECT_TRUE(m.host_map()->extents().empty());
  close(fd);
}

}  // namespace
}  // namespace jalapeno::emu
