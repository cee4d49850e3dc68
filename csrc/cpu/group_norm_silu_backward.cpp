// Backward group_norm_silu. With u = x + time_bias, h = (u - mean) * rstd, z = h * A + B, A = weight * (1 + scale),
// B = bias * (1 + scale) + shift and m elements in a group:
//
//   dz = dy * act'(z)            D0 = sum dz       D1 = sum dz * h       D2 = sum h      (over a channel's pixels)
//   dx = rstd * (A * dz - (sum_c A * D0) / m - h * (sum_c A * D1) / m)                   (sums over the group)
//   dtime_bias = sum dx    dscale = weight * D1 + bias * D0    dshift = D0
//   dweight = sum_n (1 + scale) * D1                           dbias = sum_n (1 + scale) * D0
//
// One pass over x and dy for the D, one that recomputes dz and writes dx, over the blocks of the forward kernel.
#include "cpu/group_norm_silu_common.h"
#include "cpu/sigmoid.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Elements, or pixels of a channel, after which float32 sums are emptied into float64 ones. The terms have either sign:
// longer sums would be rounded at the size of their partial sums, well above that of the result.
constexpr int64_t kStretchElements = 256;
constexpr int64_t kStretchPixels = 16;

// Sums of dz, dz * (x - center) and x - center over pixels of one channel.
struct ChannelSums {
  double dz = 0, product = 0, deviation = 0;

  void add(const ChannelSums& other) {
    dz += other.dz;
    product += other.product;
    deviation += other.deviation;
  }
};

// dx = slope * dz + (x - center) * tilt + lift; slope and center are those of the channel's ChannelMap. The lift comes
// in two parts: where it cancels slope * dz (in a group of one element, to zero) float32 alone would leave noise.
struct GradientMap {
  float tilt, lift, lift_rest;
};

FASTDIFF_INLINE Float gradient_of_x(Float deviation, Float dz, Float slope, Float tilt, Float lift, Float lift_rest) {
  return (dz * slope + lift) + (deviation * tilt + lift_rest);
}

template <class T, bool kSilu>
FASTDIFF_INLINE Float gradient_of_z(Float deviation, Float dy, Float slope, Float offset) {
  return kSilu ? dy * silu_derivative<T>(deviation * slope + offset) : dy;
}

ChannelMap forward_map(const GroupNormSiluParams& p, const Operands& operands, int64_t sample, int64_t channel) {
  const int64_t group = sample * p.groups + channel / (p.channels / p.groups);
  return fold(operands, sample, channel, p.mean[group], p.rstd[group]);
}

// From the channels' sums of one (sample, group): what dx needs, and the gradients of the per-sample operands.
void finish_group(const GroupNormSiluBackwardParams& b, const Operands& operands, int64_t sample, int64_t group,
                  ChannelSums* sums, GradientMap* maps) {
  const GroupNormSiluParams& p = b.forward;
  const int64_t width = p.channels / p.groups, first = group * width;
  const double mean = p.mean[sample * p.groups + group], rstd = p.rstd[sample * p.groups + group];
  const double elements = double(width * p.spatial);
  const float *weight = operands.weight.row(sample), *bias = operands.bias.row(sample);
  double total0 = 0, total1 = 0;
  for (int64_t i = 0; i < width; i++) {
    const ChannelMap map = forward_map(p, operands, sample, first + i);
    // The sums are about the rounded center: move them to the exact one.
    const double moved = map.center - (mean - operands.time_bias.row(sample)[first + i]);
    sums[i].product += moved * sums[i].dz;
    sums[i].deviation += moved * double(p.spatial);
    total0 += map.slope * sums[i].dz;  // the slope as rounded as where dx uses it
    total1 += map.slope * sums[i].product;
  }
  const double lift = -total0 / elements, tilt = -rstd * rstd * total1 / elements;
  const float rounded_lift = canonical(lift);
  const GradientMap map{canonical(tilt), rounded_lift, canonical(lift - rounded_lift)};
  for (int64_t i = 0; i < width; i++) {
    const int64_t c = first + i, row = sample * p.channels + c;
    const double slope = forward_map(p, operands, sample, c).slope;
    const double d0 = sums[i].dz, d1 = sums[i].product * rstd;
    maps[i] = map;
    if (b.dtime_bias)
      b.dtime_bias[row] = static_cast<float>(slope * d0 + tilt * sums[i].deviation + lift * double(p.spatial));
    if (b.dscale) b.dscale[row] = static_cast<float>(weight[c] * d1 + bias[c] * d0);
    if (b.dshift) b.dshift[row] = static_cast<float>(d0);
  }
}

