// A hostile or broken client: whatever it sends, the emulator lives, keeps no descriptor and serves the next one.
#include "server.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <jalapeno_hw/vfio_user.hpp>
#include <optional>
#include <random>
#include <thread>

#include "support/descriptors.hpp"
#include "support/raw_queue.hpp"

namespace jalapeno::emu {
namespace {

namespace vu = hw::vfio_user;

class ServerTest : public ::testing::Test {
 protected:
  static Chip& chip() { return test::small_chip(); }
  void SetUp() override {
    chip();
    before_ = test::open_descriptors();
    connect();
  }
  void TearDown() override {
    hang_up();
    EXPECT_EQ(test::open_descriptors(), before_);
  }
  void connect() {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    timeval patience{5, 0};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    socket_ = pair[0];
    server_ = std::make_unique<Server>(chip());
    thread_ = std::thread([this, fd = pair[1]] { server_->serve(fd); });
  }
  void hang_up() {
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
    if (thread_.joinable()) thread_.join();
    server_.reset();
  }
  bool send_raw(const void* data, size_t bytes) {
    return send(socket_, data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
  }
  // The error of the reply, or -1 when the server hung up.
  int request(uint16_t command, const void* payload, size_t bytes, std::vector<std::byte>* out = nullptr) {
    vu::Header h{1, command, static_cast<uint32_t>(sizeof h + bytes), 0, 0};
    std::vector<std::byte> all(sizeof h + bytes);
    std::memcpy(all.data(), &h, sizeof h);
    if (bytes > 0) std::memcpy(all.data() + sizeof h, payload, bytes);
    if (!send_raw(all.data(), all.size())) return -1;
    vu::Header r{};
    if (recv(socket_, &r, sizeof r, MSG_WAITALL) != sizeof r) return -1;
    std::vector<std::byte> body(r.size - sizeof r);
    if (!body.empty() && recv(socket_, body.data(), body.size(), MSG_WAITALL) != static_cast<ssize_t>(body.size()))
      return -1;
    if (out != nullptr) *out = body;
    return static_cast<int>(r.error);
  }
  uint32_t magic() {
    vu::RegionAccess a{0, 0, 4};
    std::vector<std::byte> out;
    if (request(vu::kRegionRead, &a, sizeof a, &out) != 0 || out.size() != sizeof a + 4) return 0;
    uint32_t v;
    std::memcpy(&v, out.data() + sizeof a, 4);
    return v;
  }
  int before_ = 0, socket_ = -1;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

TEST_F(ServerTest, AnswersRegisterReads) { EXPECT_EQ(magic(), hw::kMagicValue); }

// What BIOS, kernel and QEMU do with configuration space, byte offsets typed from the PCI specification.
TEST_F(ServerTest, ConfigurationSpaceIsThatOfAFunctionThatResets) {
  auto config = [&](uint64_t at, uint32_t bytes) {
    vu::RegionAccess a{at, vu::kConfigRegion, bytes};
    std::vector<std::byte> out;
    EXPECT_EQ(request(vu::kRegionRead, &a, sizeof a, &out), 0) << at;
    uint64_t v = 0;
    std::memcpy(&v, out.data() + sizeof a, bytes);
    return v;
  };
  auto set = [&](uint64_t at, uint64_t value, uint32_t bytes) {
    std::byte b[sizeof(vu::RegionAccess) + 8];
    const vu::RegionAccess a{at, vu::kConfigRegion, bytes};
    std::memcpy(b, &a, sizeof a);
    std::memcpy(b + sizeof a, &value, bytes);
    return request(vu::kRegionWrite, b, sizeof a + bytes);
  };
  EXPECT_EQ(config(0, 4), 0x4A4C1DA1u);
  EXPECT_EQ(config(0x0B, 1), 0x12u) << "class: processing accelerator";
  ASSERT_TRUE(config(6, 2) & 0x10) << "has a capability list";
  std::vector<uint64_t> found;
  uint64_t express = 0;
  for (uint64_t at = config(0x34, 1); at != 0 && found.size() < 20; at = config(at + 1, 1)) {
    found.push_back(config(at, 1));
    if (found.back() == 0x10) express = at;
    if (found.back() == 0x11) {
      EXPECT_EQ((config(at + 2, 2) & 0x7FF) + 1, kVectors);
      EXPECT_LE((config(at + 4, 4) & ~7u) + kVectors * 16, config(at + 8, 4) & ~7u) << "the table ends before the PBA";
    }
  }
  EXPECT_EQ(found, (std::vector<uint64_t>{1, 0x11, 0x10}));
  ASSERT_NE(express, 0u);
  EXPECT_TRUE(config(express + 4, 4) & 1u << 28) << "function level reset";

  const std::pair<uint64_t, uint64_t> bars[] = {
      {0x10, hw::kBar0Bytes}, {0x18, chip().doorbell_bytes()}, {0x20, chip().hbm_bar_bytes()}};
  for (const auto& [at, bytes] : bars) {
    ASSERT_EQ(set(at, UINT64_MAX, 8), 0);
    EXPECT_EQ(~(config(at, 8) & ~uint64_t{0xF}) + 1, bytes) << "BAR at " << at;
  }
  ASSERT_EQ(set(0, 0, 4), 0);
  EXPECT_EQ(config(0, 4), 0x4A4C1DA1u) << "identity cannot be written";

  uint64_t epoch = 0, after = 0;
  chip().read_register(hw::reg::kEpoch, 4, epoch);
  ASSERT_EQ(set(4, 6, 2), 0);
  EXPECT_EQ(config(4, 2), 6u);
  ASSERT_EQ(set(express + 8, 0x8000, 2), 0);
  chip().read_register(hw::reg::kEpoch, 4, after);
  EXPECT_EQ(after, epoch + 1);
  EXPECT_EQ(config(4, 2), 0u) << "a reset switches bus mastering off";
  EXPECT_EQ(config(express + 8, 2) & 0x8000, 0u) << "the reset bit reads 0";
  EXPECT_EQ(config(0x10, 8), 0x4u) << "and the BARs are unassigned";

  vu::RegionAccess beyond{4094, vu::kConfigRegion, 4};
  EXPECT_EQ(request(vu::kRegionRead, &beyond, sizeof beyond), EINVAL);
  beyond.offset = UINT64_MAX - 1;
  EXPECT_EQ(request(vu::kRegionRead, &beyond, sizeof beyond), EINVAL);
}

TEST_F(ServerTest, InterruptTableReadsAsNothingPending) {
  for (uint64_t at : {uint64_t{hw::kMsixTableOffset}, uint64_t{hw::kMsixPendingOffset}}) {
    vu::RegionAccess a{at, hw::kBarRegisters, 8};
    std::vector<std::byte> out;
    ASSERT_EQ(request(vu::kRegionRead, &a, sizeof a, &out), 0);
    uint64_t v = 1;
    std::memcpy(&v, out.data() + sizeof a, 8);
    EXPECT_EQ(v, 0u);
  }
  vu::RegionAccess past{hw::kBar0Bytes - 4, hw::kBarRegisters, 8};
  EXPECT_EQ(request(vu::kRegionRead, &past, sizeof past), EINVAL);
}

// QEMU drops ranges that were never mapped, all at once, and maps memory that has no file.
TEST_F(ServerTest, MappingsAreTakenAsQemuSendsThem) {
  vu::DmaMap rom{sizeof rom, vu::kMapReadable, 0, 0xFEB00000, 65536};
  EXPECT_EQ(request(vu::kDmaMap, &rom, sizeof rom), 0);
  vu::DmaUnmap huge{sizeof huge, 0, 0, uint64_t{1} << 63};
  EXPECT_EQ(request(vu::kDmaUnmap, &huge, sizeof huge), 0);
  vu::DmaUnmap all{sizeof all, vu::kUnmapAll, 0, 0};
  EXPECT_EQ(request(vu::kDmaUnmap, &all, sizeof all), 0);
  EXPECT_EQ(magic(), hw::kMagicValue);
}

// Host memory at kAsked that has no file: the chip has to ask for it.
class AskingTest : public ServerTest {
 protected:
  static constexpr uint64_t kAsked = 0x100000, kBytes = 1 << 20, kHbm = test::RawQueue::kPage;
  void SetUp() override {
    ServerTest::SetUp();
    queue_.emplace(chip());
    for (size_t k = 0; k < kBytes; ++k) host_[k] = static_cast<std::byte>(k * 7 + (k >> 9));
    const vu::DmaMap m{sizeof m, vu::kMapReadable | vu::kMapWritable, 0, kAsked, kBytes};
    ASSERT_EQ(request(vu::kDmaMap, &m, sizeof m), 0);
  }
  void TearDown() override {
    queue_.reset();
    ServerTest::TearDown();
  }
  static uint64_t host(uint64_t iova) { return iova | hw::kHostWindow; }
  void copy(uint64_t from, uint64_t to, uint64_t bytes) {
    hw::CopyPacket p{};
    p.header.op = hw::PacketOp::kCopy;
    p.source = hw::DeviceAddr{from}, p.destination = hw::DeviceAddr{to}, p.width_bytes = bytes, p.height = 1;
    queue_->push(p);
  }
  const hw::FaultRecord& fault() const { return queue_->fault(); }
  // Answers until the queue is done with all; `before` is called at each question, which is refused when it says false.
  void serve(const std::function<bool()>& before = [] { return true; }) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!queue_->done() && std::chrono::steady_clock::now() < deadline) {
      pollfd p{socket_, POLLIN, 0};
      if (poll(&p, 1, 10) <= 0) continue;
      vu::Header h{};
      vu::DmaAccess a{};
      ASSERT_EQ(recv(socket_, &h, sizeof h, MSG_WAITALL), static_cast<ssize_t>(sizeof h));
      ASSERT_EQ(recv(socket_, &a, sizeof a, MSG_WAITALL), static_cast<ssize_t>(sizeof a));
      const bool write = h.command == vu::kDmaWrite;
      ASSERT_TRUE(write || h.command == vu::kDmaRead);
      ASSERT_TRUE(a.address >= kAsked && a.address - kAsked + a.count <= kBytes);
      std::byte* at = host_.data() + (a.address - kAsked);
      if (write) {
        ASSERT_EQ(recv(socket_, at, a.count, MSG_WAITALL), static_cast<ssize_t>(a.count));
      }
      ++questions_;
      const bool good = before();
      const size_t body = good ? sizeof a + (write ? 0 : a.count) : 0;
      const vu::Header r{h.id, h.command, static_cast<uint32_t>(sizeof r + body),
                         vu::kTypeReply | (good ? 0 : vu::kError), good ? 0u : EFAULT};
      std::vector<std::byte> all(sizeof r + body);
      std::memcpy(all.data(), &r, sizeof r);
      if (good) std::memcpy(all.data() + sizeof r, &a, sizeof a);
      if (good && !write) std::memcpy(all.data() + sizeof r + sizeof a, at, a.count);
      ASSERT_TRUE(send_raw(all.data(), all.size()));
    }
    EXPECT_TRUE(queue_->done());
  }

