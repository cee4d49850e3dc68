// Matrix products of one warp: 16 rows of the result, in registers the way mma.m16n8k16 has them. A lane holds four
// elements of each tile of 8 columns: of rows lane / 4 (the first two) and lane / 4 + 8, in columns 2 (lane % 4) and
// the next. Elements of 16 bits go through the tensor cores; float32 goes through the ordinary units, with full
// precision.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"
#include "cuda/team.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

constexpr int kWarpRows = 16;
constexpr int kTileColumns = 8;

// The result of a product, or the left-hand side of one: 16 rows of kTiles * 8 columns.
template <int kTiles>
struct Fragment {
  float values[kTiles][4];
};

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Place of a lane's elements: rows fragment_row() and 8 further, columns fragment_column() and the next of each tile.
__device__ __forceinline__ int fragment_row() { return lane_of_warp() / 4; }
__device__ __forceinline__ int fragment_column() { return lane_of_warp() % 4 * 2; }

// A matrix in shared memory, row by row.
template <typename T>
struct SharedMatrix {
  const T* data;
  int stride;
};

__device__ __forceinline__ float4 load_float4(const float* address) {
  return *reinterpret_cast<const float4*>(address);
}

__device__ __forceinline__ float multiply_add(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// sum (16, columns) += a (16, depth) transpose(b (columns, depth)). `depth` and `columns` are multiples of 16.
template <typename T, int kTiles>
__device__ __forceinline__ void multiply_by_rows(Fragment<kTiles>& sum, SharedMatrix<T> a, SharedMatrix<T> b, int depth,
                                                 int columns) {
  const int lane = lane_of_warp();
  if constexpr (sizeof(T) == 2) {
    // Rows 0-7 and 8-15 of a at depth 0-7, then the same at depth 8-15.
    const T* a_row = a.data + lane % 16 * a.stride + lane / 16 * 8;
    // Of two tiles: columns 0-7 at depth 0-7 and 8-15, then columns 8-15.
    const T* b_row = b.data + (lane % 8 + lane / 16 * 8) * b.stride + lane / 8 % 2 * 8;
#pragma unroll 2
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[4];
      load_matrices(left, a_row + k);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        if (j * kTileColumns >= columns) break;
        uint32_t right[4];
        load_matrices(right, b_row + j * kTileColumns * b.stride + k);
        multiply_matrices<T>(sum.values[j], left, {right[0], right[1]});
        multiply_matrices<T>(sum.values[j + 1], left, {right[2], right[3]});
      }
    }
  } else {
    const float* a_row = a.data + fragment_row() * a.stride;
    const float* b_row = b.data + fragment_column() * b.stride;
    for (int k = 0; k < depth; k += 4) {
      const float4 upper = load_float4(a_row + k), lower = load_float4(a_row + 8 * a.stride + k);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (j * kTileColumns >= columns) break;
        const float* column = b_row + j * kTileColumns * b.stride + k;
        const float4 first = load_float4(column), second = load_float4(column + b.stride);
        float (&values)[4] = sum.values[j];
        values[0] = multiply_add(upper, first, values[0]);
        values[1] = multiply_add(upper, second, values[1]);
        values[2] = multiply_add(lower, first, values[2]);
        values[3] = multiply_add(lower, second, values[3]);
      }
    }
  }
}

// A warp's scratch memory for left-hand sides of float32; those of 16 bits need none.
template <typename T, int kDepthTiles>
constexpr int kScratchFloats = sizeof(T) == 4 ? kWarpRows * (kDepthTiles * kTileColumns + 4) : 0;

// sum (16, columns) += a (16, depth) b (depth, columns), a rounded to T. `depth` and `columns` are multiples of 16.
template <typename T, int kTiles, int kDepthTiles>
__device__ __forceinline__ void multiply_by_columns(Fragment<kTiles>& sum, const Fragment<kDepthTiles>& a,
                                                    SharedMatrix<T> b, int depth, int columns, float* scratch) {
  const int lane = lane_of_warp();
  if constexpr (sizeof(T) == 2) {
    // Of two tiles: depth 0-7 and 8-15 of columns 0-7, then of columns 8-15; all transposed.
    const T* b_row = b.data + lane % 16 * b.stride + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kDepthTiles; k += 2) {
      if (k * kTileColumns >= depth) break;
      // Neighbours in a result are neighbours on a left-hand side, too.
      const uint32_t left[4] = {
          pack_pair<T>(a.values[k][0], a.values[k][1]), pack_pair<T>(a.values[k][2], a.values[k][3]),
          pack_pair<T>(a.values[k + 1][0], a.values[k + 1][1]), pack_pair<T>(a.values[k + 1][2], a.values[k + 1][3])};
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        if (j * kTileColumns >= columns) break;
        uint32_t right[4];
        load_matrices_transposed(right, b_row + k * kTileColumns * b.stride + j * kTileColumns);
        multiply_matrices<T>(sum.values[j], left, {right[0], right[1]});
        multiply_matrices<T>(sum.values[j + 1], left, {right[2], right[3]});
      }
    }
  } else {
    constexpr int kStride = kDepthTiles * kTileColumns + 4;
    const int row = fragment_row(), column = fragment_column();
    __syncwarp();  // the last product has read its left-hand side
#pragma unroll
    for (int k = 0; k < kDepthTiles; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scratch[(row + i / 2 * 8) * kStride + k * kTileColumns + column + i % 2] = a.values[k][i];
      }
    }
    __syncwarp();
    const float* a_row = scratch + row * kStride;
    for (int k = 0; k < depth; ++k) {
      const float upper = a_row[k], lower = a_row[8 * kStride + k];
      const float* b_row = b.data + k * b.stride + column;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (j * kTileColumns >= columns) break;
        const float2 right = *reinterpret_cast<const float2*>(b_row + j * kTileColumns);
        float (&values)[4] = sum.values[j];
        values[0] = fmaf(upper, right.x, values[0]);
        values[1] = fmaf(upper, right.y, values[1]);
        values[2] = fmaf(lower, right.x, values[2]);
        values[3] = fmaf(lower, right.y, values[3]);
      }
    }
  }
}

// Writes a result to 16 rows in shared memory, rounded to T.
template <typename T, int kTiles>
__device__ __forceinline__ void store_fragment(T* tile, int stride, const Fragment<kTiles>& fragment, int columns) {
  T* first = tile + fragment_row() * stride + fragment_column();
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j * kTileColumns >= columns) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* pair = first + half * 8 * stride + j * kTileColumns;
      const float low = fragment.values[j][2 * half], high = fragment.values[j][2 * half + 1];
      if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint32_t*>(pair) = pack_pair<T>(low, high);
      } else {
        *reinterpret_cast<float2*>(pair) = make_float2(low, high);
      }
    }
  }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}

__device__ __forceinline__ float row_sum(float value) { return team_sum(value, 4); }

}  // namespace fastdiff::cuda
