// Vectors of the width of the instruction set this file is compiled for.
//
// Arithmetic is written once with the compiler's vector extensions (GCC, Clang); intrinsics appear only where those
// have no word for an instruction. Everything has internal linkage: the file is compiled once per instruction set,
// and a copy that the linker shared between them would crash older machines.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/half_bits.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// GCC's inliner gives up on long vector code, and a call costs more than the arithmetic it saves.
#define FASTDIFF_INLINE __attribute__((always_inline)) inline
#define FASTDIFF_INLINE_LAMBDA __attribute__((always_inline))

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UInt __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Short __attribute__((vector_size(2 * kLanes)));

FASTDIFF_INLINE Float broadcast(float value) { return value - Float{}; }

FASTDIFF_INLINE Float load(const float* source) {
  Float v;
  std::memcpy(&v, source, sizeof v);
  return v;
}

FASTDIFF_INLINE void store(float* target, Float v) { std::memcpy(target, &v, sizeof v); }

// sum + a * b, rounded once where the instruction set has such an instruction. The compiler fuses what is written as
// two operations in most places, not in all: loops that have to give the same bits as each other use this.
FASTDIFF_INLINE Float multiply_add(Float a, Float b, Float sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#elif defined(__aarch64__)
  return vfmaq_f32(sum, a, b);
#else
  return sum + a * b;
#endif
}

typedef float HalfFloat __attribute__((vector_size(2 * kLanes)));
typedef double Double __attribute__((vector_size(4 * kLanes)));

// The lanes in float64: the lower half of them, and the upper.
struct WideFloat {
  Double low, high;
};

FASTDIFF_INLINE WideFloat widened(Float v) {
  HalfFloat halves[2];
  std::memcpy(halves, &v, sizeof v);
  return {__builtin_convertvector(halves[0], Double), __builtin_convertvector(halves[1], Double)};
}

// A float64 sum for every two lanes. Float32 sums are emptied into one before they grow long enough to lose digits.
class WideSum {
 public:
  FASTDIFF_INLINE void add(Float v) { add(widened(v)); }

  FASTDIFF_INLINE void add(const WideFloat& v) {
    sums_.low += v.low;
    sums_.high += v.high;
  }

  double total() const {
    const Double both = sums_.low + sums_.high;
    double lanes[kLanes / 2], result = 0;
    std::memcpy(lanes, &both, sizeof both);
    for (double lane : lanes) result += lane;
    return result;
  }

 private:
  WideFloat sums_ = {};
};

FASTDIFF_INLINE Float clamp(Float v, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(low)), _mm512_set1_ps(high));
#elif defined(__AVX2__)
  return _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(low)), _mm256_set1_ps(high));
#elif defined(__x86_64__)
  return _mm_min_ps(_mm_max_ps(v, _mm_set1_ps(low)), _mm_set1_ps(high));
#elif defined(__aarch64__)
  return vminq_f32(vmaxq_f32(v, vdupq_n_f32(low)), vdupq_n_f32(high));
#else
  v = v < low ? broadcast(low) : v;
  return v > high ? broadcast(high) : v;
#endif
}

// The larger of two; `b` where either is NaN.
FASTDIFF_INLINE Float larger(Float a, Float b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__x86_64__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// The smaller of two; `b` where either is NaN.
FASTDIFF_INLINE Float smaller(Float a, Float b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__x86_64__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

FASTDIFF_INLINE Float square_root(Float v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(v);
#elif defined(__aarch64__)
  return vsqrtq_f32(v);
#else
  for (int i = 0; i < kLanes; i++) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// One step of a reduction over the lanes: lane i meets lane i ^ kDistance.
template <int kDistance, size_t... kLane>
FASTDIFF_INLINE Float exchange_lanes(Float v, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kDistance)...);
}

// All lanes combined by `combine`, in a fixed order; the result stands in every lane.
template <int kDistance = kLanes / 2, class Combine>
FASTDIFF_INLINE Float across_lanes(Float v, const Combine& combine) {
  v = combine(v, exchange_lanes<kDistance>(v, std::make_index_sequence<kLanes>{}));
  if constexpr (kDistance > 1) {
    return across_lanes<kDistance / 2>(v, combine);
  } else {
    return v;
  }
}

// The first half of the result is made of the even blocks of `a`, the second of those of `b`; of the odd ones if
// kOffset is kBlock.
template <int kBlock, int kOffset, size_t... kLane>
FASTDIFF_INLINE Float alternate_blocks(Float a, Float b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(
      a, b, (kLane / (kLanes / 2) * kLanes + kLane % (kLanes / 2) / kBlock * 2 * kBlock + kLane % kBlock + kOffset)...);
}

// Four vectors, each combined across its lanes: a quarter of the result each, all of its lanes alike. Four times
// across_lanes take twice the work.
template <class Combine>
FASTDIFF_INLINE Float across_lanes(const Float (&v)[4], const Combine& combine) {
  constexpr std::make_index_sequence<kLanes> lanes{};
  constexpr int kHalf = kLanes / 2, kQuarter = kLanes / 4;
  const auto halves = [&](Float a, Float b) FASTDIFF_INLINE_LAMBDA {
    return combine(alternate_blocks<kHalf, 0>(a, b, lanes), alternate_blocks<kHalf, kHalf>(a, b, lanes));
  };
  const Float ab = halves(v[0], v[1]), cd = halves(v[2], v[3]);
  const Float quarters =
      combine(alternate_blocks<kQuarter, 0>(ab, cd, lanes), alternate_blocks<kQuarter, kQuarter>(ab, cd, lanes));
  if constexpr (kQuarter > 1) {
    return across_lanes<kQuarter / 2>(quarters, combine);
  } else {
    return quarters;
  }
}

// Stores past the caches: for outputs too large to be found there again. `target` is aligned to the vector.
template <class Vector>
FASTDIFF_INLINE void stream(void* target, Vector v) {
  static_assert(sizeof(Vector) == 4 * kLanes || sizeof(Vector) == 2 * kLanes, "a full or half vector");
#if defined(__AVX512F__)
  if constexpr (sizeof(Vector) == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), (__m512i)v);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), (__m256i)v);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Vector) == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), (__m256i)v);
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(target), (__m128i)v);
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(Vector) == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(target), (__m128i)v);
  } else {
    std::memcpy(target, &v, sizeof v);
  }
