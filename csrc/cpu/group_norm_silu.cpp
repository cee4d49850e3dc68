// Forward group_norm_silu: one pass for the statistics, one to apply, over blocks (see group_norm_silu_common.h).
#include "cpu/bfloat16_pairs.h"
#include "cpu/group_norm_silu_common.h"
#include "cpu/sigmoid.h"
#include "cpu/streaming.h"

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

bool streams(const GroupNormSiluParams& p) {
  const int64_t row = p.channels_last ? p.channels : p.spatial;
  return worth_streaming(p.y, p.batch * p.channels * p.spatial / row, row * static_cast<int64_t>(size_of(p.dtype)));
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
Moments shifted_moments(const T* x, const Runs& runs, int64_t begin, int64_t end, const float* time_bias) {
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

#if defined(__AVX512BF16__)
// Sums of x + time_bias and its square over runs of bfloat16, about zero, by the instruction that multiplies pairs: it
// takes the elements as they lie, a third of the work.
class PairSums {
 public:
  void add_run(const BFloat16* x, int64_t count, float time_bias) {
    for (int64_t begin = 0; begin < count; begin += kStretchElements) {
      const int64_t length = minimum(kStretchElements, count - begin);
      add_stretch(x + begin, length, time_bias);
      pending_ += length;
      if (pending_ >= kStretchElements) flush();
    }
    bias_ += double(count) * time_bias;
    bias_squares_ += double(count) * (double(time_bias) * time_bias);
    largest_bias_ = larger(std::abs(double(time_bias)), largest_bias_);
  }

  // The moments, where rounding leaves them digits enough for a bfloat16 result; else `exact` is false.
  Moments moments(double count, bool* exact) {
    flush();
    const double raw = squares_total_.total() + bias_squares_, mean = (total_.total() + bias_) / count;
    const double m2 = raw + cross_total_.total() - mean * mean * count;
    // Some ten roundings an addend: the sums are off by less than 2^-20 of `raw`, the deviation by 2^-13 of itself, a
    // sixteenth of what a bfloat16 shows. NaN is not exact.
    constexpr double kLargestRatio = 256;
    *exact = raw <= kLargestRatio * m2;
    float lanes[kLanes], largest = 0;
    store(lanes, largest_squares_);
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    return {mean, m2, count, kReachMargin * (std::sqrt(double(largest)) + largest_bias_ + std::abs(mean))};
  }

 private:
  FASTDIFF_INLINE void add_stretch(const BFloat16* x, int64_t count, float time_bias) {
    Float sums[kChains] = {}, squares[kChains] = {};
    const UInt ones = 0x3f803f80u - UInt{};
    const auto add = [&](int chain, UInt pairs) FASTDIFF_INLINE_LAMBDA {
      sums[chain] = multiply_add(pairs, ones, sums[chain]);
      squares[chain] = multiply_add(pairs, pairs, squares[chain]);
    };
    const auto pack_at = [&](int64_t i)
                             FASTDIFF_INLINE_LAMBDA { return load(reinterpret_cast<const BFloat16Pair*>(x + i)); };
    int64_t i = 0;
    for (; i + kChains * kPack <= count; i += kChains * kPack) {
      prefetch(x + i);
#pragma GCC unroll 8
      for (int chain = 0; chain < kChains; chain++) add(chain, pack_at(i + chain * kPack));
    }
    for (; i + kPack <= count; i += kPack) add(0, pack_at(i));
    if (i < count) {
      BFloat16 rest[kPack] = {};
      std::memcpy(rest, x + i, (count - i) * sizeof(BFloat16));
      add(1, load(reinterpret_cast<const BFloat16Pair*>(rest)));
    }
    Float sum = {};
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; chain++) {
      sum += sums[chain];
      squares_ += squares[chain];
    }
    sum_ += sum;
    cross_ += 2 * time_bias * sum;
  }

  FASTDIFF_INLINE void flush() {
    total_.add(sum_);
    squares_total_.add(squares_);
    cross_total_.add(cross_);
    largest_squares_ = largest_squares_ > squares_ ? largest_squares_ : squares_;
    sum_ = squares_ = cross_ = Float{};
    pending_ = 0;
  }

  static constexpr int kChains = 8;
  // Of x, of x^2 and of 2 * time_bias * x.
  Float sum_ = {}, squares_ = {}, cross_ = {}, largest_squares_ = {};
  WideSum total_, squares_total_, cross_total_;
  int64_t pending_ = 0;
  double bias_ = 0, bias_squares_ = 0, largest_bias_ = 0;
};
#endif

template <class T>
Moments block_moments(const T* x, const Runs& runs, int64_t begin, int64_t end, const float* time_bias) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    PairSums sums;
    for_each_run(runs, begin, end, [&](int64_t offset, int64_t count, int64_t channel) {
      sums.add_run(x + offset, count, time_bias[channel]);
    });
    bool exact;
    const Moments moments = sums.moments(double(end - begin), &exact);
    if (exact) return moments;
  }
