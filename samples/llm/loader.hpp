// Weights from the file to the device: io_uring reads straight into pinned memory while the device takes the piece
// before.
#pragma once
#include <functional>
#include <jalapeno/jalapeno.hpp>
#include <string>
#include <vector>

namespace llm {

struct Piece {
  uint64_t offset, bytes;  // in the file
  void* destination;       // device pointer
};

// Reads every piece, in order. progress(done bytes, all bytes) is called now and then.
// Throws std::runtime_error naming the file and the byte where it ended or failed.
void load_weights(const jalapeno::Device& device, const jalapeno::Stream& stream, const std::string& path,
                  const std::vector<Piece>& pieces, const std::function<void(uint64_t, uint64_t)>& progress);

}  // namespace llm
