// Random numbers from counters, a pack of 2 * kLanes at a time: kPack / 4 blocks of Philox4x32-10, whose four words
// are one vector each.
//
// A word is the lower half of a lane of 64 bits, as the multiplication of 32 by 32 bits takes it; the upper halves may
// hold anything until words become numbers.
#pragma once

#include "common/philox.h"
#include "cpu/prefetch.h"
#include "cpu/simd.h"
#include "cpu/sine.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

typedef uint64_t Wide __attribute__((vector_size(4 * kLanes)));
constexpr int kBlocksOfPack = kPack / 4;
static_assert(sizeof(Wide) / sizeof(uint64_t) == kBlocksOfPack);

// Of the lower halves.
FASTDIFF_INLINE Wide multiply_words(Wide a, uint32_t b) {
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__aarch64__)
  return (Wide)vmull_n_u32(vmovn_u64((uint64x2_t)a), b);
#else
  return (a & 0xffffffff) * b;
#endif
}

// The upper halves, as lower ones. A shift would wait for the port that multiplies.
template <size_t... kLane>
FASTDIFF_INLINE Wide upper_words(Wide v, std::index_sequence<kLane...>) {
  return (Wide)__builtin_shufflevector((UInt)v, (UInt)v, (kLane | 1)...);
}

template <size_t... kLane>
FASTDIFF_INLINE Wide counting(std::index_sequence<kLane...>) {
  return Wide{kLane...};
}

struct PhiloxWords {
  Wide words[4];
};

// As many as registers hold. Every round waits for the one before it, so one pack's alone would leave a core idle.
constexpr int kPacksAtOnce = kLanes == 16 ? 4 : 2;

// The blocks of kPacksAtOnce packs. The number of the first is a multiple of theirs, so all have the same high word,
// and half of the first two rounds is done once for all.
FASTDIFF_INLINE void philox(uint64_t first, uint64_t offset, uint64_t seed, PhiloxWords (&packs)[kPacksAtOnce]) {
  for (int k = 0; k < kPacksAtOnce; k++) {
    const Wide block = first + k * kBlocksOfPack + counting(std::make_index_sequence<kBlocksOfPack>{});
    packs[k] = {{block, Wide{} + (first >> 32), Wide{} + offset, Wide{} + (offset >> 32)}};
  }
  constexpr auto kWords = std::make_index_sequence<kLanes>{};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  // Or the keys would be worked out again for every group of packs.
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; round++) {
    for (PhiloxWords& pack : packs) {
      auto& [word0, word1, word2, word3] = pack.words;
      const Wide product0 = multiply_words(word0, kPhiloxMultiplier0);
      const Wide product1 = multiply_words(word2, kPhiloxMultiplier1);
      word0 = upper_words(product1, kWords) ^ word1 ^ key0;
      word2 = upper_words(product0, kWords) ^ word3 ^ key1;
      word1 = product1;
      word3 = product0;
    }
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

// The words of `a` and `b` by turns.
template <size_t... kLane>
FASTDIFF_INLINE UInt pair_words(Wide a, Wide b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector((UInt)a, (UInt)b, (kLane / 2 * 2 + kLane % 2 * kLanes)...);
}

template <class Vector, size_t... kLane>
FASTDIFF_INLINE Vector interleave(Vector a, Vector b, int first, std::index_sequence<kLane...>) {
  return first == 0 ? __builtin_shufflevector(a, b, (kLane / 2 + kLane % 2 * kLanes)...)
                    : __builtin_shufflevector(a, b, (kLanes / 2 + kLane / 2 + kLane % 2 * kLanes)...);
}

FASTDIFF_INLINE Float unit_interval(UInt words) {
  return smaller(__builtin_convertvector(words, Float) * kWordScale + kHalfWord, broadcast(kBelowOne));
}

// log(x) for normal x > 0.
FASTDIFF_INLINE Float logarithm(Float x) {
  const Int above = (Int)x - kBitsOfSqrtHalf;
  const Int exponent = above >> 23;  // of 2, such that what is left lies between sqrt(1/2) and sqrt(2)
  const Float f = (Float)((above & 0x7fffff) + kBitsOfSqrtHalf) - 1.0f;
  Float p = f * kLog6 + kLog5;
  p = p * f + kLog4;
  p = p * f + kLog3;
  p = p * f + kLog2;
  p = p * f + kLog1;
  p = p * f + kLog0;
  p = p * f - 0.5f;
  return __builtin_convertvector(exponent, Float) * kLogOf2 + (f * f * p + f);
}

struct Normals {
  Float cosines, sines;
};

FASTDIFF_INLINE Normals box_muller(UInt radius_words, UInt angle_words) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Float radius = square_root(-2.0f * logarithm(unit_interval(radius_words)));
  const Float turns = unit_interval(angle_words);
  const Float shifted = turns * 2.0f + kRound;
  const Float rest = turns - (shifted - kRound) * 0.5f;  // in [-1/4, 1/4], exactly
  // Half a turn more is the opposite sine and cosine.
  const Float signed_radius = (Float)((UInt)radius ^ ((UInt)shifted << 31));
  const Float distance = (Float)((UInt)rest & 0x7fffffff);
  return {signed_radius * sine_of_quarter_turns(0.25f - distance), signed_radius * sine_of_quarter_turns(rest)};
}

