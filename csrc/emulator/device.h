// What kernel code sees in place of the CUDA language when g++ compiles it: qualifiers, built-in variables, barriers,
// and, through the headers it includes, collectives and math. Included by cuda/platform.cuh only.
#pragma once

// Standard headers come first: CUDA's host_defines.h turns __noinline__, which libstdc++ spells in attributes, into a
// macro.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#undef __noinline__
#undef __shared__
#undef __constant__
#undef __launch_bounds__

// Every __shared__ variable begins its own 64 KiB, more than a block may declare, so that the object after it is never
// its neighbour: an overrun lands in the gap and is reported. library_image.cpp finds the variables by this alignment.
#define __shared__ static __attribute__((aligned(65536)))
#define __constant__ static const
#define __launch_bounds__(...)

namespace fastdiff::emulator {

struct BuiltinVariables {
  uint3 thread_index;
  uint3 block_index;
  dim3 block_dim;
  dim3 grid_dim;
};

// Those of the running thread. One emulated thread runs at a time in the whole process.
extern BuiltinVariables builtin;

// A place in kernel source, for reports.
struct SourceLine {
  const char* file = nullptr;
  int line = 0;
};

void barrier(SourceLine site);

void* dynamic_shared_memory();

uint4 checked_load(const void* address);
uint4 checked_load_of_written(const void* address);
void checked_store(void* address, uint4 value);

// The checked 16-byte accesses behind platform.cuh. `ld16` may only read what the launch does not write. They are
// inlined, as g++ instruments neither what a call reads for an argument nor what it writes with its result.
__forceinline__ uint4 ld16(const void* address) { return checked_load(address); }
__forceinline__ uint4 ld16_written(const void* address) { return checked_load_of_written(address); }
__forceinline__ void st16(void* address, uint4 value) { checked_store(address, value); }

}  // namespace fastdiff::emulator

inline constexpr const uint3& threadIdx = fastdiff::emulator::builtin.thread_index;
inline constexpr const uint3& blockIdx = fastdiff::emulator::builtin.block_index;
inline constexpr const dim3& blockDim = fastdiff::emulator::builtin.block_dim;
inline constexpr const dim3& gridDim = fastdiff::emulator::builtin.grid_dim;
inline constexpr int warpSize = 32;

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  fastdiff::emulator::barrier({file, line});
}

#include "emulator/collectives.h"
#include "emulator/intrinsics.h"
