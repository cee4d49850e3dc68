// Parameters of philox_bits, philox_uniform and philox_normal, and the constants of Philox4x32-10 and of Box and
// Muller's transform, shared by the CPU kernel, the CUDA kernel and the bindings.
//
//   words of block b     Philox4x32-10 of counter (low(b), high(b), low(offset), high(offset)), key (low(seed),
//                        high(seed)): Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., SC 2011), section 3.3
//   element e            word e % 4 of block e / 4
//   uniform(word)        (word + 1/2) / 2^32, fused in float32, and below 1
//   normals 2k, 2k + 1   sqrt(-2 log u[2k]) times the cosine and the sine of 2 pi u[2k + 1]
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/sine.h"

namespace fastdiff {

enum class Draw : int32_t { Bits = 0, Uniform = 1, Normal = 2 };

struct PhiloxParams {
  int64_t batch = 0;
  int64_t count = 0;  // elements of a sample
  Draw draw = Draw::Normal;
  DType dtype = DType::Float32;  // of uniform and normal numbers
  uint64_t offset = 0;
  const int64_t* seeds = nullptr;  // (batch)
  void* result = nullptr;          // dense (batch, count); int64 for bits
};

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xd2511f53, kPhiloxMultiplier1 = 0xcd9e8d57;
constexpr uint32_t kPhiloxWeyl0 = 0x9e3779b9, kPhiloxWeyl1 = 0xbb67ae85;

constexpr float kWordScale = 0x1p-32f;
constexpr float kHalfWord = 0x1p-33f;
constexpr float kBelowOne = 1.0f - 0x1p-24f;

// What uniform numbers are kept between, so that rounding to a type leaves them in (0, 1).
struct OpenInterval {
  float low, high;
};

constexpr OpenInterval open_interval(DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
      return {kHalfWord, 1.0f - 0x1p-8f};
    case DType::Float16:
      return {0x1p-24f, 1.0f - 0x1p-11f};
    default:
      return {kHalfWord, kBelowOne};
  }
}

// log(1 + f) = f + f^2 * (f * (kLog0 + kLog1 f + ... + kLog6 f^6) - 1/2) for 1 + f from sqrt(1/2) to sqrt(2), with
// relative error below 1e-7 in float32, where f is near 0 too.
constexpr float kLog0 = 0.333339095f;
constexpr float kLog1 = -0.250013381f;
constexpr float kLog2 = 0.199630618f;
constexpr float kLog3 = -0.165775865f;
constexpr float kLog4 = 0.149147868f;
constexpr float kLog5 = -0.142674759f;
constexpr float kLog6 = 0.0870035961f;
constexpr float kLogOf2 = 0.693147182f;
constexpr int32_t kBitsOfSqrtHalf = 0x3f3504f3;

}  // namespace fastdiff
