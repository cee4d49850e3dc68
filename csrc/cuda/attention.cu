#include "cuda/attention.h"

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_plan.h"
#include "cuda/launcher.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {
namespace {

AttentionShape shape_of(const AttentionParams& params) {
  return {params.batch,
          params.heads,
          params.kv_heads,
          params.query_length,
          params.kv_length,
          params.head_dim,
          static_cast<int>(size_of(params.dtype))};
}

bool is_aligned(const AttentionParams& params, std::initializer_list<AttentionOperand> operands) {
  for (const AttentionOperand& operand : operands) {
    const auto strides = {params.head_dim, operand.batch_stride, operand.token_stride, operand.head_stride};
    if (!is_aligned_to_vectors(operand.data, params.dtype, strides)) return false;
  }
  return true;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls run(T{}, tiles of a part of a head).
template <typename Run>
cudaError_t with_kernel(DType dtype, const AttentionLayout& layout, const Run& run) {
  const auto with_part = [&](auto element) {
    if (layout.part_columns <= kNarrowPartColumns) {
      return run(element, Constant<kNarrowPartColumns / kTileColumns>{});
    }
    return run(element, Constant<kMaxPartColumns / kTileColumns>{});
  };
  return with_dtype(dtype, with_part);
}

cudaError_t run_forward(const AttentionParams& params, const AttentionPlan& plan, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(plan.grid)), block(plan.warps * kWarpSize);
  return with_kernel(params.dtype, plan.layout, [&](auto element, auto tiles) {
    using T = decltype(element);
    constexpr int kTiles = decltype(tiles)::value;
    constexpr bool kNarrow = kTiles * kTileColumns == kNarrowPartColumns;
    const auto streaming = [&](auto keys) {
      return launch(attention_streaming_kernel<T, kTiles, decltype(keys)::value / kTileColumns>, grid, block,
                    plan.shared_bytes, stream, params, plan.layout);
    };
    if constexpr (sizeof(T) == 4) {
      return streaming(Constant<kNarrow ? 32 : 16>{});
    } else {
      if (plan.resident) {
        return launch(attention_resident_kernel<T, kTiles>, grid, block, plan.shared_bytes, stream, params, plan.layout,
                      static_cast<int>(plan.splits));
      }
      if constexpr (!kNarrow) {
        if (plan.tile == 32) return streaming(Constant<32>{});
      }
      return streaming(Constant<64>{});
    }
  });
}

// A gradient's kernel streams tiles of one size for each dtype.
template <typename T>
constexpr int kGradientTiles = (sizeof(T) == 4 ? 16 : 32) / kTileColumns;

cudaError_t run_delta(const AttentionBackwardParams& params, float* delta, cudaStream_t stream) {
  const AttentionParams& forward = params.forward;
  const int64_t rows = forward.batch * forward.query_length * forward.heads;
  const AttentionOperand& doutput = params.doutput;
  const bool aligned = is_aligned_to_vectors(forward.output, forward.dtype, {forward.head_dim}) &&
                       is_aligned_to_vectors(doutput.data, forward.dtype,
                                             {doutput.batch_stride, doutput.token_stride, doutput.head_stride});
  return with_dtype(forward.dtype, [&](auto element) {
    using T = decltype(element);
    int lanes = 1;
    while (lanes < kWarpSize && lanes * kVectorWidth<T> < forward.head_dim) lanes *= 2;
    return launch(attention_delta_kernel<T>, grid_for(rows, kDeltaThreads / lanes), dim3(kDeltaThreads), 0, stream,
                  params, delta, lanes, aligned);
  });
}

cudaError_t run_query_gradient(const AttentionBackwardParams& params, const AttentionPlan& plan, const float* delta,
                               cudaStream_t stream) {
  return with_kernel(params.forward.dtype, plan.layout, [&](auto element, auto tiles) {
    using T = decltype(element);
    return launch(attention_query_gradient_kernel<T, decltype(tiles)::value, kGradientTiles<T>>,
                  dim3(static_cast<unsigned>(plan.grid)), dim3(plan.warps * kWarpSize), plan.shared_bytes, stream,
                  params, plan.layout, delta);
  });
}

int64_t elements_of_keys(const AttentionParams& params) {
  return params.batch * params.kv_length * params.kv_heads * params.head_dim;
}

// The workspace: delta, then the partial sums of dkey and dvalue where there are any.
size_t delta_floats(const AttentionParams& params) {
  return static_cast<size_t>(params.batch * params.heads * params.query_length);
}

size_t partial_floats(const AttentionParams& params, const AttentionPlan& plan) {
  return plan.splits > 1 ? static_cast<size_t>(plan.splits * elements_of_keys(params)) : 0;
}

cudaError_t run_key_gradients(const AttentionBackwardParams& params, const AttentionPlan& plan, float* delta,
                              cudaStream_t stream) {
  const AttentionParams& forward = params.forward;
  const dim3 grid(static_cast<unsigned>(plan.grid), static_cast<unsigned>(plan.splits));
  KeyGradientPartials partials = {nullptr, nullptr};
  if (plan.splits > 1) {
    partials.dkey = delta + delta_floats(forward);
    partials.dvalue = partials.dkey + partial_floats(forward, plan);
  }
  return with_kernel(forward.dtype, plan.layout, [&](auto element, auto tiles) {
    using T = decltype(element);
    const cudaError_t error =
        launch(attention_key_gradients_kernel<T, decltype(tiles)::value, kGradientTiles<T>>, grid,
               dim3(plan.warps * kWarpSize), plan.shared_bytes, stream, params, plan.layout, delta, partials);
    if (error != cudaSuccess || plan.splits == 1) return error;
    dim3 merge_grid = grid_for(elements_of_keys(forward), kMergeGradientsThreads);
    merge_grid.y = 2;
    return launch(merge_key_gradients_kernel<T>, merge_grid, dim3(kMergeGradientsThreads), 0, stream, params, partials,
                  static_cast<int>(plan.splits));
  });
}

}  // namespace

