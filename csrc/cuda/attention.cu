#include "cuda/attention.h"

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_plan.h"
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
  const int64_t bytes = static_cast<int64_t>(size_of(params.dtype));
  int64_t bits = params.head_dim * bytes;
  for (const AttentionOperand& operand : operands) {
    bits |= static_cast<int64_t>(reinterpret_cast<uintptr_t>(operand.data));
    for (int64_t stride : {operand.batch_stride, operand.token_stride, operand.head_stride}) bits |= stride * bytes;
  }
  return bits % 16 == 0;
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
  switch (dtype) {
    case DType::Float32:
      return with_part(float{});
    case DType::BFloat16:
      return with_part(__nv_bfloat16{});
    default:
      return with_part(__half{});
  }
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
  const int64_t rows = forward.batch * forward.query_length * forward.heads, warps = kDeltaThreads / kWarpSize;
  return with_kernel(forward.dtype, {}, [&](auto element, auto) {
    return launch(attention_delta_kernel<decltype(element)>, dim3(static_cast<unsigned>((rows + warps - 1) / warps)),
                  dim3(kDeltaThreads), 0, stream, params, delta);
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

cudaError_t run_key_gradients(const AttentionBackwardParams& params, const AttentionPlan& plan, const float* delta,
                              cudaStream_t stream) {
  return with_kernel(params.forward.dtype, plan.layout, [&](auto element, auto tiles) {
    using T = decltype(element);
    return launch(attention_key_gradients_kernel<T, decltype(tiles)::value, kGradientTiles<T>>,
                  dim3(static_cast<unsigned>(plan.grid)), dim3(plan.warps * kWarpSize), plan.shared_bytes, stream,
                  params, plan.layout, delta);
  });
}

const char* text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace

const char* attention(const AttentionParams& params, const DeviceLimits& limits, void* stream) {
  AttentionPlan plan = plan_attention(shape_of(params), limits);
  if (plan.grid == 0) return nullptr;
  plan.layout.aligned = is_aligned(params, {params.query, params.key, params.value});
  return text_of(run_forward(params, plan, static_cast<cudaStream_t>(stream)));
}

size_t attention_backward_workspace_bytes(const AttentionBackwardParams& params, const DeviceLimits&) {
  const AttentionParams& forward = params.forward;
  return static_cast<size_t>(forward.batch * forward.heads * forward.query_length) * sizeof(float);
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
  cudaError_t error = cudaSuccess;
  if (queries.grid > 0) error = run_delta(params, delta, cuda_stream);
  if (error == cudaSuccess && queries.grid > 0) error = run_query_gradient(params, queries, delta, cuda_stream);
  if (error == cudaSuccess && keys.grid > 0) error = run_key_gradients(params, keys, delta, cuda_stream);
  return text_of(error);
}

}  // namespace fastdiff::cuda
