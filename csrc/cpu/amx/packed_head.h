// The keys and values of one (sample, key head) as right-hand matrices of the tile unit.
#pragma once

#include "cpu/amx/tiles.h"
#include "cpu/attention_blocks.h"

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

class PackedHead {
 public:
  using Element = BFloat16;

  // One column more than the values have, which is 1 for every key.
  static int64_t value_tiles(const AttentionParams& p) { return p.head_dim / kTile + 1; }
  static int64_t depth_steps(const AttentionParams& p) { return ceil_div(p.head_dim, kTileDepth); }
  static int64_t blocks(const AttentionParams& p) { return ceil_div(p.kv_length, kStepKeys); }
  static int64_t size(const AttentionParams& p) { return blocks(p) * step_size(p); }

  PackedHead(const AttentionParams&, BFloat16* memory) : memory_(memory) {}

  // Of 32 dimensions at a time, a tile for each half of the keys.
  BFloat16* keys(const AttentionParams& p, int64_t step) const { return memory_ + step * step_size(p); }
  // A tile for every 16 columns.
  BFloat16* values(const AttentionParams& p, int64_t step) const {
    return keys(p, step) + depth_steps(p) * 2 * kTileNumbers;
  }

  void pack(const AttentionParams& p, int64_t sample, int64_t kv_head, int64_t step) const {
    const int64_t first = step * kStepKeys, count = minimum(kStepKeys, keys_of(p, sample) - first);
    if (count <= 0) return;
    pack_keys(head_of<BFloat16>(p.key, sample, kv_head) + first * p.key.token_stride, p.key.token_stride, count,
              p.head_dim, keys(p, step));
    pack_values(head_of<BFloat16>(p.value, sample, kv_head) + first * p.value.token_stride, p.value.token_stride, count,
                p.head_dim, values(p, step));
  }

 private:
  static int64_t step_size(const AttentionParams& p) { return (depth_steps(p) * 2 + value_tiles(p)) * kTileNumbers; }

  static void pack_keys(const BFloat16* keys, int64_t stride, int64_t count, int64_t head_dim, BFloat16* target) {
    for (int64_t d = 0; d < head_dim; d += kTileDepth)
      for (int64_t first = 0; first < kStepKeys; first += kTile, target += kTileNumbers) {
        UInt rows[kTile];
        for (int64_t i = 0; i < kTile; i++)
          rows[i] = first + i < count ? load_numbers(keys + (first + i) * stride + d, head_dim - d) : UInt{};
        transpose(rows);
        for (int64_t i = 0; i < kTile; i++) store_numbers(target + i * kTileDepth, rows[i]);
      }
  }

  static void pack_values(const BFloat16* values, int64_t stride, int64_t count, int64_t head_dim, BFloat16* target) {
    constexpr uint32_t kOne = 0x3f80;
    for (int64_t d = 0; d <= head_dim; d += kTile)
      for (int64_t i = 0; i < kTile; i++, target += kTileDepth) {
        const bool first = i < count, second = i + kTile < count;
        const BFloat16* row = values + i * stride + d;
        UInt pairs = load_pairs(first ? row : nullptr, second ? row + kTile * stride : nullptr, head_dim - d);
        if (head_dim - d < kTile) pairs[head_dim - d] = (first ? kOne : 0) | (second ? kOne << 16 : 0);
        store_numbers(target, pairs);
      }
  }

  BFloat16* memory_;
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
