// HBM that is the process's own until it is shared.
#include "hbm.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

namespace jalapeno::emu {
namespace {

constexpr uint64_t kMiB = 1 << 20;

const Hbm::Parallel kOneByOne = [](uint32_t count, const std::function<void(uint32_t)>& work) {
  for (uint32_t k = 0; k < count; ++k) work(k);
};

// One byte of the file.
int in_file(const Hbm& hbm, uint64_t at) {
  unsigned char c = 0xEE;
  return pread(hbm.fd(), &c, 1, static_cast<off_t>(at)) == 1 ? c : -1;
}

TEST(Hbm, MovesInItsPlaceWhenItIsShared) {
  Hbm hbm(64 * kMiB, 16 * kMiB);
  std::byte* p = hbm.mapping()->data();
  const uint64_t places[] = {0, 15 * kMiB, 16 * kMiB, 21 * kMiB + 5000, 22 * kMiB - 1, 40 * kMiB, 64 * kMiB - 1};
  for (uint64_t at : places) p[at] = std::byte{7};
  EXPECT_EQ(in_file(hbm, 15 * kMiB), 7) << "the aperture is shared";
  EXPECT_EQ(in_file(hbm, 40 * kMiB), 0) << "the rest is not";
  ASSERT_TRUE(hbm.share(kOneByOne));
  EXPECT_EQ(hbm.mapping()->data(), p);
  for (uint64_t at : places) EXPECT_EQ(in_file(hbm, at), 7) << at;
  // From now on both are one.
  p[30 * kMiB] = std::byte{8};
  EXPECT_EQ(in_file(hbm, 30 * kMiB), 8);
  const char nine = 9;
  ASSERT_EQ(pwrite(hbm.fd(), &nine, 1, 40 * kMiB), 1);
  EXPECT_EQ(p[40 * kMiB], std::byte{9});
  EXPECT_EQ(p[41 * kMiB], std::byte{0});
  EXPECT_TRUE(hbm.share(kOneByOne)) << "again";
  EXPECT_EQ(in_file(hbm, 64 * kMiB - 1), 7);
}

TEST(Hbm, MovesNoMoreThanThereIs) {
  Hbm hbm(uint64_t{64} << 30, 16 * kMiB);
  hbm.mapping()->data()[uint64_t{33} << 30] = std::byte{1};
  EXPECT_EQ(hbm.mapping()->data()[uint64_t{34} << 30], std::byte{0}) << "read only";
  ASSERT_TRUE(hbm.share(kOneByOne));
  EXPECT_EQ(in_file(hbm, uint64_t{33} << 30), 1);
  struct stat st {};
  ASSERT_EQ(fstat(hbm.fd(), &st), 0);
  EXPECT_LE(st.st_blocks * 512, static_cast<blkcnt_t>(hw::kPageBytes));
}

TEST(Hbm, ReadsAsZeroOnceScrubbed) {
  for (const bool shared : {false, true}) {
    Hbm hbm(64 * kMiB, 16 * kMiB);
    std::byte* p = hbm.mapping()->data();
    ASSERT_TRUE(!shared || hbm.share(kOneByOne));
    for (uint64_t at = 0; at < 64 * kMiB; at += kMiB / 2) p[at] = std::byte{7};
    hbm.scrub();
    for (uint64_t at = 0; at < 64 * kMiB; at += kMiB / 2) ASSERT_EQ(p[at], std::byte{0}) << at;
  }
}

// A process that forks goes on writing: a child that shared its pages would have each of them copied.
TEST(Hbm, AChildHasNoPartInWhatIsTheProcessesOwn) {
  Hbm hbm(64 * kMiB, 16 * kMiB);
  std::byte* p = hbm.mapping()->data();
  p[20 * kMiB] = std::byte{7};
  const pid_t child = fork();
  if (child == 0) {
    unsigned char resident = 0;  // of a page that is not mapped it says ENOMEM
    _exit(mincore(p + 20 * kMiB, 4096, &resident) != 0 && mincore(p, 4096, &resident) == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace jalapeno::emu
