// gate_residual: a thread makes one vector; a second kernel sums the gradient of a gate that tokens share.
#pragma once

#include "cuda/quotient.cuh"
#include "cuda/token_sums.cuh"

namespace fastdiff::cuda {

constexpr int kGateResidualThreads = 256;

template <typename T>
__device__ __forceinline__ TokenVector gate_residual_vector(const GateResidualParams& params, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const int64_t vectors = (params.channels + kWidth - 1) / kWidth;
  const Quotient place = divide(int64_t{blockIdx.x} * kGateResidualThreads + threadIdx.x, vectors);
  const int64_t row = place.whole, channel = place.rest * kWidth;
  const int64_t valid = row < params.batch * params.tokens ? min(params.channels - channel, int64_t{kWidth}) : 0;
  const Quotient token = divide(row, params.tokens);
  return {token.whole, token.rest, channel, static_cast<int>(valid), aligned};
}

template <typename T>
__global__ void __launch_bounds__(kGateResidualThreads) gate_residual_kernel(GateResidualParams params, bool aligned) {
  const TokenVector at = gate_residual_vector<T>(params, aligned);
  if (at.valid <= 0) return;
  float sum[kVectorWidth<T>];
  load_sum<T>(params, at, sum);
  store_activation<T>(params.sum, params, at, sum);
}

// dx = gate * dsum, and dgate = dsum * x where every token has a gate of its own.
template <typename T>
__global__ void __launch_bounds__(kGateResidualThreads)
    gate_residual_backward_kernel(GateResidualBackwardParams params, float* dgate, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const GateResidualParams& forward = params.forward;
  const TokenVector at = gate_residual_vector<T>(forward, aligned);
  if (at.valid <= 0) return;
  float gradient[kWidth], gate[kWidth];
  load_activation<T>(params.dsum, at, gradient);
  load_modulation(forward.gate, at, 1.0f, gate);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) gate[i] *= gradient[i];
  store_activation<T>(params.dx, forward, at, gate);
  if (dgate == nullptr) return;
  float x[kWidth];
  load_activation<T>(forward.x, at, x);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) x[i] *= gradient[i];
  store_gradient(dgate, forward, at, x);
}

template <typename T>
__global__ void __launch_bounds__(kTokenSumsThreads)
    gate_residual_sums_kernel(GateResidualBackwardParams params, TokenSums sums, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const GateResidualParams& forward = params.forward;
  sum_over_tokens<T, 1>(forward, sums, aligned, [&](const TokenVector& at, float (&totals)[1][kWidth]) {
    float gradient[kWidth], x[kWidth];
    load_activation<T>(params.dsum, at, gradient);
    load_activation<T>(forward.x, at, x);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) totals[0][i] = fmaf(gradient[i], x[i], totals[0][i]);
  });
}

__global__ void __launch_bounds__(kTokenSumsThreads)
    gate_residual_merge_kernel(GateResidualBackwardParams params, TokenSums sums) {
  float total[1];
  const int64_t channel = merged_channel();
  if (merge_token_sums(params.forward, sums, channel, total)) params.dgate[channel] = total[0];
}

}  // namespace fastdiff::cuda
