// Rows of layer_norm_modulate: the channels of a token. A block has blockDim.y rows, each with the blockDim.x threads
// of whole warps; a thread has every blockDim.x-th vector of its row.
#pragma once

#include "cuda/mutations.cuh"
#include "cuda/quotient.cuh"
#include "cuda/team.cuh"
#include "cuda/token_rows.cuh"

namespace fastdiff::cuda {

constexpr int kRowThreads = 512;  // of a block at most
constexpr int kRowWarps = kRowThreads / kWarpSize;

// Vectors that a thread keeps in registers: 16 elements of any type. More would leave too few threads to hide the wait
// for memory.
template <typename T>
constexpr int kCachedRounds = 16 / kVectorWidth<T>;

struct Row {
  int64_t index;
  int64_t sample;
  int64_t token;
  bool exists;
  int thread;
  int threads;
};

__device__ __forceinline__ Row this_row(const GateResidualParams& params) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const Quotient place = divide(index, params.tokens);
  const bool exists = index < params.batch * params.tokens;
  return {index, place.whole, place.rest, exists, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}

template <typename T>
__device__ __forceinline__ TokenVector row_vector(const GateResidualParams& params, const Row& row, int64_t round,
                                                  bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const int64_t channel = (round * row.threads + row.thread) * kWidth;
  const int64_t valid = row.exists ? min(params.channels - channel, int64_t{kWidth}) : 0;
  return {row.sample, row.token, channel, static_cast<int>(valid), aligned};
}

// A thread's vectors of a row: kRounds of them, loaded once and kept, or with kRounds = 0 any number, loaded every
// time.
template <typename T, int kRounds, typename Load>
class LoadedVectors {
 public:
  static constexpr int kWidth = kVectorWidth<T>;

  __device__ __forceinline__ LoadedVectors(const GateResidualParams& params, const Row& row, bool aligned,
                                           const Load& load)
      : params_(params), row_(row), aligned_(aligned), load_(load) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const TokenVector at = row_vector<T>(params_, row_, round, aligned_);
      if (at.valid > 0) load_(at, kept_[round]);
    }
  }

  // Calls use(at, values) for every vector that exists.
  template <typename Use>
  __device__ __forceinline__ void for_each(const Use& use) const {
    if constexpr (kRounds > 0) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const TokenVector at = row_vector<T>(params_, row_, round, aligned_);
        if (at.valid > 0) use(at, kept_[round]);
      }
    } else {
      for (int64_t round = 0;; ++round) {
        const TokenVector at = row_vector<T>(params_, row_, round, aligned_);
        if (at.valid <= 0) return;
        float values[kWidth];
        load_(at, values);
        use(at, values);
      }
    }
  }

 private:
  const GateResidualParams& params_;
  const Row& row_;
  bool aligned_;
  const Load& load_;
  float kept_[kRounds > 0 ? kRounds : 1][kWidth];
};

// Sums over the threads of each row of the block, the same bits in each. All threads of the block take part.
template <int kSums>
__device__ __forceinline__ void row_sums(const Row& row, float (&sums)[kSums]) {
  __shared__ float partials[kRowWarps][kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) sums[k] = team_sum(sums[k], kWarpSize);
  if (row.threads == kWarpSize) return;
  const int warps = row.threads / kWarpSize, first = static_cast<int>(threadIdx.y) * warps;
  if constexpr (!planted<Mutation::MissingBarrierBeforeWrite>) __syncthreads();  // the last sums have been read
  if (row.thread % kWarpSize == 0) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) partials[first + row.thread / kWarpSize][k] = sums[k];
  }
  if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    sums[k] = 0.0f;
    for (int warp = 0; warp < warps; ++warp) sums[k] += partials[first + warp][k];
  }
}

}  // namespace fastdiff::cuda
