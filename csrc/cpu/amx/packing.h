// Rows of a head, in tiles.
#pragma once

#include "cpu/amx/tiles.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// The lanes whose bit `kDistance` is clear in `a`, then those of `b`; or those whose bit is set, if kOffset is
// kDistance.
template <int kDistance, int kOffset, size_t... kLane>
FASTDIFF_INLINE UInt exchange_blocks(UInt a, UInt b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & kDistance ? kLanes + kLane - kDistance : kLane) + kOffset)...);
}

template <int kDistance = kLanes / 2>
FASTDIFF_INLINE void transpose(UInt (&rows)[kLanes]) {
  constexpr std::make_index_sequence<kLanes> lanes{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (i & kDistance) continue;
    const UInt a = rows[i], b = rows[i + kDistance];
    rows[i] = exchange_blocks<kDistance, 0>(a, b, lanes);
    rows[i + kDistance] = exchange_blocks<kDistance, kDistance>(a, b, lanes);
  }
  if constexpr (kDistance > 1) transpose<kDistance / 2>(rows);
}

// `count` numbers and zeros; any count.
FASTDIFF_INLINE UInt load_numbers(const BFloat16* source, int64_t count) {
  if (count >= kTileDepth) {
    UInt numbers;
    std::memcpy(&numbers, source, sizeof numbers);
    return numbers;
  }
  if (count <= 0) return UInt{};
  return (UInt)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint32_t{1} << count) - 1), source);
}

FASTDIFF_INLINE void store_numbers(BFloat16* target, UInt numbers) { std::memcpy(target, &numbers, sizeof numbers); }

// Half a row of each, up to `count` numbers, as pairs.
FASTDIFF_INLINE UInt load_pairs(const BFloat16* first, const BFloat16* second, int64_t count) {
  const auto read = [&](const BFloat16* row) FASTDIFF_INLINE_LAMBDA {
    if (!row || count <= 0) return UInt{};
    const auto mask = static_cast<__mmask16>(count >= kTile ? 0xffff : (1u << count) - 1);
    return (UInt)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
  };
  return read(first) | read(second) << 16;
}

// Right-hand tiles of `count` rows, at most 32, as columns: of 32 numbers of each row at a time, a tile for the first
// 16 rows and one for the others.
inline void pack_as_columns(const BFloat16* rows, int64_t stride, int64_t count, int64_t numbers, BFloat16* target) {
  for (int64_t d = 0; d < numbers; d += kTileDepth)
    for (int64_t first = 0; first < 2 * kTile; first += kTile, target += kTileNumbers) {
      UInt tile[kTile];
      for (int64_t i = 0; i < kTile; i++)
        tile[i] = first + i < count ? load_numbers(rows + (first + i) * stride + d, numbers - d) : UInt{};
      transpose(tile);
      for (int64_t i = 0; i < kTile; i++) store_numbers(target + i * kTileDepth, tile[i]);
    }
}

// Right-hand tiles of `count` rows, at most 32, as rows, of which those 16 apart are pairs: a tile for every 16 numbers
// of each row.
inline void pack_as_rows(const BFloat16* rows, int64_t stride, int64_t count, int64_t numbers, BFloat16* target) {
  for (int64_t d = 0; d < numbers; d += kTile)
    for (int64_t i = 0; i < kTile; i++, target += kTileDepth) {
      const BFloat16 *first = rows + i * stride + d, *second = first + kTile * stride;
      store_numbers(target, load_pairs(i < count ? first : nullptr, i + kTile < count ? second : nullptr, numbers - d));
    }
}

// Left-hand tiles of `count` rows, at most 32, as they are: of 32 numbers of each row at a time, a tile for the first
// 16 rows and one for the others.
inline void pack_left(const BFloat16* rows, int64_t stride, int64_t count, int64_t numbers, BFloat16* target) {
  for (int64_t d = 0; d < numbers; d += kTileDepth)
    for (int64_t r = 0; r < 2 * kTile; r++, target += kTileDepth)
      store_numbers(target, r < count ? load_numbers(rows + r * stride + d, numbers - d) : UInt{});
}

// Half a row, a lane for each number.
FASTDIFF_INLINE UInt load_wide(const BFloat16* row) {
  return (UInt)_mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(row)));
}

// The same as columns, of which those 16 apart are neighbours: of `tiles` times 16 numbers of each row, a tile each.
inline void turn_left(const BFloat16* left, int64_t tiles, BFloat16* target) {
  for (int64_t tile = 0; tile < tiles; tile++) {
    const BFloat16* rows = left + tile / 2 * 2 * kTileNumbers + tile % 2 * kTile;
    UInt pairs[kTile];
    for (int64_t i = 0; i < kTile; i++, rows += kTileDepth)
      pairs[i] = load_wide(rows) | load_wide(rows + kTileNumbers) << 16;
    transpose(pairs);
    for (int64_t i = 0; i < kTile; i++, target += kTileDepth) store_numbers(target, pairs[i]);
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
