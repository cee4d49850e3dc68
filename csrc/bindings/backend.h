// Where a prepared call runs: on the CPU's threads, on torch's current CUDA stream, or in the emulator.
//
// A backend has one static function an op. `like` is a tensor of the call: it names the device to run on.
#pragma once

#include <cstddef>

#include "bindings/tensors.h"
#include "common/add_noise.h"
#include "common/attention.h"
#include "common/bfloat16_product.h"
#include "common/gate_residual.h"
#include "common/geglu.h"
#include "common/group_norm_silu.h"
#include "common/layer_norm_modulate.h"
#include "common/philox.h"
#include "common/qk_norm_rope.h"
#include "common/sampler_step.h"
#include "common/split_product.h"
#include "common/timestep_embedding.h"
#include "common/winograd.h"

#if defined(FASTDIFF_EMULATED) || defined(FASTDIFF_WITH_CUDA)
#include "cuda/add_noise.h"
#include "cuda/attention.h"
#include "cuda/device_limits.h"
#include "cuda/gate_residual.h"
#include "cuda/geglu.h"
#include "cuda/group_norm_silu.h"
#include "cuda/layer_norm_modulate.h"
#include "cuda/philox.h"
#include "cuda/qk_norm_rope.h"
#include "cuda/sampler_step.h"
#include "cuda/timestep_embedding.h"
#endif
#if defined(FASTDIFF_EMULATED)
#include "bindings/emulated_memory.h"
#include "emulator/emulated_device.h"
#else
#include "cpu/kernels.h"
#endif

namespace fastdiff::bindings {

#if !defined(FASTDIFF_EMULATED)

struct CpuBackend {
  static cpu::Threads threads() {
    return {static_cast<int>(torch::stable::get_num_threads()),
            [](int64_t items, void (*body)(void*, int64_t, int64_t), void* context) {
              torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
            }};
  }

