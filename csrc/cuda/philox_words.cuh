// Random numbers from counters: the four words of a block of Philox4x32-10, and what becomes of them.
#pragma once

#include "common/philox.h"
#include "cuda/platform.cuh"
#include "cuda/sine.cuh"

namespace fastdiff::cuda {

struct PhiloxBlock {
  uint32_t words[4];
};

__device__ __forceinline__ PhiloxBlock philox_block(uint64_t block, uint64_t offset, uint64_t seed) {
  uint32_t word0 = static_cast<uint32_t>(block), word1 = static_cast<uint32_t>(block >> 32);
  uint32_t word2 = static_cast<uint32_t>(offset), word3 = static_cast<uint32_t>(offset >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t high0 = __umulhi(kPhiloxMultiplier0, word0), low0 = kPhiloxMultiplier0 * word0;
    const uint32_t high1 = __umulhi(kPhiloxMultiplier1, word2), low1 = kPhiloxMultiplier1 * word2;
    word0 = high1 ^ word1 ^ key0;
    word1 = low1;
    word2 = high0 ^ word3 ^ key1;
    word3 = low0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{word0, word1, word2, word3}};
}

__device__ __forceinline__ float unit_interval(uint32_t word) {
  return fminf(fmaf(__uint2float_rn(word), kWordScale, kHalfWord), kBelowOne);
}

// log(x) for normal x > 0.
__device__ __forceinline__ float logarithm(float x) {
  const int32_t above = static_cast<int32_t>(__float_as_uint(x)) - kBitsOfSqrtHalf;
  const int32_t exponent = above >> 23;  // of 2, such that what is left lies between sqrt(1/2) and sqrt(2)
  const float f = __uint_as_float(static_cast<uint32_t>((above & 0x7fffff) + kBitsOfSqrtHalf)) - 1.0f;
  float p = fmaf(f, kLog6, kLog5);
  p = fmaf(p, f, kLog4);
  p = fmaf(p, f, kLog3);
  p = fmaf(p, f, kLog2);
  p = fmaf(p, f, kLog1);
  p = fmaf(p, f, kLog0);
  p = fmaf(p, f, -0.5f);
  return fmaf(static_cast<float>(exponent), kLogOf2, fmaf(f * f, p, f));
}

// The two normal numbers of two words.
__device__ __forceinline__ float2 box_muller(uint32_t radius_word, uint32_t angle_word) {
  const float radius = __fsqrt_rn(-2.0f * logarithm(unit_interval(radius_word)));
  const float turns = unit_interval(angle_word);
  const float half_turns = rintf(2.0f * turns);              // 0, 1 or 2
  const float rest = fmaf(-0.5f, half_turns, turns);         // in [-1/4, 1/4], exactly
  const float sign = half_turns == 1.0f ? -radius : radius;  // half a turn more: the opposite sine and cosine
  return make_float2(sign * sine_of_quarter_turns(0.25f - fabsf(rest)), sign * sine_of_quarter_turns(rest));
}

// The numbers of elements [first, first + kCount) of a sample; both are multiples of 4.
template <int kCount>
__device__ __forceinline__ void uniform_numbers(uint64_t first, uint64_t offset, uint64_t seed, OpenInterval interval,
                                                float (&numbers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const PhiloxBlock block = philox_block((first + i) / 4, offset, seed);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      numbers[i + k] = fminf(fmaxf(unit_interval(block.words[k]), interval.low), interval.high);
    }
  }
}

template <int kCount>
__device__ __forceinline__ void normal_numbers(uint64_t first, uint64_t offset, uint64_t seed,
                                               float (&numbers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const PhiloxBlock block = philox_block((first + i) / 4, offset, seed);
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
      const float2 normals = box_muller(block.words[pair], block.words[pair + 1]);
      numbers[i + pair] = normals.x;
      numbers[i + pair + 1] = normals.y;
    }
  }
}

// The normal number of any element.
__device__ __forceinline__ void normal_numbers(uint64_t element, uint64_t offset, uint64_t seed, float (&number)[1]) {
  const PhiloxBlock block = philox_block(element / 4, offset, seed);
  const bool second_pair = element % 4 >= 2;
  const float2 normals =
      box_muller(second_pair ? block.words[2] : block.words[0], second_pair ? block.words[3] : block.words[1]);
  number[0] = element % 2 ? normals.y : normals.x;
}

}  // namespace fastdiff::cuda
