// Sums over the tokens of a sample, for the gradients of what all its tokens share. Tokens are cut into blocks by their
// number alone, and the tokens of a block are dealt to strands; the strands of a block and then the blocks are added in
// order. So the bits depend neither on the device nor on the other samples: no atomics.
#pragma once

#include "cuda/mutations.cuh"
#include "cuda/quotient.cuh"
#include "cuda/token_rows.cuh"

namespace fastdiff::cuda {

// Of a thread block: a row of threads for each strand.
constexpr int kTokenColumns = 32;
constexpr int kTokenStrands = 8;
constexpr int kTokenSumsThreads = kTokenColumns * kTokenStrands;
constexpr int64_t kBlockTokens = 64;

// (batch, token blocks, sums, channels) floats.
struct TokenSums {
  float* partials;
  int64_t blocks;  // of the tokens of one sample
};

// Writes the partial sums of one block of tokens over kTokenColumns vectors of channels. `add(at, sums)` adds the terms
// of one token's vector to kSums vectors.
template <typename T, int kSums, typename Add>
__device__ __forceinline__ void sum_over_tokens(const GateResidualParams& params, const TokenSums& sums, bool aligned,
                                                const Add& add) {
  constexpr int kWidth = kVectorWidth<T>, kChannels = kTokenColumns * kWidth;
  const int column = static_cast<int>(threadIdx.x), strand = static_cast<int>(threadIdx.y);
  const Quotient place = divide(blockIdx.x, (params.channels + kChannels - 1) / kChannels);
  const Quotient block = divide(place.whole, sums.blocks);
  const int64_t first_channel = place.rest * kChannels, channel = first_channel + column * kWidth;
  const int64_t first = block.rest * kBlockTokens, end = min(first + kBlockTokens, params.tokens);
  const int valid = static_cast<int>(min(params.channels - channel, int64_t{kWidth}));
  float totals[kSums][kWidth] = {};
  if (valid > 0) {
#pragma unroll 2
    for (int64_t token = first + strand; token < end; token += kTokenStrands) {
      add(TokenVector{block.whole, token, channel, valid, aligned}, totals);
    }
  }
  // Element i of all columns lies together, and then the next: neighbours write to different banks.
  constexpr int kStride = kTokenColumns + 1;
  __shared__ float strands[kTokenStrands][kWidth * kStride];
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    if (k > 0) __syncthreads();  // the last sums have been read
#pragma unroll
    for (int i = 0; i < kWidth; ++i) strands[strand][i * kStride + column] = totals[k][i];
    if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
    const int element = strand * kTokenColumns + column;
    if (element >= kChannels || first_channel + element >= params.channels) continue;
    float total = 0.0f;
#pragma unroll
    for (int s = 0; s < kTokenStrands; ++s) total += strands[s][element % kWidth * kStride + element / kWidth];
    sums.partials[(place.whole * kSums + k) * params.channels + first_channel + element] = total;
  }
}

// The sums of one channel of one sample: of the `index`-th of all samples' channels, which the threads of one column of
// the thread block share. Returns whether this thread has them.
template <int kSums>
__device__ __forceinline__ bool merge_token_sums(const GateResidualParams& params, const TokenSums& sums, int64_t index,
                                                 float (&totals)[kSums]) {
  const int column = static_cast<int>(threadIdx.x), strand = static_cast<int>(threadIdx.y);
  const bool exists = index < params.batch * params.channels;
  const Quotient place = divide(index, params.channels);
#pragma unroll
  for (int k = 0; k < kSums; ++k) totals[k] = 0.0f;
  const int64_t first = strand + (planted<Mutation::WrongSplitMerge> ? 1 : 0);
#pragma unroll 4
  for (int64_t block = first; exists && block < sums.blocks; block += kTokenStrands) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      totals[k] += sums.partials[((place.whole * sums.blocks + block) * kSums + k) * params.channels + place.rest];
    }
  }
  __shared__ float strands[kTokenStrands][kSums][kTokenColumns];
#pragma unroll
  for (int k = 0; k < kSums; ++k) strands[strand][k][column] = totals[k];
  __syncthreads();
  if (!exists || strand > 0) return false;
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int s = 1; s < kTokenStrands; ++s) totals[k] += strands[s][k][column];
  }
  return true;
}

// The index of merge_token_sums.
__device__ __forceinline__ int64_t merged_channel() { return int64_t{blockIdx.x} * kTokenColumns + threadIdx.x; }

}  // namespace fastdiff::cuda
