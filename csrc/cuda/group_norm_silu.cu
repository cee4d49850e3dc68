#include "cuda/group_norm_silu.h"

#include <cstdint>

#include "cuda/group_norm_silu_backward.cuh"
#include "cuda/group_norm_silu_forward.cuh"
#include "cuda/group_norm_silu_plan.h"
#include "cuda/launcher.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {
namespace {

// What the plan reserves for them.
static_assert(sizeof(Moments) == 8 && sizeof(Affine) == 16 && sizeof(Sums) == 12 && sizeof(GradientTerms) == 8 &&
              sizeof(WeightGradients) == 8);

bool is_aligned(const Activation& activation, DType dtype) {
  return is_aligned_to_vectors(activation.data, dtype, {activation.stride, activation.batch_stride});
}

GroupNormSiluShape shape_of(const GroupNormSiluParams& params, bool aligned) {
  return {params.batch,         params.channels, params.spatial, params.groups, static_cast<int>(size_of(params.dtype)),
          params.channels_last, aligned};
}

GroupNormSiluPlan plan_of(const GroupNormSiluParams& params, const DeviceLimits& limits) {
  const bool aligned = is_aligned(params.x, params.dtype) && is_aligned_to_vectors(params.y, params.dtype);
  return plan_group_norm_silu(shape_of(params, aligned), limits);
}

GroupNormSiluPlan plan_of(const GroupNormSiluBackwardParams& params, const DeviceLimits& limits) {
  const DType dtype = params.forward.dtype;
  const bool aligned =
      is_aligned(params.forward.x, dtype) && is_aligned(params.dy, dtype) && is_aligned_to_vectors(params.dx, dtype);
  return plan_group_norm_silu_backward(shape_of(params.forward, aligned), limits);
}

// Consecutive arrays in the workspace, each aligned to 16 bytes.
class Workspace {
 public:
  explicit Workspace(void* memory) : next_(static_cast<unsigned char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 15) / 16 * 16;
    return array;
  }

 private:
  unsigned char* next_;
};

// The types and flags a kernel is compiled for, as values that a lambda takes apart with decltype.
template <typename T, bool kChannelsLast, bool kAligned>
struct Variant {
  using Element = T;
  static constexpr bool channels_last = kChannelsLast;
  static constexpr bool aligned = kAligned;
};

template <typename T, typename Run>
cudaError_t with_layout(bool channels_last, bool aligned, Run run) {
  if (channels_last) return aligned ? run(Variant<T, true, true>{}) : run(Variant<T, true, false>{});
  return aligned ? run(Variant<T, false, true>{}) : run(Variant<T, false, false>{});
}

template <typename Run>
cudaError_t with_variant(const GroupNormSiluParams& params, const GroupNormSiluPlan& plan, Run run) {
  return with_dtype(params.dtype, [&](auto element) {
    return with_layout<decltype(element)>(params.channels_last, plan.vectorised, run);
  });
}

template <typename V>
cudaError_t run_forward(V, const GroupNormSiluParams& params, const GroupNormSiluPlan& plan, void* memory,
                        cudaStream_t stream) {
  using T = typename V::Element;
  const dim3 grid(static_cast<unsigned>(plan.grid)), block(plan.threads);
  if (plan.resident) {
    return launch(resident_kernel<T, V::channels_last, V::aligned>, grid, block, plan.shared_bytes, stream, params,
                  plan.tiling, plan.tile_channels, plan.shared);
  }
  const int64_t rows = params.batch * params.channels;
  Workspace workspace(memory);
  Moments* partials = workspace.take<Moments>(rows * plan.tiling.parts);
  Moments* channel_moments = workspace.take<Moments>(rows);
  Affine* affines = workspace.take<Affine>(rows);
  const dim3 groups(static_cast<unsigned>(params.batch * params.groups));
  return in_order(
      [&] {
        return launch(moments_kernel<T, V::channels_last, V::aligned>, grid, block, 0, stream, params, plan.tiling,
                      partials);
      },
      [&] {
        return launch(normalise_kernel, groups, dim3(kMergeThreads), 0, stream, params, plan.tiling, partials,
                      channel_moments, affines);
      },
      [&] {
        return launch(apply_kernel<T, V::channels_last, V::aligned>, grid, block, 0, stream, params, plan.tiling,
                      affines);
      });
}

