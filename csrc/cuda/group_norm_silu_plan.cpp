#include "cuda/group_norm_silu_plan.h"

#include <algorithm>
#include <numeric>

namespace fastdiff::cuda {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kWarpSize = 32;
constexpr size_t kReservedSharedBytes = 1024;  // of each block, by the driver
constexpr size_t kSmallSharedBytes = 64 * 1024;
constexpr int64_t kVectorsOfThread = 2;  // of a resident block, at least

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t align_up(size_t bytes) { return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes; }

int lanes_for(int64_t count) {
  int lanes = 1;
  while (lanes < 32 && lanes < count) lanes *= 2;
  return lanes;
}

GroupNormSiluTiling tile(const GroupNormSiluShape& shape) {
  GroupNormSiluTiling tiling;
  tiling.width = kVectorBytes / shape.dtype_bytes;
  if (shape.channels_last) {
    // One to eight rounds of loads a lane: small images need the parallelism, large ones few partial results.
    const int64_t rounds = std::clamp<int64_t>(shape.spatial / 2048, 1, 8);
    tiling.lanes = kChannelsLastLanes;
    tiling.part_size = rounds * kVectorsInFlight * kChannelsLastLanes;
  } else {
    tiling.lanes = lanes_for(ceil_div(shape.spatial, tiling.width));
    tiling.part_size = int64_t{kVectorsInFlight} * tiling.lanes * tiling.width;
  }
  tiling.parts = ceil_div(shape.spatial, tiling.part_size);
  tiling.merge_lanes = lanes_for(tiling.parts);
  return tiling;
}

// What one pass (forward or backward) keeps: activations, and bytes a channel. The sizes are those of the
// kernels' structures, which group_norm_silu.cu checks.
struct PassCost {
  int activations;
  size_t partial;    // for each part
  size_t merged;     // in shared memory or workspace
  size_t constants;  // backward only, for the second pass; resident blocks put them in the partials' place
  size_t affine;
  size_t weights;  // backward only, in the workspace of both paths
};

constexpr PassCost kForward = {1, 8, 8, 0, 16, 0};
constexpr PassCost kBackward = {2, 12, 12, 8, 16, 8};

// Channels of one sample for a resident block: whole groups and whole vectors, wide enough for 64-byte rows.
int64_t resident_channels(const GroupNormSiluShape& shape, const GroupNormSiluTiling& tiling) {
  const int64_t group = shape.channels / shape.groups;
  if (!shape.channels_last) return group;
  const int64_t unit = std::lcm(group, int64_t{tiling.width});
  return std::min(shape.channels, ceil_div(4 * tiling.width, unit) * unit);
}

// 16-byte vectors of the activation that a resident block keeps.
int64_t tile_vectors(const GroupNormSiluShape& shape, const GroupNormSiluPlan& plan) {
  const int64_t width = plan.tiling.width;
  return shape.channels_last ? shape.spatial * ceil_div(plan.tile_channels, width)
                             : plan.tile_channels * ceil_div(shape.spatial, width);
}

void lay_out_shared(const GroupNormSiluShape& shape, const PassCost& cost, GroupNormSiluPlan& plan) {
  const size_t channels = plan.tile_channels;
  const size_t activation = tile_vectors(shape, plan) * kVectorBytes;
  const size_t partials = cost.activations * activation;
  const size_t merged = partials + align_up(channels * std::max(plan.tiling.parts * cost.partial, cost.constants));
  const size_t affine = merged + align_up(channels * cost.merged);
  plan.shared = {static_cast<int64_t>(activation), static_cast<int64_t>(partials), static_cast<int64_t>(merged),
                 static_cast<int64_t>(affine)};
  plan.shared_bytes = affine + channels * cost.affine;
}

void plan_resident(const GroupNormSiluShape& shape, const DeviceLimits& limits, const PassCost& cost, int64_t tiles,
                   GroupNormSiluPlan& plan) {
  // Threads enough to hide each other's latency. Where each multiprocessor has one block at most, it may be large; of
  // more blocks two share a multiprocessor, so that one loads while the other computes. kResidentThreads of them use
  // all registers.
  const int64_t threads = ceil_div(tile_vectors(shape, plan), kVectorsOfThread * kWarpSize) * kWarpSize;
  const int64_t most = tiles <= limits.sm_count ? kResidentThreads : kResidentThreads / 2;
  plan.threads = static_cast<int>(std::min(threads, most));
  const int64_t by_memory = limits.shared_bytes_per_block / (plan.shared_bytes + kReservedSharedBytes);
  const int64_t per_sm = std::clamp<int64_t>(by_memory, 1, kResidentThreads / plan.threads);
  plan.grid = std::min(tiles, per_sm * limits.sm_count);
  plan.workspace_bytes = align_up(shape.batch * shape.channels * cost.weights);
}

void plan_streaming(const GroupNormSiluShape& shape, const PassCost& cost, GroupNormSiluPlan& plan) {
  const GroupNormSiluTiling& tiling = plan.tiling;
  const int64_t columns = shape.channels_last ? ceil_div(shape.channels, tiling.width) : shape.channels;
  plan.tile_channels = 0;
  plan.shared = {};
  plan.shared_bytes = 0;
  plan.threads = kStreamingThreads;
  plan.grid = ceil_div(shape.batch * columns * tiling.parts * tiling.lanes, kStreamingThreads);
  const size_t rows = shape.batch * shape.channels;
  for (const size_t bytes : {tiling.parts * cost.partial, cost.merged, cost.constants, cost.affine, cost.weights}) {
    plan.workspace_bytes += align_up(rows * bytes);
  }
}

GroupNormSiluPlan plan_pass(const GroupNormSiluShape& shape, const DeviceLimits& limits, const PassCost& cost) {
  GroupNormSiluPlan plan;
  if (shape.batch == 0 || shape.channels == 0 || shape.spatial == 0) return plan;
  plan.tiling = tile(shape);
  const int64_t inner = shape.channels_last ? shape.channels : shape.spatial;
  plan.vectorised = shape.aligned && inner % plan.tiling.width == 0;
  plan.tile_channels = resident_channels(shape, plan.tiling);
  lay_out_shared(shape, cost, plan);

  // Resident blocks move the least memory, but a large one works alone on its multiprocessor: with too few of them the
  // idle rest of the chip costs more than the second read (on an H100, 64 blocks of 80 KiB take a quarter longer).
  const int64_t tiles = shape.batch * ceil_div(shape.channels, plan.tile_channels);
  const bool fills_chip = 2 * tiles >= limits.sm_count;
  plan.resident =
      plan.shared_bytes <= limits.shared_bytes_per_block && (fills_chip || plan.shared_bytes <= kSmallSharedBytes);
  if (plan.resident) {
    plan_resident(shape, limits, cost, tiles, plan);
  } else {
    plan_streaming(shape, cost, plan);
  }
  return plan;
}

}  // namespace

GroupNormSiluPlan plan_group_norm_silu(const GroupNormSiluShape& shape, const DeviceLimits& limits) {
  return plan_pass(shape, limits, kForward);
}

GroupNormSiluPlan plan_group_norm_silu_backward(const GroupNormSiluShape& shape, const DeviceLimits& limits) {
  return plan_pass(shape, limits, kBackward);
}

}  // namespace fastdiff::cuda
