// Backward kernels of attention. With p the softmax, worked out again from the logsumexp, and dp = doutput value^T,
//
//   delta = sum over head_dim of doutput * output,   ds = p * (dp - delta),
//   dvalue = p^T doutput,   dquery = scale * ds key,   dkey = scale * ds^T query.
//
// A block owns the rows of its gradients and streams the other side past them, so sums have one order: no atomics. Of a
// few keys several blocks have the same rows and a range of queries each; merge_key_gradients_kernel adds them up.
//
//   Dao, Fu, Ermon, Rudra and Re, "FlashAttention" (arXiv:2205.14135), appendix B.2
#pragma once

#include "cuda/attention_forward.cuh"
#include "cuda/quotient.cuh"

namespace fastdiff::cuda {

constexpr int kDeltaThreads = 256;

// A team of `lanes` a row of (sample, query, head), a vector each; delta is (batch, heads, query_length).
template <typename T>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta_kernel(AttentionBackwardParams params, float* delta, int lanes, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const AttentionParams& forward = params.forward;
  const Team team = this_team<false>(lanes);
  const int64_t row = int64_t{blockIdx.x} * team.count + team.index;
  const bool exists = row < forward.batch * forward.query_length * forward.heads;
  const Quotient place = divide(row, forward.heads), token = divide(place.whole, forward.query_length);
  float sum = 0.0f;
  if (exists) {
    const T* output = static_cast<const T*>(forward.output) + row * forward.head_dim;
    const T* doutput =
        head_rows<T>(params.doutput, token.whole, place.rest, 0).data + token.rest * params.doutput.token_stride;
    for (int64_t first = team.member * kWidth; first < forward.head_dim; first += lanes * kWidth) {
      const int valid = static_cast<int>(min(forward.head_dim - first, int64_t{kWidth}));
      float a[kWidth], b[kWidth];
      load_floats(output + first, valid, aligned, a);
      load_floats(doutput + first, valid, aligned, b);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum = fmaf(a[i], b[i], sum);
    }
  }
  sum = team_sum(sum, lanes);
  if (!exists || team.member > 0) return;
  delta[(token.whole * forward.heads + place.rest) * forward.query_length + token.rest] = sum;
}

// What is known of a query: the logsumexp as an exponent of 2, and delta. The logsumexp of a query that does not exist
// makes its p zero.
struct QueryStatistics {
  float exponent;
  float delta;
};

__device__ __forceinline__ QueryStatistics query_statistics(const AttentionParams& params, const float* delta,
                                                            int64_t sample, int64_t head, int64_t query) {
  if (query >= params.query_length) return {INFINITY, 0.0f};
  const int64_t row = (sample * params.heads + head) * params.query_length + query;
  return {params.logsumexp[row] * kLog2E, delta[row]};
}

// Scores become p, and dp becomes ds. Where `exists` is false both are zero, whatever was there.
__device__ __forceinline__ void softmax_gradient(float& score, float& gradient, const QueryStatistics& statistics,
                                                 float scale, bool exists) {
  score = exists ? exp2f(score * scale - statistics.exponent) : 0.0f;
  gradient = exists ? score * (gradient - statistics.delta) : 0.0f;
}

// Writes a warp's 16 rows of a gradient. `tile` is the warp's own.
template <typename T, int kTiles>
__device__ __forceinline__ void write_gradient(void* gradient, int64_t heads, int64_t length, const HeadBlock& block,
                                               int64_t first, const Fragment<kTiles>& fragment, T* tile,
                                               const AttentionLayout& layout) {
  store_fragment(tile, layout.row_stride, fragment, block.columns.count);
  __syncwarp();
  T* to = static_cast<T*>(gradient) + ((block.sample * length + first) * heads + block.head) * layout.head_dim;
  const int64_t count = min(length - first, int64_t{kWarpRows});
  store_tile(to, heads * layout.head_dim, tile, layout.row_stride, static_cast<int>(count), block.columns, layout);
}

template <int kTiles>
__device__ __forceinline__ void scale_fragment(Fragment<kTiles>& fragment, float scale) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) fragment.values[j][i] *= scale;
  }
}

