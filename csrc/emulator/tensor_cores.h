// ldmatrix and mma.m16n8k16, for cuda/ptx.cuh. The whole warp takes part.
#pragma once

#include <cstdint>

#include "emulator/device.h"

namespace fastdiff::emulator {

void load_matrices(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(), int line = __builtin_LINE());

void load_matrices_transposed(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE());

// Products and sums in float64, rounded once to float32; elements are halves or bfloat16.
void multiply_matrices(bool halves, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const char* file = __builtin_FILE(), int line = __builtin_LINE());

}  // namespace fastdiff::emulator
