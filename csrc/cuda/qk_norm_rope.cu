#include "cuda/qk_norm_rope.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/launcher.h"
#include "cuda/platform.cuh"
#include "cuda/qk_norm_rope_backward.cuh"
#include "cuda/qk_norm_rope_forward.cuh"

namespace fastdiff::cuda {
namespace {

// Enough heads of one token to make its coefficients cheap, few enough that there is work for the whole chip.
constexpr int64_t kTeamHeads = 8;

// Blocks of the backward pass for every multiprocessor.
constexpr int64_t kBackwardBlocks = 3;

// Rows of shared memory of the element-wise backward pass: what every GPU gives a block without being asked.
constexpr int64_t kElementSharedBytes = 48 * 1024;

bool is_aligned(const AttentionOperand& operand, DType dtype) {
  return is_aligned_to_vectors(operand.data, dtype, {operand.batch_stride, operand.token_stride, operand.head_stride});
}

bool is_aligned(const RotaryTable& table) {
  return is_aligned_to_vectors(table.data, DType::Float32, {table.batch_stride, table.token_stride});
}

bool is_aligned(const QkNormRopeParams& params) {
  return is_aligned(params.query.x, params.dtype) && is_aligned(params.key.x, params.dtype) && is_aligned(params.cos) &&
         is_aligned(params.sin);
}

// Elements of a unit (see qk_norm_rope_unit.cuh), and whether a head can be cut into at most a warp of them.
int64_t unit_width(const QkNormRopeParams& params) { return 2 * 16 / static_cast<int64_t>(size_of(params.dtype)); }

bool has_units(const QkNormRopeParams& params) {
  const int64_t width = unit_width(params);
  return params.head_dim % width == 0 && params.rotary_dim % width == 0 && params.head_dim / width <= kWarpSize;
}

NormRopeTiling tiling_of(const QkNormRopeParams& params) {
  NormRopeTiling tiling = {1, 1};
  while (tiling.lanes < params.head_dim / unit_width(params)) tiling.lanes *= 2;
  tiling.team_heads =
      static_cast<int>(std::min(kTeamHeads, std::max({params.query.heads, params.key.heads, int64_t{1}})));
  return tiling;
}

// What teams take one at a time, of the queries or of the keys, whichever is more.
int64_t works_of(const QkNormRopeParams& params, int64_t team_heads) {
  return params.batch * params.tokens * ceil_div(std::max(params.query.heads, params.key.heads), team_heads);
}

// Calls run(T{}, std::bool_constant<interleaved>, std::bool_constant<aligned>).
template <typename T, typename Run>
cudaError_t with_flags(bool interleaved, bool aligned, const Run& run) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (interleaved) return aligned ? run(T{}, Yes{}, Yes{}) : run(T{}, Yes{}, No{});
  return aligned ? run(T{}, No{}, Yes{}) : run(T{}, No{}, No{});
}

cudaError_t run_forward(const QkNormRopeParams& params, cudaStream_t stream) {
  const auto grid = [&](int64_t works, int64_t teams) {
    return dim3(static_cast<unsigned>(ceil_div(works, teams)), 2);
  };
  const dim3 block(kNormRopeThreads);
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    if (!has_units(params)) {
      return launch(norm_rope_elements_kernel<T>, grid(works_of(params, 1), kNormRopeThreads / kWarpSize), block, 0,
                    stream, params);
    }
    const NormRopeTiling tiling = tiling_of(params);
    return with_flags<T>(params.interleaved, is_aligned(params), [&](auto, auto interleaved, auto vectorised) {
      return launch(norm_rope_kernel<T, interleaved.value, vectorised.value>,
                    grid(works_of(params, tiling.team_heads), kNormRopeThreads / tiling.lanes), block, 0, stream,
                    params, tiling);
    });
  });
}

