// The kernels of one instruction set.
#include "cpu/kernels.h"

#define FASTDIFF_NAME(isa) #isa
#define FASTDIFF_EXPANDED_NAME(isa) FASTDIFF_NAME(isa)

namespace fastdiff::cpu::FASTDIFF_ISA {

void add_noise(const AddNoiseParams&, const Threads&);
void attention(const AttentionParams&, const Threads&);
void attention_backward(const AttentionBackwardParams&, const Threads&);
void gate_residual(const GateResidualParams&, const Threads&);
void gate_residual_backward(const GateResidualBackwardParams&, const Threads&);
void geglu(const GegluParams&, const Threads&);
void geglu_backward(const GegluBackwardParams&, const Threads&);
void group_norm_silu(const GroupNormSiluParams&, const Threads&);
void group_norm_silu_backward(const GroupNormSiluBackwardParams&, const Threads&);
void layer_norm_modulate(const LayerNormModulateParams&, const Threads&);
void layer_norm_modulate_backward(const LayerNormModulateBackwardParams&, const Threads&);
void philox(const PhiloxParams&, const Threads&);
void qk_norm_rope(const QkNormRopeParams&, const Threads&);
void qk_norm_rope_backward(const QkNormRopeBackwardParams&, const Threads&);
void sampler_step(const SamplerStepParams&, const Threads&);
void timestep_embedding(const TimestepEmbeddingParams&, const Threads&);
void winograd_input(const WinogradInputParams&, const Threads&);
void winograd_output(const WinogradOutputParams&, const Threads&);

Kernels table() {
  Kernels kernels;
  kernels.isa = FASTDIFF_EXPANDED_NAME(FASTDIFF_ISA);
  kernels.add_noise = add_noise;
  kernels.attention = attention;
  kernels.attention_backward = attention_backward;
  kernels.gate_residual = gate_residual;
  kernels.gate_residual_backward = gate_residual_backward;
  kernels.geglu = geglu;
  kernels.geglu_backward = geglu_backward;
  kernels.group_norm_silu = group_norm_silu;
  kernels.group_norm_silu_backward = group_norm_silu_backward;
  kernels.layer_norm_modulate = layer_norm_modulate;
  kernels.layer_norm_modulate_backward = layer_norm_modulate_backward;
  kernels.philox = philox;
  kernels.qk_norm_rope = qk_norm_rope;
  kernels.qk_norm_rope_backward = qk_norm_rope_backward;
  kernels.sampler_step = sampler_step;
  kernels.timestep_embedding = timestep_embedding;
  kernels.winograd_input = winograd_input;
  kernels.winograd_output = winograd_output;
  return kernels;
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
