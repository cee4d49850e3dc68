#include "cuda/layer_norm_modulate.h"

#include <algorithm>

#include "cuda/layer_norm_modulate_backward.cuh"
#include "cuda/layer_norm_modulate_forward.cuh"
#include "cuda/platform.cuh"
#include "cuda/token_launcher.h"

namespace fastdiff::cuda {
namespace {

constexpr int64_t kSmallBlockThreads = 128;  // at least, where rows are short

// How rows are given to threads; by the number of channels alone, which therefore decides the order of sums.
struct RowLayout {
  dim3 grid;
  dim3 block;
  bool cached;
};

template <typename T>
RowLayout layout_of(const GateResidualParams& params) {
  const int64_t vectors = ceil_div(params.channels, kVectorWidth<T>);
  const int64_t warps = std::clamp<int64_t>(ceil_div(vectors, kCachedRounds<T> * kWarpSize), 1, kRowWarps);
  const int64_t threads = warps * kWarpSize, rows = std::max<int64_t>(kSmallBlockThreads / threads, 1);
  return {grid_for(params.batch * params.tokens, rows),
          dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows)), vectors <= kCachedRounds<T> * threads};
}

bool is_aligned(const LayerNormModulateParams& params, std::initializer_list<TokenOperand> others) {
  for (const TokenOperand& operand : {params.scale, params.shift, params.weight, params.bias}) {
    if (!is_aligned_to_vectors(operand)) return false;
  }
  return is_aligned_to_vectors(params.input, others) && is_aligned_to_vectors(params.y, params.input.dtype);
}

bool is_empty(const GateResidualParams& params) { return params.batch * params.tokens * params.channels == 0; }

// Whether anything is summed over tokens.
bool has_sums(const LayerNormModulateBackwardParams& params) {
  const LayerNormModulateParams& forward = params.forward;
  return params.dweight != nullptr || params.dbias != nullptr ||
         (params.dscale != nullptr && !forward.scale.per_token) ||
         (params.dshift != nullptr && !forward.shift.per_token) ||
         (params.dgate != nullptr && !forward.input.gate.per_token);
}

cudaError_t run_sums(const LayerNormModulateBackwardParams& params, bool aligned, float* workspace,
                     cudaStream_t stream) {
  const GateResidualParams& input = params.forward.input;
  const TokenSums sums = {workspace, token_blocks(input)};
  const SampleSums samples = {workspace + partial_floats(input, kModulationSums)};
  return in_order(
      [&] {
        if (is_empty(input)) return cudaSuccess;
        return with_dtype(input.dtype, [&](auto element) {
          using T = decltype(element);
          return launch(layer_norm_modulate_sums_kernel<T>, token_sums_grid<T>(input), token_sums_block(), 0, stream,
                        params, sums, aligned);
        });
      },
      [&] {
        if (input.batch * input.channels == 0) return cudaSuccess;
        return launch(layer_norm_modulate_merge_kernel, token_merge_grid(input), token_sums_block(), 0, stream, params,
                      sums, samples);
      },
      [&] {
        if (input.channels == 0 || (params.dweight == nullptr && params.dbias == nullptr)) return cudaSuccess;
        return launch(layer_norm_modulate_parameters_kernel, grid_for(input.channels, kParameterThreads),
                      dim3(kParameterThreads), 0, stream, params, samples);
      });
}

}  // namespace

const char* layer_norm_modulate(const LayerNormModulateParams& params, void* stream) {
  if (is_empty(params.input)) return nullptr;
  const bool aligned = is_aligned(params, {});
  return text_of(with_dtype(params.input.dtype, [&](auto element) {
    using T = decltype(element);
    const RowLayout layout = layout_of<T>(params.input);
    const auto run = [&](auto* kernel) {
      return launch(kernel, layout.grid, layout.block, 0, static_cast<cudaStream_t>(stream), params, aligned);
    };
    return layout.cached ? run(layer_norm_modulate_kernel<T, kCachedRounds<T>>) : run(layer_norm_modulate_kernel<T, 0>);
  }));
}

size_t layer_norm_modulate_backward_workspace_bytes(const LayerNormModulateBackwardParams& params,
                                                    const DeviceLimits&) {
  if (!has_sums(params)) return 0;
  const GateResidualParams& input = params.forward.input;
  return static_cast<size_t>(partial_floats(input, kModulationSums) + 2 * input.batch * input.channels) * sizeof(float);
}

const char* layer_norm_modulate_backward(const LayerNormModulateBackwardParams& params, const DeviceLimits&,
                                         void* workspace, void* stream) {
  const GateResidualParams& input = params.forward.input;
  cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const bool aligned = is_aligned(params.forward, {params.normalised, params.dy, params.dsum}) &&
                       is_aligned_to_vectors(params.dresidual, input.dtype) &&
                       is_aligned_to_vectors(params.dx, input.dtype);
  return text_of(in_order(
      [&] {
        if (is_empty(input)) return cudaSuccess;
        return with_dtype(input.dtype, [&](auto element) {
          using T = decltype(element);
          const RowLayout layout = layout_of<T>(input);
          return launch(layer_norm_modulate_backward_kernel<T>, layout.grid, layout.block, 0, cuda_stream, params,
                        aligned);
        });
      },
      [&] {
        if (!has_sums(params)) return cudaSuccess;
        return run_sums(params, aligned, static_cast<float*>(workspace), cuda_stream);
      }));
}

}  // namespace fastdiff::cuda
