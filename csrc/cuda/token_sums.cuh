// Sums over the tokens of a sample, for the gradients of what all its tokens share. Tokens are cut into blocks by their
// number alone; a thread sums one vector of channels over one block of tokens and leaves the result in a row of its
// own, and the rows are added in order. So the bits depend neither on the device nor on the other samples: no atomics.
#pragma once

#include "cuda/mutations.cuh"
#include "cuda/token_rows.cuh"

namespace fastdiff::cuda {

constexpr int kTokenSumsThreads = 128;
constexpr int64_t kBlockTokens = 32;

// (batch, token blocks, sums, channels) floats.
struct TokenSums {
  float* partials;
  int64_t blocks;  // of the tokens of one sample
};

// Writes this thread's partial sums. `add(at, sums)` adds the terms of one token's vector to kSums vectors.
template <typename T, int kSums, typename Add>
__device__ __forceinline__ void sum_over_tokens(const GateResidualParams& params, const TokenSums& sums, bool aligned,
                                                const Add& add) {
  constexpr int kWidth = kVectorWidth<T>;
  const int64_t vectors = (params.channels + kWidth - 1) / kWidth;
  const int64_t index = int64_t{blockIdx.x} * kTokenSumsThreads + threadIdx.x, block = index / vectors;
  if (block >= params.batch * sums.blocks) return;
  const int64_t channel = index % vectors * kWidth, first = block % sums.blocks * kBlockTokens;
  const int valid = static_cast<int>(min(params.channels - channel, int64_t{kWidth}));
  float totals[kSums][kWidth] = {};
  const int64_t end = min(first + kBlockTokens, params.tokens);
  for (int64_t token = first; token < end; ++token) {
    add(TokenVector{block / sums.blocks, token, channel, valid, aligned}, totals);
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    float* row = sums.partials + (block * kSums + k) * params.channels + channel;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i < valid) row[i] = totals[k][i];
    }
  }
}

// The sums of one channel of a sample.
template <int kSums>
__device__ __forceinline__ void merge_token_sums(const GateResidualParams& params, const TokenSums& sums,
                                                 int64_t sample, int64_t channel, float (&totals)[kSums]) {
#pragma unroll
  for (int k = 0; k < kSums; ++k) totals[k] = 0.0f;
  for (int64_t block = planted<Mutation::WrongSplitMerge> ? 1 : 0; block < sums.blocks; ++block) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      totals[k] += sums.partials[((sample * sums.blocks + block) * kSums + k) * params.channels + channel];
    }
  }
}

}  // namespace fastdiff::cuda
