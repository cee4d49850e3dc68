// Backward group_norm_silu. With u = x + time_bias, h = (u - mean) * rstd, z = h * A + B, A = weight * (1 + scale),
// B = bias * (1 + scale) + shift and m elements in a group:
//
//   dz = dy * act'(z)            D0 = sum dz       D1 = sum dz * h       D2 = sum h      (over a channel's pixels)
//   dx = rstd * (A * dz - (sum_c A * D0) / m - h * (sum_c A * D1) / m)                   (sums over the group)
//   dtime_bias = sum dx    dscale = weight * D1 + bias * D0    dshift = D0
//   dweight = sum_n (1 + scale) * D1                           dbias = sum_n (1 + scale) * D0
//
// One pass over x and dy for the D, which leaves dz where dx will be; one over x and dz that turns it into dx. Working
// dz out again would cost more than reading it, and it is rounded there as autograd would round it.
#include "cpu/group_norm_silu_common.h"
#include "cpu/parallel.h"
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

// dx = slope * dz + (x - center) * tilt + lift; slope and center are those of the channel's ChannelMap.
struct GradientMap {
  float tilt, lift;
};

template <class T, bool kSilu>
FASTDIFF_INLINE Pack gradient_of_z(Pack deviation, Pack dy, const Float (&slope)[2], const Float (&offset)[2]) {
  if constexpr (!kSilu) return dy;
  return {dy.first * silu_derivative<T>(deviation.first * slope[0] + offset[0]),
          dy.second * silu_derivative<T>(deviation.second * slope[1] + offset[1])};
}

// The map of every channel of every sample, as the forward pass had it.
void fill_maps(const GroupNormSiluParams& p, const Operands& operands, const Threads& threads,
               const ChannelMaps& maps) {
  const int64_t width = p.channels / p.groups;
  parallel_for(threads, p.batch * p.groups, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      fold(operands.rows(unit / p.groups), unit % p.groups * width, width, p.mean[unit], p.rstd[unit],
           maps.from(unit * width));
    }
  });
}

// From the channels' sums of one (sample, group): what dx needs, and the gradients of the per-sample operands.
void finish_group(const GroupNormSiluBackwardParams& b, const Operands& operands, int64_t sample, int64_t group,
                  const ChannelMaps& maps, ChannelSums* sums, GradientMap* gradients) {
  const GroupNormSiluParams& p = b.forward;
  const int64_t width = p.channels / p.groups, first = group * width;
  const double mean = p.mean[sample * p.groups + group], rstd = p.rstd[sample * p.groups + group];
  const double elements = double(width * p.spatial);
  const OperandRows rows = operands.rows(sample);
  double total0 = 0, total1 = 0;
  for (int64_t i = 0; i < width; i++) {
    // A lone element is its own mean: nothing flows back to it, and rounding must not say otherwise.
    if (width * p.spatial == 1) maps.slope[i] = 0;
    // The sums are about the rounded center: move them to the exact one.
    const double moved = maps.center[i] - (mean - rows.time_bias[first + i]);
    sums[i].product += moved * sums[i].dz;
    sums[i].deviation += moved * double(p.spatial);
    total0 += maps.slope[i] * sums[i].dz;  // the slope as rounded as where dx uses it
    total1 += maps.slope[i] * sums[i].product;
  }
  const double lift = -total0 / elements, tilt = -rstd * rstd * total1 / elements;
  const GradientMap gradient{canonical(tilt), canonical(lift)};
  for (int64_t i = 0; i < width; i++) {
    const int64_t c = first + i, row = sample * p.channels + c;
    const double d0 = sums[i].dz, d1 = sums[i].product * rstd;
    gradients[i] = gradient;
    if (b.dtime_bias)
      b.dtime_bias[row] = static_cast<float>(maps.slope[i] * d0 + tilt * sums[i].deviation + lift * double(p.spatial));
    if (b.dscale) b.dscale[row] = static_cast<float>(rows.weight[c] * d1 + rows.bias[c] * d0);
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
      const double gain = 1.0 + operands.rows(n).scale[c];
      dweight += gain * s.product * p.rstd[n * p.groups + c / (p.channels / p.groups)];
      dbias += gain * s.dz;
    }
    if (b.dweight) b.dweight[c] = static_cast<float>(dweight);
    if (b.dbias) b.dbias[c] = static_cast<float>(dbias);
  }
}

