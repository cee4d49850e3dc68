// How attention is laid over a GPU: a pure function of the shape and the device, free of CUDA.
//
// Forward, a few keys (the tokens of a text) stay in shared memory with their values while each warp streams 16 queries
// after another past them: softmax sees all scores at once. More keys come tile by tile to a block's queries, and the
// softmax is corrected as it goes along. Backward, a block has queries and streams keys (the gradient of the queries),
// or has keys and streams queries (those of keys and values): no two blocks add to the same sum. Where the keys are so
// few that their blocks would leave the chip idle, several blocks share the queries; their sums are added up
// afterwards, in a fixed order.
//
// Tiles are padded to 16 rows and columns, what the tensor cores take, and no further. A head wider than 128 is cut
// into parts whose sums fit the registers, each with a block of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device_limits.h"

namespace fastdiff::cuda {

constexpr int kAttentionWarps = 4;             // of a block at most
constexpr int kResidentKeys = 160;             // most keys whose scores fit the registers
constexpr int kMaxPartColumns = 128;           // most columns of a head whose sums fit the registers
constexpr int kNarrowPartColumns = 64;         // parts up to here have kernels of their own, of fewer registers
constexpr int64_t kResidentBlocksPerUnit = 4;  // of a multiprocessor
constexpr int64_t kFewKeys = 256;              // up to here blocks share the queries
constexpr int64_t kTilesOfSplit = 16;          // of queries, for each of these blocks

struct AttentionShape {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t query_length = 0;
  int64_t kv_length = 0;
  int64_t head_dim = 0;
  int dtype_bytes = 0;
};

// How a head lies in shared memory. Strides in elements.
struct AttentionLayout {
  int head_dim = 0;
  int depth = 0;               // head_dim, padded to 16
  int row_stride = 0;          // of a tile of whole rows
  int parts = 0;               // of the columns of a head
  int part_columns = 0;        // a multiple of 16
  int part_stride = 0;         // of a tile of one part
  int row_lanes_log2 = 0;      // threads that copy one row together
  bool aligned = false;        // every operand's pointer and strides are multiples of 16 bytes
  bool dense_aligned = false;  // the same of dense tensors
};

struct AttentionPlan {
  AttentionLayout layout;
  bool resident = false;
  int warps = 0;  // of a block; each has 16 rows at a time
  int tile = 0;   // rows that a block streams at a time: keys, or queries for the gradients of keys and values
  // Resident: blocks of one sample and key head. Gradients of keys and values: blocks that share the queries.
  int64_t splits = 1;
  int64_t grid = 0;
  size_t shared_bytes = 0;
};

AttentionPlan plan_attention(const AttentionShape& shape, const DeviceLimits& limits);
AttentionPlan plan_attention_query_gradient(const AttentionShape& shape, const DeviceLimits& limits);
AttentionPlan plan_attention_key_gradients(const AttentionShape& shape, const DeviceLimits& limits);

}  // namespace fastdiff::cuda
