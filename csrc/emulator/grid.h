// Counters of what ran, for tests to know that a clean report means something.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/launch.h"

namespace fastdiff::emulator {

struct GridCounters {
  uint64_t launches = 0;
  uint64_t blocks = 0;
};

GridCounters& grid_counters();

// A launch as a GPU's driver gets it.
struct LaunchRecord {
  uint64_t kernel;  // offset of its function in the emulator library
  uint32_t grid[3];
  uint32_t block[3];
  uint64_t dynamic_shared_bytes;
  uint64_t argument_count;
  const KernelArgument* arguments;
};

// Runs a launch in the emulator's stead, on the same memory; returns a cudaError_t.
using Executor = int (*)(const LaunchRecord* launch);

// Null, as at first: kernels run in the emulator.
void set_executor(Executor executor);

// The arguments of the running kernel, which it may read as its parameters.
bool is_kernel_parameter(const void* address);

}  // namespace fastdiff::emulator
