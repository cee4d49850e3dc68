// How group_norm_silu is laid over a GPU: a pure function of the shape and the device, free of CUDA.
//
// The plan has two halves. The tiling fixes which elements are summed together and in which order, so it decides the
// bits of the result; it depends on channels, spatial size, element size and layout, never on the batch or the device.
// The rest (resident or streaming, block and grid sizes) only assigns tiles to threads and cannot change a bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device_limits.h"

namespace fastdiff::cuda {

constexpr int kVectorsInFlight = 4;     // of a lane, loaded before any is used
constexpr int kChannelsLastLanes = 8;   // of a team: so many pixels at once
constexpr int kStreamingThreads = 128;  // of a block
constexpr int kStreamingBlocks = 4;     // of a multiprocessor at least; without it ptxas spills to fit more
constexpr int kMergeThreads = 128;
constexpr int kResidentThreads = 384;  // at most; leaves a thread up to 168 registers

struct GroupNormSiluShape {
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t spatial = 0;
  int64_t groups = 0;
  int dtype_bytes = 0;
  bool channels_last = false;
  bool aligned = false;  // every activation pointer and stride is a multiple of 16 bytes
};

// A unit is what one team of lanes reduces: `part_size` consecutive positions of one channel (channels first) or of the
// `width` adjacent channels of one vector (channels last).
struct GroupNormSiluTiling {
  int width = 0;          // elements of a 16-byte vector
  int lanes = 0;          // lanes of a team, a power of two up to 32
  int64_t part_size = 0;  // spatial positions
  int64_t parts = 0;      // of a channel
  int merge_lanes = 0;    // lanes that merge the parts of one channel
};

// Byte offsets in the dynamic shared memory of the resident kernels; x comes first.
struct GroupNormSiluShared {
  int64_t dy = 0;        // backward only
  int64_t partials = 0;  // of each (channel, part); backward later the constants of the second pass
  int64_t merged = 0;    // over the parts of each channel
  int64_t affine = 0;    // the constants of each channel
};

struct GroupNormSiluPlan {
  GroupNormSiluTiling tiling;
  bool resident = false;      // one block keeps whole groups in shared memory
  bool vectorised = false;    // 16-byte accesses; else one element at a time
  int threads = 0;            // of a block
  int64_t grid = 0;           // blocks: persistent (resident), or one team a unit (streaming)
  int64_t tile_channels = 0;  // of one sample that a resident block keeps; whole groups and whole vectors
  GroupNormSiluShared shared;
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
};

GroupNormSiluPlan plan_group_norm_silu(const GroupNormSiluShape& shape, const DeviceLimits& limits);
GroupNormSiluPlan plan_group_norm_silu_backward(const GroupNormSiluShape& shape, const DeviceLimits& limits);

}  // namespace fastdiff::cuda
