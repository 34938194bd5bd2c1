// Who this process is among those that a launcher started, and a value that rank 0 tells the others through it.
// Reads what is there; starts nothing.
#pragma once
#include <memory>
#include <string>

#include "rendezvous.hpp"

namespace jalapeno::runtime {

class Launcher {
 public:
  virtual ~Launcher() = default;
  virtual std::string name() const = 0;
  int rank = 0, ranks = 1, local_rank = 0;
  // The same id on every rank, a new one at each call. Every rank calls it as often.
  virtual UniqueId agree() = 0;

  // The one that started this process, found once. Throws Error when there is one that cannot be read.
  static Launcher& get();
};

}  // namespace jalapeno::runtime
