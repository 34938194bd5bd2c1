// One rank in each process of a launcher: mpirun -n 4 09_ranks_in_processes, srun --mpi=pmix, torchrun's variables; one
// rank when it is started alone. The ranks pass a message around as a pipeline, and then meet in an all-reduce.
#include <cstdio>
#include <jalapeno/jalapeno.hpp>

int main() try {
  const jalapeno::Device device("emu:?hbm=64M&threads=1");  // a board: the local rank's, see jalLauncherGetRank
  const jalapeno::Stream stream(device);
  const auto comm = jalapeno::Communicator::from_launcher(device);
  const int rank = comm.rank(), ranks = comm.ranks();

  // Stage r takes what stage r - 1 made, and works on it: enqueued once, ordered by the devices.
  const std::vector<float> start(1000, 1.f);
  const jalapeno::Buffer<float> x(device, std::span<const float>(start));
  const jalapeno::Kernel add = jalapeno::library_kernel(device, "add");
  const jalTensor t = x.as({1, 1000});
  if (rank > 0) comm.receive(x.data(), x.size(), rank - 1, stream);
  jalapeno::launch(stream, {1, 1}, add, t, t, t);  // twice as much
  if (rank + 1 < ranks) comm.send(x.data(), x.size(), rank + 1, stream);

  const jalapeno::Buffer<float> total(device, x.size());
  comm.all_reduce(x.data(), total.data(), x.size(), jalSum, stream);
  stream.synchronize();
  double expected = 0, mine = 1;
  for (int r = 0; r < ranks; ++r) expected += 2 * mine, mine *= 2;
  const double got = static_cast<double>(total.to_host()[999]);
  std::printf("rank %d of %d (%s): my stage made %g, all stages together %g\n", rank, ranks, comm.info().launcher,
              static_cast<double>(x.to_host()[999]), got);
  comm.finalize();
  return got == expected ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
