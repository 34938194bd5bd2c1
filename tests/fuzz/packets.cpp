// Packets and programs that no driver sends, from memory that a client can write: each is done or is a fault, and the
// queue can be started again. 512 bytes of packets, then the contents of a page with all permissions.
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "fuzz.hpp"
#include "support/raw_queue.hpp"

namespace {

using namespace jalapeno;
constexpr size_t kPackets = 8;
constexpr uint64_t kCode = test::RawQueue::kPage, kArguments = kCode + 0x8000;

emu::Chip& chip() { return test::small_chip(20); }

// Host memory without a file: every third question is refused.
constexpr uint64_t kAsked = 0x100000;
class Host : public emu::HostLink {
 public:
  bool read(uint64_t iova, std::byte* out, uint64_t bytes) override {
    std::memset(out, static_cast<int>(iova >> 12), bytes);
    return ++questions_ % 3 != 0;
  }
  bool write(uint64_t, const std::byte*, uint64_t) override { return ++questions_ % 3 != 0; }

 private:
  int questions_ = 0;
};

test::RawQueue& make_queue() {
  auto* queue = new test::RawQueue(chip(), hw::pte::kRead | hw::pte::kWrite | hw::pte::kExecute);
  chip().map_host({kAsked, 1 << 20, true, true});
  chip().set_host_link(std::make_shared<Host>());
  return *queue;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static test::RawQueue* const queue = &make_queue();
  queue->reset();
  std::memset(queue->page(), 0, 0x10000);
  const size_t packets = std::min(size / sizeof(hw::Packet), kPackets), used = packets * sizeof(hw::Packet);
  std::memcpy(queue->page(), data + used, std::min<size_t>(size - used, 0x10000));
  for (size_t k = 0; k < packets; ++k) {
    hw::Packet p;
    std::memcpy(&p, data + k * sizeof p, sizeof p);
    if (p.header.op == hw::PacketOp::kLaunch) {  // not more instances than can end in time
      auto& launch = reinterpret_cast<hw::LaunchPacket&>(p);
      for (uint32_t& n : launch.grid) n %= 3;
      launch.deadline_ms = 0;
    }
    queue->push(p);
  }
  // A wait that nothing satisfies stays: the next reset ends it.
  for (int turn = 0; turn < 100 && !queue->done(); ++turn) usleep(100);
  queue->reset();
  queue->push(hw::Packet{});  // NOP
  for (int turn = 0; !queue->done(); ++turn)
    if (usleep(100), turn > 100'000) std::abort();
  return 0;
}

std::vector<std::vector<uint8_t>> fuzz_seeds() {
  std::vector<std::vector<uint8_t>> all;
  auto packet = [&](const auto& given, hw::PacketOp op) {
    auto p = given;
    p.header.op = op;
    static_assert(sizeof p == sizeof(hw::Packet));
    fuzz::append(all.back(), p);
  };
  const hw::DeviceAddr page{kCode}, host = hw::host_address(hw::Iova{test::RawQueue::kRing + 0x4000});
  all.emplace_back();
  hw::CopyPacket copy{};
  copy.source = page, copy.destination = host, copy.width_bytes = 4096, copy.height = 1;
  packet(copy, hw::PacketOp::kCopy);
  copy.height = 3, copy.source_pitch = 8192, copy.destination_pitch = 4096;
  packet(copy, hw::PacketOp::kCopy);
  copy.source = hw::host_address(hw::Iova{kAsked}), copy.destination = page, copy.height = 1;
  packet(copy, hw::PacketOp::kCopy);
  hw::FillPacket fill{};
  fill.destination = page, fill.bytes = 64, fill.pattern_bytes = 4;
  packet(fill, hw::PacketOp::kFill);
  hw::TimelinePacket t{};
  t.timeline = host, t.value = 1;
  packet(t, hw::PacketOp::kSignal), packet(t, hw::PacketOp::kWait);
  hw::TimestampPacket stamp{};
  stamp.destination = page;
  packet(stamp, hw::PacketOp::kTimestamp);
  hw::CallPacket call{};
  call.block = page, call.count = 2;
  packet(call, hw::PacketOp::kCall);

  // Programs: every opcode with small operands, a few to a launch.
  for (int first = 0; first < 256; first += 6) {
    all.emplace_back();
    hw::LaunchPacket launch{};
    launch.code = page, launch.arguments = hw::DeviceAddr{kArguments}, launch.instructions = 8;
    launch.argument_bytes = 64, launch.grid[0] = launch.grid[1] = launch.grid[2] = 1;
    packet(launch, hw::PacketOp::kLaunch);
    for (size_t k = 1; k < kPackets; ++k) packet(hw::TimelinePacket{}, hw::PacketOp::kNop);
    for (int k = 0; k < 6; ++k) {
      hw::Instruction i{};
      i.op = static_cast<uint8_t>(first + k);
      i.imm0 = 64, i.r[1] = 1, i.t[1] = 1, i.wait[0] = i.wait[1] = i.signal[0] = i.signal[1] = hw::kNone;
      fuzz::append(all.back(), i);
    }
    hw::Instruction halt{};
    halt.op = static_cast<uint8_t>(hw::Op::HALT),
    halt.wait[0] = halt.wait[1] = halt.signal[0] = halt.signal[1] = hw::kNone;
    fuzz::append(all.back(), halt);
  }
  return all;
}
