// A parallel loop on the OpenMP runtime that torch has already loaded.
#pragma once

#include <cstdint>

namespace grainrank {

using Body = int (*)(void* context, int64_t begin, int64_t end);

// Calls body over [0, n) in pieces of `grain` items, on at most num_threads threads. Which thread
// takes a piece is not fixed; a body whose results depend on its items alone is deterministic.
// Returns 0, or what a body returned that was not 0; pieces not yet begun are then left out.
int parallel_for(int64_t n, int64_t grain, int num_threads, Body body, void* context);

// The runtime in use: "openmp" or "threads".
const char* parallel_runtime();

}  // namespace grainrank
