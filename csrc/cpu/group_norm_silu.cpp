// Forward group_norm_silu: one pass for the statistics, one to apply, over blocks (see group_norm_silu_common.h).
#include "cpu/group_norm_silu_common.h"
#include "cpu/group_norm_silu_moments.h"
#include "cpu/group_norm_silu_pixel_moments.h"
#include "cpu/group_norm_silu_run_moments.h"
#include "cpu/sigmoid.h"
#include "cpu/streaming.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

bool streams(const GroupNormSiluParams& p) {
  const int64_t row = p.channels_last ? p.channels : p.spatial;
  return worth_streaming(p.y, p.batch * p.channels * p.spatial / row, row * static_cast<int64_t>(size_of(p.dtype)));
}

// Most groups are calm: SiLU's argument provably stays within bounds, so it needs no clamp, a fifth of the time. For
// 16-bit types (x - center) * slope + offset is then also had as x * slope + (offset - center * slope); that the
// difference cancels must not show in the result, as it would in constant groups and in large means.
template <class T>
constexpr bool kFoldsCenter = sizeof(T) == 2;

// Tells whether all of `count` maps are calm, and folds their centers if the type does.
template <class T>
bool settle(const ChannelMaps& maps, int64_t count, double reach) {
  // Cancellation costs up to this times 2^-24 of the largest deviation in the group.
  constexpr float kLargestFolded = 16;
  const float limit = kExponentBound - 1, bound = static_cast<float>(reach);
  bool calm = true;
  for (int64_t i = 0; i < count; i++) {
    const float slope = std::abs(maps.slope[i]);
    // Written so that NaN is not calm.
    calm &= slope * bound + std::abs(maps.offset[i]) <= limit;
    calm &= !kFoldsCenter<T> || std::abs(maps.center[i]) <= kLargestFolded * bound;
  }
  if (!calm) return false;
  for (int64_t i = 0; kFoldsCenter<T> && i < count; i++) {
    maps.offset[i] = static_cast<float>(maps.offset[i] - double(maps.center[i]) * maps.slope[i]);
    maps.center[i] = 0;  // so that the two ways of applying these maps give the same bits
  }
  return true;
}

// Gives SiLU's argument scaled as silu_of_scaled wants it, which saves a multiplication an element.
inline void scale_for_silu(const ChannelMaps& maps, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    maps.slope[i] *= kSiluFactor;
    maps.offset[i] *= kSiluFactor;
  }
}

template <class T, bool kSilu, bool kCalm>
FASTDIFF_INLINE Float activate(Float x, Float center, Float slope, Float offset) {
  const Float z = kCalm && kFoldsCenter<T> ? x * slope + offset : (x - center) * slope + offset;
  if (!kSilu) return z;
  return kCalm ? silu_of_scaled_within_bound<T>(z) : silu_of_scaled<T>(z);
}

template <class T, bool kSilu, bool kStream, bool kCalm>
void apply_run(const T* x, T* y, int64_t count, const ChannelMap& map) {
  const Float center = broadcast(map.center), slope = broadcast(map.slope), offset = broadcast(map.offset);
  const auto y_of = [&](Float v) FASTDIFF_INLINE_LAMBDA { return activate<T, kSilu, kCalm>(v, center, slope, offset); };
  int64_t i = 0;
  for (; i + kPack <= count; i += kPack) {
    const Pack v = load_pack(x + i);
    prefetch_ahead(x + i);
    store_pack<kStream>(y + i, Pack{y_of(v.first), y_of(v.second)});
  }
  if (i < count) {
    const int left = static_cast<int>(count - i);
    const Pack v = load_partial(x + i, left);
    store_partial(y + i, Pack{y_of(v.first), y_of(v.second)}, left);
  }
}

double finish_group(const GroupNormSiluParams& p, int64_t unit, const Moments& total) {
  const double rstd = 1.0 / std::sqrt(total.m2 / total.count + p.eps);
  p.mean[unit] = static_cast<float>(total.mean);
  p.rstd[unit] = static_cast<float>(rstd);
  return rstd;
}

// ---- channels first ------------------------------------------------------------------------------------------------

template <class T, bool kSilu, bool kStream>
void forward_channels_first(const GroupNormSiluParams& p, const Threads& threads) {
  const int64_t width = p.channels / p.groups;
  const Runs runs{width, p.spatial, p.x.stride};
  // Without a time bias the channels of a dense group are one long run for the statistics.
  const bool one_run = !p.time_bias.data && p.x.stride == p.spatial;
  const Runs statistics_runs = one_run ? Runs{1, runs.elements(), 0} : runs;
  const Blocks blocks{runs.elements(), kBlockElements};
  const Scratch<Moments> moments(p.batch * p.groups * blocks.count());
  const Scratch<float> map_memory(ChannelMaps::floats(p.batch * p.channels));
  const ChannelMaps maps(map_memory, p.batch * p.channels);
  const Scratch<bool> calm(p.batch * p.groups);
  const Operands operands(p);

  const auto input = [&](int64_t unit) {
    return static_cast<const T*>(p.x.data) + unit / p.groups * p.x.batch_stride + unit % p.groups * width * p.x.stride;
  };
  const auto reduce = [&](int64_t unit, int64_t block) {
    const float* time_bias = operands.rows(unit / p.groups).time_bias + unit % p.groups * width;
    moments[unit * blocks.count() + block] =
        block_moments(input(unit), statistics_runs, blocks.begin(block), blocks.end(block), time_bias);
  };
  const auto finish = [&](int64_t unit) {
    Moments total;
    for (int64_t block = 0; block < blocks.count(); block++) total.merge(moments[unit * blocks.count() + block]);
    const double rstd = finish_group(p, unit, total);
    const ChannelMaps own = maps.from(unit * width);
    fold(operands.rows(unit / p.groups), unit % p.groups * width, width, total.mean, rstd, own);
    calm[unit] = settle<T>(own, width, total.reach);
    if (kSilu) scale_for_silu(own, width);
  };
  const auto apply = [&](int64_t unit, int64_t block) {
    T* y = static_cast<T*>(p.y) + unit * runs.elements();
    for_each_run(runs, blocks.begin(block), blocks.end(block), [&](int64_t offset, int64_t count, int64_t channel) {
      const int64_t start = offset - channel * runs.stride;
      const auto run = calm[unit] ? apply_run<T, kSilu, kStream, true> : apply_run<T, kSilu, kStream, false>;
      run(input(unit) + offset, y + channel * runs.length + start, count, maps[unit * width + channel]);
    });
  };
  run_units(threads, p.batch * p.groups, blocks.count(), reduce, finish, apply);
}

