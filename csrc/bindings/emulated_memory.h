// Declares to the emulator exactly the memory that a call's parameters describe, so that it can report any access
// outside, and any read of a result before it was written.
#pragma once

#include "common/add_noise.h"
#include "common/attention.h"
#include "common/geglu.h"
#include "common/group_norm_silu.h"
#include "common/layer_norm_modulate.h"
#include "common/philox.h"
#include "common/qk_norm_rope.h"
#include "common/sampler_step.h"
#include "common/timestep_embedding.h"
#include "emulator/memory.h"

namespace fastdiff::bindings {

class EmulatedMemory {
 public:
  // Needs no workspace.
  EmulatedMemory(const AddNoiseParams& p, const void*, size_t) {
    const size_t bytes = p.batch * p.count * size_of(p.dtype);
    for (const void* input : {p.clean, p.noise}) read(input, bytes);
    for (const void* factors : {p.alpha, p.sigma, p.target_clean, p.target_noise})
      read(factors, p.batch * (p.wide_factors ? sizeof(double) : sizeof(float)));
    for (const void* output : {p.noisy, p.target}) write(output, bytes);
  }

  // Needs no workspace.
  EmulatedMemory(const AttentionParams& p, const void*, size_t) {
    declare_inputs(p);
    write(p.output, query_bytes(p));
    write(p.logsumexp, rows(p) * sizeof(float));
  }

  EmulatedMemory(const AttentionBackwardParams& b, const void* workspace, size_t workspace_bytes) {
    const AttentionParams& p = b.forward;
    declare_inputs(p);
    read(p, p.heads, p.query_length, b.doutput);
    read(p.output, query_bytes(p));
    read(p.logsumexp, rows(p) * sizeof(float));
    write(b.dquery, query_bytes(p));
    for (void* gradient : {b.dkey, b.dvalue})
      write(gradient, p.batch * p.kv_length * p.kv_heads * p.head_dim * size_of(p.dtype));
    write(workspace, workspace_bytes);
  }

  // Needs no workspace.
  EmulatedMemory(const GateResidualParams& p, const void*, size_t) {
    declare_inputs(p);
    write(p.sum, elements(p) * size_of(p.dtype));
  }

  EmulatedMemory(const GateResidualBackwardParams& b, const void* workspace, size_t workspace_bytes) {
    const GateResidualParams& p = b.forward;
    declare_inputs(p);
    read(p, b.dsum);
    write(b.dx, elements(p) * size_of(p.dtype));
    write(b.dgate, gradient_bytes(p, p.gate));
    write(workspace, workspace_bytes);
  }

  // Needs no workspace.
  EmulatedMemory(const GegluParams& p, const void*, size_t) {
    read(p, p.x, p.x_row_stride, 2 * p.features);
    write(p.y, p.rows * p.features * size_of(p.dtype));
  }

  // Needs no workspace.
  EmulatedMemory(const GegluBackwardParams& b, const void*, size_t) {
    const GegluParams& p = b.forward;
    read(p, p.x, p.x_row_stride, 2 * p.features);
    read(p, b.dy, b.dy_row_stride, p.features);
    write(b.dx, 2 * p.rows * p.features * size_of(p.dtype));
  }

  EmulatedMemory(const GroupNormSiluParams& p, const void* workspace, size_t workspace_bytes) {
    declare_inputs(p);
    write(p.y, p.batch * p.channels * p.spatial * element(p));
    write(p.mean, p.batch * p.groups * sizeof(float));
    write(p.rstd, p.batch * p.groups * sizeof(float));
    write(workspace, workspace_bytes);
  }

  EmulatedMemory(const GroupNormSiluBackwardParams& b, const void* workspace, size_t workspace_bytes) {
    const GroupNormSiluParams& p = b.forward;
    const size_t channel_bytes = p.channels * sizeof(float);
    declare_inputs(p);
    read(p, b.dy);
    read(p.mean, p.batch * p.groups * sizeof(float));
    read(p.rstd, p.batch * p.groups * sizeof(float));
    write(b.dx, p.batch * p.channels * p.spatial * element(p));
    write(b.dweight, channel_bytes);
    write(b.dbias, channel_bytes);
    for (const float* per_sample : {b.dtime_bias, b.dscale, b.dshift}) write(per_sample, p.batch * channel_bytes);
    write(workspace, workspace_bytes);
  }