#else
  std::memcpy(target, &v, sizeof v);
#endif
}

// Streamed stores are weakly ordered: they must be fenced before another thread may read the result.
FASTDIFF_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Zeros above. The compiler's own conversions of these types take several times as many instructions.
FASTDIFF_INLINE UInt widen_short(Short v) {
#if defined(__AVX512F__)
  return (UInt)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
  return (UInt)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, UInt);
#endif
}

// The lower halves.
FASTDIFF_INLINE Short narrow_int(UInt v) {
#if defined(__AVX512F__)
  return (Short)_mm512_cvtepi32_epi16((__m512i)v);
#elif defined(__AVX2__)
  const __m256i lower = (__m256i)(v & 0xffff);
  return (Short)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(lower, lower), 0x08));
#else
  return __builtin_convertvector(v, Short);
#endif
}

FASTDIFF_INLINE Float widen_half(Short h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)h);
#elif defined(__aarch64__)
  return vcvt_f32_f16((float16x4_t)h);
#else
  const UInt bits = __builtin_convertvector(h, UInt);
  const UInt magnitude = bits & 0x7fff;
  UInt scaled = (UInt)((Float)(magnitude << 13) * 0x1p112f);
  const UInt special = (UInt)(magnitude >= 0x7c00);
  scaled |= special & 0x7f800000;
  return (Float)(scaled | ((bits & 0x8000) << 16));
#endif
}

FASTDIFF_INLINE Short narrow_half(Float v) {
#if defined(__AVX512F__)
  return (Short)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (Short)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  return (Short)vcvt_f16_f32(v);
#else
  const UInt bits = (UInt)v;
  const UInt sign = bits & 0x80000000;
  const UInt magnitude = bits ^ sign;
  // Normal results: round to nearest even at bit 13, then re-bias the exponent.
  const UInt normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal results: adding 0.5 leaves them, rounded, in the low bits.
  const UInt subnormal = (UInt)((Float)magnitude + 0.5f) - 0x3f000000;
  const UInt is_nan = (UInt)(magnitude > 0x7f800000);
  const UInt overflow = 0x7c00 | (is_nan & 0x200);
  const UInt is_subnormal = (UInt)(magnitude < 0x38800000);
  const UInt is_overflow = (UInt)(magnitude >= 0x47800000);
  UInt half = (is_subnormal & subnormal) | (~is_subnormal & normal);
  half = (is_overflow & overflow) | (~is_overflow & half);
  return __builtin_convertvector(half | (sign >> 16), Short);
#endif
}

// The bits of two float vectors rounded to bfloat16: `low` into the lower half of each lane, `high` into the upper.
//
// To nearest, ties away from zero: as near as ties to even, at a quarter of the instructions, which is a fifth of the
// whole bfloat16 kernel. A NaN stays a NaN as long as its lower 16 bits are not all set, which holds for every NaN
// that arithmetic on our operands makes.
FASTDIFF_INLINE UInt narrow_bfloat16(Float low, Float high) {
  const UInt lower = ((UInt)low + 0x8000) >> 16, upper = (UInt)high + 0x8000;
#if defined(__AVX512F__)
  return (UInt)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)lower, (__m512i)upper);
#elif defined(__AVX2__)
  return (UInt)_mm256_blend_epi16((__m256i)lower, (__m256i)upper, 0xaa);
#else
  return lower | (upper & 0xffff0000);
#endif
}

// A pack is the unit of all loops: 2 * kLanes consecutive elements, held as two float vectors. In which lane an
// element sits is the element type's business: `lane_of(k)` tells (lanes of the second vector count from kLanes).
constexpr int kPack = 2 * kLanes;

template <class T>
constexpr int lane_of(int k) {
  return k;
}

