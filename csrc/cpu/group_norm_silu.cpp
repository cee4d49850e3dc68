// Forward group_norm_silu: one pass for the statistics, one to apply, over blocks (see group_norm_silu_common.h).
#include "cpu/group_norm_silu_common.h"
#include "cpu/sigmoid.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

inline double larger(double a, double b) { return a > b ? a : b; }

// Mean and sum of squared deviations of `count` values, and a bound on how far any of them lies from the mean.
struct Moments {
  double mean = 0, m2 = 0, count = 0, reach = 0;

  // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
  void merge(const Moments& other) {
    const double total = count + other.count;
    const double delta = other.mean - mean, step = delta * (other.count / total);
    mean += step;
    reach = larger(count > 0 ? reach + std::abs(step) : 0, other.reach + std::abs(delta - step));
    m2 += other.m2 + delta * delta * (count * other.count / total);
    count = total;
  }
};

// What the rounding of sums and centers may add to a bound.
constexpr double kReachMargin = 1.001;

// A difference of sums may fall below zero by rounding; NaN passes.
double not_negative(double value) { return value < 0 ? 0 : value; }

// Output large enough that no consumer finds it in a cache: store past the caches.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

bool streams(const GroupNormSiluParams& p) {
  const int64_t row_bytes = (p.channels_last ? p.channels : p.spatial) * static_cast<int64_t>(size_of(p.dtype));
  const bool aligned = reinterpret_cast<uintptr_t>(p.y) % 64 == 0 && row_bytes % 64 == 0;
  return aligned && p.batch * p.channels * p.spatial * static_cast<int64_t>(size_of(p.dtype)) >= kStreamBytes;
}

// ---- channels first ------------------------------------------------------------------------------------------------

// Elements after which float32 sums are emptied into float64 ones: beside one outlier, more would vanish in its
// rounding.
constexpr int64_t kStretchElements = 1024;

// Sums of (x - center) and its square over runs.
class ShiftedSums {
 public:
  template <class T>
  void add_run(const T* x, int64_t count, float center) {
    for (int64_t begin = 0; begin < count; begin += kStretchElements) {
      const int64_t length = minimum(kStretchElements, count - begin);
      add_stretch(x + begin, length, broadcast(center));
      pending_ += length;
      if (pending_ >= kStretchElements) flush();
    }
  }

  double total() {
    flush();
    return total_.total();
  }
  double total_squares() {
    flush();
    return total_squares_.total();
  }
  // No |x - center| was larger: one square is no more than the sum it went into.
  double reach() {
    flush();
    float lanes[kLanes], largest = 0;
    store(lanes, largest_squares_);
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    return kReachMargin * std::sqrt(double(largest));
  }

 private:
  template <class T>
  FASTDIFF_INLINE void add_stretch(const T* x, int64_t count, Float center) {
    int64_t i = 0;
    for (; i + 2 * kPack <= count; i += 2 * kPack) {
      const Pack v = load_pack(x + i), w = load_pack(x + i + kPack);
      prefetch(x + i);
      add(0, v.first - center);
      add(1, v.second - center);
      add(2, w.first - center);
      add(3, w.second - center);
    }
    for (; i < count; i += kPack) {
      const int left = static_cast<int>(minimum(kPack, count - i));
      const Pack v = left == kPack ? load_pack(x + i) : load_partial(x + i, left);
      const Pack d = keep_first<T>({v.first - center, v.second - center}, left);
      add(0, d.first);
      add(1, d.second);
    }
  }

  FASTDIFF_INLINE void add(int chain, Float d) {
    sums_[chain] += d;
    squares_[chain] += d * d;
  }

  FASTDIFF_INLINE void flush() {
    const Float squares = (squares_[0] + squares_[1]) + (squares_[2] + squares_[3]);
    total_.add((sums_[0] + sums_[1]) + (sums_[2] + sums_[3]));
    total_squares_.add(squares);
    largest_squares_ = largest_squares_ > squares ? largest_squares_ : squares;
    for (int chain = 0; chain < kChains; chain++) sums_[chain] = squares_[chain] = Float{};
    pending_ = 0;
  }