template <typename V>
cudaError_t run_backward(V, const GroupNormSiluBackwardParams& params, const GroupNormSiluPlan& plan,
                         Workspace& workspace, WeightGradients* weight_gradients, cudaStream_t stream) {
  using T = typename V::Element;
  const GroupNormSiluParams& forward = params.forward;
  const dim3 grid(static_cast<unsigned>(plan.grid)), block(plan.threads);
  if (plan.resident) {
    return launch(resident_backward_kernel<T, V::channels_last, V::aligned>, grid, block, plan.shared_bytes, stream,
                  params, plan.tiling, plan.tile_channels, plan.shared, weight_gradients);
  }
  const int64_t rows = forward.batch * forward.channels;
  Sums* partials = workspace.take<Sums>(rows * plan.tiling.parts);
  Sums* channel_sums = workspace.take<Sums>(rows);
  Affine* affines = workspace.take<Affine>(rows);
  GradientTerms* terms = workspace.take<GradientTerms>(rows);
  const dim3 groups(static_cast<unsigned>(forward.batch * forward.groups));
  return in_order(
      [&] {
        return launch(affine_kernel, grid_for(rows, kStreamingThreads), dim3(kStreamingThreads), 0, stream, forward,
                      affines);
      },
      [&] {
        return launch(sums_kernel<T, V::channels_last, V::aligned>, grid, block, 0, stream, params, plan.tiling,
                      affines, partials);
      },
      [&] {
        return launch(merge_sums_kernel, groups, dim3(kMergeThreads), 0, stream, params, plan.tiling, partials,
                      channel_sums, terms, weight_gradients);
      },
      [&] {
        return launch(gradient_kernel<T, V::channels_last, V::aligned>, grid, block, 0, stream, params, plan.tiling,
                      affines, terms);
      });
}

bool is_empty(const GroupNormSiluParams& params) {
  return params.batch == 0 || params.channels == 0 || params.spatial == 0;
}

// An empty activation has zero gradients.
cudaError_t clear_gradients(const GroupNormSiluBackwardParams& params, cudaStream_t stream) {
  const int64_t channels = params.forward.channels, rows = params.forward.batch * channels;
  const auto clear = [&](float* gradient, int64_t count) {
    if (gradient == nullptr || count == 0) return cudaSuccess;
    return launch(clear_kernel, grid_for(count, kStreamingThreads), dim3(kStreamingThreads), 0, stream, gradient,
                  count);
  };
  return in_order([&] { return clear(params.dweight, channels); }, [&] { return clear(params.dbias, channels); },
                  [&] { return clear(params.dtime_bias, rows); }, [&] { return clear(params.dscale, rows); },
                  [&] { return clear(params.dshift, rows); });
}

}  // namespace

size_t group_norm_silu_workspace_bytes(const GroupNormSiluParams& params, const DeviceLimits& limits) {
  return plan_of(params, limits).workspace_bytes;
}

size_t group_norm_silu_backward_workspace_bytes(const GroupNormSiluBackwardParams& params, const DeviceLimits& limits) {
  return plan_of(params, limits).workspace_bytes;
}

const char* group_norm_silu(const GroupNormSiluParams& params, const DeviceLimits& limits, void* workspace,
                            void* stream) {
  if (is_empty(params)) return nullptr;
  const GroupNormSiluPlan plan = plan_of(params, limits);
  return text_of(with_variant(params, plan, [&](auto variant) {
    return run_forward(variant, params, plan, workspace, static_cast<cudaStream_t>(stream));
  }));
}

const char* group_norm_silu_backward(const GroupNormSiluBackwardParams& params, const DeviceLimits& limits,
                                     void* workspace, void* stream) {
  const GroupNormSiluParams& forward = params.forward;
  cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  if (is_empty(forward)) return text_of(clear_gradients(params, cuda_stream));
  const GroupNormSiluPlan plan = plan_of(params, limits);
  Workspace memory(workspace);
  WeightGradients* weight_gradients = nullptr;
  if (params.dweight != nullptr || params.dbias != nullptr) {
    weight_gradients = memory.take<WeightGradients>(forward.batch * forward.channels);
  }
  const cudaError_t error = with_variant(forward, plan, [&](auto variant) {
    return run_backward(variant, params, plan, memory, weight_gradients, cuda_stream);
  });
  if (error != cudaSuccess || weight_gradients == nullptr) return text_of(error);
  return text_of(launch(weight_gradient_kernel, grid_for(forward.channels, kStreamingThreads), dim3(kStreamingThreads),
                        0, cuda_stream, weight_gradients, forward.batch, forward.channels, params.dweight,
                        params.dbias));
}

}  // namespace fastdiff::cuda
