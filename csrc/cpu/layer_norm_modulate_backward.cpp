// Backward layer_norm_modulate. With n the normalised row, gain = weight * (1 + scale) and g = dy * gain,
//
//   dresidual = rstd * (g - mean(g) - n * mean(g * n)) + dsum      (no mean(g) for RMS)
//   dx = gate * dresidual      dgate = sum dresidual * x
//   dshift = sum dy            dscale = sum dy * (n * weight + bias)
//   dbias = sum dy * (1 + scale)      dweight = sum dy * (1 + scale) * n
//
// over the tokens that share the operand. With dy' = dy, or dy * (1 + scale) where scale differs from token to token,
// all of the sums follow from sum dy' and sum dy' * n.
#include "common/layer_norm_modulate.h"
#include "cpu/token_sums.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

enum Sum { kOfGradient, kOfProduct, kOfGate, kSums };

template <class T>
class Rows {
 public:
  explicit Rows(const LayerNormModulateBackwardParams& b)
      : params_(b),
        forward_(b.forward),
        input_(b.forward.input),
        gate_(input_.gate, input_.channels, 1),
        scale_(forward_.scale, input_.channels, 0),
        weight_(forward_.weight, input_.channels, 1),
        bias_(forward_.bias, input_.channels, 0) {
    weight_.move_to(0, 0);
    bias_.move_to(0, 0);
  }

  void run(int64_t sample, int64_t token, float* const* sums) {
    gate_.move_to(sample, token);
    scale_.move_to(sample, token);
    const int64_t at = sample * input_.tokens + token;
    mean_ = broadcast(forward_.mean[at]);
    rstd_ = broadcast(forward_.rstd[at]);
    row_ = row_of<T>(params_.normalised, sample, token);
    dy_ = row_of<T>(params_.dy, sample, token);
    sum_gradients(at, sums);
    write_inputs(sample, token, sums[kOfGate]);
  }

 private:
  FASTDIFF_INLINE Pack normalised(int64_t i, int count) const { return (read(row_, i, count) - mean_) * rstd_; }

  // Adds to the sums over tokens, and works out mean(g) and mean(g * n).
  void sum_gradients(int64_t at, float* const* sums) {
    const bool per_token = forward_.scale.per_token;
    float* dscale = per_token && params_.dscale ? params_.dscale + at * input_.channels : nullptr;
    float* dshift = forward_.shift.per_token && params_.dshift ? params_.dshift + at * input_.channels : nullptr;
    Pack total = {}, products = {};
    for_each_pack(input_.channels, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
      prefetch(row_ + i + params_.normalised.token_stride);
      prefetch(dy_ + i + params_.dy.token_stride);
      const Pack dy = read(dy_, i, count), n = normalised(i, count), scaled = dy * (scale_[i] + broadcast(1));
      const Pack g = scaled * weight_[i], gradient = per_token ? scaled : dy;
      total = total + g;
      products = products + g * n;
      add_to(sums[kOfGradient], i, gradient);
      add_to(sums[kOfProduct], i, gradient * n);
      if (dscale) write_floats<T>(dscale, i, count, dy * (n * weight_[i] + bias_[i]));
      if (dshift) write_floats<T>(dshift, i, count, dy);
    });
    const float per_channel = 1 / static_cast<float>(input_.channels);
    mean_gradient_ = broadcast(forward_.rms ? 0 : sum_of_lanes(total) * per_channel);
    mean_product_ = broadcast(sum_of_lanes(products) * per_channel);
  }

  void write_inputs(int64_t sample, int64_t token, float* of_gate) const {
    T* dresidual = dense_row<T>(params_.dresidual, input_, sample, token);
    T* dx = gate_ ? dense_row<T>(params_.dx, input_, sample, token) : nullptr;
    const T* x = gate_ ? row_of<T>(input_.x, sample, token) : nullptr;
    const T* dsum = params_.dsum.data ? row_of<T>(params_.dsum, sample, token) : nullptr;
    float* dgate = input_.gate.per_token && params_.dgate
                       ? params_.dgate + (sample * input_.tokens + token) * input_.channels
                       : nullptr;
    for_each_pack(input_.channels, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
      const Pack g = read(dy_, i, count) * (scale_[i] + broadcast(1)) * weight_[i];
      Pack gradient = (g - mean_gradient_ - normalised(i, count) * mean_product_) * rstd_;
      if (dsum) gradient = gradient + read(dsum, i, count);
      write<false>(dresidual, i, count, gradient);
      if (!dx) return;
      prefetch(x + i + input_.x.token_stride);
      write<false>(dx, i, count, gradient * gate_[i]);
      const Pack of_token = gradient * read(x, i, count);
      add_to(of_gate, i, of_token);
      if (dgate) write_floats<T>(dgate, i, count, of_token);
    });
  }

  const LayerNormModulateBackwardParams& params_;
  const LayerNormModulateParams& forward_;
  const GateResidualParams& input_;
  Converted<T> gate_, scale_, weight_, bias_;
  const T *row_ = nullptr, *dy_ = nullptr;
  Float mean_ = {}, rstd_ = {}, mean_gradient_ = {}, mean_product_ = {};
};

// An operand's value for one channel of a sample.
float value_of(const TokenOperand& operand, int64_t sample, int64_t channel, float absent) {
  if (!operand.data) return absent;
  float value = 0;
  with_element_type(operand.dtype,
                    [&](auto element) { value = to_float(row_of<decltype(element)>(operand, sample, 0)[channel]); });
  return value;
}

template <class T>
void run(const LayerNormModulateBackwardParams& b, const Threads& threads) {
  const LayerNormModulateParams& p = b.forward;
  const int64_t channels = p.input.channels;
  TokenSums<T, kSums> token_sums(p.input);
  token_sums.collect(threads, [&] { return Rows<T>(b); });
  const Scratch<double> of_weight(channels), of_bias(channels);
  for (int64_t c = 0; c < channels; c++) of_weight[c] = of_bias[c] = 0;
  token_sums.for_each(threads, [&](int64_t sample, int64_t c, const double* sums) {
    const int64_t at = sample * channels + c;
    const bool per_token = p.scale.per_token;
    const double gradient = sums[kOfGradient], product = sums[kOfProduct];
    const double weight = value_of(p.weight, 0, c, 1), bias = value_of(p.bias, 0, c, 0);
    const double factor = per_token ? 1.0 : 1.0 + value_of(p.scale, sample, c, 0);
    if (b.dscale && !per_token) b.dscale[at] = static_cast<float>(weight * product + bias * gradient);
    if (b.dshift && !p.shift.per_token) b.dshift[at] = static_cast<float>(gradient);
    if (b.dgate && !p.input.gate.per_token) b.dgate[at] = static_cast<float>(sums[kOfGate]);
    of_weight[c] += factor * product;
    of_bias[c] += factor * gradient;
  });
  for (int64_t c = 0; c < channels; c++) {
    if (b.dweight) b.dweight[c] = static_cast<float>(of_weight[c]);
    if (b.dbias) b.dbias[c] = static_cast<float>(of_bias[c]);
  }
}

}  // namespace

void layer_norm_modulate_backward(const LayerNormModulateBackwardParams& b, const Threads& available) {
  const GateResidualParams& input = b.forward.input;
  with_element_type(input.dtype, [&](auto element) { run<decltype(element)>(b, threads_for(input, available)); });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
