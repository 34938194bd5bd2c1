#include "placement.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>

#include <thread>

namespace jalapeno::emu {
namespace {

// Nodes of these numbers, each with CPU 0.
std::vector<Placement::Node> nodes(std::initializer_list<int> numbers) {
  std::vector<Placement::Node> out;
  for (int n : numbers) {
    out.push_back({n, {}});
    CPU_ZERO(&out.back().cpus);
    CPU_SET(0, &out.back().cpus);
  }
  return out;
}

TEST(Placement, ThreadsTakeTurnsOverTheNodes) {
  const Placement p(nodes({0, 2, 5}));
  EXPECT_EQ(p.node_of(0), 0);
  EXPECT_EQ(p.node_of(1), 2);
  EXPECT_EQ(p.node_of(2), 5);
  EXPECT_EQ(p.node_of(3), 0);
}

TEST(Placement, OneNodeOrNoneLeavesEverythingAsItIs) {
  EXPECT_EQ(Placement(nodes({0})).node_of(3), -1);
  EXPECT_EQ(Placement({}).node_of(0), -1);
}

TEST(Placement, AThreadKeepsToItsNodesProcessors) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  if (!CPU_ISSET(0, &allowed)) GTEST_SKIP() << "this process may not run on CPU 0";
  std::thread([] {
    Placement(nodes({0, 1})).bind_thread(1);
    cpu_set_t mine;
    ASSERT_EQ(pthread_getaffinity_np(pthread_self(), sizeof mine, &mine), 0);
    EXPECT_EQ(CPU_COUNT(&mine), 1);
    EXPECT_TRUE(CPU_ISSET(0, &mine));
  }).join();
}

// Nodes that are not there are refused by the system: nothing breaks, and memory is as usable as before.
TEST(Placement, WhatTheSystemRefusesIsLeft) {
  const Placement nowhere(nodes({0, 61}));
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
