// precise=1: the same bits on every host, with every number of threads, whatever JAL_EMU_ISA says.
#include <unistd.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "support/device.hpp"

namespace jalapeno::test {
namespace {

// The same numbers wherever this is compiled.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}
  uint32_t bits() {
    return static_cast<uint32_t>((state_ = state_ * 6364136223846793005u + 1442695040888963407u) >> 32);
  }
  float value() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }
  std::vector<float> values(size_t n, float scale = 1) {
    std::vector<float> out(n);
    for (float& v : out) v = value() * scale;
    return out;
  }

 private:
  uint64_t state_;
};

// Finite values of a type, its bytes made up.
std::vector<uint8_t> weights(Numbers& numbers, jalDType type, size_t count) {
  std::vector<uint8_t> out;
  auto put = [&](auto v) {
    const auto* p = reinterpret_cast<const uint8_t*>(&v);
    out.insert(out.end(), p, p + sizeof v);
  };
  switch (type) {
    case jalF32:
      for (size_t i = 0; i < count; ++i) put(numbers.value());
      break;
    case jalBF16:
      for (size_t i = 0; i < count; ++i) put(static_cast<uint16_t>(std::bit_cast<uint32_t>(numbers.value()) >> 16));
      break;
    case jalF16:  // exponents from 2^-14 to 2^1
      for (size_t i = 0; i < count; ++i) put(static_cast<uint16_t>(numbers.bits() & 0xBFFF));
      break;
    case jalE4M3:
      for (size_t i = 0; i < count; ++i) put(static_cast<uint8_t>(numbers.bits() & 0xBF));
      break;
    default:
      for (size_t i = 0; i < count; i += 32) {
        put(static_cast<uint16_t>(0x1C00 + numbers.bits() % 0x400));
        for (int k = 0; k < (type == jalQ8_0 ? 32 : 16); ++k) put(static_cast<uint8_t>(numbers.bits()));
      }
  }
  return out;
}

uint64_t hash_of(const std::vector<float>& v) {
  uint64_t h = 1469598103934665603u;
  for (float f : v) {
    EXPECT_TRUE(std::isfinite(f));
    h = (h ^ std::bit_cast<uint32_t>(f)) * 1099511628211u;
  }
  return h;
}

struct Result {
  std::string name;
  uint64_t hash;
};

std::vector<Result> everything(const std::string& options) {
  Device device("emu:?hbm=1G&" + options);
  Stream stream(device);
  Numbers numbers(1);
  std::vector<Result> results;
  auto up = [&](const std::vector<float>& v) { return Buffer<float>(device, std::span<const float>(v)); };
  auto done = [&](const std::string& name, Buffer<float>& out) {
    stream.synchronize();
    results.push_back({name, hash_of(out.to_host())});
  };
  struct Format {
    const char* name;
    jalDType type;
  };
  for (const Format& f : {Format{"f32", jalF32},
                          {"bf16", jalBF16},
                          {"f16", jalF16},
                          {"q8_0", jalQ8_0},
                          {"q4_0", jalQ4_0},
                          {"e4m3", jalE4M3}})
    for (const uint32_t m : {1u, 37u}) {
      const uint32_t n = 70, k = 352;
      const auto w = weights(numbers, f.type, size_t{n} * k);
      const auto a = up(numbers.values(size_t{m} * k));
      Buffer<uint8_t> b(device, std::span<const uint8_t>(w));
      Buffer<float> out(device, size_t{m} * n);
      launch(stream, {3, 2}, library_kernel(device, std::string(m == 1 ? "matvec_" : "matmul_") + f.name), a.as({m, k}),
             tensor(b.data(), f.type, {n, k}), out.as({m, n}));
      done(std::string(f.name) + " by " + std::to_string(m), out);
    }
  {
    const uint32_t rows = 5, width = 3001;
    const auto x = up(numbers.values(rows * width, 12)), y = up(numbers.values(rows * width)),
               w = up(numbers.values(width));
    Buffer<float> out(device, rows * width);
    launch(stream, {2}, library_kernel(device, "rmsnorm"), x.as({rows, width}), w, out.as({rows, width}), 1e-5f);
    done("rmsnorm", out);
    launch(stream, {2, 2}, library_kernel(device, "swiglu"), x.as({rows, width}), y.as({rows, width}),
           out.as({rows, width}));
    done("swiglu", out);
    launch(stream, {2}, library_kernel(device, "softmax"), x.as({rows, width}), out.as({rows, width}));
    done("softmax", out);
  }
  {
    const uint32_t tokens = 150, heads = 4, kv = 64, head = 32;
    const auto q = up(numbers.values(size_t{tokens} * heads * head, 4));
    const auto kw = weights(numbers, jalBF16, size_t{tokens} * kv), vw = weights(numbers, jalBF16, size_t{tokens} * kv);
    Buffer<uint8_t> kb(device, std::span<const uint8_t>(kw)), vb(device, std::span<const uint8_t>(vw));
    const Buffer<int32_t> position(device, std::vector<int32_t>{0});
    Buffer<float> out(device, size_t{tokens} * heads * head);
    auto view = [&](const Buffer<float>& b) {
      jalTensor t = b.as({heads, tokens, head});
      t.stride[0] = head * 4, t.stride[1] = uint64_t{heads} * head * 4;
      return t;
    };
    launch(stream, {3, 2}, library_kernel(device, "attention_causal_bf16_d32"), view(q),
           tensor(kb.data(), jalBF16, {tokens, kv}), tensor(vb.data(), jalBF16, {tokens, kv}), position, view(out), 2,
           0.17677669f);
    done("attention", out);
  }
  return results;
}

