// Matrix products on the tile unit (AMX): bfloat16 numbers, summed in float32.
//
// A tile is 16 rows of 64 bytes. The unit multiplies 16 rows of 32 numbers by 16 rows of 16 pairs (neighbours in the
// direction of summation) in 16 cycles, whatever part of those is zero: operands are packed tile by tile and padded
// with zeros. It reads subnormal numbers as zero.
#pragma once

#include <immintrin.h>

#include "common/half_bits.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr int64_t kTile = 16;                         // rows of any tile, columns of a right-hand one and of sums
constexpr int64_t kTileDepth = 32;                    // terms that one product of tiles adds up
constexpr int64_t kTileNumbers = kTile * kTileDepth;  // bfloat16 numbers of a tile
constexpr int64_t kTileStride = kTileDepth * sizeof(BFloat16);

// The tiles of this thread, all of them of full size, while it lives.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; tile++) {
      shapes.row_bytes[tile] = kTileStride;
      shapes.rows[tile] = kTile;
    }
    // The intrinsic of GCC tells the compiler of 8 of these 64 bytes.
    asm volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// The compiler does not know that the tile unit reads memory: what was written must be there before.
FASTDIFF_INLINE void finish_writes() { asm volatile("" ::: "memory"); }

// A matrix of sums, kRows by kColumns tiles (1 or 2 each), in the tiles 0 to 3; the operands pass through 4 to 7.
template <int kRows, int kColumns>
struct TileSums {
  FASTDIFF_INLINE static void clear() {
    _tile_zero(0);
    if constexpr (kColumns == 2) _tile_zero(1);
    if constexpr (kRows == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  }

  // `stride` in numbers.
  FASTDIFF_INLINE static void load(const float* source, int64_t stride) {
    const float* below = source + kTile * stride;
    const int64_t bytes = stride * sizeof(float);
    _tile_loadd(0, source, bytes);
    if constexpr (kColumns == 2) _tile_loadd(1, source + kTile, bytes);
    if constexpr (kRows == 2) _tile_loadd(2, below, bytes);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, below + kTile, bytes);
  }

  FASTDIFF_INLINE static void store(float* target, int64_t stride) {
    float* below = target + kTile * stride;
    const int64_t bytes = stride * sizeof(float);
    _tile_stored(0, target, bytes);
    if constexpr (kColumns == 2) _tile_stored(1, target + kTile, bytes);
    if constexpr (kRows == 2) _tile_stored(2, below, bytes);
    if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, below + kTile, bytes);
  }

  // Adds the product of a column of left-hand tiles, whose rows are `left_stride` numbers apart, and a row of
  // right-hand tiles, one after the other in memory.
  FASTDIFF_INLINE static void add_product(const BFloat16* left, const BFloat16* right,
                                          int64_t left_stride = kTileDepth) {
    const int64_t left_bytes = left_stride * sizeof(BFloat16);
    _tile_loadd(6, right, kTileStride);
    _tile_loadd(4, left, left_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, right + kTileNumbers, kTileStride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, left + kTile * left_stride, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
