// Forward layer_norm_modulate: a token's row is read from memory once and kept, in float32, in the nearest cache, where
// the result is worked out, and before it the deviation, if the mean is too far from zero for sums about zero.
#include "common/layer_norm_modulate.h"

#include "cpu/parallel.h"
#include "cpu/token_rows.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

template <class T>
class Rows {
 public:
  explicit Rows(const LayerNormModulateParams& p)
      : params_(p),
        channels_(p.input.channels),
        gate_(p.input.gate, channels_, 1),
        scale_(p.scale, channels_, 0),
        shift_(p.shift, channels_, 0),
        weight_(p.weight, channels_, 1),
        bias_(p.bias, channels_, 0),
        gain_(lanes_of_row(channels_)),
        offset_(lanes_of_row(channels_)),
        row_(lanes_of_row(channels_)) {
    weight_.move_to(0, 0);
    bias_.move_to(0, 0);
  }

  template <bool kStream>
  void run(int64_t sample, int64_t token) {
    const GateResidualParams& input = params_.input;
    set_operands(sample, token);
    const Moments moments = moments_of(read_row<kStream>(sample, token));
    const float rstd = 1 / std::sqrt(moments.mean_square + params_.eps);
    write_row<kStream>(dense_row<T>(params_.y, input, sample, token), moments, rstd);
    params_.mean[sample * input.tokens + token] = moments.mean + moments.correction;
    params_.rstd[sample * input.tokens + token] = rstd;
  }

 private:
  // The mean is mean + correction: far from zero, one float32 does not hold it well enough.
  struct Moments {
    float mean = 0, correction = 0, mean_square = 0;
  };

  // y = (row - mean) * rstd * gain + offset
  void set_operands(int64_t sample, int64_t token) {
    gate_.move_to(sample, token);
    const bool scaled = scale_.move_to(sample, token), shifted = shift_.move_to(sample, token);
    if (!scaled && !shifted) return;
    for (int64_t i = 0; i < lanes_of_row(channels_); i += kPack) {
      const Pack factor = scale_[i] + broadcast(1);
      store_lanes(gain_, i, weight_[i] * factor);
      store_lanes(offset_, i, multiply_add(bias_[i], factor, shift_[i]));
    }
  }

  struct Sums {
    float values, squares;
  };

  template <bool kStream>
  Sums read_row(int64_t sample, int64_t token) {
    T* sum = params_.input.sum ? dense_row<T>(params_.input.sum, params_.input, sample, token) : nullptr;
    Pack values = {}, squares = {};
    for_each_sum(params_.input, sample, token, gate_, [&](int64_t i, int count, Pack v) FASTDIFF_INLINE_LAMBDA {
      if (sum) write<kStream>(sum, i, count, v);
      store_lanes(row_, i, v);
      values = values + v;
      squares = multiply_add(v, v, squares);
    });
    return {sum_of_lanes(values), sum_of_lanes(squares)};
  }

  Moments moments_of(const Sums& sums) const {
    const float per_channel = 1 / static_cast<float>(channels_), mean_square = sums.squares * per_channel;
    if (params_.rms) return {0, 0, mean_square};
    const float mean = sums.values * per_channel, variance = mean_square - mean * mean;
    // Sums about zero do where that cancels next to nothing; NaN and squares that overflow go the long way.
    constexpr float kLargestRatio = 2;
    return variance < INFINITY && mean_square <= kLargestRatio * variance ? Moments{mean, 0, variance}
                                                                          : moments_about(mean);
  }

  Moments moments_about(float center) const {
    const Float mean = broadcast(center);
    Pack total = {}, squares = {};
    for_each_pack(channels_, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
      const Pack deviation = keep<T>(load_lanes(row_, i) - mean, count);
      total = total + deviation;
      squares = multiply_add(deviation, deviation, squares);
    });
    const float per_channel = 1 / static_cast<float>(channels_), correction = sum_of_lanes(total) * per_channel;
    return {center, correction, sum_of_lanes(squares) * per_channel - correction * correction};
  }

  template <bool kStream>
  void write_row(T* y, const Moments& moments, float rstd) const {
    const Float mean = broadcast(moments.mean), correction = broadcast(moments.correction), slope = broadcast(rstd);
    for_each_pack(channels_, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
      const Pack normalised = (load_lanes(row_, i) - mean - correction) * slope;
      write<kStream>(y, i, count, multiply_add(normalised, load_lanes(gain_, i), load_lanes(offset_, i)));
    });
  }

  const LayerNormModulateParams& params_;
  int64_t channels_;
  Converted<T> gate_, scale_, shift_, weight_, bias_;
  Scratch<float> gain_, offset_, row_;
};

template <class T>
void run(const LayerNormModulateParams& p, const Threads& threads) {
  const bool stream = streams<T>(p.y, p.input) && (!p.input.sum || streams<T>(p.input.sum, p.input));
  parallel_with(threads, p.input.batch * p.input.tokens, 1, [&] {
    return [&, rows = Rows<T>(p)](int64_t begin, int64_t end) mutable {
      for (int64_t i = begin; i < end; i++) {
        const int64_t sample = i / p.input.tokens, token = i % p.input.tokens;
        if (stream) {
          rows.template run<true>(sample, token);
        } else {
          rows.template run<false>(sample, token);
        }
      }
      if (stream) finish_streaming();
    };
  });
}

}  // namespace

void layer_norm_modulate(const LayerNormModulateParams& p, const Threads& available) {
  with_element_type(p.input.dtype, [&](auto element) { run<decltype(element)>(p, threads_for(p.input, available)); });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
