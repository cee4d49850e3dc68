// timestep_embedding. Every channel is sin(2 pi * (timestep * turns + phase)), where a cosine is a sine a quarter of a
// turn ahead. Whole turns are taken off in float64: an angle of hundreds of radians has lost its digits in float32.
#include "common/timestep_embedding.h"

#include <cmath>

#include "cpu/element_type.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/sine.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many channels, waking a thread costs more than it saves.
constexpr int64_t kSerialChannels = 16384;

constexpr int kHalfLanes = kLanes / 2;
typedef int64_t Long __attribute__((vector_size(4 * kLanes)));

// An angle in turns, brought to [-1/4, 1/4] without changing its sine.
FASTDIFF_INLINE HalfFloat reduce(Double turns) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const Double shifted = turns * 2 + kRound;
  const Double rest = turns - (shifted - kRound) * 0.5;
  // Half a turn more is the opposite sine.
  const Long sign = (Long)shifted << 63;
  return __builtin_convertvector((Double)((Long)rest ^ sign), HalfFloat);
}

FASTDIFF_INLINE Float sine_of_turns(Double low, Double high) {
  const HalfFloat halves[2] = {reduce(low), reduce(high)};
  Float s;
  std::memcpy(&s, halves, sizeof s);
  const Float sine = sine_of_quarter_turns(s);
  return sine == sine ? sine : broadcast(NAN);  // a NaN that rounding to bfloat16 keeps
}

// What one turns by, channel by channel, up to whole vectors.
class Channels {
 public:
  explicit Channels(const TimestepEmbeddingParams& p) : channels_(p.channels), turns_(padded()), phases_(padded()) {
    std::memset(turns_, 0, padded() * sizeof(double));
    std::memset(phases_, 0, padded() * sizeof(double));
    const int64_t half = p.channels / 2;
    for (int64_t k = 0; k < half; k++) {
      turns_[k] = turns_[half + k] = kTurnsPerRadian * p.scale * std::exp(p.decay * static_cast<double>(k));
      phases_[p.cosines_first ? k : half + k] = 0.25;
    }
  }

  template <class T>
  void embed(double timestep, T* embedding) const {
    for (int64_t c = 0; c < channels_; c += kLanes) {
      const Float sine = sine_of_turns(angle(timestep, c), angle(timestep, c + kHalfLanes));
      if (c + kLanes <= channels_) {
        store_in_order(embedding + c, sine);
      } else {
        T last[kLanes];
        store_in_order(last, sine);
        std::memcpy(embedding + c, last, (channels_ - c) * sizeof(T));
      }
    }
    if (channels_ % 2) embedding[channels_ - 1] = T{};
  }

 private:
  int64_t padded() const { return ceil_div(channels_, kLanes) * kLanes; }

  FASTDIFF_INLINE Double angle(double timestep, int64_t channel) const {
    Double turns, phases;
    std::memcpy(&turns, turns_ + channel, sizeof turns);
    std::memcpy(&phases, phases_ + channel, sizeof phases);
    return timestep * turns + phases;
  }

  int64_t channels_;
  Scratch<double> turns_, phases_;
};

}  // namespace

void timestep_embedding(const TimestepEmbeddingParams& p, const Threads& available) {
  const Threads threads{p.count * p.channels < kSerialChannels ? 1 : available.count, available.run};
  const Channels channels(p);
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    parallel_for(threads, p.count, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++)
        channels.embed(p.timestep[n], static_cast<T*>(p.embedding) + n * p.channels);
    });
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
