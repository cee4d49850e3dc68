// split_product: products of float32 matrices on the tile unit, by parts of bfloat16.
//
// A block of the left matrix is split into its parts, which stay in the L2 cache while the right matrix, split ahead of
// time, streams past. Both come in panels of 32 rows or columns, whose products are 2x2 tiles of sums.
//
// The terms of a sum are added up in an order that depends on their number alone: the tile unit sums 32 from zero
// before it adds that to its sum, and that of a block of terms, from zero again, is added to those of other blocks. So
// errors are smaller than those of plain sums in float32, however long these are.
#include "common/split_product.h"

#include "cpu/amx/packing.h"
#include "cpu/amx/product_pieces.h"
#include "cpu/amx/rounding.h"
#include "cpu/flush_to_zero.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

static_assert(kPanel == kSplitBlock && kTileDepth == kSplitBlock && kSplitParts == 3);

// A block: the parts of 256 rows by 640 terms are 960 KiB, half of an L2 cache. Fewer rows would have the right matrix
// read more often, fewer terms the sums.
constexpr int64_t kBlockRows = 256, kBlockSteps = 20;
// With fewer columns, splitting the rows that meet them takes more than a tenth of the time.
constexpr int64_t kLeastPanels = 8;

constexpr int64_t kPartNumbers = kPanel * kTileDepth;  // of a step of a panel: two tiles, for 16 rows or columns each

FASTDIFF_INLINE Float load_at_most(const float* source, int64_t count) {
  if (count >= kLanes) return load(source);
  return count > 0 ? load_first_in_order(source, static_cast<int>(count)) : Float{};
}

FASTDIFF_INLINE void store_at_most(float* target, Float v, int64_t count) {
  if (count >= kLanes) {
    store(target, v);
  } else {
    store_first_in_order(target, v, static_cast<int>(count));
  }
}

// A number as upper halves: those of `high` and `middle` after rounding, that of `low` is all of it.
struct Parts {
  UInt high, middle, low;

  FASTDIFF_INLINE explicit Parts(Float v) {
    high = ready_to_cut(v);
    const Float rest = v - upper_half(high);
    middle = ready_to_cut(rest);
    low = (UInt)(rest - upper_half(middle));
  }

 private:
  FASTDIFF_INLINE static Float upper_half(UInt bits) { return (Float)(bits & 0xffff0000); }
};

// The parts of up to 32 terms, of which those 16 apart are pairs.
FASTDIFF_INLINE void split(const float* source, int64_t count, UInt (&parts)[kSplitParts]) {
  const Parts first(load_at_most(source, count)), second(load_at_most(source + kLanes, count - kLanes));
  parts[0] = cut_to_pairs(first.high, second.high);
  parts[1] = cut_to_pairs(first.middle, second.middle);
  parts[2] = cut_to_pairs(first.low, second.low);
}

// A panel of the left matrix, step by step: two tiles of each part.
void split_left(const float* rows, int64_t stride, int64_t count, int64_t terms, BFloat16* target) {
  for (int64_t r = 0; r < kPanel; r++) {
    BFloat16* row = target + r * kTileDepth;
    for (int64_t k = 0; k < terms; k += kTileDepth, row += kSplitBlockNumbers) {
      UInt parts[kSplitParts] = {};
      if (r < count) split(rows + r * stride + k, terms - k, parts);
      for (int64_t part = 0; part < kSplitParts; part++) store_numbers(row + part * kPartNumbers, parts[part]);
    }
  }
}

// A panel of the right matrix, whose columns lie as rows; in the same order.
void split_right(const float* rows, int64_t count, int64_t terms, BFloat16* target) {
  for (int64_t k = 0; k < terms; k += kTileDepth, target += kSplitBlockNumbers)
    for (int64_t first = 0; first < kPanel; first += kTile) {
      UInt tiles[kSplitParts][kTile] = {};
      for (int64_t r = 0; r < minimum(kTile, count - first); r++) {
        UInt parts[kSplitParts];
        split(rows + (first + r) * terms + k, terms - k, parts);
        for (int64_t part = 0; part < kSplitParts; part++) tiles[part][r] = parts[part];
      }
      for (int64_t part = 0; part < kSplitParts; part++) {
        transpose(tiles[part]);
        BFloat16* tile = target + part * kPartNumbers + first * kTileDepth;
        for (int64_t r = 0; r < kTile; r++) store_numbers(tile + r * kTileDepth, tiles[part][r]);
      }
    }
}

FASTDIFF_INLINE void load_left(const BFloat16* part) {
  _tile_loadd(4, part, kTileStride);
  _tile_loadd(5, part + kTileNumbers, kTileStride);
}

FASTDIFF_INLINE void load_right(const BFloat16* part) {
  _tile_loadd(6, part, kTileStride);
  _tile_loadd(7, part + kTileNumbers, kTileStride);
}

FASTDIFF_INLINE void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Adds the products of the parts of a step of two panels, in an order in which each has one part in common with the
// next: 14 tiles are loaded for 24 products. The product of the largest parts comes last: the sum of the others is then
// exact where one number is a power of two.
FASTDIFF_INLINE void add_step(const BFloat16* left, const BFloat16* right) {
  constexpr int64_t kMiddle = kPartNumbers, kLow = 2 * kPartNumbers;
  load_right(right);
  load_left(left + kLow);
  multiply_loaded();
  load_left(left + kMiddle);
  multiply_loaded();
  load_right(right + kMiddle);
  multiply_loaded();
  load_left(left);
  multiply_loaded();
  load_right(right + kLow);
  multiply_loaded();
  load_right(right);
  multiply_loaded();
}