// How the backward pass is laid over a device.
struct BackwardPlan {
  int threads;
  int64_t blocks;  // for the queries, and as many for the keys
  size_t shared_bytes;
};

BackwardPlan plan_of(const QkNormRopeBackwardParams& params, const DeviceLimits& limits) {
  const QkNormRopeParams& forward = params.forward;
  int lanes = kWarpSize, team_heads = 1;
  int64_t threads = kNormRopeBackwardThreads;
  const int64_t row_bytes = forward.head_dim * static_cast<int64_t>(sizeof(float));
  if (has_units(forward)) {
    const NormRopeTiling tiling = tiling_of(forward);
    lanes = tiling.lanes;
    team_heads = tiling.team_heads;
  } else {
    threads = kWarpSize * std::clamp<int64_t>(kElementSharedBytes / row_bytes, 1, kNormRopeBackwardThreads / kWarpSize);
  }
  const int64_t teams = threads / lanes;
  const int64_t blocks = std::min(ceil_div(works_of(forward, team_heads), teams), kBackwardBlocks * limits.sm_count);
  return {static_cast<int>(threads), blocks, static_cast<size_t>(teams * row_bytes)};
}

size_t row_floats(const QkNormRopeBackwardParams& params, const BackwardPlan& plan) {
  return static_cast<size_t>(plan.blocks * params.forward.head_dim);
}

cudaError_t run_backward(const QkNormRopeBackwardParams& params, const BackwardPlan& plan,
                         const WeightGradientRows& partials, cudaStream_t stream) {
  const QkNormRopeParams& forward = params.forward;
  const dim3 grid(static_cast<unsigned>(plan.blocks), 2), block(plan.threads);
  return with_dtype(forward.dtype, [&](auto element) {
    using T = decltype(element);
    if (!has_units(forward)) {
      return launch(norm_rope_elements_backward_kernel<T>, grid, block, plan.shared_bytes, stream, params, partials);
    }
    const bool aligned =
        is_aligned(forward) && is_aligned(params.query.dy, forward.dtype) && is_aligned(params.key.dy, forward.dtype);
    return with_flags<T>(forward.interleaved, aligned, [&](auto, auto interleaved, auto vectorised) {
      return launch(norm_rope_backward_kernel<T, interleaved.value, vectorised.value>, grid, block, plan.shared_bytes,
                    stream, params, tiling_of(forward), partials);
    });
  });
}

}  // namespace

const char* qk_norm_rope(const QkNormRopeParams& params, const DeviceLimits&, void* stream) {
  if (works_of(params, 1) == 0) return nullptr;
  return text_of(run_forward(params, static_cast<cudaStream_t>(stream)));
}

size_t qk_norm_rope_backward_workspace_bytes(const QkNormRopeBackwardParams& params, const DeviceLimits& limits) {
  return 2 * row_floats(params, plan_of(params, limits)) * sizeof(float);
}

const char* qk_norm_rope_backward(const QkNormRopeBackwardParams& params, const DeviceLimits& limits, void* workspace,
                                  void* stream) {
  cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const BackwardPlan plan = plan_of(params, limits);
  float* rows = static_cast<float*>(workspace);
  const WeightGradientRows partials = {params.query.dweight ? rows : nullptr,
                                       params.key.dweight ? rows + row_floats(params, plan) : nullptr};
  if (plan.blocks > 0) {
    const cudaError_t error = run_backward(params, plan, partials, cuda_stream);
    if (error != cudaSuccess) return text_of(error);
  }
  if (!params.query.dweight && !params.key.dweight) return nullptr;
  const dim3 grid(static_cast<unsigned>(ceil_div(params.forward.head_dim, kNormRopeThreads / kWarpSize)), 2);
  return text_of(launch(merge_weight_gradients_kernel, grid, dim3(kNormRopeThreads), 0, cuda_stream, params, partials,
                        static_cast<int>(plan.blocks)));
}

}  // namespace fastdiff::cuda