// ---- channels first ------------------------------------------------------------------------------------------------

// Sums over a run; also writes dz, unless that is dy itself.
template <class T, bool kSilu>
ChannelSums sum_run(const T* x, const T* dy, T* dz_out, int64_t count, const ChannelMap& map) {
  const Float center = broadcast(map.center);
  const Float slope[2] = {broadcast(map.slope), broadcast(map.slope)};
  const Float offset[2] = {broadcast(map.offset), broadcast(map.offset)};
  WideSum total_dz, total_product, total_deviation;
  for (int64_t begin = 0; begin < count; begin += kStretchElements) {
    Float dz[2] = {}, product[2] = {}, deviation[2] = {};
    const auto add = [&](Pack d, Pack grad) FASTDIFF_INLINE_LAMBDA {
      const Pack g = gradient_of_z<T, kSilu>(d, grad, slope, offset);
      dz[0] += g.first;
      dz[1] += g.second;
      product[0] += g.first * d.first;
      product[1] += g.second * d.second;
      deviation[0] += d.first;
      deviation[1] += d.second;
      return g;
    };
    const int64_t end = minimum(begin + kStretchElements, count);
    int64_t i = begin;
    for (; i + kPack <= end; i += kPack) {
      const Pack v = load_pack(x + i), grad = load_pack(dy + i);
      prefetch_ahead(x + i);
      prefetch_ahead(dy + i);
      const Pack g = add({v.first - center, v.second - center}, grad);
      if constexpr (kSilu) store_pack<false>(dz_out + i, g);
    }
    if (i < end) {
      const int left = static_cast<int>(end - i);
      const Pack v = load_partial(x + i, left), grad = load_partial(dy + i, left);
      const Pack g = add(keep_first<T>({v.first - center, v.second - center}, left), grad);
      if constexpr (kSilu) store_partial(dz_out + i, g, left);
    }
    total_dz.add(dz[0] + dz[1]);
    total_product.add(product[0] + product[1]);
    total_deviation.add(deviation[0] + deviation[1]);
  }
  return {total_dz.total(), total_product.total(), total_deviation.total()};
}

// dx may be where dz is.
template <class T>
void gradient_run(const T* x, const T* dz, T* dx, int64_t count, const ChannelMap& map, const GradientMap& gradient) {
  const Float center = broadcast(map.center), slope = broadcast(map.slope);
  const Float tilt = broadcast(gradient.tilt), lift = broadcast(gradient.lift);
  const auto dx_of = [&](Float v, Float g) FASTDIFF_INLINE_LAMBDA { return g * slope + ((v - center) * tilt + lift); };
  int64_t i = 0;
  for (; i + kPack <= count; i += kPack) {
    const Pack v = load_pack(x + i), g = load_pack(dz + i);
    prefetch_ahead(x + i);
    prefetch_ahead(dz + i);
    store_pack<false>(dx + i, Pack{dx_of(v.first, g.first), dx_of(v.second, g.second)});
  }
  if (i < count) {
    const int left = static_cast<int>(count - i);
    const Pack v = load_partial(x + i, left), g = load_partial(dz + i, left);
    store_partial(dx + i, Pack{dx_of(v.first, g.first), dx_of(v.second, g.second)}, left);
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
  const Scratch<float> map_memory(ChannelMaps::floats(p.batch * p.channels));
  const ChannelMaps maps(map_memory, p.batch * p.channels);
  fill_maps(p, operands, threads, maps);
  const Activation dx{b.dx, p.channels * p.spatial, p.spatial};

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
    partial[unit * blocks + block] = sum_run<T, kSilu>(at(p.x, s), at(b.dy, s), const_cast<T*>(at(dx, s)), s.count,
                                                       maps[s.sample * p.channels + s.channel]);
  };
  const auto finish = [&](int64_t unit) {
    for (int64_t i = 0; i < width; i++) {
      ChannelSums total;
      for (int64_t piece = 0; piece < pieces.count(); piece++)
        total.add(partial[unit * blocks + i * pieces.count() + piece]);
      sums[unit * width + i] = total;
    }
    finish_group(b, operands, unit / p.groups, unit % p.groups, maps.from(unit * width), sums + unit * width,
                 gradients + unit * width);
  };
  const auto apply = [&](int64_t unit, int64_t block) {
    const Piece s = piece_of(unit, block);
    const int64_t row = s.sample * p.channels + s.channel;
    gradient_run(at(p.x, s), at(kSilu ? dx : b.dy, s), const_cast<T*>(at(dx, s)), s.count, maps[row], gradients[row]);
  };
  run_units(threads, p.batch * p.groups, blocks, reduce, finish, apply);
  finish_affine(b, operands, sums);
}

