#pragma once

#include <cstdint>

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