// What is read when the draws are done: some rows, of each so many bytes for a pack of them.
struct RowsAhead {
  static constexpr int kMost = 7;  // sampler_step's
  const char* rows[kMost];
  int64_t pack_bytes[kMost];
  int count = 0;
};

// Packs of the draws of one sample, in order: of 32 random bits, or of float32. There must be room for a multiple of
// kPacksAtOnce. Drawing leaves memory idle, so what is read next is fetched meanwhile.
//
// Never inlined: whatever an element is drawn for, and wherever it lies, it goes through the same instructions.
template <Draw kDraw>
__attribute__((noinline)) void draw_packs(uint64_t seed, uint64_t offset, int64_t first_pack, int64_t packs,
                                          void* target, const RowsAhead& ahead = {}) {
  constexpr auto kOrder = std::make_index_sequence<kLanes>{};
  char* vectors = static_cast<char*>(target);
  const auto put_next = [&](auto first, auto second) FASTDIFF_INLINE_LAMBDA {
    const auto low = interleave(first, second, 0, kOrder), high = interleave(first, second, 1, kOrder);
    std::memcpy(vectors, &low, sizeof low);
    std::memcpy(vectors + sizeof low, &high, sizeof high);
    vectors += 2 * sizeof low;
  };
  for (int64_t pack = first_pack; pack < first_pack + packs; pack += kPacksAtOnce) {
    for (int row = 0; row < ahead.count; row++) {
      const int64_t bytes = ahead.pack_bytes[row] * kPacksAtOnce;
      const char* begin = ahead.rows[row] + (pack - first_pack) / kPacksAtOnce * bytes;
      for (int64_t byte = 0; byte < bytes; byte += kLineBytes) prefetch(begin + byte);
    }
    PhiloxWords blocks[kPacksAtOnce];
    philox(static_cast<uint64_t>(pack) * kBlocksOfPack, offset, seed, blocks);
    UInt even[kPacksAtOnce], odd[kPacksAtOnce];
    for (int k = 0; k < kPacksAtOnce; k++) {
      even[k] = pair_words(blocks[k].words[0], blocks[k].words[2], kOrder);
      odd[k] = pair_words(blocks[k].words[1], blocks[k].words[3], kOrder);
    }
    for (int k = 0; k < kPacksAtOnce; k++) {
      if constexpr (kDraw == Draw::Bits) {
        put_next(even[k], odd[k]);
      } else if constexpr (kDraw == Draw::Uniform) {
        put_next(unit_interval(even[k]), unit_interval(odd[k]));
      } else {
        const Normals normals = box_muller(even[k], odd[k]);
        put_next(normals.cosines, normals.sines);
      }
    }
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
