#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// While it lives, results of this thread that would be subnormal are zero: power_of_two_or_zero takes a hundred times
// as long where its result is subnormal and made by an instruction that can.
class FlushToZero {
#if defined(__AVX512F__)
 public:
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushToZero() { _mm_setcsr(before_); }
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

 private:
  unsigned before_;
#endif
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
