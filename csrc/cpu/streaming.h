#pragma once

#include <cstdint>

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Outputs of kernels with few operands from this size on are stored past the caches: no consumer would find all of it
// there, and the lines that a plain store reads first are a quarter to a third of such a kernel's traffic.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Streamed stores are aligned, so all rows of the output have to be.
inline bool worth_streaming(const void* output, int64_t rows, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(output) % 64 == 0 && row_bytes % 64 == 0 && rows * row_bytes >= kStreamBytes;
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