// Two operands whose tiles of kRows rows stream through shared memory, two tiles of each at a time.
template <typename T, int kRows>
struct TileStream {
  T* tiles;
  int stride;

  __device__ T* first(int64_t tile) const { return tiles + tile % 2 * 2 * kRows * stride; }
  __device__ T* second(int64_t tile) const { return first(tile) + kRows * stride; }
  __device__ T* end() const { return tiles + 4 * kRows * stride; }

  __device__ __forceinline__ void load(int64_t tile, const HeadRows<T>& a, const HeadRows<T>& b, int64_t row,
                                       const AttentionLayout& layout) const {
    load_tile(first(tile), stride, a, row, kRows, {0, layout.depth}, layout, copiers_of_block());
    load_tile(second(tile), stride, b, row, kRows, {0, layout.depth}, layout, copiers_of_block());
  }
};

// dquery: a block has queries with their doutput, and streams keys and values.
template <typename T, int kTiles, int kKeyTiles>
__global__ void __launch_bounds__(kAttentionWarps* kWarpSize, 2)
    attention_query_gradient_kernel(AttentionBackwardParams params, AttentionLayout layout, const float* delta) {
  constexpr int kKeys = kKeyTiles * kTileColumns;
  const AttentionParams& forward = params.forward;
  const HeadBlock block = head_block(layout, forward.heads, forward.query_length);
  const int64_t keys = keys_of(forward, block.sample), kv_head = block.head / (forward.heads / forward.kv_heads);
  const int stride = layout.row_stride, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int rows = static_cast<int>(blockDim.x) / kWarpSize * kWarpRows;

  const TileStream<T, kKeys> stream = {dynamic_shared<T>(), stride};
  T* query_tile = stream.end();
  T* doutput_tile = query_tile + rows * stride;
  float* scratch = reinterpret_cast<float*>(doutput_tile + rows * stride) + warp * kScratchFloats<T, kKeyTiles>;
  const HeadRows<T> key_source = head_rows<T>(forward.key, block.sample, kv_head, keys);
  const HeadRows<T> value_source = head_rows<T>(forward.value, block.sample, kv_head, keys);
  const auto load_keys = [&](int64_t tile) {
    if (tile * kKeys < keys) stream.load(tile, key_source, value_source, tile * kKeys, layout);
    commit_copies();
  };
  load_tile(query_tile, stride, head_rows<T>(forward.query, block.sample, block.head, forward.query_length),
            block.first, rows, {0, layout.depth}, layout, copiers_of_block());
  load_tile(doutput_tile, stride, head_rows<T>(params.doutput, block.sample, block.head, forward.query_length),
            block.first, rows, {0, layout.depth}, layout, copiers_of_block());
  load_keys(0);

  const int64_t first = block.first + warp * kWarpRows;
  QueryStatistics statistics[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    statistics[row] = query_statistics(forward, delta, block.sample, block.head, first + fragment_row() + 8 * row);
  }
  Fragment<kTiles> dquery = {};
  T* own_queries = query_tile + warp * kWarpRows * stride;
  T* own_doutput = doutput_tile + warp * kWarpRows * stride;
  for (int64_t tile = 0; tile * kKeys < keys; ++tile) {
    load_keys(tile + 1);
    wait_for_copies<planted<Mutation::MissingWait> ? 2 : 1>();
    if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
    const int left = static_cast<int>(min(keys - tile * kKeys, int64_t{kKeys})), columns = padded_rows(left);
    Fragment<kKeyTiles> scores = {}, gradients = {};
    multiply_by_rows<T>(scores, SharedMatrix<T>{own_queries, stride}, SharedMatrix<T>{stream.first(tile), stride},
                        layout.depth, columns);
    multiply_by_rows<T>(gradients, SharedMatrix<T>{own_doutput, stride}, SharedMatrix<T>{stream.second(tile), stride},
                        layout.depth, columns);
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool exists = j * kTileColumns + fragment_column() + i % 2 < left;
        softmax_gradient(scores.values[j][i], gradients.values[j][i], statistics[i / 2], forward.scale * kLog2E,
                         exists);
      }
    }
    multiply_by_columns<T>(dquery, gradients, SharedMatrix<T>{stream.first(tile) + block.columns.first, stride},
                           columns, block.columns.count, scratch);
    if constexpr (!planted<Mutation::MissingBarrierBeforeWrite>) __syncthreads();
  }
  if (keys == 0) {  // nobody has waited for the queries yet, in whose place the gradient goes
    wait_for_copies<0>();
    __syncthreads();
  }
  scale_fragment(dquery, forward.scale);
  write_gradient(params.dquery, forward.heads, forward.query_length, block, first, dquery, own_queries, layout);
}

