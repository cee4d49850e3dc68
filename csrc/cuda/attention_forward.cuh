// Forward kernels of attention. A warp has 16 queries; their scores and sums stay in its registers.
//
//   Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv:1805.02867)
//   Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning" (arXiv:2307.08691)
#pragma once

#include "cuda/attention_tiles.cuh"
#include "cuda/mutations.cuh"
#include "cuda/warp_matrix.cuh"

namespace fastdiff::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Keys of a sample that count.
__device__ __forceinline__ int64_t keys_of(const AttentionParams& params, int64_t sample) {
  if (params.kv_lengths == nullptr) return params.kv_length;
  return min(max(int64_t{params.kv_lengths[sample]}, int64_t{0}), params.kv_length);
}

__device__ __forceinline__ int padded_rows(int64_t rows) { return static_cast<int>((rows + 15) / 16 * 16); }

// Scores, scaled by `scale`, become exponents of 2; those of the columns from `keys` on are -infinity.
template <int kTiles>
__device__ __forceinline__ void scale_and_mask(Fragment<kTiles>& scores, float scale, int keys, int columns) {
  const int last = planted<Mutation::WrongMaskEdge> ? keys + 1 : keys;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j * kTileColumns >= columns) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool exists = j * kTileColumns + fragment_column() + i % 2 < last;
      scores.values[j][i] = exists ? scores.values[j][i] * scale : -INFINITY;
    }
  }
}

// Softmax of a lane's two rows so far: the largest exponent, and this lane's part of the sum of 2^(exponent - top).
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// Exponents become 2^(exponent - top), with the top of these and all earlier columns; `earlier` is what sums over
// earlier columns have to be multiplied by.
template <int kTiles>
__device__ __forceinline__ void exponentiate(Fragment<kTiles>& scores, Softmax& softmax, float (&earlier)[2],
                                             int columns) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float top = softmax.top[row];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (j * kTileColumns >= columns) break;
      top = fmaxf(top, fmaxf(scores.values[j][2 * row], scores.values[j][2 * row + 1]));
    }
    top = row_max(top);
    // -infinity less -infinity would be NaN, although another column may hold a finite score.
    const float shift = top > -INFINITY ? top : 0.0f;
    earlier[row] = exp2f(softmax.top[row] - shift);
    float sum = softmax.sum[row] * earlier[row];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (j * kTileColumns >= columns) break;
#pragma unroll
      for (int i = 2 * row; i < 2 * row + 2; ++i) {
        scores.values[j][i] = exp2f(scores.values[j][i] - shift);
        sum += scores.values[j][i];
      }
    }
    softmax.top[row] = top;
    softmax.sum[row] = sum;
  }
}

// Queries of one sample and head: those of a warp.
struct QueryRows {
  int64_t sample;
  int64_t head;
  int64_t first;
  int count;  // up to 16 that exist; not positive: none
};

// A row without keys is zeros. `tile` is the warp's own, of 16 rows.
template <typename T, int kTiles>
__device__ __forceinline__ void write_output(const AttentionParams& params, const AttentionLayout& layout,
                                             const QueryRows& rows, Columns columns, Fragment<kTiles>& output,
                                             const Softmax& softmax, int64_t keys, T* tile, int stride) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float sum = row_sum(softmax.sum[row]), factor = keys > 0 ? __fdiv_rn(1.0f, sum) : 0.0f;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      output.values[j][2 * row] *= factor;
      output.values[j][2 * row + 1] *= factor;
    }
    const int index = fragment_row() + 8 * row;
    if (params.logsumexp != nullptr && columns.first == 0 && fragment_column() == 0 && index < rows.count) {
      const float logsumexp = keys > 0 ? (softmax.top[row] + log2f(sum)) * kLn2 : -INFINITY;
      params.logsumexp[(rows.sample * params.heads + rows.head) * params.query_length + rows.first + index] = logsumexp;
    }
  }
  __syncwarp();  // all lanes have read the queries that were here
  store_fragment(tile, stride, output, columns.count);
  __syncwarp();
  T* to = static_cast<T*>(params.output) +
          ((rows.sample * params.query_length + rows.first) * params.heads + rows.head) * params.head_dim;
  store_tile(to, params.heads * params.head_dim, tile, stride, rows.count, columns, layout);
}