// dweight and dbias: sums over the batch, in the order of the samples.
void finish_affine(const GroupNormSiluBackwardParams& b, const Operands& operands, const ChannelSums* sums) {
  const GroupNormSiluParams& p = b.forward;
  if (!b.dweight && !b.dbias) return;
  for (int64_t c = 0; c < p.channels; c++) {
    double dweight = 0, dbias = 0;
    for (int64_t n = 0; n < p.batch; n++) {
      const ChannelSums& s = sums[n * p.channels + c];
      const double gain = 1.0 + operands.scale.row(n)[c];
      dweight += gain * s.product * p.rstd[n * p.groups + c / (p.channels / p.groups)];
      dbias += gain * s.dz;
    }
    if (b.dweight) b.dweight[c] = static_cast<float>(dweight);
    if (b.dbias) b.dbias[c] = static_cast<float>(dbias);
  }
}

// ---- channels first ------------------------------------------------------------------------------------------------

template <class T, bool kSilu>
ChannelSums sum_run(const T* x, const T* dy, int64_t count, const ChannelMap& map) {
  const Float center = broadcast(map.center), slope = broadcast(map.slope), offset = broadcast(map.offset);
  WideSum total_dz, total_product, total_deviation;
  for (int64_t begin = 0; begin < count; begin += kStretchElements) {
    Float dz[2] = {}, product[2] = {}, deviation[2] = {};
    const auto add = [&](int chain, Float d, Float grad) FASTDIFF_INLINE_LAMBDA {
      const Float g = gradient_of_z<T, kSilu>(d, grad, slope, offset);
      dz[chain] += g;
      product[chain] += g * d;
      deviation[chain] += d;
    };
    const int64_t end = minimum(begin + kStretchElements, count);
    for (int64_t i = begin; i < end; i += kPack) {
      const int left = static_cast<int>(minimum(kPack, end - i));
      const bool whole = left == kPack;
      const Pack v = whole ? load_pack(x + i) : load_partial(x + i, left);
      const Pack g = whole ? load_pack(dy + i) : load_partial(dy + i, left);
      Pack d{v.first - center, v.second - center};
      if (!whole) d = keep_first<T>(d, left);
      add(0, d.first, g.first);
      add(1, d.second, g.second);
    }
    total_dz.add(dz[0] + dz[1]);
    total_product.add(product[0] + product[1]);
    total_deviation.add(deviation[0] + deviation[1]);
  }
  return {total_dz.total(), total_product.total(), total_deviation.total()};
}

template <class T, bool kSilu>
void gradient_run(const T* x, const T* dy, T* dx, int64_t count, const ChannelMap& map, const GradientMap& gradient) {
  const Float center = broadcast(map.center), slope = broadcast(map.slope), offset = broadcast(map.offset);
  const Float tilt = broadcast(gradient.tilt), lift = broadcast(gradient.lift), rest = broadcast(gradient.lift_rest);
  const auto dx_of = [&](Float v, Float grad) FASTDIFF_INLINE_LAMBDA {
    const Float d = v - center;
    return gradient_of_x(d, gradient_of_z<T, kSilu>(d, grad, slope, offset), slope, tilt, lift, rest);
  };
  for (int64_t i = 0; i < count; i += kPack) {
    const int left = static_cast<int>(minimum(kPack, count - i));
    if (left == kPack) {
      const Pack v = load_pack(x + i), g = load_pack(dy + i);
      store_pack<false>(dx + i, Pack{dx_of(v.first, g.first), dx_of(v.second, g.second)});
    } else {
      const Pack v = load_partial(x + i, left), g = load_partial(dy + i, left);
      store_partial(dx + i, Pack{dx_of(v.first, g.first), dx_of(v.second, g.second)}, left);
    }
  }
}