  static void add_noise(const AddNoiseParams& p, const Tensor&) { cpu::kernels().add_noise(p, threads()); }
  static void attention(const AttentionParams& p, const Tensor&) { cpu::kernels().attention(p, threads()); }
  static void attention_backward(const AttentionBackwardParams& b, const Tensor&) {
    cpu::kernels().attention_backward(b, threads());
  }
  static void gate_residual(const GateResidualParams& p, const Tensor&) { cpu::kernels().gate_residual(p, threads()); }
  static void gate_residual_backward(const GateResidualBackwardParams& p, const Tensor&) {
    cpu::kernels().gate_residual_backward(p, threads());
  }
  static void bfloat16_product(const BFloat16ProductParams& p, const Tensor&) {
    cpu::kernels().bfloat16_product(p, threads());
  }
  static void bfloat16_weight(const BFloat16WeightParams& p, const Tensor&) {
    cpu::kernels().bfloat16_weight(p, threads());
  }
  static void geglu(const GegluParams& p, const Tensor&) { cpu::kernels().geglu(p, threads()); }
  static void geglu_backward(const GegluBackwardParams& p, const Tensor&) {
    cpu::kernels().geglu_backward(p, threads());
  }
  static void group_norm_silu(const GroupNormSiluParams& p, const Tensor&) {
    cpu::kernels().group_norm_silu(p, threads());
  }
  static void group_norm_silu_backward(const GroupNormSiluBackwardParams& p, const Tensor&) {
    cpu::kernels().group_norm_silu_backward(p, threads());
  }
  static void layer_norm_modulate(const LayerNormModulateParams& p, const Tensor&) {
    cpu::kernels().layer_norm_modulate(p, threads());
  }
  static void layer_norm_modulate_backward(const LayerNormModulateBackwardParams& p, const Tensor&) {
    cpu::kernels().layer_norm_modulate_backward(p, threads());
  }
  static void philox(const PhiloxParams& p, const Tensor&) { cpu::kernels().philox(p, threads()); }
  static void qk_norm_rope(const QkNormRopeParams& p, const Tensor&) { cpu::kernels().qk_norm_rope(p, threads()); }
  static void qk_norm_rope_backward(const QkNormRopeBackwardParams& b, const Tensor&) {
    cpu::kernels().qk_norm_rope_backward(b, threads());
  }
  static void sampler_step(const SamplerStepParams& p, const Tensor&) { cpu::kernels().sampler_step(p, threads()); }
  static bool split_product(const SplitProductParams& p, const Tensor&) {
    return cpu::kernels().split_product(p, threads());
  }
  static void split_weight(const SplitWeightParams& p, const Tensor&) { cpu::kernels().split_weight(p, threads()); }
  static void timestep_embedding(const TimestepEmbeddingParams& p, const Tensor&) {
    cpu::kernels().timestep_embedding(p, threads());
  }
  static void winograd_input(const WinogradInputParams& p, const Tensor&) {
    cpu::kernels().winograd_input(p, threads());
  }
  static void winograd_output(const WinogradOutputParams& p, const Tensor&) {
    cpu::kernels().winograd_output(p, threads());
  }
};

#endif

#if defined(FASTDIFF_EMULATED) || defined(FASTDIFF_WITH_CUDA)

inline void check_launch(const char* error, const char* op) {
  STD_TORCH_CHECK(error == nullptr, op, ": the CUDA launch failed: ", error ? error : "");
}

// Runs a CUDA op given its workspace size and its launcher. `Device` is made from a tensor of the call and provides
// limits(), stream(), and memory(p, workspace, bytes): what the call may touch, for as long as the result lives.
template <class Device, class Params>
void run_cuda(const char* op, const Params& p, const Tensor& like,
              size_t (*workspace_bytes)(const Params&, const cuda::DeviceLimits&),
              const char* (*launch)(const Params&, const cuda::DeviceLimits&, void*, void*)) {
  const Device device(like);
  const cuda::DeviceLimits limits = device.limits();
  const size_t bytes = workspace_bytes(p, limits);
  Tensor workspace = empty({static_cast<int64_t>(bytes)}, ScalarType::Byte, like);
  [[maybe_unused]] const auto memory = device.memory(p, workspace.mutable_data_ptr(), bytes);
  check_launch(launch(p, limits, workspace.mutable_data_ptr(), device.stream()), op);
}

template <class Device>
struct CudaLikeBackend {
  static void add_noise(const AddNoiseParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::add_noise(p, device.limits(), device.stream()), "add_noise");
  }
  static void attention(const AttentionParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::attention(p, device.limits(), device.stream()), "attention");
  }
  static void attention_backward(const AttentionBackwardParams& p, const Tensor& like) {
    run_cuda<Device>("attention_backward", p, like, &cuda::attention_backward_workspace_bytes,
                     &cuda::attention_backward);
  }
  static void gate_residual(const GateResidualParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::gate_residual(p, device.stream()), "gate_residual");
  }
  static void gate_residual_backward(const GateResidualBackwardParams& p, const Tensor& like) {
    run_cuda<Device>("gate_residual_backward", p, like, &cuda::gate_residual_backward_workspace_bytes,
                     &cuda::gate_residual_backward);
  }
  static void geglu(const GegluParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::geglu(p, device.stream()), "geglu");
  }
  static void geglu_backward(const GegluBackwardParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::geglu_backward(p, device.stream()), "geglu_backward");
  }
  static void group_norm_silu(const GroupNormSiluParams& p, const Tensor& like) {
    run_cuda<Device>("group_norm_silu", p, like, &cuda::group_norm_silu_workspace_bytes, &cuda::group_norm_silu);
  }
  static void group_norm_silu_backward(const GroupNormSiluBackwardParams& p, const Tensor& like) {
    run_cuda<Device>("group_norm_silu_backward", p, like, &cuda::group_norm_silu_backward_workspace_bytes,
                     &cuda::group_norm_silu_backward);
  }
  static void layer_norm_modulate(const LayerNormModulateParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::layer_norm_modulate(p, device.stream()), "layer_norm_modulate");
  }
  static void layer_norm_modulate_backward(const LayerNormModulateBackwardParams& p, const Tensor& like) {
    run_cuda<Device>("layer_norm_modulate_backward", p, like, &cuda::layer_norm_modulate_backward_workspace_bytes,
                     &cuda::layer_norm_modulate_backward);
  }
  static void philox(const PhiloxParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::philox(p, device.limits(), device.stream()), "philox");
  }
  static void qk_norm_rope(const QkNormRopeParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::qk_norm_rope(p, device.limits(), device.stream()), "qk_norm_rope");
  }
  static void qk_norm_rope_backward(const QkNormRopeBackwardParams& p, const Tensor& like) {
    run_cuda<Device>("qk_norm_rope_backward", p, like, &cuda::qk_norm_rope_backward_workspace_bytes,
                     &cuda::qk_norm_rope_backward);
  }
  static void sampler_step(const SamplerStepParams& p, const Tensor& like) {
    run_cuda<Device>("sampler_step", p, like, &cuda::sampler_step_workspace_bytes, &cuda::sampler_step);
  }
  static void timestep_embedding(const TimestepEmbeddingParams& p, const Tensor& like) {
    const Device device(like);
    [[maybe_unused]] const auto memory = device.memory(p, nullptr, 0);
    check_launch(cuda::timestep_embedding(p, device.stream()), "timestep_embedding");
  }
};

#endif

#if defined(FASTDIFF_WITH_CUDA)

class CudaDevice {
 public:
  explicit CudaDevice(const Tensor& like) : index_(like.get_device_index()), guard_(index_) {}
  cuda::DeviceLimits limits() const { return cuda::device_limits(index_); }
  void* stream() const { return torch::stable::accelerator::getCurrentStream(index_).nativeHandle(); }
  template <class Params>
  std::nullptr_t memory(const Params&, const void*, size_t) const {
    return nullptr;  // a GPU checks its own memory
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

using CudaBackend = CudaLikeBackend<CudaDevice>;

#endif

#if defined(FASTDIFF_EMULATED)

class EmulatedDevice {
 public:
  explicit EmulatedDevice(const Tensor&) {}
  cuda::DeviceLimits limits() const {
    return {emulator::emulated_device().sm_count, emulator::emulated_device().shared_bytes_per_block};
  }
  void* stream() const { return nullptr; }
  template <class Params>
  EmulatedMemory memory(const Params& p, const void* workspace, size_t bytes) const {
    return EmulatedMemory(p, workspace, bytes);
  }
};

using EmulatedBackend = CudaLikeBackend<EmulatedDevice>;

#endif

}  // namespace fastdiff::bindings