constexpr uint64_t kGolden[] = {0x8ae056e24ecf99a4, 0xf7f0d754d19fda1b, 0x41f3612a8c0a5088, 0x83cbdc4484a45ca1,
                                0x3e5c82e122733dc3, 0xc72fed26beecf474, 0x6a055c75380ff8b7, 0xbb98c68715867c18,
                                0x4ca3c4eac1183869, 0xd2a5870d5883d1e7, 0x44103747326fcd8d, 0x9cfb314ca9f05b55,
                                0x1e9ba44600ca3e62, 0xdf2150dcacbbe1f7, 0xd8f5624849108d7e, 0x95e34fe5ce590fe7};

TEST(Precise, TheSameBitsOnEveryHostAndWithEveryNumberOfThreads) {
  const auto one = everything("precise=1&threads=1"), three = everything("precise=1&threads=3");
  ASSERT_EQ(one.size(), std::size(kGolden));
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].hash, kGolden[i]) << one[i].name << " is 0x" << std::hex << one[i].hash;
    EXPECT_EQ(three[i].hash, kGolden[i]) << one[i].name << " with three threads";
  }
}

TEST(Precise, OnlyYesAndNoAreKnown) {
  try {
    Device device("emu:?precise=maybe");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("precise=maybe"), std::string::npos) << e.what();
  }
}

// What JAL_EMU_PROFILE says is of all chips of the process; a place that cannot be written is told at open.
TEST(Profile, CountsTheLaunchesOfAllChips) {
  setenv("JAL_EMU_PROFILE", "/nonexistent/profile.json", 1);
  try {
    Device device("emu:?hbm=64M");
    ADD_FAILURE() << "opened";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/nonexistent/profile.json: No such file"), std::string::npos) << e.what();
  }
  const std::string file = ::testing::TempDir() + "jalapeno-profile-" + std::to_string(getpid());
  setenv("JAL_EMU_PROFILE", file.c_str(), 1);
  for (int chip = 0; chip < 2; ++chip) {
    Device device("emu:?hbm=64M");
    Stream stream(device);
    const Buffer<float> x(device, std::vector<float>(8, 1.f));
    for (int k = 0; k < 3; ++k)
      launch(stream, {1, 1}, library_kernel(device, "add"), x.as({1, 8}), x.as({1, 8}), x.as({1, 8}));
    stream.synchronize();
  }
  unsetenv("JAL_EMU_PROFILE");
  std::ifstream in(file);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(text.find("\"launches\": 6,"), std::string::npos) << text;
  std::remove(file.c_str());
}

}  // namespace
}  // namespace jalapeno::test