template <class T, bool kSilu>
void backward_channels_first(const GroupNormSiluBackwardParams& b, const Threads& threads) {
  const GroupNormSiluParams& p = b.forward;
  const int64_t width = p.channels / p.groups;
  const Operands operands(p);
  // A block is a piece of one channel: all sums are per channel.
  const Blocks pieces{p.spatial, kBlockElements};
  const int64_t blocks = width * pieces.count();
  const Scratch<ChannelSums> partial(p.batch * p.channels * pieces.count());
  const Scratch<ChannelSums> sums(p.batch * p.channels);
  const Scratch<GradientMap> gradients(p.batch * p.channels);

  struct Piece {
    int64_t sample, channel, begin, count;
  };
  const auto piece_of = [&](int64_t unit, int64_t block) {
    const int64_t piece = block % pieces.count(), begin = pieces.begin(piece);
    return Piece{unit / p.groups, unit % p.groups * width + block / pieces.count(), begin, pieces.end(piece) - begin};
  };
  const auto at = [&](const Activation& a, const Piece& s) {
    return static_cast<const T*>(a.data) + s.sample * a.batch_stride + s.channel * a.stride + s.begin;
  };
  const auto reduce = [&](int64_t unit, int64_t block) {
    const Piece s = piece_of(unit, block);
    partial[unit * blocks + block] =
        sum_run<T, kSilu>(at(p.x, s), at(b.dy, s), s.count, forward_map(p, operands, s.sample, s.channel));
  };
  const auto finish = [&](int64_t unit) {
    for (int64_t i = 0; i < width; i++) {
      ChannelSums total;
      for (int64_t piece = 0; piece < pieces.count(); piece++)
        total.add(partial[unit * blocks + i * pieces.count() + piece]);
      sums[unit * width + i] = total;
    }
    finish_group(b, operands, unit / p.groups, unit % p.groups, sums + unit * width, gradients + unit * width);
  };
  const auto apply = [&](int64_t unit, int64_t block) {
    const Piece s = piece_of(unit, block);
    const int64_t row = s.sample * p.channels + s.channel;
    gradient_run<T, kSilu>(at(p.x, s), at(b.dy, s), static_cast<T*>(b.dx) + row * p.spatial + s.begin, s.count,
                           forward_map(p, operands, s.sample, s.channel), gradients[row]);
  };
  run_units(threads, p.batch * p.groups, blocks, reduce, finish, apply);
  finish_affine(b, operands, sums);
}

// ---- channels last -------------------------------------------------------------------------------------------------

// Per-channel values of one sample in slot order, `lanes` floats each.
struct SampleMaps {
  float *center, *slope, *offset, *tilt, *lift, *lift_rest;
};

constexpr int kSampleMaps = 6;

SampleMaps maps_of(float* memory, int64_t lanes) {
  return {memory, memory + lanes, memory + 2 * lanes, memory + 3 * lanes, memory + 4 * lanes, memory + 5 * lanes};
}