// All keys of a sample and key head stay in shared memory; each warp takes queries 16 at a time, and loads the next
// ones while it works.
template <typename T, int kTiles>
__global__ void __launch_bounds__(kAttentionWarps* kWarpSize, 2)
    attention_resident_kernel(AttentionParams params, AttentionLayout layout, int splits) {
  constexpr int kKeyTiles = kResidentKeys / kTileColumns;
  const int64_t unit = blockIdx.x / splits;
  const int64_t sample = unit / params.kv_heads, kv_head = unit % params.kv_heads;
  const int64_t group = params.heads / params.kv_heads, blocks_of_queries = (params.query_length + 15) / 16;
  const int64_t keys = keys_of(params, sample), items = group * blocks_of_queries;
  const int stride = layout.row_stride, key_rows = padded_rows(keys);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, warps = static_cast<int>(blockDim.x) / kWarpSize;
  const Columns columns = {0, layout.depth};

  T* key_tile = dynamic_shared<T>();
  T* value_tile = key_tile + padded_rows(params.kv_length) * stride;
  T* query_tiles = value_tile + padded_rows(params.kv_length) * stride + warp * 2 * kWarpRows * stride;
  load_tile(key_tile, stride, head_rows<T>(params.key, sample, kv_head, keys), 0, key_rows, columns, layout,
            copiers_of_block());
  load_tile(value_tile, stride, head_rows<T>(params.value, sample, kv_head, keys), 0, key_rows, columns, layout,
            copiers_of_block());
  commit_copies();

  const auto rows_of = [&](int64_t item) -> QueryRows {
    const int64_t first = item % blocks_of_queries * kWarpRows;
    const int64_t count = item < items ? min(params.query_length - first, int64_t{kWarpRows}) : 0;
    return {sample, kv_head * group + item / blocks_of_queries, first, static_cast<int>(count)};
  };
  const auto load_queries = [&](const QueryRows& rows, T* tile) {
    if (rows.count > 0) {
      load_tile(tile, stride, head_rows<T>(params.query, sample, rows.head, params.query_length), rows.first, kWarpRows,
                columns, layout, copiers_of_warp());
    }
    commit_copies();
  };
  const int64_t step = int64_t{splits} * warps;
  int64_t item = int64_t{blockIdx.x} % splits * warps + warp;
  QueryRows rows = rows_of(item);
  load_queries(rows, query_tiles);
  wait_for_copies<planted<Mutation::MissingWait> ? 2 : 1>();  // the keys and values have come
  if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();

  for (int stage = 0; rows.count > 0; stage ^= 1) {
    item += step;
    const QueryRows next = rows_of(item);
    __syncwarp();  // the output that was staged there has been written
    load_queries(next, query_tiles + (stage ^ 1) * kWarpRows * stride);
    wait_for_copies<1>();
    __syncwarp();
    T* tile = query_tiles + stage * kWarpRows * stride;
    Fragment<kKeyTiles> scores = {};
    Fragment<kTiles> output = {};
    Softmax softmax;
    float earlier[2];
    multiply_by_rows<T>(scores, SharedMatrix<T>{tile, stride}, SharedMatrix<T>{key_tile, stride}, layout.depth,
                        key_rows);
    scale_and_mask(scores, params.scale * kLog2E, static_cast<int>(keys), key_rows);
    exponentiate(scores, softmax, earlier, key_rows);
    multiply_by_columns<T>(output, scores, SharedMatrix<T>{value_tile, stride}, key_rows, layout.depth, nullptr);
    write_output(params, layout, rows, columns, output, softmax, keys, tile, stride);
    rows = next;
  }
}

// What a block of a kernel that has rows of one head works on, of some columns of its results.
struct HeadBlock {
  int64_t sample;
  int64_t head;
  int64_t first;  // row
  Columns columns;
};

