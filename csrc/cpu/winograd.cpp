// winograd: tiles of a map to the parts that a library multiplies, and the products back to a map. Each is one pass,
// vector by vector of channels; a chunk of tiles stays in the cache between them.
#include "common/winograd.h"

#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

static_assert(kWinogradChannels % kLanes == 0, "channels are worked on by whole vectors");

constexpr int64_t kFloatsForAThread = 16384;

// Calls body(index, sample, row, column) for a range of tiles; row and column are those of the first of its results.
template <class Body>
void for_each_tile(const WinogradTiles& tiles, int64_t begin, int64_t end, const Body& body) {
  for (int64_t i = begin; i < end; i++) {
    const int64_t tile = tiles.first + i, in_sample = tile % (tiles.rows() * tiles.columns());
    body(i, tile / (tiles.rows() * tiles.columns()), in_sample / tiles.columns() * 2, in_sample % tiles.columns() * 2);
  }
}

template <class Body>
void parallel_over_tiles(const WinogradTiles& tiles, const Threads& available, const Body& body) {
  const int64_t wanted = ceil_div(tiles.count * tiles.channels * kWinogradParts, kFloatsForAThread);
  const Threads threads = {static_cast<int>(minimum(available.count, wanted)), available.run};
  parallel_for(threads, tiles.count, [&](int64_t begin, int64_t end) { for_each_tile(tiles, begin, end, body); });
}

// B^T of four values in a line.
FASTDIFF_INLINE void split(const Float (&x)[4], Float (&parts)[4]) {
  parts[0] = x[0] - x[2];
  parts[1] = x[1] + x[2];
  parts[2] = x[2] - x[1];
  parts[3] = x[1] - x[3];
}

// A^T of four products in a line.
FASTDIFF_INLINE void merge(const Float (&products)[4], Float (&results)[2]) {
  results[0] = products[0] + products[1] + products[2];
  results[1] = products[1] - products[2] - products[3];
}

// The 4x4 pixels that a tile's results come of; those outside the map are null.
struct Window {
  const float* pixels[4][4];

  Window(const WinogradInputParams& p, int64_t sample, int64_t row, int64_t column) {
    for (int i = 0; i < 4; i++) {
      const int64_t y = row - 1 + i;
      for (int j = 0; j < 4; j++) {
        const int64_t x = column - 1 + j;
        const bool inside = 0 <= y && y < p.tiles.height && 0 <= x && x < p.tiles.width;
        pixels[i][j] = inside ? p.x + ((sample * p.tiles.height + y) * p.tiles.width + x) * p.tiles.channels : nullptr;
      }
    }
  }

  bool is_inside() const { return pixels[0][0] && pixels[0][3] && pixels[3][0] && pixels[3][3]; }
};

template <bool kInside>
void split_window(const WinogradInputParams& p, const Window& window, int64_t index) {
  const int64_t part = p.tiles.count * p.tiles.channels;
  float* target = p.parts + index * p.tiles.channels;
  for (int64_t c = 0; c < p.tiles.channels; c += kLanes) {
    Float of_columns[4][4];
    for (int j = 0; j < 4; j++) {
      Float column[4], parts[4];
      for (int i = 0; i < 4; i++) {
        const float* pixel = window.pixels[i][j];
        column[i] = kInside || pixel ? load(pixel + c) : Float{};
      }
      split(column, parts);
      for (int i = 0; i < 4; i++) of_columns[i][j] = parts[i];
    }
    for (int i = 0; i < 4; i++) {
      Float parts[4];
      split(of_columns[i], parts);
      for (int j = 0; j < 4; j++) store(target + (4 * i + j) * part + c, parts[j]);
    }
  }
}

void merge_products(const WinogradOutputParams& p, int64_t index, int64_t sample, int64_t row, int64_t column) {
  const WinogradTiles& tiles = p.tiles;
  float* y = p.y + ((sample * tiles.height + row) * tiles.width + column) * tiles.channels;
  const int64_t offset = index * tiles.channels;
  const bool has_row[2] = {true, row + 1 < tiles.height}, has_column[2] = {true, column + 1 < tiles.width};
  for (int64_t c = 0; c < tiles.channels; c += kLanes) {
    Float of_columns[2][4];
    for (int j = 0; j < 4; j++) {
      Float products[4], results[2];
      for (int i = 0; i < 4; i++) products[i] = load(p.products[4 * i + j] + offset + c);
      merge(products, results);
      for (int i = 0; i < 2; i++) of_columns[i][j] = results[i];
    }
    const Float bias = p.bias ? load(p.bias + c) : Float{};
    for (int i = 0; i < 2; i++) {
      Float results[2];
      merge(of_columns[i], results);
      for (int j = 0; j < 2; j++) {
        if (has_row[i] && has_column[j]) store(y + (i * tiles.width + j) * tiles.channels + c, results[j] + bias);
      }
    }
  }
}

}  // namespace

void winograd_input(const WinogradInputParams& p, const Threads& threads) {
  parallel_over_tiles(p.tiles, threads, [&](int64_t index, int64_t sample, int64_t row, int64_t column) {
    const Window window(p, sample, row, column);
    return window.is_inside() ? split_window<true>(p, window, index) : split_window<false>(p, window, index);
  });
}

void winograd_output(const WinogradOutputParams& p, const Threads& threads) {
  parallel_over_tiles(p.tiles, threads, [&](int64_t index, int64_t sample, int64_t row, int64_t column) {
    merge_products(p, index, sample, row, column);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
