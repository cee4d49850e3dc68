// Pairs of bfloat16 numbers, the operands of the instructions that multiply two pairs and add both products to a
// float32: twice the multiplications of float32, from half the memory.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

struct BFloat16Pair {
  BFloat16 first, second;
};

FASTDIFF_INLINE UInt load(const BFloat16Pair* source) {
  UInt pairs;
  std::memcpy(&pairs, source, sizeof pairs);
  return pairs;
}

FASTDIFF_INLINE UInt broadcast(BFloat16Pair pair) {
  uint32_t bits;
  std::memcpy(&bits, &pair, sizeof bits);
  return bits - UInt{};
}

// sum + a.first * b.first + a.second * b.second in every lane.
FASTDIFF_INLINE Float multiply_add(UInt a, UInt b, Float sum) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  const Float second = (Float)(a & 0xffff0000u) * (Float)(b & 0xffff0000u);
  return sum + (Float)(a << 16) * (Float)(b << 16) + second;
#endif
}

// Halves of vectors: half the time on processors that take a vector of 512 bits in two steps, and no more on others.
#if defined(__AVX512F__)
constexpr bool kHalfVectors = true;
#else
constexpr bool kHalfVectors = false;
#endif
typedef uint32_t HalfUInt __attribute__((vector_size(kLanes * 2)));

FASTDIFF_INLINE HalfFloat multiply_add(HalfFloat a, HalfFloat b, HalfFloat sum) { return sum + a * b; }

#if defined(__AVX512BF16__)
FASTDIFF_INLINE HalfFloat multiply_add(HalfUInt a, HalfUInt b, HalfFloat sum) {
  return (HalfFloat)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
}
#endif

// The first half of a vector.
template <class Vector>
FASTDIFF_INLINE auto half_of(Vector v) {
  std::conditional_t<std::is_same_v<Vector, Float>, HalfFloat, HalfUInt> half;
  std::memcpy(&half, &v, sizeof half);
  return half;
}

// What a T is multiplied as. Pairs pay only where there is an instruction for them. The portable kernels of x86 have
// none, and are a third slower for it; but no x86 processor of today needs them, and with pairs in them every machine
// can test what few can run.
#if defined(__AVX512BF16__) || (defined(__x86_64__) && !defined(__AVX2__))
template <class T>
using Factor = std::conditional_t<std::is_same_v<T, BFloat16>, BFloat16Pair, float>;
#else
template <class T>
using Factor = float;
#endif

// Neighbours in the direction of summation that one factor holds.
template <class E>
constexpr int kTerms = std::is_same_v<E, BFloat16Pair> ? 2 : 1;

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
