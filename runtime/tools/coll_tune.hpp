// Finds the fastest algorithm for each operation and size among ranks that are there, and keeps it in a table.
#pragma once
#include <string>
#include <vector>

#include "coll_measure.hpp"

namespace jalapeno::tools {

// All ranks call it alike; rank 0 writes. What the file holds for other numbers of ranks and other places stays.
void tune(std::vector<Rank>& ranks, int world, bool graph, bool quick, const std::string& file);

}  // namespace jalapeno::tools