// Adds `rows` pixels of one pack of channels to the sums at dz, dz + lanes and dz + 2 * lanes.
template <class T, bool kSilu>
void sum_strip(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride, int64_t rows, int count,
               const SampleMaps& maps, int64_t c, float* sums, int64_t lanes) {
  const Float center[2] = {load(maps.center + c), load(maps.center + c + kLanes)};
  const Float slope[2] = {load(maps.slope + c), load(maps.slope + c + kLanes)};
  const Float offset[2] = {load(maps.offset + c), load(maps.offset + c + kLanes)};
  Float totals[3][2];
  for (int k = 0; k < 3; k++)
    for (int i = 0; i < 2; i++) totals[k][i] = load(sums + k * lanes + c + i * kLanes);
  const auto add = [&](int i, Float v, Float grad) FASTDIFF_INLINE_LAMBDA {
    const Float d = v - center[i];
    const Float g = gradient_of_z<T, kSilu>(d, grad, slope[i], offset[i]);
    totals[0][i] += g;
    totals[1][i] += g * d;
    totals[2][i] += d;
  };
  for (int64_t row = 0; row < rows; row++, x += x_stride, dy += dy_stride) {
    const Pack v = count == kPack ? load_pack(x + c) : load_partial(x + c, count);
    const Pack g = count == kPack ? load_pack(dy + c) : load_partial(dy + c, count);
    add(0, v.first, g.first);
    add(1, v.second, g.second);
  }
  for (int k = 0; k < 3; k++)
    for (int i = 0; i < 2; i++) store(sums + k * lanes + c + i * kLanes, totals[k][i]);
}

// Adds `rows` pixels of all channels, a few at a time so that they are still in the L1 cache for the next pack.
template <class T, bool kSilu>
void sum_stretch(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride, int64_t rows, int64_t channels,
                 const SampleMaps& maps, float* sums, int64_t lanes) {
  constexpr int64_t kStrip = 8;
  for (int64_t row = 0; row < rows; row += kStrip)
    for (int64_t c = 0; c < channels; c += kPack)
      sum_strip<T, kSilu>(x + row * x_stride, x_stride, dy + row * dy_stride, dy_stride, minimum(kStrip, rows - row),
                          static_cast<int>(minimum(kPack, channels - c)), maps, c, sums, lanes);
}

template <class T, bool kSilu>
void gradient_rows(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride, T* dx, int64_t rows, int64_t channels,
                   const SampleMaps& maps) {
  const auto dx_of = [&](Float v, Float grad, int64_t i) FASTDIFF_INLINE_LAMBDA {
    const Float d = v - load(maps.center + i), slope = load(maps.slope + i);
    const Float dz = gradient_of_z<T, kSilu>(d, grad, slope, load(maps.offset + i));
    return gradient_of_x(d, dz, slope, load(maps.tilt + i), load(maps.lift + i), load(maps.lift_rest + i));
  };
  for (int64_t row = 0; row < rows; row++, x += x_stride, dy += dy_stride, dx += channels) {
    for (int64_t c = 0; c < channels; c += kPack) {
      const int left = static_cast<int>(minimum(kPack, channels - c));
      if (left == kPack) {
        const Pack v = load_pack(x + c), g = load_pack(dy + c);
        store_pack<false>(dx + c, Pack{dx_of(v.first, g.first, c), dx_of(v.second, g.second, c + kLanes)});
      } else {
        const Pack v = load_partial(x + c, left), g = load_partial(dy + c, left);
        store_partial(dx + c, Pack{dx_of(v.first, g.first, c), dx_of(v.second, g.second, c + kLanes)}, left);
      }
    }
  }
}