  // Needs no workspace.
  EmulatedMemory(const LayerNormModulateParams& p, const void*, size_t) {
    declare_inputs(p);
    const size_t tokens = p.input.batch * p.input.tokens;
    for (const void* output : {p.input.sum, p.y}) write(output, elements(p.input) * size_of(p.input.dtype));
    for (const float* statistic : {p.mean, p.rstd}) write(statistic, tokens * sizeof(float));
  }

  EmulatedMemory(const LayerNormModulateBackwardParams& b, const void* workspace, size_t workspace_bytes) {
    const LayerNormModulateParams& p = b.forward;
    declare_inputs(p);
    for (const TokenOperand* operand : {&b.normalised, &b.dy, &b.dsum}) read(p.input, *operand);
    const size_t tokens = p.input.batch * p.input.tokens;
    for (const float* statistic : {p.mean, p.rstd}) read(statistic, tokens * sizeof(float));
    for (const void* gradient : {b.dresidual, b.dx}) write(gradient, elements(p.input) * size_of(p.input.dtype));
    write(b.dgate, gradient_bytes(p.input, p.input.gate));
    write(b.dscale, gradient_bytes(p.input, p.scale));
    write(b.dshift, gradient_bytes(p.input, p.shift));
    for (const float* gradient : {b.dweight, b.dbias}) write(gradient, p.input.channels * sizeof(float));
    write(workspace, workspace_bytes);
  }

  // Needs no workspace.
  EmulatedMemory(const PhiloxParams& p, const void*, size_t) {
    read(p.seeds, p.batch * sizeof(int64_t));
    write(p.result, p.batch * p.count * (p.draw == Draw::Bits ? sizeof(int64_t) : size_of(p.dtype)));
  }

  // Needs no workspace.
  EmulatedMemory(const QkNormRopeParams& p, const void*, size_t) {
    declare_inputs(p);
    for (const NormRopeHeads* side : {&p.query, &p.key}) write(side->y, dense_bytes(p, side->heads));
  }

  EmulatedMemory(const QkNormRopeBackwardParams& b, const void* workspace, size_t workspace_bytes) {
    const QkNormRopeParams& p = b.forward;
    declare_inputs(p);
    const auto declare = [&](const NormRopeHeads& side, const NormRopeGradients& gradients) {
      read(p, side.heads, gradients.dy);
      write(gradients.dx, dense_bytes(p, side.heads));
      write(gradients.dweight, p.head_dim * sizeof(float));
    };
    declare(p.query, b.query);
    declare(p.key, b.key);
    write(workspace, workspace_bytes);
  }

  EmulatedMemory(const SamplerStepParams& p, const void* workspace, size_t workspace_bytes) {
    const size_t elements = p.batch * p.count, bytes = elements * size_of(p.dtype);
    read(p.sample, bytes);
    for (const void* prediction : {p.prediction, p.uncond_prediction})
      read(prediction, elements * size_of(p.prediction_dtype));
    for (int i = 0; i < p.history_count; i++) read(p.history[i], bytes);
    read(p.coefficients, p.steps * sizeof(StepCoefficients));
    read(p.step, sizeof(int64_t));
    read(p.seeds, p.batch * sizeof(int64_t));
    read(p.limits, p.batch * sizeof(float));
    // What is also an input keeps its contents.
    write(p.result, bytes);
    write(p.model, bytes);
    write(workspace, workspace_bytes);
  }

  // Needs no workspace.
  EmulatedMemory(const TimestepEmbeddingParams& p, const void*, size_t) {
    read(p.timestep, p.count * sizeof(double));
    write(p.embedding, p.count * p.channels * size_of(p.dtype));
  }

 private:
  static size_t element(const GroupNormSiluParams& p) { return size_of(p.dtype); }

  static void read(const void* address, size_t bytes) { emulator::register_buffer(address, bytes); }
  static void write(const void* address, size_t bytes) {
    emulator::register_buffer(address, bytes, emulator::Contents::Uninitialised);
  }

  static void read(const GroupNormSiluParams& p, const Activation& activation) {
    if (p.batch * p.channels * p.spatial == 0) return;
    const int64_t rows = p.channels_last ? p.spatial : p.channels, row = p.channels_last ? p.channels : p.spatial;
    const int64_t last = (p.batch - 1) * activation.batch_stride + (rows - 1) * activation.stride + row;
    read(activation.data, last * element(p));
  }

