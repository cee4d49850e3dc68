// philox_bits, philox_uniform and philox_normal: a thread draws 16 bytes of numbers, or the bits of one block.
#pragma once

#include "cuda/philox_words.cuh"
#include "cuda/sample_rows.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

template <typename T>
__global__ void __launch_bounds__(kSampleRowThreads)
    philox_numbers_kernel(PhiloxParams params, OpenInterval interval, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  for_each_sample(params.batch, [&](int64_t sample) {
    const uint64_t seed = static_cast<uint64_t>(params.seeds[sample]);
    T* result = static_cast<T*>(params.result) + sample * params.count;
    for_each_unit<kWidth>(params.count, [&](int64_t element, int valid) {
      const uint64_t first = static_cast<uint64_t>(element);
      float numbers[kWidth];
      if (params.draw == Draw::Normal) {
        normal_numbers(first, params.offset, seed, numbers);
      } else {
        uniform_numbers(first, params.offset, seed, interval, numbers);
      }
      store_floats(result + element, numbers, valid, aligned && valid == kWidth);
    });
  });
}

__global__ void __launch_bounds__(kSampleRowThreads) philox_bits_kernel(PhiloxParams params) {
  for_each_sample(params.batch, [&](int64_t sample) {
    const uint64_t seed = static_cast<uint64_t>(params.seeds[sample]);
    int64_t* result = static_cast<int64_t*>(params.result) + sample * params.count;
    for_each_unit<4>(params.count, [&](int64_t element, int valid) {
      const PhiloxBlock block = philox_block(static_cast<uint64_t>(element) / 4, params.offset, seed);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < valid) result[element + i] = block.words[i];
      }
    });
  });
}

}  // namespace fastdiff::cuda
