#include "cuda/gate_residual.h"

#include "cuda/gate_residual.cuh"
#include "cuda/platform.cuh"
#include "cuda/token_launcher.h"

namespace fastdiff::cuda {
namespace {

template <typename T>
dim3 grid_of(const GateResidualParams& params) {
  return grid_for(params.batch * params.tokens * ceil_div(params.channels, kVectorWidth<T>), kGateResidualThreads);
}

bool is_empty(const GateResidualParams& params) { return params.batch * params.tokens * params.channels == 0; }

// Whether the gradient of the gate is summed over the tokens.
bool sums_gate(const GateResidualBackwardParams& params) {
  return params.dgate != nullptr && !params.forward.gate.per_token;
}

}  // namespace

const char* gate_residual(const GateResidualParams& params, void* stream) {
  if (is_empty(params)) return nullptr;
  const bool aligned = is_aligned_to_vectors(params, {});
  return text_of(with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    return launch(gate_residual_kernel<T>, grid_of<T>(params), dim3(kGateResidualThreads), 0,
                  static_cast<cudaStream_t>(stream), params, aligned);
  }));
}

size_t gate_residual_backward_workspace_bytes(const GateResidualBackwardParams& params, const DeviceLimits&) {
  return sums_gate(params) ? static_cast<size_t>(partial_floats(params.forward, 1)) * sizeof(float) : 0;
}

const char* gate_residual_backward(const GateResidualBackwardParams& params, const DeviceLimits&, void* workspace,
                                   void* stream) {
  const GateResidualParams& forward = params.forward;
  cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const bool aligned = is_aligned_to_vectors(forward, {params.dsum}) && is_aligned_to_vectors(params.dx, forward.dtype);
  const TokenSums sums = {static_cast<float*>(workspace), token_blocks(forward)};
  const bool summed = sums_gate(params);
  return text_of(with_dtype(forward.dtype, [&](auto element) {
    using T = decltype(element);
    return in_order(
        [&] {
          if (is_empty(forward)) return cudaSuccess;
          return launch(gate_residual_backward_kernel<T>, grid_of<T>(forward), dim3(kGateResidualThreads), 0,
                        cuda_stream, params, summed ? nullptr : params.dgate, aligned);
        },
        [&] {
          if (is_empty(forward) || !summed) return cudaSuccess;
          return launch(gate_residual_sums_kernel<T>, token_sums_grid<T>(forward), token_sums_block(), 0, cuda_stream,
                        params, sums, aligned);
        },
        [&] {
          if (forward.batch * forward.channels == 0 || !summed) return cudaSuccess;
          return launch(gate_residual_merge_kernel, token_merge_grid(forward), token_sums_block(), 0, cuda_stream,
                        params, sums);
        });
  }));
}

}  // namespace fastdiff::cuda
