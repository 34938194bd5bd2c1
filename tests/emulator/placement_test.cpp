#include "placement.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <thread>

namespace jalapeno::emu {
namespace {

TEST(Placement, ThreadsTakeTurnsOverTheNodes) {
  const Placement p({0, 2, 5});
  EXPECT_EQ(p.node_of(0), 0);
  EXPECT_EQ(p.node_of(1), 2);
  EXPECT_EQ(p.node_of(2), 5);
  EXPECT_EQ(p.node_of(3), 0);
}

TEST(Placement, OneNodeOrNoneLeavesEverythingAsItIs) {
  EXPECT_EQ(Placement({0}).node_of(3), -1);
  EXPECT_EQ(Placement({}).node_of(0), -1);
}

// Nodes that are not there are refused by the system: nothing breaks, and memory is as usable as before.
TEST(Placement, WhatTheSystemRefusesIsLeft) {
  const Placement nowhere({0, 61});
  constexpr size_t kBytes = 1 << 20;
  void* p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(p, MAP_FAILED);
  std::thread([&] {
    nowhere.bind_thread(1);
    nowhere.spread(static_cast<std::byte*>(p), kBytes);
    for (size_t at = 0; at < kBytes; at += 4096) static_cast<std::byte*>(p)[at] = std::byte{1};
  }).join();
  EXPECT_EQ(static_cast<std::byte*>(p)[4096], std::byte{1});
  munmap(p, kBytes);
}

}  // namespace
}  // namespace jalapeno::emu
