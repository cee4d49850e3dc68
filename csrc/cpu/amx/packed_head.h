// The keys and values of one (sample, key head) as right-hand matrices of the tile unit.
#pragma once

#include "cpu/amx/key_steps.h"
#include "cpu/amx/packing.h"
#include "cpu/attention_blocks.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

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
    const int64_t key_stride = p.key.token_stride, value_stride = p.value.token_stride;
    pack_as_columns(head_of<BFloat16>(p.key, sample, kv_head) + first * key_stride, key_stride, count, p.head_dim,
                    keys(p, step));
    pack_as_rows(head_of<BFloat16>(p.value, sample, kv_head) + first * value_stride, value_stride, count, p.head_dim,
                 values(p, step));
    add_ones(count, p.head_dim, values(p, step));
  }

 private:
  static int64_t step_size(const AttentionParams& p) { return (depth_steps(p) * 2 + value_tiles(p)) * kTileNumbers; }

  // The column after the last of the values, in the last tile.
  static void add_ones(int64_t count, int64_t head_dim, BFloat16* values) {
    constexpr BFloat16 kOne{0x3f80};
    BFloat16* tile = values + head_dim / kTile * kTileNumbers;
    if (head_dim % kTile == 0) std::memset(tile, 0, kTileNumbers * sizeof(BFloat16));
    BFloat16* column = tile + head_dim % kTile * 2;
    for (int64_t i = 0; i < kStepKeys; i++) column[i % kTile * kTileDepth + i / kTile] = i < count ? kOne : BFloat16{};
  }

  BFloat16* memory_;
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