// ---- channels last -------------------------------------------------------------------------------------------------

template <class T, bool kSilu, bool kStream, bool kCalm>
void apply_rows(const GroupNormSiluParams& p, const T* x, T* y, int64_t rows, const float* center, const float* slope,
                const float* offset) {
  const auto y_of = [&](Float v, int64_t i) FASTDIFF_INLINE_LAMBDA {
    return activate<T, kSilu, kCalm>(v, load(center + i), load(slope + i), load(offset + i));
  };
  for (int64_t row = 0; row < rows; row++, x += p.x.stride, y += p.channels) {
    int64_t c = 0;
    for (; c + kPack <= p.channels; c += kPack) {
      const Pack v = load_pack(x + c);
      prefetch_ahead(x + c);
      store_pack<kStream>(y + c, Pack{y_of(v.first, c), y_of(v.second, c + kLanes)});
    }
    if (c < p.channels) {
      const int left = static_cast<int>(p.channels - c);
      const Pack v = load_partial(x + c, left);
      store_partial(y + c, Pack{y_of(v.first, c), y_of(v.second, c + kLanes)}, left);
    }
  }
}

template <class T, bool kSilu, bool kStream>
void forward_channels_last(const GroupNormSiluParams& p, const Threads& threads) {
  const int64_t lanes = padded(p.channels), width = p.channels / p.groups;
  const Blocks blocks = pixel_blocks(p);
  const Scratch<Moments> moments(p.batch * blocks.count() * p.groups);
  const Scratch<float> maps(p.batch * 3 * lanes);  // center, slope, offset of a sample, each in slot order
  const Scratch<bool> calm(p.batch);
  const Operands operands(p);

  const auto input = [&](int64_t n, int64_t block) {
    return static_cast<const T*>(p.x.data) + n * p.x.batch_stride + blocks.begin(block) * p.x.stride;
  };
  const auto rows = [&](int64_t block) { return blocks.end(block) - blocks.begin(block); };
  const auto reduce = [&](int64_t n, int64_t block) {
    block_moments(p, input(n, block), rows(block), operands.rows(n).time_bias,
                  moments + (n * blocks.count() + block) * p.groups);
  };
  const auto finish = [&](int64_t n) {
    const Scratch<float> memory(ChannelMaps::floats(p.channels));
    const ChannelMaps folded(memory, p.channels);
    calm[n] = true;
    for (int64_t g = 0; g < p.groups; g++) {
      Moments total;
      for (int64_t block = 0; block < blocks.count(); block++)
        total.merge(moments[(n * blocks.count() + block) * p.groups + g]);
      const double rstd = finish_group(p, n * p.groups + g, total);
      const ChannelMaps own = folded.from(g * width);
      fold(operands.rows(n), g * width, width, total.mean, rstd, own);
      calm[n] &= settle<T>(own, width, total.reach);
    }
    if (kSilu) scale_for_silu(folded, p.channels);
    float* map = maps + n * 3 * lanes;
    std::memset(map, 0, 3 * lanes * sizeof(float));
    for (int64_t c = 0; c < p.channels; c++) {
      const int64_t i = slot<T>(c);
      map[i] = folded.center[c];
      map[lanes + i] = folded.slope[c];
      map[2 * lanes + i] = folded.offset[c];
    }
  };
  const auto apply = [&](int64_t n, int64_t block) {
    const float* map = maps + n * 3 * lanes;
    T* y = static_cast<T*>(p.y) + (n * p.spatial + blocks.begin(block)) * p.channels;
    const auto run = calm[n] ? apply_rows<T, kSilu, kStream, true> : apply_rows<T, kSilu, kStream, false>;
    run(p, input(n, block), y, rows(block), map, map + lanes, map + 2 * lanes);
  };
  run_units(threads, p.batch, blocks.count(), reduce, finish, apply);
}

template <class T, bool kSilu, bool kStream>
void forward(const GroupNormSiluParams& p, const Threads& threads) {
  if (p.channels_last) {
    forward_channels_last<T, kSilu, kStream>(p, threads);
  } else {
    forward_channels_first<T, kSilu, kStream>(p, threads);
  }
}

}  // namespace

void group_norm_silu(const GroupNormSiluParams& p, const Threads& available) {
  const int64_t elements = p.batch * p.channels * p.spatial;
  if (elements == 0) return;
  const Threads threads{elements < kSerialElements ? 1 : available.count, available.run};
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (streams(p)) {
      p.silu ? forward<T, true, true>(p, threads) : forward<T, false, true>(p, threads);
      finish_streaming();
    } else {
      p.silu ? forward<T, true, false>(p, threads) : forward<T, false, false>(p, threads);
    }
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
