/* The same operations by an MPI library on host memory, for scripts/bench-collectives: sizes as in nccl-tests (of the
 * largest buffer a rank holds), operations back to back, the slowest rank's time, the median of the batches.
 * Usage: mpi_collectives OPERATION TYPE SIZE...   Prints "OPERATION TYPE SIZE MICROSECONDS" lines; exit 1: wrong. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { kBatches = 15 };
static const double kBatchSeconds = 4e-3;

static float widen(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static uint16_t narrow(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
/* MPI 3 has no bf16: a sum of one's own. */
static void add_bf16(void* in, void* inout, int* count, MPI_Datatype* type) {
  (void)type;
  const uint16_t* a = in;
  uint16_t* b = inout;
  for (int i = 0; i < *count; ++i) b[i] = narrow(widen(a[i]) + widen(b[i]));
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/* Touched before it is used, never given back: page faults are not what is measured. */
static void* memory(size_t bytes) {
  void* p = mmap(NULL, bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (p == MAP_FAILED) MPI_Abort(MPI_COMM_WORLD, 2);
  return p;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int ranks, rank;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (argc < 4) MPI_Abort(MPI_COMM_WORLD, 2);
  const char* what = argv[1];
  const int bf16 = strcmp(argv[2], "bf16") == 0;
  const size_t element = bf16 ? 2 : 4;
  const MPI_Datatype type = bf16 ? MPI_UINT16_T : MPI_FLOAT;
  MPI_Op sum = MPI_SUM;
  if (bf16) MPI_Op_create(add_bf16, 1, &sum);
  const int parts = strcmp(what, "all_gather") == 0 || strcmp(what, "reduce_scatter") == 0 || strcmp(what, "all_to_all") == 0;
  int wrong = 0;
  for (int k = 3; k < argc; ++k) {
    const size_t size = strtoull(argv[k], NULL, 10);
    size_t each = size / element / (parts ? (size_t)ranks : 1);
    if (each == 0) each = 1;
    const size_t total = each * (parts ? (size_t)ranks : 1);
    const int count = (int)each;
    char *send = memory(total * element), *receive = memory(total * element);
    for (size_t i = 0; i < total; ++i) {
      const float v = (float)((i + (size_t)rank) % 5);
      if (bf16)
        ((uint16_t*)send)[i] = narrow(v);
      else
        ((float*)send)[i] = v;
    }
    memcpy(receive, send, total * element);
    double times[kBatches];
    int turns = 1;
    for (int batch = -2; batch < kBatches; ++batch) {
      MPI_Barrier(MPI_COMM_WORLD);
      double begin = MPI_Wtime();
      for (int t = 0; t < turns; ++t) {
        if (strcmp(what, "all_reduce") == 0)
          MPI_Allreduce(send, receive, count, type, sum, MPI_COMM_WORLD);
        else if (strcmp(what, "all_gather") == 0)
          MPI_Allgather(send, count, type, receive, count, type, MPI_COMM_WORLD);
        else if (strcmp(what, "reduce_scatter") == 0)
          MPI_Reduce_scatter_block(send, receive, count, type, sum, MPI_COMM_WORLD);
        else if (strcmp(what, "all_to_all") == 0)
          MPI_Alltoall(send, count, type, receive, count, type, MPI_COMM_WORLD);
        else if (strcmp(what, "broadcast") == 0)
          MPI_Bcast(receive, count, type, 0, MPI_COMM_WORLD);
        else
          MPI_Abort(MPI_COMM_WORLD, 2);
      }
      double us = (MPI_Wtime() - begin) / turns;
      MPI_Allreduce(MPI_IN_PLACE, &us, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      if (batch >= 0) times[batch] = us * 1e6;
      if (batch < 0) { /* the first batches say how many make a batch */
        const double wanted = kBatchSeconds / us;
        turns = wanted < 1 ? 1 : wanted > 2000 ? 2000 : (int)wanted;
        MPI_Bcast(&turns, 1, MPI_INT, 0, MPI_COMM_WORLD);
      }
    }
    if (strcmp(what, "all_reduce") == 0) {
      float expected = 0;
      for (int r = 0; r < ranks; ++r) expected += (float)(r % 5);
      wrong |= (bf16 ? widen(((uint16_t*)receive)[0]) : ((float*)receive)[0]) != expected;
    }
    qsort(times, kBatches, sizeof times[0], compare);
    if (rank == 0) {
      printf("%s %s %zu %.3f\n", what, argv[2], size, times[kBatches / 2]);
      fflush(stdout);
    }
    munmap(send, total * element + 4096), munmap(receive, total * element + 4096);
  }
  MPI_Finalize();
  return wrong;
}
