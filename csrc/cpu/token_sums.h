// Sums over the tokens of a sample, for the gradients of what all its tokens share. The tokens are cut into blocks by
// their number alone, every block has rows of its own, and the rows are added in order: the bits depend neither on the
// number of threads nor on the other samples.
#pragma once

#include "cpu/parallel.h"
#include "cpu/token_rows.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Few enough for float32 sums.
constexpr int64_t kBlockTokens = 64;

template <class T, int kRows>
class TokenSums {
 public:
  explicit TokenSums(const GateResidualParams& p)
      : params_(p), lanes_(lanes_of_row(p.channels)), memory_(p.batch * blocks() * kRows * lanes_) {}

  // Calls run(sample, token, rows) for every token, with rows[k] where to add its terms, in the lanes of a T.
  // `make` makes what `run` is called on, once a thread.
  template <class Make>
  void collect(const Threads& threads, const Make& make) {
    parallel_with(threads, params_.batch * blocks(), 1, [&] {
      return [&, worker = make()](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; i++) {
          float* rows[kRows];
          for (int k = 0; k < kRows; k++) rows[k] = memory_ + (i * kRows + k) * lanes_;
          std::memset(rows[0], 0, kRows * lanes_ * sizeof(float));
          const int64_t sample = i / blocks(), first = i % blocks() * kBlockTokens;
          for (int64_t token = first; token < minimum(params_.tokens, first + kBlockTokens); token++)
            worker.run(sample, token, rows);
        }
      };
    });
  }

  // Calls add(sample, channel, sums) for every sample and channel, the samples of a channel in order.
  template <class Add>
  void for_each(const Threads& threads, const Add& add) const {
    parallel_for(threads, lanes_ / kPack, [&](int64_t begin, int64_t end) {
      for (int64_t sample = 0; sample < params_.batch; sample++)
        for (int64_t pack = begin; pack < end; pack++)
          for (int k = 0; k < kPack && pack * kPack + k < params_.channels; k++) {
            const int64_t lane = pack * kPack + lane_of<T>(k);
            double sums[kRows] = {};
            for (int64_t block = 0; block < blocks(); block++)
              for (int r = 0; r < kRows; r++)
                sums[r] += memory_[((sample * blocks() + block) * kRows + r) * lanes_ + lane];
            add(sample, pack * kPack + k, sums);
          }
    });
  }

 private:
  int64_t blocks() const { return ceil_div(params_.tokens, kBlockTokens); }

  const GateResidualParams& params_;
  int64_t lanes_;
  Scratch<float> memory_;
};

// Adds a token's terms to a sum.
FASTDIFF_INLINE void add_to(float* row, int64_t offset, Pack terms) {
  store_lanes(row, offset, load_lanes(row, offset) + terms);
}

// A token's own row of a float32 gradient, written in the order of its channels.
template <class T>
FASTDIFF_INLINE void write_floats(float* row, int64_t offset, int count, Pack v) {
  float lanes[kPack];
  store_lanes(lanes, 0, v);
  for (int k = 0; k < count; k++) row[offset + k] = lanes[lane_of<T>(k)];
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
