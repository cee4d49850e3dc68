// Counters of what ran, for tests to know that a clean report means something.
#pragma once

#include <cstdint>

namespace fastdiff::emulator {

struct GridCounters {
  uint64_t launches = 0;
  uint64_t blocks = 0;
};

GridCounters& grid_counters();

// The arguments of the running kernel, which it may read as its parameters.
bool is_kernel_parameter(const void* address);

}  // namespace fastdiff::emulator
