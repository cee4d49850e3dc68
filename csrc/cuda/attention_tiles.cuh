// Tiles of attention's operands in shared memory: rows of one sample and head, columns from 0 or from those of a
// block's part of head_dim. A row is followed by 16 bytes of nothing, so that the eight rows of a matrix that the
// tensor cores load together lie in different banks. What does not exist is zeros: rows past the last one and columns
// past head_dim.
#pragma once

#include "common/attention.h"
#include "cuda/attention_plan.h"
#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"
#include "cuda/team.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

// The rows of one sample and head.
template <typename T>
struct HeadRows {
  const T* data;
  int64_t stride;
  int64_t count;
};

template <typename T>
__device__ __forceinline__ HeadRows<T> head_rows(const AttentionOperand& operand, int64_t sample, int64_t head,
                                                 int64_t count) {
  return {static_cast<const T*>(operand.data) + sample * operand.batch_stride + head * operand.head_stride,
          operand.token_stride, count};
}

// Threads that copy together: those of a block or of a warp.
struct Copiers {
  int index;
  int count;
};

__device__ __forceinline__ Copiers copiers_of_block() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}

__device__ __forceinline__ Copiers copiers_of_warp() { return {static_cast<int>(threadIdx.x) % kWarpSize, kWarpSize}; }

// Part of the columns of a tile's rows.
struct Columns {
  int first;
  int count;  // a multiple of 16
};

// Starts to copy `rows` rows from `first` on. Complete after wait_for_copies and a barrier of the copiers.
template <typename T>
__device__ __forceinline__ void load_tile(T* tile, int stride, const HeadRows<T>& source, int64_t first, int rows,
                                          Columns columns, const AttentionLayout& layout, Copiers copiers) {
  constexpr int kWidth = kVectorWidth<T>;
  const int lanes = 1 << layout.row_lanes_log2;
  for (int row = copiers.index >> layout.row_lanes_log2; row < rows; row += copiers.count >> layout.row_lanes_log2) {
    const bool row_exists = first + row < source.count;
    const T* from = source.data + (row_exists ? (first + row) * source.stride : 0);
    for (int column = (copiers.index & (lanes - 1)) * kWidth; column < columns.count; column += lanes * kWidth) {
      const int valid = row_exists ? min(layout.head_dim - columns.first - column, kWidth) : 0;
      T* to = tile + row * stride + column;
      if (layout.aligned) {
        copy_async(to, valid > 0 ? from + columns.first + column : source.data, valid > 0);
      } else {
#pragma unroll 1
        for (int i = 0; i < kWidth; ++i) to[i] = i < valid ? from[columns.first + column + i] : T{};
      }
    }
  }
}

// A warp writes `rows` rows of a tile of its own to dense rows of global memory, `row_stride` elements apart.
template <typename T>
__device__ __forceinline__ void store_tile(T* to, int64_t row_stride, const T* tile, int stride, int rows,
                                           Columns columns, const AttentionLayout& layout) {
  constexpr int kWidth = kVectorWidth<T>;
  const Copiers copiers = copiers_of_warp();
  const int lanes = 1 << layout.row_lanes_log2;
  for (int row = copiers.index >> layout.row_lanes_log2; row < rows; row += copiers.count >> layout.row_lanes_log2) {
    for (int column = (copiers.index & (lanes - 1)) * kWidth; column < columns.count; column += lanes * kWidth) {
      const int valid = min(layout.head_dim - columns.first - column, kWidth);
      const T* from = tile + row * stride + column;
      T* target = to + row * row_stride + columns.first + column;
      if (valid == kWidth && layout.dense_aligned) {
        st16(target, *reinterpret_cast<const uint4*>(from));
      } else {
#pragma unroll 1
        for (int i = 0; i < valid; ++i) target[i] = from[i];
      }
    }
  }
}

}  // namespace fastdiff::cuda