// Sums over some of the queries, (splits, batch, kv_length, kv_heads, head_dim); null where one block has them all.
struct KeyGradientPartials {
  float* dkey;
  float* dvalue;
};

// Writes a warp's 16 rows of a partial sum. `rows` of them exist.
template <int kTiles>
__device__ __forceinline__ void write_partial(float* to, int64_t row_stride, int64_t rows, Columns columns,
                                              int head_dim, const Fragment<kTiles>& fragment) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j * kTileColumns >= columns.count) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = fragment_row() + i / 2 * 8;
      const int column = columns.first + j * kTileColumns + fragment_column() + i % 2;
      if (row < rows && column < head_dim) to[row * row_stride + column] = fragment.values[j][i];
    }
  }
}

// dkey and dvalue: a block has keys with their values, and streams the queries of all heads that they serve, with their
// doutput. Everything is transposed: rows are keys.
template <typename T, int kTiles, int kQueryTiles>
__global__ void __launch_bounds__(kAttentionWarps* kWarpSize, 2)
    attention_key_gradients_kernel(AttentionBackwardParams params, AttentionLayout layout, const float* delta,
                                   KeyGradientPartials partials) {
  constexpr int kQueries = kQueryTiles * kTileColumns;
  const AttentionParams& forward = params.forward;
  const HeadBlock block = head_block(layout, forward.kv_heads, forward.kv_length);
  const int64_t keys = keys_of(forward, block.sample), group = forward.heads / forward.kv_heads;
  const int64_t head_tiles = (forward.query_length + kQueries - 1) / kQueries;
  // The tiles of all heads, one after the other, divided among the blocks of one column of the grid.
  const int64_t share = (group * head_tiles + gridDim.y - 1) / gridDim.y, first_tile = blockIdx.y * share;
  const int64_t end_tile = block.first < keys ? min(first_tile + share, group * head_tiles) : first_tile;
  const int stride = layout.row_stride, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int rows = static_cast<int>(blockDim.x) / kWarpSize * kWarpRows;

  const TileStream<T, kQueries> stream = {dynamic_shared<T>(), stride};
  T* key_tile = stream.end();
  T* value_tile = key_tile + rows * stride;
  float* scratch = reinterpret_cast<float*>(value_tile + rows * stride) + warp * kScratchFloats<T, kQueryTiles>;
  const auto load_queries = [&](int64_t tile) {
    if (tile < end_tile) {
      const int64_t head = block.head * group + tile / head_tiles;
      stream.load(tile, head_rows<T>(forward.query, block.sample, head, forward.query_length),
                  head_rows<T>(params.doutput, block.sample, head, forward.query_length), tile % head_tiles * kQueries,
                  layout);
    }
    commit_copies();
  };
  load_tile(key_tile, stride, head_rows<T>(forward.key, block.sample, block.head, keys), block.first, rows,
            {0, layout.depth}, layout, copiers_of_block());
  load_tile(value_tile, stride, head_rows<T>(forward.value, block.sample, block.head, keys), block.first, rows,
            {0, layout.depth}, layout, copiers_of_block());
  load_queries(first_tile);

  const int64_t first = block.first + warp * kWarpRows;
  const int64_t last = planted<Mutation::WrongMaskEdge> ? keys + 1 : keys;
  Fragment<kTiles> dkey = {}, dvalue = {};
  T* own_keys = key_tile + warp * kWarpRows * stride;
  T* own_values = value_tile + warp * kWarpRows * stride;
  for (int64_t tile = first_tile; tile < end_tile; ++tile) {
    load_queries(tile + 1);
    wait_for_copies<planted<Mutation::MissingWait> ? 2 : 1>();
    if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
    const int64_t head = block.head * group + tile / head_tiles, query = tile % head_tiles * kQueries;
    const int columns = padded_rows(min(forward.query_length - query, int64_t{kQueries}));
    Fragment<kQueryTiles> scores = {}, gradients = {};
    multiply_by_rows<T>(scores, SharedMatrix<T>{own_keys, stride}, SharedMatrix<T>{stream.first(tile), stride},
                        layout.depth, columns);
    multiply_by_rows<T>(gradients, SharedMatrix<T>{own_values, stride}, SharedMatrix<T>{stream.second(tile), stride},
                        layout.depth, columns);
#pragma unroll
    for (int j = 0; j < kQueryTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t column = query + j * kTileColumns + fragment_column() + i;
        const QueryStatistics statistics = query_statistics(forward, delta, block.sample, head, column);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const bool exists = column < forward.query_length && first + fragment_row() + 8 * row < last;
          softmax_gradient(scores.values[j][2 * row + i], gradients.values[j][2 * row + i], statistics,
                           forward.scale * kLog2E, exists);
        }
      }
    }
    const int first_column = block.columns.first, count = block.columns.count;
    multiply_by_columns<T>(dvalue, scores, SharedMatrix<T>{stream.second(tile) + first_column, stride}, columns, count,
                           scratch);
    multiply_by_columns<T>(dkey, gradients, SharedMatrix<T>{stream.first(tile) + first_column, stride}, columns, count,
                           scratch);
    if constexpr (!planted<Mutation::MissingBarrierBeforeWrite>) __syncthreads();
  }
  if (end_tile <= first_tile) {  // nobody has waited for the keys yet, in whose place the gradient goes
    wait_for_copies<0>();
    __syncthreads();
  }
  scale_fragment(dkey, forward.scale);
  if (partials.dkey != nullptr) {
    const int64_t row = (blockIdx.y * forward.batch + block.sample) * forward.kv_length + first;
    const int64_t place = (row * forward.kv_heads + block.head) * forward.head_dim;
    const int64_t row_stride = forward.kv_heads * forward.head_dim, count = forward.kv_length - first;
    write_partial(partials.dkey + place, row_stride, count, block.columns, layout.head_dim, dkey);
    write_partial(partials.dvalue + place, row_stride, count, block.columns, layout.head_dim, dvalue);
    return;
  }
  write_gradient(params.dkey, forward.kv_heads, forward.kv_length, block, first, dkey, own_keys, layout);
  write_gradient(params.dvalue, forward.kv_heads, forward.kv_length, block, first, dvalue, own_values, layout);
}

constexpr int kMergeGradientsThreads = 256;

// A thread adds up one element of dkey (blockIdx.y == 0) or dvalue.
template <typename T>
__global__ void __launch_bounds__(kMergeGradientsThreads)
    merge_key_gradients_kernel(AttentionBackwardParams params, KeyGradientPartials partials, int splits) {
  const AttentionParams& forward = params.forward;
  const int64_t count = forward.batch * forward.kv_length * forward.kv_heads * forward.head_dim;
  const int64_t index = int64_t{blockIdx.x} * kMergeGradientsThreads + threadIdx.x;
  if (index >= count) return;
  const float* partial = blockIdx.y == 0 ? partials.dkey : partials.dvalue;
  T* gradient = static_cast<T*>(blockIdx.y == 0 ? params.dkey : params.dvalue);
  float sum = 0.0f;
  for (int64_t split = planted<Mutation::WrongSplitMerge> ? 1 : 0; split < splits; ++split)
    sum += partial[split * count + index];
  gradient[index] = from_float<T>(sum);
}

}  // namespace fastdiff::cuda