const char* attention(const AttentionParams& params, const DeviceLimits& limits, void* stream) {
  AttentionPlan plan = plan_attention(shape_of(params), limits);
  if (plan.grid == 0) return nullptr;
  plan.layout.aligned = is_aligned(params, {params.query, params.key, params.value});
  return text_of(run_forward(params, plan, static_cast<cudaStream_t>(stream)));
}

size_t attention_backward_workspace_bytes(const AttentionBackwardParams& params, const DeviceLimits& limits) {
  const AttentionParams& forward = params.forward;
  const AttentionPlan keys = plan_attention_key_gradients(shape_of(forward), limits);
  return (delta_floats(forward) + 2 * partial_floats(forward, keys)) * sizeof(float);
}

const char* attention_backward(const AttentionBackwardParams& params, const DeviceLimits& limits, void* workspace,
                               void* stream) {
  const AttentionParams& forward = params.forward;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const bool aligned = is_aligned(forward, {forward.query, forward.key, forward.value, params.doutput});
  float* delta = static_cast<float*>(workspace);
  AttentionPlan queries = plan_attention_query_gradient(shape_of(forward), limits);
  AttentionPlan keys = plan_attention_key_gradients(shape_of(forward), limits);
  queries.layout.aligned = keys.layout.aligned = aligned;
  return text_of(
      in_order([&] { return queries.grid > 0 ? run_delta(params, delta, cuda_stream) : cudaSuccess; },
               [&] { return queries.grid > 0 ? run_query_gradient(params, queries, delta, cuda_stream) : cudaSuccess; },
               [&] { return keys.grid > 0 ? run_key_gradients(params, keys, delta, cuda_stream) : cudaSuccess; }));
}

}  // namespace fastdiff::cuda
