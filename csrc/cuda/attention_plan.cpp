#include "cuda/attention_plan.h"

#include <algorithm>

namespace fastdiff::cuda {
namespace {

constexpr int kPadding = 16;  // rows and columns that a tensor core takes
constexpr int kVectorBytes = 16;
constexpr int kStages = 2;  // tiles in flight: one is computed on while the next arrives

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t padded(int64_t count) { return ceil_div(count, kPadding) * kPadding; }

AttentionLayout layout_of(const AttentionShape& shape) {
  AttentionLayout layout;
  const int width = kVectorBytes / shape.dtype_bytes;
  layout.head_dim = static_cast<int>(shape.head_dim);
  layout.depth = static_cast<int>(padded(shape.head_dim));
  layout.row_stride = layout.depth + width;
  layout.parts = static_cast<int>(ceil_div(layout.depth, kMaxPartColumns));
  layout.part_columns = static_cast<int>(padded(ceil_div(layout.depth, layout.parts)));
  layout.part_stride = layout.part_columns + width;
  while (layout.row_lanes_log2 < 5 && width << layout.row_lanes_log2 < layout.depth) ++layout.row_lanes_log2;
  layout.dense_aligned = shape.head_dim % width == 0;
  return layout;
}

// A warp's 16 rows of a product's left-hand side of float32, where that goes through shared memory.
int64_t scratch_bytes(const AttentionShape& shape, int tile) {
  return shape.dtype_bytes == 4 ? kPadding * (tile + 4) * int64_t{4} : 0;
}

// The most warps whose memory fits: `warp_bytes` of each and `block_bytes` of all.
void fit(AttentionPlan& plan, int64_t warp_bytes, int64_t block_bytes, int64_t rows, const DeviceLimits& limits) {
  const auto fits = [&](int warps) {
    return static_cast<size_t>(block_bytes + warps * warp_bytes) <= limits.shared_bytes_per_block;
  };
  plan.warps = kAttentionWarps;
  while (plan.warps > 1 && (!fits(plan.warps) || (plan.warps / 2) * kPadding >= rows)) plan.warps /= 2;
  plan.shared_bytes = static_cast<size_t>(block_bytes + plan.warps * warp_bytes);
}

bool plan_resident(AttentionPlan& plan, const AttentionShape& shape, const DeviceLimits& limits) {
  const AttentionLayout& layout = plan.layout;
  if (shape.dtype_bytes != 2 || layout.parts > 1 || shape.kv_length > kResidentKeys) return false;
  const int64_t row_bytes = int64_t{layout.row_stride} * shape.dtype_bytes;
  const int64_t groups = shape.batch * shape.kv_heads;
  const int64_t queries = ceil_div(shape.query_length, kPadding) * (shape.heads / shape.kv_heads);
  fit(plan, kStages * kPadding * row_bytes, 2 * padded(shape.kv_length) * row_bytes, queries * kPadding, limits);
  if (plan.shared_bytes > limits.shared_bytes_per_block) return false;
  const int64_t wanted = ceil_div(kResidentBlocksPerUnit * limits.sm_count, std::max<int64_t>(groups, 1));
  plan.resident = true;
  plan.splits = std::max<int64_t>(std::min(wanted, ceil_div(queries, plan.warps)), 1);
  plan.grid = queries == 0 ? 0 : groups * plan.splits;
  return true;
}

}  // namespace

AttentionPlan plan_attention(const AttentionShape& shape, const DeviceLimits& limits) {
  AttentionPlan plan;
  plan.layout = layout_of(shape);
  const AttentionLayout& layout = plan.layout;
  if (plan_resident(plan, shape, limits)) return plan;
  if (shape.dtype_bytes == 4) {
    plan.tile = layout.depth <= kNarrowPartColumns ? 32 : 16;
  } else {
    plan.tile = layout.parts == 1 ? 64 : 32;
  }
  const int64_t key_bytes = int64_t{layout.row_stride} * shape.dtype_bytes * plan.tile;
  const int64_t value_bytes = int64_t{layout.part_stride} * shape.dtype_bytes * plan.tile;
  const int64_t query_bytes = int64_t{layout.row_stride} * shape.dtype_bytes * kPadding;
  fit(plan, query_bytes + scratch_bytes(shape, plan.tile), kStages * (key_bytes + value_bytes), shape.query_length,
      limits);
  plan.grid = shape.batch * shape.heads * layout.parts * ceil_div(shape.query_length, plan.warps * kPadding);
  return plan;
}

namespace {

// Both gradients stream two operands in whole rows past two others.
AttentionPlan plan_gradient(const AttentionShape& shape, int64_t heads, int64_t rows, const DeviceLimits& limits) {
  AttentionPlan plan;
  plan.layout = layout_of(shape);
  plan.tile = shape.dtype_bytes == 4 ? 16 : 32;
  const int64_t row_bytes = int64_t{plan.layout.row_stride} * shape.dtype_bytes;
  fit(plan, 2 * kPadding * row_bytes + scratch_bytes(shape, plan.tile), kStages * 2 * plan.tile * row_bytes, rows,
      limits);
  plan.grid = shape.batch * heads * plan.layout.parts * ceil_div(rows, plan.warps * kPadding);
  return plan;
}

}  // namespace

AttentionPlan plan_attention_query_gradient(const AttentionShape& shape, const DeviceLimits& limits) {
  return plan_gradient(shape, shape.heads, shape.query_length, limits);
}

AttentionPlan plan_attention_key_gradients(const AttentionShape& shape, const DeviceLimits& limits) {
  AttentionPlan plan = plan_gradient(shape, shape.kv_heads, shape.kv_length, limits);
  const int64_t tiles = ceil_div(shape.query_length, plan.tile) * (shape.heads / shape.kv_heads);
  if (shape.kv_length <= kFewKeys) plan.splits = std::max<int64_t>(ceil_div(tiles, kTilesOfSplit), 1);
  return plan;
}

}  // namespace fastdiff::cuda
