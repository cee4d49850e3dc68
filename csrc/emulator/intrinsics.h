// Device-only arithmetic, and CUDA's own half types, which compile for a host but for their device-only functions.
//
// The fast approximations (__expf, __fdividef ...) are exact here: the emulator proves indexing and ordering, and
// cannot show the last bits of a GPU's special function unit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }

inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
