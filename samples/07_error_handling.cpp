// A kernel that faults: what the record says, that another stream does not notice, and that the stream comes back.
#include <cstdio>
#include <jalapeno/jalapeno.hpp>
#include <jalapeno/tile.hpp>

namespace {

// Instance 3 divides by its argument.
std::vector<std::byte> faulty() {
  using namespace jalapeno::tile;
  Builder k("faulty");
  Reg divisor = k.scalar_i32("divisor");
  k.when(k.pid_x(), Cond::kEq, 3, [&] { (void)k.scalar(jalapeno::hw::SaluOp::kDiv, 100, divisor); });
  return write_module({k.finish()});
}

}  // namespace

int main() try {
  const jalapeno::Device device;
  const jalapeno::Stream stream(device), other(device);
  const jalapeno::Module module(device, faulty());
  const jalapeno::Buffer<int32_t> numbers(device, 1000);

  jalapeno::launch(stream, {8}, module.kernel("faulty"), 0);
  other.fill(numbers.data(), 1, numbers.bytes());
  try {
    stream.synchronize();
    std::printf("the fault went unnoticed\n");
    return 1;
  } catch (const jalapeno::Error& e) {
    std::printf("caught: %s\n", e.what());
  }
  const jalErrorRecord r = stream.error_record();
  std::printf("record: kernel %s, %s:%u, instruction %u, grid (%u, %u, %u), %s\n", r.kernel, r.source_file,
              r.source_line, r.instruction, r.grid_position[0], r.grid_position[1], r.grid_position[2], r.detail);
  other.synchronize();
  std::printf("the other stream finished: %d\n", numbers.to_host()[999] == 0x01010101);

  stream.reset();
  jalapeno::launch(stream, {8}, module.kernel("faulty"), 5);
  stream.synchronize();
  std::printf("after the reset the stream works again\n");
  return r.code == jalErrorDivideByZero && r.grid_position[0] == 3 ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