  static constexpr int kChains = 4;  // independent sums hide the latency of an addition
  Float sums_[kChains] = {}, squares_[kChains] = {};
  Float largest_squares_ = {};
  int64_t pending_ = 0;
  WideSum total_, total_squares_;
};

// Moments of x + time_bias over elements [begin, end) of a group. The sums are shifted by the mean of the block's
// first elements, so that nothing cancels when the mean is large beside the deviation.
template <class T>
Moments block_moments(const T* x, const Runs& runs, int64_t begin, int64_t end, const float* time_bias) {
  // What rounding center - time_bias shifts the sum by; beside the squares it is nothing.
  double rounding = 0;
  const auto sums_about = [&](int64_t stop, double center) {
    ShiftedSums s;
    rounding = 0;
    for_each_run(runs, begin, stop, [&](int64_t offset, int64_t count, int64_t channel) {
      const float shift = static_cast<float>(center - time_bias[channel]);
      s.add_run(x + offset, count, shift);
      rounding += double(count) * (shift + double(time_bias[channel]) - center);
    });
    return s;
  };
  const int64_t probe = minimum(end - begin, 8 * kPack);
  const double center = sums_about(begin + probe, 0.0).total() / double(probe);
  ShiftedSums s = sums_about(end, center);
  const double count = double(end - begin), total = s.total(), to_mean = (total + rounding) / count;
  return {center + to_mean, not_negative(s.total_squares() - total * total / count), count,
          s.reach() + std::abs(to_mean)};
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

template <class T, bool kSilu, bool kCalm>
FASTDIFF_INLINE Float activate(Float x, Float center, Float slope, Float offset) {
  const Float z = kCalm && kFoldsCenter<T> ? x * slope + offset : (x - center) * slope + offset;
  if (!kSilu) return z;
  return kCalm ? silu_within_bound<T>(z) : silu<T>(z);
}

template <class T, bool kSilu, bool kStream, bool kCalm>
void apply_run(const T* x, T* y, int64_t count, const ChannelMap& map) {
  const Float center = broadcast(map.center), slope = broadcast(map.slope), offset = broadcast(map.offset);
  const auto y_of = [&](Float v) FASTDIFF_INLINE_LAMBDA { return activate<T, kSilu, kCalm>(v, center, slope, offset); };
  int64_t i = 0;
  for (; i + kPack <= count; i += kPack) {
    const Pack v = load_pack(x + i);
    prefetch(x + i);
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

// Adds kRows neighbouring pixels to per-channel sums of (x - center) and its square. Pixels are read side by side, as
// they lie in memory; several at a time, so that the sums travel to the L1 cache and back less often.
template <int kRows, class T>
void add_pixels(const T* x, int64_t stride, int64_t channels, const float* center, float* sums, float* squares) {
  const auto add = [&](int64_t c, int count) FASTDIFF_INLINE_LAMBDA {
    Float center0 = load(center + c), center1 = load(center + c + kLanes);
    Float sum0 = load(sums + c), sum1 = load(sums + c + kLanes);
    Float square0 = load(squares + c), square1 = load(squares + c + kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; row++) {
      __builtin_prefetch(reinterpret_cast<const char*>(x + row * stride + c) + kRows * stride * sizeof(T));
      const Pack v = count == kPack ? load_pack(x + row * stride + c) : load_partial(x + row * stride + c, count);
      const Float d0 = v.first - center0, d1 = v.second - center1;
      sum0 += d0;
      sum1 += d1;
      square0 += d0 * d0;
      square1 += d1 * d1;
    }
    store(sums + c, sum0);
    store(sums + c + kLanes, sum1);
    store(squares + c, square0);
    store(squares + c + kLanes, square1);
  };
  int64_t c = 0;
  for (; c + kPack <= channels; c += kPack) add(c, kPack);
  if (c < channels) add(c, static_cast<int>(channels - c));
}

// Per-channel sums over one stretch of pixels.
template <class T>
void add_stretch(const T* x, int64_t rows, int64_t stride, int64_t channels, const float* center, float* sums,
                 float* squares) {
  constexpr int kRows = 4;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    add_pixels<kRows>(x + row * stride, stride, channels, center, sums, squares);
  for (; row < rows; row++) add_pixels<1>(x + row * stride, stride, channels, center, sums, squares);
}

// Pixels after which the moments of a stretch are merged into those of its block.
constexpr int64_t kStretchPixels = 128;

// Running moments of every channel, `lanes` values each, and the sums of the stretch at hand.
struct ChannelMoments {
  double *mean, *m2;
  float *reach, *center, *sums, *squares;  // sums and squares adjoin

  static int64_t floats(int64_t lanes) { return 8 * lanes; }
  ChannelMoments(float* memory, int64_t lanes)
      : mean(reinterpret_cast<double*>(memory)),
        m2(mean + lanes),
        reach(memory + 4 * lanes),
        center(reach + lanes),
        sums(center + lanes),
        squares(sums + lanes) {}
};

// Moments of each channel over the `rows` pixels of a block, stretch by stretch. The sums of a stretch are shifted by
// the mean so far (that of a few pixels for the first), so that neither a large mean nor an outlier costs digits.
template <class T>
void block_channel_moments(const T* x, int64_t rows, int64_t stride, int64_t channels, const ChannelMoments& s) {
  const int64_t lanes = padded(channels), probe = minimum(rows, 8);
  const auto sum_about_center = [&](int64_t row, int64_t count) {
    std::memset(s.sums, 0, 2 * lanes * sizeof(float));
    add_stretch(x + row * stride, count, stride, channels, s.center, s.sums, s.squares);
  };
  std::memset(s.center, 0, lanes * sizeof(float));
  sum_about_center(0, probe);
  for (int64_t i = 0; i < lanes; i++) s.center[i] = s.sums[i] / static_cast<float>(probe);

  std::memset(s.mean, 0, 2 * lanes * sizeof(double));
  std::memset(s.reach, 0, lanes * sizeof(float));
  for (int64_t row = 0; row < rows; row += kStretchPixels) {
    const int64_t count = minimum(kStretchPixels, rows - row);
    sum_about_center(row, count);
    const double per_count = 1.0 / double(count), part = double(count) / double(row + count);
    for (int64_t i = 0; i < lanes; i++) {
      const double offset = s.sums[i] * per_count;
      const double delta = s.center[i] + offset - s.mean[i], step = delta * part;
      s.mean[i] += step;
      s.m2[i] += not_negative(s.squares[i] - s.sums[i] * offset) + delta * delta * (part * double(row));
      const float earlier = row ? s.reach[i] + std::abs(static_cast<float>(step)) : 0.0f;
      const float now = std::sqrt(s.squares[i]) + std::abs(static_cast<float>(s.center[i] - s.mean[i]));
      s.reach[i] = earlier > now ? earlier : now;
      s.center[i] = static_cast<float>(s.mean[i]);
    }
  }
}

// Moments of x + time_bias of each group, from those of its channels.
template <class T>
void merge_channels(const GroupNormSiluParams& p, int64_t rows, const float* time_bias, const ChannelMoments& s,
                    Moments* groups) {
  const int64_t width = p.channels / p.groups;
  for (int64_t g = 0; g < p.groups; g++) {
    double mean = 0, m2 = 0, spread = 0, reach = 0;
    for (int64_t c = g * width; c < (g + 1) * width; c++) {
      mean += s.mean[slot<T>(c)] + time_bias[c];
      m2 += s.m2[slot<T>(c)];
    }
    mean /= double(width);
    for (int64_t c = g * width; c < (g + 1) * width; c++) {
      const double delta = s.mean[slot<T>(c)] + time_bias[c] - mean;
      spread += delta * delta;
      reach = larger(reach, s.reach[slot<T>(c)] + std::abs(delta));
    }
    groups[g] = {mean, m2 + spread * double(rows), double(rows * width), kReachMargin * reach};
  }
}

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
      prefetch(x + c);
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
    const Scratch<float> memory(ChannelMoments::floats(lanes));
    const ChannelMoments channels(memory, lanes);
    block_channel_moments(input(n, block), rows(block), p.x.stride, p.channels, channels);
    merge_channels<T>(p, rows(block), operands.rows(n).time_bias, channels,
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
