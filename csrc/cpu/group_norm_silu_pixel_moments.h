// Moments of a block of group_norm_silu where channels come last: its pixels are rows in memory, and hold all groups.
#pragma once

#include "cpu/group_norm_silu_common.h"
#include "cpu/group_norm_silu_moments.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Packs of channels whose sums stay in registers while the pixels go by.
#if defined(__AVX512F__)
constexpr int kStripPacks = 4;
#else
constexpr int kStripPacks = 1;
#endif

// Pixels that a strip takes at a time: all strips of so many lie in a cache together. Those of the next are asked for.
constexpr int64_t kStripPixels = 32;

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
      prefetch(source + kStripPixels * stride);
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

#if defined(__AVX512BF16__)
// Sums of x and its square over the pixels of a block of bfloat16, about zero, by the instruction that multiplies
// pairs: it takes the elements as they lie, half the work. Two neighbouring channels share their sum of squares, so
// they have to be of one group.
class PixelPairSums {
 public:
  explicit PixelPairSums(int64_t channels)
      : channels_(channels),
        pairs_(padded(channels) / 2),
        totals_(3 * pairs_),
        sums_(3 * pairs_),
        largest_squares_(pairs_) {
    std::memset(totals_, 0, 3 * pairs_ * sizeof(double));
    std::memset(largest_squares_, 0, pairs_ * sizeof(float));
  }

  void add_rows(const BFloat16* x, int64_t rows, int64_t stride) {
    for (int64_t row = 0; row < rows; row += kMomentsPixels) {
      std::memset(sums_, 0, 3 * pairs_ * sizeof(float));
      const int64_t end = minimum(rows, row + kMomentsPixels);
      for (int64_t r = row; r < end; r += kStripPixels)
        add_strips(x + r * stride, minimum(kStripPixels, end - r), stride);
      flush();
    }
    rows_ += rows;
  }

  // The moments of x + time_bias in channels [first, first + width), where rounding leaves them digits enough for a
  // bfloat16 result; else `exact` is false.
  Moments moments(int64_t first, int64_t width, const float* time_bias, bool* exact) const {
    double sum = 0, squares = 0, cross = 0, bias = 0, bias_squares = 0, largest_bias = 0;
    float largest = 0;
    for (int64_t pair = first / 2; pair < (first + width) / 2; pair++) {
      const double b0 = time_bias[2 * pair], b1 = time_bias[2 * pair + 1];
      const double sum0 = totals_[pair], sum1 = totals_[pairs_ + pair];
      sum += sum0 + sum1;
      squares += totals_[2 * pairs_ + pair];
      cross += b0 * sum0 + b1 * sum1;
      bias += b0 + b1;
      bias_squares += b0 * b0 + b1 * b1;
      largest_bias = larger(largest_bias, larger(std::abs(b0), std::abs(b1)));
      largest = largest > largest_squares_[pair] ? largest : largest_squares_[pair];
    }
    // Up to 36 roundings an addend: the sums are off by less than 2^-18 of the squares, the deviation by 2^-13 of
    // itself, a sixteenth of what a bfloat16 shows.
    constexpr double kLargestRatio = 64;
    const double rows = static_cast<double>(rows_);
    const SumsAboutZero sums = {rows * static_cast<double>(width), sum + rows * bias, squares + rows * bias_squares,
                                2 * cross, std::sqrt(double(largest)) + largest_bias};
    return sums.moments(kLargestRatio, exact);
  }

 private:
  void add_strips(const BFloat16* x, int64_t rows, int64_t stride) {
    int64_t c = 0;
    for (; c + kStripPacks * kPack <= channels_; c += kStripPacks * kPack) add_strip<kStripPacks>(x, c, rows, stride);
    for (; c < channels_; c += kPack) add_strip<1>(x, c, rows, stride);
  }

  // `rows` pixels of the kPacks packs of channels from `channel` on.
  template <int kPacks>
  void add_strip(const BFloat16* x, int64_t channel, int64_t rows, int64_t stride) {
    const bool whole = kPacks > 1 || channel + kPack <= channels_;
    const UInt one_and_zero = 0x3f80u - UInt{};
    Float first[kPacks] = {}, second[kPacks] = {}, squares[kPacks] = {};
    for (int64_t row = 0; row < rows; row++) {
      const BFloat16* source = x + row * stride + channel;
#pragma GCC unroll 4
      for (int i = 0; i < kPacks; i++) {
        prefetch(source + i * kPack + kStripPixels * stride);
        const UInt pairs = whole ? load(reinterpret_cast<const BFloat16Pair*>(source + i * kPack))
                                 : load_first_pairs(source, channels_ % kPack);
        first[i] = multiply_add(pairs, one_and_zero, first[i]);
        second[i] += (Float)(pairs & 0xffff0000u);
        squares[i] = multiply_add(pairs, pairs, squares[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPacks; i++) {
      float* sums = sums_ + channel / 2 + i * kLanes;
      store(sums, load(sums) + first[i]);
      store(sums + pairs_, load(sums + pairs_) + second[i]);
      store(sums + 2 * pairs_, load(sums + 2 * pairs_) + squares[i]);
    }
  }

  void flush() {
    for (int64_t i = 0; i < 3 * pairs_; i++) totals_[i] += sums_[i];
    const float* squares = sums_ + 2 * pairs_;
    for (int64_t i = 0; i < pairs_; i++)
      largest_squares_[i] = largest_squares_[i] > squares[i] ? largest_squares_[i] : squares[i];
  }

  int64_t channels_, pairs_, rows_ = 0;
  // For each pair the sum of its first channel; after all of those, that of its second; after those, of all squares.
  Scratch<double> totals_;
  Scratch<float> sums_, largest_squares_;
};
#endif

// Moments of x + time_bias of each group over the `rows` pixels of a block.
template <class T>
void block_moments(const GroupNormSiluParams& p, const T* x, int64_t rows, const float* time_bias, Moments* groups) {
#if defined(__AVX512BF16__)
  const int64_t width = p.channels / p.groups;
  if constexpr (std::is_same_v<T, BFloat16>) {
    bool exact = width % 2 == 0;
    if (exact) {
      PixelPairSums sums(p.channels);
      sums.add_rows(x, rows, p.x.stride);
      for (int64_t g = 0; g < p.groups && exact; g++) groups[g] = sums.moments(g * width, width, time_bias, &exact);
      if (exact) return;
    }
  }
#endif
  const int64_t lanes = padded(p.channels);
  const Scratch<float> memory(ChannelMoments::floats(lanes));
  const ChannelMoments channels(memory, lanes);
  block_channel_moments(x, rows, p.x.stride, p.channels, channels);
  merge_channels<T>(p, rows, time_bias, channels, groups);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