  static void read(const GroupNormSiluParams& p, const ChannelVector& vector, int64_t rows) {
    if (!vector.data || rows * p.channels == 0) return;
    read(vector.data, ((rows - 1) * vector.batch_stride + p.channels) * size_of(vector.dtype));
  }

  static void declare_inputs(const GroupNormSiluParams& p) {
    read(p, p.x);
    read(p, p.weight, 1);
    read(p, p.bias, 1);
    for (const ChannelVector* per_sample : {&p.time_bias, &p.scale, &p.shift}) read(p, *per_sample, p.batch);
  }

  static size_t rows(const AttentionParams& p) { return p.batch * p.query_length * p.heads; }

  static size_t query_bytes(const AttentionParams& p) { return rows(p) * p.head_dim * size_of(p.dtype); }

  static void read(const AttentionParams& p, int64_t heads, int64_t length, const AttentionOperand& operand) {
    if (p.batch * length * heads == 0) return;
    const int64_t last = (p.batch - 1) * operand.batch_stride + (length - 1) * operand.token_stride +
                         (heads - 1) * operand.head_stride + p.head_dim;
    read(operand.data, last * size_of(p.dtype));
  }

  static void declare_inputs(const AttentionParams& p) {
    read(p, p.heads, p.query_length, p.query);
    for (const AttentionOperand* operand : {&p.key, &p.value}) read(p, p.kv_heads, p.kv_length, *operand);
    if (p.kv_lengths) read(p.kv_lengths, p.batch * sizeof(int32_t));
  }

  static size_t elements(const GateResidualParams& p) { return p.batch * p.tokens * p.channels; }

  // Of the float32 gradient of a modulation.
  static size_t gradient_bytes(const GateResidualParams& p, const TokenOperand& operand) {
    return p.batch * (operand.per_token ? p.tokens : 1) * p.channels * sizeof(float);
  }

  static void read(const GateResidualParams& p, const TokenOperand& operand) {
    if (!operand.data || elements(p) == 0) return;
    const int64_t last = (p.batch - 1) * operand.batch_stride + (p.tokens - 1) * operand.token_stride + p.channels;
    read(operand.data, last * size_of(operand.dtype));
  }

  static void declare_inputs(const GateResidualParams& p) {
    for (const TokenOperand* operand : {&p.x, &p.residual, &p.gate}) read(p, *operand);
  }

  static void declare_inputs(const LayerNormModulateParams& p) {
    declare_inputs(p.input);
    for (const TokenOperand* operand : {&p.scale, &p.shift, &p.weight, &p.bias}) read(p.input, *operand);
  }

  static void read(const GegluParams& p, const void* data, int64_t row_stride, int64_t columns) {
    if (p.rows * p.features) read(data, ((p.rows - 1) * row_stride + columns) * size_of(p.dtype));
  }

  static size_t dense_bytes(const QkNormRopeParams& p, int64_t heads) {
    return p.batch * p.tokens * heads * p.head_dim * size_of(p.dtype);
  }

  static void read(const QkNormRopeParams& p, int64_t heads, const AttentionOperand& operand) {
    if (p.batch * p.tokens * heads == 0) return;
    const int64_t last = (p.batch - 1) * operand.batch_stride + (p.tokens - 1) * operand.token_stride +
                         (heads - 1) * operand.head_stride + p.head_dim;
    read(operand.data, last * size_of(p.dtype));
  }

  static void read(const QkNormRopeParams& p, const RotaryTable& table) {
    const int64_t rows = p.tokens - p.text_tokens;
    if (p.batch * rows * p.rotary_dim == 0) return;
    const int64_t last = (p.batch - 1) * table.batch_stride + (rows - 1) * table.token_stride + p.rotary_dim;
    read(table.data, last * sizeof(float));
  }

  static void declare_inputs(const QkNormRopeParams& p) {
    read(p, p.cos);
    read(p, p.sin);
    for (const NormRopeHeads* side : {&p.query, &p.key}) {
      read(p, side->heads, side->x);
      if (side->weight) read(side->weight, p.head_dim * size_of(side->weight_dtype));
    }
  }

  emulator::BufferScope scope_;
};

}  // namespace fastdiff::bindings