// ---- channels last -------------------------------------------------------------------------------------------------

// Per-channel values of one sample in slot order, `lanes` floats each.
struct SampleMaps {
  float *center, *slope, *offset, *tilt, *lift;
};

constexpr int kSampleMaps = 5;

SampleMaps maps_of(float* memory, int64_t lanes) {
  return {memory, memory + lanes, memory + 2 * lanes, memory + 3 * lanes, memory + 4 * lanes};
}

// The rows of pixels that a pass reads and writes.
template <class T>
struct Rows {
  const T* x;
  int64_t x_stride;
  const T* gradient;  // dy, or dz once it is known
  int64_t gradient_stride;
  T* dx;
  int64_t dx_stride;
};

// Adds `rows` pixels of one pack of channels to the totals of dz, of dz * (x - center) and of x - center, which lie
// `lanes` apart. Also writes dz, unless that is dy itself.
template <class T, bool kSilu>
void sum_stretch(const Rows<T>& at, int64_t rows, int count, const SampleMaps& maps, int64_t c, double* totals,
                 int64_t lanes) {
  const Float center[2] = {load(maps.center + c), load(maps.center + c + kLanes)};
  const Float slope[2] = {load(maps.slope + c), load(maps.slope + c + kLanes)};
  const Float offset[2] = {load(maps.offset + c), load(maps.offset + c + kLanes)};
  Float sums[3][2] = {};
  const auto add = [&](Pack v, Pack grad) FASTDIFF_INLINE_LAMBDA {
    const Pack d{v.first - center[0], v.second - center[1]};
    const Pack g = gradient_of_z<T, kSilu>(d, grad, slope, offset);
    sums[0][0] += g.first;
    sums[0][1] += g.second;
    sums[1][0] += g.first * d.first;
    sums[1][1] += g.second * d.second;
    sums[2][0] += d.first;
    sums[2][1] += d.second;
    return g;
  };
  for (int64_t row = 0; row < rows; row++) {
    const T *x = at.x + row * at.x_stride + c, *dy = at.gradient + row * at.gradient_stride + c;
    T* dz = at.dx + row * at.dx_stride + c;
    prefetch(x + kStretchPixels * at.x_stride);
    prefetch(dy + kStretchPixels * at.gradient_stride);
    if (count == kPack) {
      const Pack g = add(load_pack(x), load_pack(dy));
      if constexpr (kSilu) store_pack<false>(dz, g);
    } else {
      const Pack g = add(load_partial(x, count), load_partial(dy, count));
      if constexpr (kSilu) store_partial(dz, g, count);
    }
  }
  for (int k = 0; k < 3; k++)
    for (int i = 0; i < 2; i++) {
      float values[kLanes];
      store(values, sums[k][i]);
      double* target = totals + k * lanes + c + i * kLanes;
      for (int lane = 0; lane < kLanes; lane++) target[lane] += values[lane];
    }
}