  int questions_ = 0;
  std::optional<test::RawQueue> queue_;
  std::vector<std::byte> host_ = std::vector<std::byte>(kBytes);
};

TEST_F(AskingTest, CopiesReachMemoryWithoutAFileByMessages) {
  copy(host(kAsked + 100), kHbm + 3, 300'000);
  copy(kHbm + 3, host(kAsked + 600'000), 300'000);
  copy(host(kAsked), host(kAsked + 400'000), 5);  // from there to there
  serve();
  EXPECT_EQ(fault().status, 0u) << fault().detail;
  EXPECT_EQ(std::memcmp(queue_->page() + 3, host_.data() + 100, 300'000), 0);
  EXPECT_EQ(std::memcmp(host_.data() + 600'000, host_.data() + 100, 300'000), 0);
  EXPECT_EQ(std::memcmp(host_.data() + 400'000, host_.data(), 5), 0);
  EXPECT_GE(questions_, 22) << "pieces that fit into a message";
}

TEST_F(AskingTest, RegistersAreServedWhileAnEngineWaitsForItsAnswer) {
  copy(host(kAsked), kHbm, 100'000);
  serve([&] { return magic() == hw::kMagicValue; });
  EXPECT_EQ(std::memcmp(queue_->page(), host_.data(), 100'000), 0);
}

TEST_F(AskingTest, ARefusalIsAFaultThatNamesTheAddress) {
  copy(host(kAsked + 4096), kHbm, 64);
  serve([] { return false; });
  EXPECT_EQ(fault().status, static_cast<uint32_t>(hw::Status::kDmaFault));
  EXPECT_NE(std::string(fault().detail).find("iova 0x101000 by message"), std::string::npos) << fault().detail;
}

TEST_F(AskingTest, AClientThatLeavesWhileItIsAskedLeavesNothingBehind) {
  copy(host(kAsked), kHbm, 64);
  pollfd p{socket_, POLLIN, 0};
  ASSERT_EQ(poll(&p, 1, 5000), 1);
  hang_up();
  connect();
  EXPECT_EQ(magic(), hw::kMagicValue);
}

TEST_F(AskingTest, ATimelineInMemoryWithoutAFileIsAFault) {
  hw::TimelinePacket t{};
  t.header.op = hw::PacketOp::kSignal, t.timeline = hw::DeviceAddr{host(kAsked)}, t.value = 1;
  queue_->push(t);
  serve();
  EXPECT_NE(std::string(fault().detail).find("without a file"), std::string::npos) << fault().detail;
}

TEST_F(ServerTest, RefusesWhatItDoesNotKnowAndGoesOn) {
  EXPECT_EQ(request(99, nullptr, 0), EOPNOTSUPP);
  vu::RegionAccess a{0x10000, 0, 4};
  EXPECT_EQ(request(vu::kRegionRead, &a, sizeof a), EINVAL);
  a = {2, 0, 4};
  EXPECT_EQ(request(vu::kRegionRead, &a, sizeof a), EINVAL) << "misaligned";
  a = {0, 0, 0x7FFFFFFF};
  EXPECT_EQ(request(vu::kRegionRead, &a, sizeof a), EINVAL);
  vu::IrqSet s{sizeof s, vu::kIrqDataEventfd | vu::kIrqTrigger, vu::kIrqMsix, 0xFFFFFFF0, 0x20};
  EXPECT_EQ(request(vu::kDeviceSetIrqs, &s, sizeof s), EINVAL);
  EXPECT_EQ(request(vu::kDmaMap, "x", 1), EINVAL);
  EXPECT_EQ(magic(), hw::kMagicValue);
}

TEST_F(ServerTest, ImpossibleSizesEndTheConnectionNotTheProcess) {
  for (uint32_t size : {0u, 1u, 15u, 0xFFFFFFFFu, static_cast<uint32_t>(vu::kMaxMessage + 1)}) {
    vu::Header h{1, vu::kVersion, size, 0, 0};
    send_raw(&h, sizeof h);
    char byte;
    EXPECT_LE(recv(socket_, &byte, 1, 0), 0) << size;
    hang_up();
    connect();
    EXPECT_EQ(magic(), hw::kMagicValue);
  }
}

TEST_F(ServerTest, DescriptorsThatNobodyAskedForAreClosed) {
  for (int round = 0; round < 20; ++round) {
    int fds[20];
    for (int& fd : fds) fd = memfd_create("x", 0);
    vu::Header h{1, vu::kDeviceGetInfo, sizeof h, 0, 0};
    iovec iov{&h, sizeof h};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)];
    msghdr m{};
    m.msg_iov = &iov, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fds);
    std::memcpy(CMSG_DATA(c), fds, sizeof fds);
    ASSERT_EQ(sendmsg(socket_, &m, 0), static_cast<ssize_t>(sizeof h));
    for (int fd : fds) close(fd);
    char reply[32];
    ASSERT_EQ(recv(socket_, reply, sizeof reply, MSG_WAITALL), 32);
  }
}

TEST_F(ServerTest, RandomMessagesNeitherKillNorLeak) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    std::vector<uint8_t> junk(16 + random() % 200);
    for (uint8_t& b : junk) b = static_cast<uint8_t>(random());
    if (round % 2 == 0) {  // plausible header, random body
      vu::Header h{static_cast<uint16_t>(round), static_cast<uint16_t>(1 + random() % 14),
                   static_cast<uint32_t>(junk.size()), random() % 2 == 0 ? vu::kNoReply : 0, 0};
      std::memcpy(junk.data(), &h, sizeof h);
    }
    const bool alive = send_raw(junk.data(), junk.size());
    if (!alive || round % 16 == 0) {
      hang_up();
      connect();
    }
  }
  hang_up();
  connect();
  EXPECT_EQ(magic(), hw::kMagicValue);
}

}  // namespace
}  // namespace jalapeno::emu