// A bfloat16 is widened without a shuffle: even elements by a shift, odd ones by a mask.
template <>
constexpr int lane_of<BFloat16>(int k) {
  return (k % 2) * kLanes + k / 2;
}

struct Pack {
  Float first, second;
};

FASTDIFF_INLINE Pack load_pack(const float* source) { return {load(source), load(source + kLanes)}; }

FASTDIFF_INLINE Pack load_pack(const BFloat16* source) {
  UInt pairs;
  std::memcpy(&pairs, source, sizeof pairs);
  return {(Float)(pairs << 16), (Float)(pairs & 0xffff0000u)};
}

FASTDIFF_INLINE Pack load_pack(const Float16* source) {
  Short first, second;
  std::memcpy(&first, source, sizeof first);
  std::memcpy(&second, source + kLanes, sizeof second);
  return {widen_half(first), widen_half(second)};
}

template <bool kStream, class Vector>
FASTDIFF_INLINE void put(void* target, Vector v) {
  if constexpr (kStream) {
    stream(target, v);
  } else {
    std::memcpy(target, &v, sizeof v);
  }
}

template <bool kStream>
FASTDIFF_INLINE void store_pack(float* target, Pack v) {
  put<kStream>(target, v.first);
  put<kStream>(target + kLanes, v.second);
}

template <bool kStream>
FASTDIFF_INLINE void store_pack(BFloat16* target, Pack v) {
  put<kStream>(target, narrow_bfloat16(v.first, v.second));
}

template <bool kStream>
FASTDIFF_INLINE void store_pack(Float16* target, Pack v) {
  put<kStream>(target, narrow_half(v.first));
  put<kStream>(target + kLanes, narrow_half(v.second));
}

// A vector of kLanes elements in their own order, for kernels whose arithmetic goes across lanes.
FASTDIFF_INLINE Float load_in_order(const float* source) { return load(source); }

FASTDIFF_INLINE Float load_in_order(const BFloat16* source) {
  Short bits;
  std::memcpy(&bits, source, sizeof bits);
  return (Float)(widen_short(bits) << 16);
}

FASTDIFF_INLINE Float load_in_order(const Float16* source) {
  Short bits;
  std::memcpy(&bits, source, sizeof bits);
  return widen_half(bits);
}

// The first `count` elements; the other lanes read as zero.
template <class T>
FASTDIFF_INLINE Float load_first_in_order(const T* source, int count) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_loadu_ps(mask, source);
  } else {
    T lanes[kLanes];
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, source);
    std::memcpy(lanes, &bits, sizeof bits);
    return load_in_order(lanes);
  }
#else
  T lanes[kLanes] = {};
  std::memcpy(lanes, source, count * sizeof(T));
  return load_in_order(lanes);
#endif
}

// Rounds to bfloat16 as narrow_bfloat16 does, or to even.
template <class T>
FASTDIFF_INLINE auto narrow_in_order(Float v) {
  if constexpr (sizeof(T) == 4) {
    return v;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
#if defined(__AVX512BF16__)
    return (Short)_mm512_cvtneps_pbh(v);
#else
    return narrow_int(((UInt)v + 0x8000) >> 16);
#endif
  } else {
    return narrow_half(v);
  }
}

template <bool kStream = false, class T>
FASTDIFF_INLINE void store_in_order(T* target, Float v) {
  put<kStream>(target, narrow_in_order<T>(v));
}

// Two vectors, one after the other.
template <class T>
FASTDIFF_INLINE void store_in_order(T* target, Pack v) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) return put<false>(target, (UInt)_mm512_cvtne2ps_pbh(v.second, v.first));
#endif
  store_in_order(target, v.first);
  store_in_order(target + kLanes, v.second);
}

// The first `count` lanes only.
template <class T>
FASTDIFF_INLINE void store_first_in_order(T* target, Float v, int count) {
  T lanes[kLanes];
  store_in_order(lanes, v);
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(target, mask, v);
  } else {
    __m256i bits;
    std::memcpy(&bits, lanes, sizeof bits);
    _mm256_mask_storeu_epi16(target, mask, bits);
  }
#else
  std::memcpy(target, lanes, count * sizeof(T));
#endif
}

// The first `count` elements of a pack; the others read as zero.
template <class T>
FASTDIFF_INLINE Pack load_partial(const T* source, int count) {
  T buffer[kPack] = {};
  std::memcpy(buffer, source, count * sizeof(T));
  return load_pack(buffer);
}

template <class T>
FASTDIFF_INLINE void store_partial(T* target, Pack v, int count) {
  T buffer[kPack];
  store_pack<false>(buffer, v);
  std::memcpy(target, buffer, count * sizeof(T));
}

// `v` with the lanes of elements `count` and above set to zero.
template <class T>
FASTDIFF_INLINE Pack keep_first(Pack v, int count) {
  int32_t keep[kPack];
  for (int k = 0; k < kPack; k++) keep[lane_of<T>(k)] = k < count ? -1 : 0;
  Int first, second;
  std::memcpy(&first, keep, sizeof first);
  std::memcpy(&second, keep + kLanes, sizeof second);
  return {(Float)((Int)v.first & first), (Float)((Int)v.second & second)};
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
