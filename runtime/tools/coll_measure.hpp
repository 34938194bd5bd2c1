// Operations of collectives, timed and verified, for the benchmark and the tuner. Sizes are nccl-tests': of the largest
// buffer that a rank holds.
#pragma once
#include <cstddef>
#include <cstdint>
#include <jalapeno/jalapeno.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace jalapeno::tools {

enum class Op { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kBroadcast, kReduce, kSendRecv };
struct OpInfo {
  const char* name;
  Op op;
  double (*bus)(double n);    // bus bandwidth over algorithm bandwidth
  double (*moved)(double n);  // bytes through memory for a size of 1 on each of n ranks, at least
};
std::span<const OpInfo> operations();

struct Type {
  const char* name;
  jalDType type;
  size_t bytes;
};
std::span<const Type> types();

// A rank of this process.
struct Rank {
  Device device;
  std::optional<Communicator> comm;
  std::optional<Stream> stream;
  Buffer<char> send, receive;
  int number = 0;
};

class Bench {
 public:
  // Of `world` ranks, of which these are in this process.
  Bench(std::vector<Rank>& ranks, int world) : ranks_(ranks), world_(world) {}

  struct Row {
    size_t size, count;
    double us, in_place_us, model_us;
    uint64_t wrong;
    std::string algorithm;
  };
  // graph: operations inside a graph of 20. All ranks call it alike.
  Row run(const OpInfo& op, const Type& type, size_t size, bool graph, bool quick);
  // As `run`, but only the time of the operation as it is now set up, in us.
  double time(const OpInfo& op, const Type& type, size_t size, bool graph, double budget_us);

 private:
  size_t prepare(const OpInfo& op, const Type& type, size_t size);  // returns the count
  void call(Rank& r, const OpInfo& op, const Type& t, size_t count, bool in_place);
  void issue(const OpInfo& op, const Type& t, size_t count, bool in_place);
  void synchronize();
  double measure(const OpInfo& op, const Type& t, size_t count, bool in_place, bool graph, double budget_us,
                 double* model_us);
  uint64_t verify(const OpInfo& op, const Type& t, size_t count);

  std::vector<Rank>& ranks_;
  int world_;
};

}  // namespace jalapeno::tools
