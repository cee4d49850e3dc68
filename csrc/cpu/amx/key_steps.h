#pragma once

#include "cpu/amx/tiles.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Keys that are worked on together: two tiles of scores. Probabilities of keys 16 apart are neighbours in memory, so
// that two vectors of them become one by a single instruction.
constexpr int64_t kStepKeys = 2 * kTile;

// Calls visit(true_type) for a step that has keys in both halves, visit(false_type) for one with at most 16 left.
template <class Visit>
FASTDIFF_INLINE void for_pairs_or_half(int64_t keys_left, const Visit& visit) {
  if (keys_left > kTile) {
    visit(std::true_type{});
  } else {
    visit(std::false_type{});
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