template <class T, bool kSilu>
void backward_channels_last(const GroupNormSiluBackwardParams& b, const Threads& threads) {
  const GroupNormSiluParams& p = b.forward;
  const int64_t lanes = padded(p.channels), width = p.channels / p.groups;
  const Operands operands(p);
  const Blocks blocks = pixel_blocks(p);
  const Scratch<double> partial(p.batch * blocks.count() * 3 * lanes);
  const Scratch<ChannelSums> sums(p.batch * p.channels);
  const Scratch<GradientMap> gradients(p.batch * p.channels);
  const Scratch<float> map_memory(p.batch * kSampleMaps * lanes);
  std::memset(map_memory, 0, p.batch * kSampleMaps * lanes * sizeof(float));
  for (int64_t n = 0; n < p.batch; n++) {
    const SampleMaps maps = maps_of(map_memory + n * kSampleMaps * lanes, lanes);
    for (int64_t c = 0; c < p.channels; c++) {
      const ChannelMap map = forward_map(p, operands, n, c);
      maps.center[slot<T>(c)] = map.center;
      maps.slope[slot<T>(c)] = map.slope;
      maps.offset[slot<T>(c)] = map.offset;
    }
  }

  const auto at = [&](const Activation& a, int64_t n, int64_t row) {
    return static_cast<const T*>(a.data) + n * a.batch_stride + row * a.stride;
  };
  const auto reduce = [&](int64_t n, int64_t block) {
    const Scratch<float> sums(3 * lanes);
    double* totals = partial + (n * blocks.count() + block) * 3 * lanes;
    std::memset(totals, 0, 3 * lanes * sizeof(double));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); row += kStretchPixels) {
      std::memset(sums, 0, 3 * lanes * sizeof(float));
      sum_stretch<T, kSilu>(at(p.x, n, row), p.x.stride, at(b.dy, n, row), b.dy.stride,
                            minimum(kStretchPixels, blocks.end(block) - row), p.channels,
                            maps_of(map_memory + n * kSampleMaps * lanes, lanes), sums, lanes);
      for (int64_t i = 0; i < 3 * lanes; i++) totals[i] += sums[i];
    }
  };
  const auto finish = [&](int64_t n) {
    for (int64_t c = 0; c < p.channels; c++) {
      ChannelSums total;
      for (int64_t block = 0; block < blocks.count(); block++) {
        const double* source = partial + (n * blocks.count() + block) * 3 * lanes + slot<T>(c);
        total.add({source[0], source[lanes], source[2 * lanes]});
      }
      sums[n * p.channels + c] = total;
    }
    const SampleMaps maps = maps_of(map_memory + n * kSampleMaps * lanes, lanes);
    for (int64_t g = 0; g < p.groups; g++) {
      const int64_t first = n * p.channels + g * width;
      finish_group(b, operands, n, g, sums + first, gradients + first);
    }
    for (int64_t c = 0; c < p.channels; c++) {
      maps.tilt[slot<T>(c)] = gradients[n * p.channels + c].tilt;
      maps.lift[slot<T>(c)] = gradients[n * p.channels + c].lift;
      maps.lift_rest[slot<T>(c)] = gradients[n * p.channels + c].lift_rest;
    }
  };
  const auto apply = [&](int64_t n, int64_t block) {
    const int64_t row = blocks.begin(block);
    gradient_rows<T, kSilu>(at(p.x, n, row), p.x.stride, at(b.dy, n, row), b.dy.stride,
                            static_cast<T*>(b.dx) + (n * p.spatial + row) * p.channels, blocks.end(block) - row,
                            p.channels, maps_of(map_memory + n * kSampleMaps * lanes, lanes));
  };
  run_units(threads, p.batch, blocks.count(), reduce, finish, apply);
  finish_affine(b, operands, sums);
}

template <class T, bool kSilu>
void backward(const GroupNormSiluBackwardParams& b, const Threads& threads) {
  if (b.forward.channels_last) {
    backward_channels_last<T, kSilu>(b, threads);
  } else {
    backward_channels_first<T, kSilu>(b, threads);
  }
}

// No pixels: nothing flows back, but every gradient that was asked for must be written.
void write_zeros(const GroupNormSiluBackwardParams& b) {
  const int64_t rows = b.forward.batch * b.forward.channels;
  const auto clear = [](float* target, int64_t count) {
    if (target) std::memset(target, 0, count * sizeof(float));
  };
  clear(b.dweight, b.forward.channels);
  clear(b.dbias, b.forward.channels);
  clear(b.dtime_bias, rows);
  clear(b.dscale, rows);
  clear(b.dshift, rows);
}

}  // namespace

void group_norm_silu_backward(const GroupNormSiluBackwardParams& b, const Threads& available) {
  const GroupNormSiluParams& p = b.forward;
  const int64_t elements = p.batch * p.channels * p.spatial;
  if (elements == 0) return write_zeros(b);
  const Threads threads{elements < kSerialElements ? 1 : available.count, available.run};
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    p.silu ? backward<T, true>(b, threads) : backward<T, false>(b, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