#endif
  return shifted_moments(x, runs, begin, end, time_bias);
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

// Packs of channels whose sums stay in registers while the pixels go by.
#if defined(__AVX512F__)
constexpr int kStripPacks = 4;
#else
constexpr int kStripPacks = 1;
#endif

// Adds `rows` pixels to per-channel sums of (x - center) and its square, over kPacks packs of channels; `count` is the
// number of channels in the last of them.
template <int kPacks, class T>
void add_strip(const T* x, int64_t rows, int64_t stride, int count, const float* center, float* sums, float* squares) {
  Float sum[2 * kPacks], square[2 * kPacks];
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kPacks; i++) {
    sum[i] = load(sums + i * kLanes);
    square[i] = load(squares + i * kLanes);
  }
  for (int64_t row = 0; row < rows; row++, x += stride) {
#pragma GCC unroll 4
    for (int i = 0; i < kPacks; i++) {
      const T* source = x + i * kPack;
      const Pack v = kPacks > 1 || count == kPack ? load_pack(source) : load_partial(source, count);
      const Float d0 = v.first - load(center + i * kPack), d1 = v.second - load(center + i * kPack + kLanes);
      sum[2 * i] += d0;
      sum[2 * i + 1] += d1;
      square[2 * i] += d0 * d0;
      square[2 * i + 1] += d1 * d1;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kPacks; i++) {
    store(sums + i * kLanes, sum[i]);
    store(squares + i * kLanes, square[i]);
  }
}

// Pixels that a strip takes at a time: all strips of so many lie in a cache together.
constexpr int64_t kStripPixels = 32;

// Per-channel sums over one stretch of pixels.
template <class T>
void add_stretch(const T* x, int64_t rows, int64_t stride, int64_t channels, const float* center, float* sums,
                 float* squares) {
  for (int64_t row = 0; row < rows; row += kStripPixels) {
    const T* first = x + row * stride;
    const int64_t pixels = minimum(kStripPixels, rows - row);
    int64_t c = 0;
    for (; c + kStripPacks * kPack <= channels; c += kStripPacks * kPack)
      add_strip<kStripPacks>(first + c, pixels, stride, kPack, center + c, sums + c, squares + c);
    for (; c < channels; c += kPack)
      add_strip<1>(first + c, pixels, stride, static_cast<int>(minimum(kPack, channels - c)), center + c, sums + c,
                   squares + c);
  }
}

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
  for (int64_t row = 0; row < rows; row += kMomentsPixels) {
    const int64_t count = minimum(kMomentsPixels, rows - row);
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

// Moments of x + time_bias of each group, from those of its channels: their means are summed about the first of them.
template <class T>
void merge_channels(const GroupNormSiluParams& p, int64_t rows, const float* time_bias, const ChannelMoments& s,
                    Moments* groups) {
  const int64_t width = p.channels / p.groups;
  for (int64_t g = 0; g < p.groups; g++) {
    const int64_t first = g * width;
    const double center = s.mean[slot<T>(first)] + time_bias[first];
    double m2 = 0, sum = 0, squares = 0, reach = 0;
    for (int64_t c = first; c < first + width; c++) {
      const double delta = s.mean[slot<T>(c)] + time_bias[c] - center;
      m2 += s.m2[slot<T>(c)];
      sum += delta;
      squares += delta * delta;
      reach = larger(reach, s.reach[slot<T>(c)] + std::abs(delta));
    }
    const double to_mean = sum / double(width), spread = not_negative(squares - sum * to_mean);
    groups[g] = {center + to_mean, m2 + spread * double(rows), double(rows * width),
                 kReachMargin * (reach + std::abs(to_mean))};
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
