// Copies between pinned host memory and the device, beside memcpy.
#include <cstring>
#include <jalapeno/jalapeno.hpp>

#include "bench.hpp"
#include "limits.hpp"

namespace bench {
namespace {

using jalapeno::check;

constexpr size_t kLarge = 64 << 20;

Row large(const Options& options, bool to_device) {
  const jalapeno::Device device(device_uri(options.most_threads()));
  const jalapeno::Stream stream(device);
  const jalapeno::HostBuffer<char> pinned(device, kLarge);
  const jalapeno::Buffer<char> memory(device, kLarge);
  const Pages pages(2 * kLarge);
  std::memset(pinned.data(), 1, kLarge);
  stream.copy(memory.data(), pinned.data(), kLarge);
  stream.synchronize();
  auto ours = [&] {
    return kLarge * 1e-9 / seconds([&] {
             stream.copy(to_device ? memory.data() : pinned.data(), to_device ? pinned.data() : memory.data(), kLarge);
             stream.synchronize();
           });
  };
  const auto m = interleave(options, {[&] { return memcpy_gbs(pages); }, ours});
  return {"",
          to_device ? "64 MiB pinned to device" : "64 MiB device to pinned",
          *m[1],
          "GB/s",
          Reference{"memcpy", *m[0]},
          {},
          ">= 0.95 of memcpy",
          m[1]->median >= 0.95 * m[0]->median};
}

Row batch(const Options& options) {
  constexpr size_t kCount = 256, kEach = 4096, kRepeats = 20;
  const jalapeno::Device device(device_uri(options.most_threads()));
  const jalapeno::Stream stream(device);
  const jalapeno::HostBuffer<char> pinned(device, kCount * kEach);
  const jalapeno::Buffer<char> memory(device, kCount * kEach);
  const Pages pages(2 * kCount * kEach);
  std::vector<void*> to;
  std::vector<const void*> from;
  const std::vector<size_t> bytes(kCount, kEach);
  for (size_t i = 0; i < kCount; ++i)  // in no order of memory
    to.push_back(memory.data() + i * 77 % kCount * kEach), from.push_back(pinned.data() + i * 45 % kCount * kEach);
  auto ours = [&] {
    return seconds([&] {
             for (size_t r = 0; r < kRepeats; ++r) {
               check(jalMemcpyBatchAsync(to.data(), from.data(), bytes.data(), kCount, stream.get()));
               stream.synchronize();
             }
           }) *
           1e9 / (kRepeats * kCount);
  };
  auto limit = [&] {
    return seconds([&] {
             for (size_t r = 0; r < kRepeats; ++r)
               for (size_t i = 0; i < kCount; ++i)
                 std::memcpy(pages.data() + (kCount + i * 77 % kCount) * kEach, pages.data() + i * 45 % kCount * kEach,
                             kEach);
           }) *
           1e9 / (kRepeats * kCount);
  };
  ours();
  const auto m = interleave(options, {limit, ours});
  return {
      "", "each of 256 copies of 4 KiB", *m[1], "ns", Reference{"memcpy", *m[0]}, {}, "<= 300 ns", m[1]->median <= 300};
}

}  // namespace

std::vector<Case> copy_cases(const Options&) {
  return {{"copy_h2d", "64 MiB pinned to device", [](const Options& o) { return large(o, true); }},
          {"copy_d2h", "64 MiB device to pinned", [](const Options& o) { return large(o, false); }},
          {"copy_batch", "256 copies of 4 KiB in one call", batch}};
}

}  // namespace bench
