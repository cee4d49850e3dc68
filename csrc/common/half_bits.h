// bfloat16 and float16 as bit patterns, and their exact widening to float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastdiff {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// `static`: this header is compiled once per instruction set, and the linker must never merge those copies.
static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float to_float(float value) { return value; }

static inline float to_float(BFloat16 value) { return float_from_bits(uint32_t{value.bits} << 16); }

static inline float to_float(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude << 13));
  // The exponent is re-biased by a multiplication, which also normalises subnormal numbers.
  const float scaled = float_from_bits(magnitude << 13) * 0x1p112f;
  return sign ? -scaled : scaled;
}

}  // namespace fastdiff