template <class T>
void gradient_rows(const Rows<T>& at, int64_t rows, int64_t channels, const SampleMaps& maps) {
  const auto dx_of = [&](Float v, Float g, int64_t i) FASTDIFF_INLINE_LAMBDA {
    return g * load(maps.slope + i) + ((v - load(maps.center + i)) * load(maps.tilt + i) + load(maps.lift + i));
  };
  for (int64_t row = 0; row < rows; row++) {
    const T *x = at.x + row * at.x_stride, *dz = at.gradient + row * at.gradient_stride;
    T* dx = at.dx + row * at.dx_stride;
    int64_t c = 0;
    for (; c + kPack <= channels; c += kPack) {
      const Pack v = load_pack(x + c), g = load_pack(dz + c);
      prefetch_ahead(x + c);
      prefetch_ahead(dz + c);
      store_pack<false>(dx + c, Pack{dx_of(v.first, g.first, c), dx_of(v.second, g.second, c + kLanes)});
    }
    if (c < channels) {
      const int left = static_cast<int>(channels - c);
      const Pack v = load_partial(x + c, left), g = load_partial(dz + c, left);
      store_partial(dx + c, Pack{dx_of(v.first, g.first, c), dx_of(v.second, g.second, c + kLanes)}, left);
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
  const Scratch<float> channel_memory(ChannelMaps::floats(p.batch * p.channels));
  const ChannelMaps channel_maps(channel_memory, p.batch * p.channels);
  fill_maps(p, operands, threads, channel_maps);
  for (int64_t n = 0; n < p.batch; n++) {
    const SampleMaps maps = maps_of(map_memory + n * kSampleMaps * lanes, lanes);
    for (int64_t c = 0; c < p.channels; c++) {
      const ChannelMap map = channel_maps[n * p.channels + c];
      maps.center[slot<T>(c)] = map.center;
      maps.slope[slot<T>(c)] = map.slope;
      maps.offset[slot<T>(c)] = map.offset;
    }
  }

  const Activation dx{b.dx, p.channels * p.spatial, p.channels};
  const auto rows_at = [&](const Activation& gradient, int64_t n, int64_t row) {
    const auto start = [&](const Activation& a) {
      return static_cast<const T*>(a.data) + n * a.batch_stride + row * a.stride;
    };
    return Rows<T>{start(p.x), p.x.stride, start(gradient), gradient.stride, const_cast<T*>(start(dx)), dx.stride};
  };
  const auto reduce = [&](int64_t n, int64_t block) {
    double* totals = partial + (n * blocks.count() + block) * 3 * lanes;
    std::memset(totals, 0, 3 * lanes * sizeof(double));
    const SampleMaps maps = maps_of(map_memory + n * kSampleMaps * lanes, lanes);
    for (int64_t row = blocks.begin(block); row < blocks.end(block); row += kStretchPixels)
      for (int64_t c = 0; c < p.channels; c += kPack)
        sum_stretch<T, kSilu>(rows_at(b.dy, n, row), minimum(kStretchPixels, blocks.end(block) - row),
                              static_cast<int>(minimum(kPack, p.channels - c)), maps, c, totals, lanes);
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
      finish_group(b, operands, n, g, channel_maps.from(first), sums + first, gradients + first);
    }
    for (int64_t c = 0; c < p.channels; c++) {
      maps.tilt[slot<T>(c)] = gradients[n * p.channels + c].tilt;
      maps.lift[slot<T>(c)] = gradients[n * p.channels + c].lift;
    }
  };
  const auto apply = [&](int64_t n, int64_t block) {
    gradient_rows(rows_at(kSilu ? dx : b.dy, n, blocks.begin(block)), blocks.end(block) - blocks.begin(block),
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
