// The extension module fastdiff._C. Importing it registers the ops; what it offers itself is about the build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/kernels.h"
#include "cuda/attention_plan.h"
#include "cuda/group_norm_silu_plan.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = FASTDIFF_COMPILER;
  info["torch_built_against"] = FASTDIFF_TORCH_VERSION;
  info["cpu_isa"] = fastdiff::cpu::kernels().isa;
  info["cpu_isas_built"] = fastdiff::cpu::isas_built();
  info["cpu_isas_supported"] = fastdiff::cpu::isas_supported();
#if defined(FASTDIFF_WITH_CUDA)
  info["cuda_built"] = true;
  info["cuda_version"] = FASTDIFF_CUDA_VERSION;
  info["cuda_archs"] = FASTDIFF_CUDA_ARCHS;
#else
  info["cuda_built"] = false;
  info["cuda_version"] = py::none();
  info["cuda_archs"] = py::none();
#endif
  return info;
}

using fastdiff::cuda::DeviceLimits;
using namespace py::literals;

// How the CUDA kernels would be laid over a device; see csrc/cuda/*_plan.h. For tests.

template <fastdiff::cuda::AttentionPlan (*planner)(const fastdiff::cuda::AttentionShape&, const DeviceLimits&)>
py::dict plan_attention(int64_t batch, int64_t heads, int64_t kv_heads, int64_t query_length, int64_t kv_length,
                        int64_t head_dim, int dtype_bytes, int sm_count, size_t shared_bytes) {
  const auto p =
      planner({batch, heads, kv_heads, query_length, kv_length, head_dim, dtype_bytes}, {sm_count, shared_bytes});
  const auto& layout = p.layout;
  const py::dict described("depth"_a = layout.depth, "row_stride"_a = layout.row_stride, "parts"_a = layout.parts,
                           "part_columns"_a = layout.part_columns, "part_stride"_a = layout.part_stride,
                           "row_lanes"_a = 1 << layout.row_lanes_log2);
  return py::dict("layout"_a = described, "resident"_a = p.resident, "warps"_a = p.warps, "tile"_a = p.tile,
                  "splits"_a = p.splits, "grid"_a = p.grid, "shared_bytes"_a = p.shared_bytes);
}

template <fastdiff::cuda::GroupNormSiluPlan (*planner)(const fastdiff::cuda::GroupNormSiluShape&, const DeviceLimits&)>
py::dict plan_group_norm_silu(int64_t batch, int64_t channels, int64_t spatial, int64_t groups, int dtype_bytes,
                              bool channels_last, bool aligned, int sm_count, size_t shared_bytes) {
  const auto p =
      planner({batch, channels, spatial, groups, dtype_bytes, channels_last, aligned}, {sm_count, shared_bytes});
  const py::dict tiling("width"_a = p.tiling.width, "lanes"_a = p.tiling.lanes, "part_size"_a = p.tiling.part_size,
                        "parts"_a = p.tiling.parts, "merge_lanes"_a = p.tiling.merge_lanes);
  return py::dict("tiling"_a = tiling, "resident"_a = p.resident, "vectorised"_a = p.vectorised,
                  "threads"_a = p.threads, "grid"_a = p.grid, "tile_channels"_a = p.tile_channels,
                  "shared_bytes"_a = p.shared_bytes, "workspace_bytes"_a = p.workspace_bytes);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  try {
    fastdiff::cpu::kernels();  // a wrong FASTDIFF_CPU_ISA is told at import, not at the first call
  } catch (const std::exception& error) {
    throw py::import_error(error.what());
  }
  module.def("build_info", &build_info);
  module.def("plan_attention", &plan_attention<fastdiff::cuda::plan_attention>);
  module.def("plan_attention_query_gradient", &plan_attention<fastdiff::cuda::plan_attention_query_gradient>);
  module.def("plan_attention_key_gradients", &plan_attention<fastdiff::cuda::plan_attention_key_gradients>);
  module.def("plan_group_norm_silu", &plan_group_norm_silu<fastdiff::cuda::plan_group_norm_silu>);
  module.def("plan_group_norm_silu_backward", &plan_group_norm_silu<fastdiff::cuda::plan_group_norm_silu_backward>);
}
