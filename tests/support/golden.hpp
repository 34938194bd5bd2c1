// Comparing a structure in memory with bytes typed by hand.
#pragma once
#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <jalapeno_hw/packets.hpp>
#include <type_traits>

namespace jalapeno::test {

static_assert(std::endian::native == std::endian::little, "the structures are the wire format");

// Whether a value lies in memory as these bytes. The list must have one entry for every byte.
template <class T, size_t N>
::testing::AssertionResult stores(const T& value, const uint8_t (&golden)[N]) {
  static_assert(sizeof(T) == N, "the size differs from the data sheet's");
  static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>, "padding");
  uint8_t bytes[N];
  std::memcpy(bytes, &value, N);
  for (size_t i = 0; i < N; ++i)
    if (bytes[i] != golden[i])
      return ::testing::AssertionFailure()
             << "byte " << i << " is " << int{bytes[i]} << ", the data sheet says " << int{golden[i]};
  return ::testing::AssertionSuccess();
}

// The first eight bytes of the packets under test: flag "raise the vector", sequence 0xA1A2A3A4.
inline hw::PacketHeader header(hw::PacketOp op) {
  hw::PacketHeader h{};
  h.op = op;
  h.flags = hw::kPacketInterrupt;
  h.sequence = 0xA1A2A3A4;
  return h;
}

template <class E>
constexpr uint64_t number(E value) {
  return static_cast<uint64_t>(value);
}

}  // namespace jalapeno::test
