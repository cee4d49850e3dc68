// The CPU kernels as the bindings see them: one table, filled from the best instruction set this machine has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
#include "cpu/threads.h"

namespace fastdiff::cpu {

struct Kernels {
  const char* isa;
  void (*add_noise)(const AddNoiseParams&, const Threads&);
  void (*attention)(const AttentionParams&, const Threads&);
  void (*attention_backward)(const AttentionBackwardParams&, const Threads&);
  void (*gate_residual)(const GateResidualParams&, const Threads&);
  void (*gate_residual_backward)(const GateResidualBackwardParams&, const Threads&);
  void (*geglu)(const GegluParams&, const Threads&);
  void (*geglu_backward)(const GegluBackwardParams&, const Threads&);
  void (*group_norm_silu)(const GroupNormSiluParams&, const Threads&);
  void (*group_norm_silu_backward)(const GroupNormSiluBackwardParams&, const Threads&);
  void (*layer_norm_modulate)(const LayerNormModulateParams&, const Threads&);
  void (*layer_norm_modulate_backward)(const LayerNormModulateBackwardParams&, const Threads&);
  void (*philox)(const PhiloxParams&, const Threads&);
  void (*qk_norm_rope)(const QkNormRopeParams&, const Threads&);
  void (*qk_norm_rope_backward)(const QkNormRopeBackwardParams&, const Threads&);
  void (*sampler_step)(const SamplerStepParams&, const Threads&);
  // These need a tile unit.
  void (*bfloat16_product)(const BFloat16ProductParams&, const Threads&) = nullptr;
  void (*bfloat16_weight)(const BFloat16WeightParams&, const Threads&) = nullptr;
  bool (*split_product)(const SplitProductParams&, const Threads&) = nullptr;
  void (*split_weight)(const SplitWeightParams&, const Threads&) = nullptr;
  void (*timestep_embedding)(const TimestepEmbeddingParams&, const Threads&);
  void (*winograd_input)(const WinogradInputParams&, const Threads&);
  void (*winograd_output)(const WinogradOutputParams&, const Threads&);
};

// Chosen once, by the best instruction set or by the environment variable FASTDIFF_CPU_ISA. Throws
// std::runtime_error when that variable names one that is unknown, not built or not supported here.
const Kernels& kernels();

// From the least to the most capable.
std::vector<std::string> isas_built();
std::vector<std::string> isas_supported();

}  // namespace fastdiff::cpu
