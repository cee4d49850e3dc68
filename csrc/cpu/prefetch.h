#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr int64_t kLineBytes = 64;  // of a cache

// Asks for the cache line at `address`, which need not exist, into the L2 cache only. The L1 cache can have a few
// requests open, and while they wait for memory, what lies in L2 could not be had: with prefetches into L1 a kernel is
// as slow as without.
FASTDIFF_INLINE void prefetch(const void* address) {
  constexpr int kRead = 0, kIntoL2 = 2;
  __builtin_prefetch(address, kRead, kIntoL2);
}

// How far ahead a streaming loop asks for its input.
constexpr int64_t kPrefetchBytes = 8192;

FASTDIFF_INLINE void prefetch_ahead(const void* address) {
  prefetch(static_cast<const char*>(address) + kPrefetchBytes);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