// One thread's memory.
class Multiplier {
 public:
  explicit Multiplier(const SplitProductParams& p)
      : p_(p),
        steps_(p.shape.term_blocks()),
        left_(kBlockRows / kPanel * minimum(kBlockSteps, steps_) * kSplitBlockNumbers),
        sums_(kPanel * kPanel) {}

  void run(const Piece& piece) {
    const int64_t blocks = maximum(ceil_div(steps_, kBlockSteps), 1);
    for (int64_t block = 0; block < blocks; block++)
      run_block(piece, steps_ * block / blocks, steps_ * (block + 1) / blocks);
  }

  // All results so far.
  bool are_finite() const { return _mm512_cmp_ps_mask(nan_if_any_, nan_if_any_, _CMP_UNORD_Q) == 0; }

 private:
  using Sums = TileSums<2, 2>;

  // Adds the sums over a block of steps to those over the blocks before, which are in y.
  void run_block(const Piece& piece, int64_t begin, int64_t end) {
    const int64_t first_term = begin * kTileDepth, terms = minimum(end * kTileDepth, p_.shape.terms) - first_term;
    const int64_t panel_numbers = (end - begin) * kSplitBlockNumbers;
    const float* x = p_.x + (piece.product * p_.rows + piece.first_row) * p_.shape.terms + first_term;
    for (int64_t row = 0; row < piece.rows; row += kPanel)
      split_left(x + row * p_.shape.terms, p_.shape.terms, minimum(kPanel, piece.rows - row), terms,
                 left_ + row / kPanel * panel_numbers);
    finish_writes();
    for (int64_t panel = piece.first_panel; panel < piece.last_panel; panel++) {
      const BFloat16* right =
          p_.packed + ((piece.product * p_.shape.column_blocks() + panel) * steps_ + begin) * kSplitBlockNumbers;
      next_right_ = reinterpret_cast<const char*>(right + steps_ * kSplitBlockNumbers);
      prefetches_ = ceil_div(kSplitBlockNumbers * sizeof(BFloat16), kLineBytes * ceil_div(piece.rows, kPanel));
      for (int64_t row = 0; row < piece.rows; row += kPanel) {
        const int64_t column = panel * kPanel;
        y_ = p_.y + (piece.product * p_.rows + piece.first_row + row) * p_.shape.columns + column;
        rows_ = minimum(kPanel, piece.rows - row);
        columns_ = minimum(kPanel, p_.shape.columns - column);
        Sums::clear();
        add_steps(left_ + row / kPanel * panel_numbers, right, end - begin);
        write_sums(begin == 0, end == steps_, column);
      }
    }
  }

  // Meanwhile the next panel of the right matrix comes into the L2 cache, a share with each panel of the left one, and
  // the lines that results will be written to come into L1.
  void add_steps(const BFloat16* left, const BFloat16* right, int64_t steps) {
    for (int64_t row = 0; row < rows_; row++) {
      prefetch_to_write(y_ + row * p_.shape.columns);
      if (columns_ > kTile) prefetch_to_write(y_ + row * p_.shape.columns + kTile);
    }
    for (int64_t k = 0; k < steps; k++) {
      add_step(left + k * kSplitBlockNumbers, right + k * kSplitBlockNumbers);
      for (int64_t i = 0; i < prefetches_; i++, next_right_ += kLineBytes) prefetch(next_right_);
    }
  }

  void write_sums(bool are_first, bool are_last, int64_t column) {
    Sums::store(sums_, kPanel);
    finish_writes();
    const float* bias = are_last && p_.bias ? p_.bias + column : nullptr;
    for (int64_t c = 0; c < columns_; c += kLanes) {
      const Float shift = bias ? load_at_most(bias + c, columns_ - c) : Float{};
      for (int64_t row = 0; row < rows_; row++) {
        float* y = y_ + row * p_.shape.columns + c;
        Float result = load(sums_ + row * kPanel + c);
        if (!are_first) result += load_at_most(y, columns_ - c);
        result += shift;
        nan_if_any_ = multiply_add(result, Float{}, nan_if_any_);
        store_at_most(y, result, columns_ - c);
      }
    }
  }

  static void prefetch_to_write(const void* address) { __builtin_prefetch(address, 1); }

  const SplitProductParams& p_;
  int64_t steps_;
  Scratch<BFloat16> left_;
  Scratch<float> sums_;
  float* y_ = nullptr;  // of the panels in work, and how much of them there is
  int64_t rows_ = 0, columns_ = 0;
  const char* next_right_ = nullptr;
  int64_t prefetches_ = 0;  // a step
  Float nan_if_any_ = {};
  TileRegisters registers_;
  FlushToZero flush_;
};

}  // namespace

void split_weight(const SplitWeightParams& p, const Threads& threads) {
  const int64_t panels = p.shape.column_blocks();
  parallel_for(threads, p.shape.products * panels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t column = i % panels * kPanel;
      split_right(p.weight + (i / panels * p.shape.columns + column) * p.shape.terms,
                  minimum(kPanel, p.shape.columns - column), p.shape.terms,
                  p.packed + i * p.shape.term_blocks() * kSplitBlockNumbers);
    }
  });
}

bool split_product(const SplitProductParams& p, const Threads& threads) {
  const Pieces pieces(p.shape.products, p.rows, p.shape.columns, threads.count, {kBlockRows, kLeastPanels, kAnyNumber});
  bool finite = true;
  parallel_with(threads, pieces.count(), 1, [&] {
    return [&, multiplier = Multiplier(p)](int64_t begin, int64_t end) mutable {
      for (int64_t i = begin; i < end; i++) multiplier.run(pieces.at(i));
      if (!multiplier.are_finite()) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    };
  });
  return finite;
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
