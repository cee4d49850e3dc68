// 16 bytes of float, bfloat16 or half: loads, stores, and conversion to and from float32.
#pragma once

#include <cstring>

#include "common/dtype.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {

template <typename T>
constexpr int kVectorWidth = static_cast<int>(16 / sizeof(T));

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

// Two 16-bit elements in one word, the first in the low half.
template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t word) {
  if constexpr (std::is_same_v<T, __half>) {
    __half2 pair;
    memcpy(static_cast<void*>(&pair), &word, sizeof word);
    return __half22float2(pair);
  } else {
    // A bfloat16 is the upper half of a float.
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, sizeof word);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, sizeof word);
  }
  return word;
}

template <typename T>
__device__ __forceinline__ void unpack(const uint4& raw, float (&values)[kVectorWidth<T>]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack_pair<T>(words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&values)[kVectorWidth<T>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(values[i]);
    } else {
      words[i] = pack_pair<T>(values[2 * i], values[2 * i + 1]);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// A vector of which only the first `valid` elements exist. Aligned vectors are whole; the others are read one element
// at a time and filled up with zeros.
template <typename T, bool kAligned>
__device__ __forceinline__ uint4 load_vector(const T* address, int valid) {
  if constexpr (kAligned) {
    return ld16(address);
  } else {
    float values[kVectorWidth<T>];
#pragma unroll
    for (int i = 0; i < kVectorWidth<T>; ++i) values[i] = i < valid ? to_float(address[i]) : 0.0f;
    return pack<T>(values);
  }
}

template <typename T, bool kAligned>
__device__ __forceinline__ void store_vector(T* address, const float (&values)[kVectorWidth<T>], int valid) {
  if constexpr (kAligned) {
    st16(address, pack<T>(values));
  } else {
#pragma unroll
    for (int i = 0; i < kVectorWidth<T>; ++i) {
      if (i < valid) address[i] = from_float<T>(values[i]);
    }
  }
}

// The same where alignment is known at run time only. A kernel whose arithmetic is small saves a variant of itself.
template <typename T>
__device__ __forceinline__ void load_floats(const T* address, int valid, bool aligned,
                                            float (&values)[kVectorWidth<T>]) {
  if (aligned) {
    unpack<T>(load_vector<T, true>(address, valid), values);
  } else {
#pragma unroll
    for (int i = 0; i < kVectorWidth<T>; ++i) values[i] = i < valid ? to_float(address[i]) : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void store_floats(T* address, const float (&values)[kVectorWidth<T>], int valid,
                                             bool aligned) {
  if (aligned) {
    store_vector<T, true>(address, values, valid);
  } else {
    store_vector<T, false>(address, values, valid);
  }
}

// One element of an array whose type is known at run time only.
__device__ __forceinline__ float load_element(const void* data, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return static_cast<const float*>(data)[index];
    case DType::BFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default:
      return to_float(static_cast<const __half*>(data)[index]);
  }
}

}  // namespace fastdiff::cuda
