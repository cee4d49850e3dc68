// geglu: a thread makes one vector of y, or of both halves of dx. Vectors and single elements give the same bits.
#pragma once

#include "common/geglu.h"
#include "cuda/gelu.cuh"
#include "cuda/platform.cuh"
#include "cuda/quotient.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

constexpr int kGegluThreads = 256;

// Where a thread's vector is.
struct GegluPlace {
  int64_t row;
  int64_t column;
  int valid;  // elements; not positive: there is none
};

template <typename T>
__device__ __forceinline__ GegluPlace geglu_place(const GegluParams& params) {
  constexpr int kWidth = kVectorWidth<T>;
  const int64_t vectors = (params.features + kWidth - 1) / kWidth;
  const int64_t index = int64_t{blockIdx.x} * kGegluThreads + threadIdx.x;
  const Quotient place = divide(index, vectors);
  const int64_t row = place.whole, column = place.rest * kWidth;
  return {row, column, row < params.rows ? static_cast<int>(min(params.features - column, int64_t{kWidth})) : 0};
}

template <typename T>
__global__ void __launch_bounds__(kGegluThreads) geglu_kernel(GegluParams params, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const GegluPlace place = geglu_place<T>(params);
  if (place.valid <= 0) return;
  const T* x = static_cast<const T*>(params.x) + place.row * params.x_row_stride + place.column;
  float hidden[kWidth], gate[kWidth];
  load_floats(x, place.valid, aligned, hidden);
  load_floats(x + params.features, place.valid, aligned, gate);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) hidden[i] *= gelu<T>(gate[i], params.tanh).value;
  store_floats(static_cast<T*>(params.y) + place.row * params.features + place.column, hidden, place.valid, aligned);
}

template <typename T>
__global__ void __launch_bounds__(kGegluThreads) geglu_backward_kernel(GegluBackwardParams params, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const GegluParams& forward = params.forward;
  const GegluPlace place = geglu_place<T>(forward);
  if (place.valid <= 0) return;
  const T* x = static_cast<const T*>(forward.x) + place.row * forward.x_row_stride + place.column;
  const T* dy = static_cast<const T*>(params.dy) + place.row * params.dy_row_stride + place.column;
  float hidden[kWidth], gate[kWidth], gradient[kWidth];
  load_floats(x, place.valid, aligned, hidden);
  load_floats(x + forward.features, place.valid, aligned, gate);
  load_floats(dy, place.valid, aligned, gradient);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const Gelu activation = gelu<T>(gate[i], forward.tanh);
    gate[i] = gradient[i] * hidden[i] * activation.derivative;
    hidden[i] = gradient[i] * activation.value;
  }
  T* dx = static_cast<T*>(params.dx) + place.row * 2 * forward.features + place.column;
  store_floats(dx, hidden, place.valid, aligned);
  store_floats(dx + forward.features, gate, place.valid, aligned);
}

}  // namespace fastdiff::cuda