// Blocks of the same head are neighbours: what they stream is in the cache.
__device__ __forceinline__ HeadBlock head_block(const AttentionLayout& layout, int64_t heads, int64_t length) {
  const int64_t rows = int64_t{blockDim.x} / kWarpSize * kWarpRows, blocks = (length + rows - 1) / rows;
  const int64_t part = blockIdx.x / blocks, head = part / layout.parts;
  const int first_column = static_cast<int>(part % layout.parts) * layout.part_columns;
  return {head / heads,
          head % heads,
          blockIdx.x % blocks * rows,
          {first_column, min(layout.part_columns, layout.depth - first_column)}};
}

// A block's queries stay; tiles of keys and values stream past them, the next one loaded while one is worked on.
template <typename T, int kTiles, int kKeyTiles>
__global__ void __launch_bounds__(kAttentionWarps* kWarpSize, 2)
    attention_streaming_kernel(AttentionParams params, AttentionLayout layout) {
  constexpr int kKeys = kKeyTiles * kTileColumns;
  const HeadBlock block = head_block(layout, params.heads, params.query_length);
  const int64_t keys = keys_of(params, block.sample), kv_head = block.head / (params.heads / params.kv_heads);
  const int stride = layout.row_stride, value_stride = layout.part_stride;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, warps = static_cast<int>(blockDim.x) / kWarpSize;

  T* key_tiles = dynamic_shared<T>();
  T* value_tiles = key_tiles + 2 * kKeys * stride;
  T* query_tile = value_tiles + 2 * kKeys * value_stride;
  float* scratch =
      reinterpret_cast<float*>(query_tile + warps * kWarpRows * stride) + warp * kScratchFloats<T, kKeyTiles>;
  const HeadRows<T> key_source = head_rows<T>(params.key, block.sample, kv_head, keys);
  const HeadRows<T> value_source = head_rows<T>(params.value, block.sample, kv_head, keys);
  const auto load_keys = [&](int64_t tile) {
    if (tile * kKeys < keys) {
      load_tile(key_tiles + tile % 2 * kKeys * stride, stride, key_source, tile * kKeys, kKeys, {0, layout.depth},
                layout, copiers_of_block());
      load_tile(value_tiles + tile % 2 * kKeys * value_stride, value_stride, value_source, tile * kKeys, kKeys,
                block.columns, layout, copiers_of_block());
    }
    commit_copies();
  };
  load_tile(query_tile, stride, head_rows<T>(params.query, block.sample, block.head, params.query_length), block.first,
            warps * kWarpRows, {0, layout.depth}, layout, copiers_of_block());
  load_keys(0);

  Fragment<kTiles> output = {};
  Softmax softmax;
  T* own_queries = query_tile + warp * kWarpRows * stride;
  for (int64_t tile = 0; tile * kKeys < keys; ++tile) {
    load_keys(tile + 1);
    wait_for_copies<planted<Mutation::MissingWait> ? 2 : 1>();
    if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
    const int left = static_cast<int>(min(keys - tile * kKeys, int64_t{kKeys})), columns = padded_rows(left);
    Fragment<kKeyTiles> scores = {};
    float earlier[2];
    multiply_by_rows<T>(scores, SharedMatrix<T>{own_queries, stride},
                        SharedMatrix<T>{key_tiles + tile % 2 * kKeys * stride, stride}, layout.depth, columns);
    scale_and_mask(scores, params.scale * kLog2E, left, columns);
    exponentiate(scores, softmax, earlier, columns);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output.values[j][i] *= earlier[i / 2];
    }
    multiply_by_columns<T>(output, scores, SharedMatrix<T>{value_tiles + tile % 2 * kKeys * value_stride, value_stride},
                           columns, block.columns.count, scratch);
    if constexpr (!planted<Mutation::MissingBarrierBeforeWrite>) __syncthreads();
  }
  if (keys == 0) {  // nobody has waited for the queries yet, in whose place the output goes
    wait_for_copies<0>();
    __syncthreads();
  }
  const int64_t first = block.first + warp * kWarpRows;
  const int64_t count = min(params.query_length - first, int64_t{kWarpRows});
  write_output(params, layout, {block.sample, block.head, first, static_cast<int>(count)}, block.columns, output,
               softmax, keys, own_queries, stride);
}

}  // namespace fastdiff::cuda
