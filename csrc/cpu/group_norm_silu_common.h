// What the forward and backward CPU kernels of group_norm_silu share: how the activation is cut into blocks, how
// per-channel operands are folded, and how blocks are spread over threads.
//
// A "unit" is what is normalised from one place: a (sample, group) when channels come first, a whole sample when they
// come last. A unit is cut into blocks by its shape alone, and block results are merged in block order, so the bits
// of a result depend neither on the number of threads nor on the rest of the batch.
#pragma once

#include <cmath>
#include <limits>

#include "common/group_norm_silu.h"
#include "cpu/element_type.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;
constexpr int64_t kBlockElements = 16384;         // channels first: one block, small beside any L2
constexpr int64_t kBlockElementsPixels = 131072;  // channels last: long enough to hide the per-channel work

// An operand widened to float32, once for all blocks: one row of channels a sample, or one for all of them.
class ChannelRows {
 public:
  ChannelRows(const ChannelVector& vector, int64_t batch, int64_t channels, float absent)
      : stride_(vector.data && vector.batch_stride ? channels : 0), values_((stride_ && batch ? batch : 1) * channels) {
    if (!vector.data) {
      for (int64_t c = 0; c < channels; c++) values_[c] = absent;
    } else {
      for (int64_t row = 0; row < (stride_ ? batch : 1); row++) widen(vector, row, channels);
    }
  }
  const float* row(int64_t sample) const { return values_ + sample * stride_; }

 private:
  void widen(const ChannelVector& vector, int64_t row, int64_t channels) {
    const auto copy = [&](const auto* source) {
      for (int64_t c = 0; c < channels; c++) values_[row * channels + c] = to_float(source[c]);
    };
    const int64_t offset = row * vector.batch_stride;
    switch (vector.dtype) {
      case DType::Float32:
        return copy(static_cast<const float*>(vector.data) + offset);
      case DType::BFloat16:
        return copy(static_cast<const BFloat16*>(vector.data) + offset);
      case DType::Float16:
        return copy(static_cast<const Float16*>(vector.data) + offset);
    }
  }

  int64_t stride_;
  Scratch<float> values_;
};

// The operands of one sample, a float a channel.
struct OperandRows {
  const float *weight, *bias, *time_bias, *scale, *shift;
};

class Operands {
 public:
  explicit Operands(const GroupNormSiluParams& p)
      : weight_(p.weight, p.batch, p.channels, 1.0f),
        bias_(p.bias, p.batch, p.channels, 0.0f),
        time_bias_(p.time_bias, p.batch, p.channels, 0.0f),
        scale_(p.scale, p.batch, p.channels, 0.0f),
        shift_(p.shift, p.batch, p.channels, 0.0f) {}

  OperandRows rows(int64_t sample) const {
    return {weight_.row(sample), bias_.row(sample), time_bias_.row(sample), scale_.row(sample), shift_.row(sample)};
  }

 private:
  ChannelRows weight_, bias_, time_bias_, scale_, shift_;
};

// y = act((x - center) * slope + offset) for one channel of one sample.
struct ChannelMap {
  float center, slope, offset;
};

// The maps of many channels, as three arrays of `count` floats: so they are filled a vector at a time.
struct ChannelMaps {
  float *center, *slope, *offset;

  static int64_t floats(int64_t count) { return 3 * count; }
  ChannelMaps(float* memory, int64_t count) : center(memory), slope(memory + count), offset(memory + 2 * count) {}

  ChannelMap operator[](int64_t channel) const { return {center[channel], slope[channel], offset[channel]}; }
  ChannelMaps from(int64_t first) const {
    ChannelMaps later = *this;
    later.center += first;
    later.slope += first;
    later.offset += first;
    return later;
  }
};

// narrow_bfloat16 needs NaNs whose low bits are clear; an operand may bring in any NaN.
inline float canonical(double value) {
  const float narrow = static_cast<float>(value);
  return narrow == narrow ? narrow : std::numeric_limits<float>::quiet_NaN();
}

// The maps of the `count` channels of a group, the first of which is `first`.
inline void fold(const OperandRows& rows, int64_t first, int64_t count, double mean, double rstd,
                 const ChannelMaps& maps) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; i++) {
    const int64_t c = first + i;
    const double gain = 1.0 + rows.scale[c];
    const double center = mean - rows.time_bias[c];
    const double slope = rstd * rows.weight[c] * gain;
    const double offset = rows.bias[c] * gain + rows.shift[c];
    // What rounding the center loses (up to half an ulp of a large mean) goes into the offset.
    const float rounded_center = canonical(center);
    maps.center[i] = rounded_center;
    maps.slope[i] = canonical(slope);
    maps.offset[i] = canonical(offset + (rounded_center - center) * slope);
  }
}

// Where channel c of a sample sits in an array that holds, pack by pack, one float a lane.
template <class T>
inline int64_t slot(int64_t channel) {
  return channel / kPack * kPack + lane_of<T>(static_cast<int>(channel % kPack));
}

inline int64_t padded(int64_t channels) { return ceil_div(channels, kPack) * kPack; }

// Channels first: the memory of a (sample, group) as `channels` runs of `length` elements, `stride` apart.
struct Runs {
  int64_t channels, length, stride;
  int64_t elements() const { return channels * length; }
};

// Calls visit(offset in memory, elements, channel) for every piece of a channel within elements [begin, end).
template <class Visit>
inline void for_each_run(const Runs& runs, int64_t begin, int64_t end, const Visit& visit) {
  while (begin < end) {
    const int64_t channel = begin / runs.length;
    const int64_t start = begin - channel * runs.length;
    const int64_t count = minimum(runs.length - start, end - begin);
    visit(channel * runs.stride + start, count, channel);
    begin += count;
  }
}

// Blocks of a unit: equal numbers of steps (elements, or pixels), the last one shorter.
struct Blocks {
  int64_t steps, length;
  int64_t count() const { return ceil_div(steps, length); }
  int64_t begin(int64_t block) const { return block * length; }
  int64_t end(int64_t block) const { return minimum(steps, (block + 1) * length); }
};

// Pixels whose float32 sums are taken in one go; what they cost at their end is spread over no fewer.
constexpr int64_t kMomentsPixels = 128;

inline Blocks pixel_blocks(const GroupNormSiluParams& p) {
  return {p.spatial, maximum(1, kBlockElementsPixels / p.channels / kMomentsPixels) * kMomentsPixels};
}

// reduce(unit, block) for all blocks of a unit, then finish(unit), then apply(unit, block) for all its blocks, last to
// first, as the last ones were read last. Where there are units enough to share out, a thread takes a unit through all
// three while it is in its cache.
template <class Reduce, class Finish, class Apply>
inline void run_units(const Threads& threads, int64_t units, int64_t blocks, const Reduce& reduce, const Finish& finish,
                      const Apply& apply) {
  if (blocks == 1 || threads.count == 1 || units >= 4 * threads.count) {
    parallel_for(threads, units, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; unit++) {
        for (int64_t block = 0; block < blocks; block++) reduce(unit, block);
        finish(unit);
        for (int64_t block = blocks - 1; block >= 0; block--) apply(unit, block);
      }
    });
    return;
  }
  parallel_for(threads, units * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) reduce(i / blocks, i % blocks);
  });
  parallel_for(threads, units, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) finish(unit);
  });
  const auto apply_range = [&](int64_t begin, int64_t end) {
    for (int64_t i = end - 1; i >= begin; i--) apply(i / blocks, i % blocks);
  };
  parallel_for(threads, units * blocks, apply_range, Order::Backward);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
