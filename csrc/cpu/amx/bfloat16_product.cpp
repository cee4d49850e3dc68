// bfloat16_product: products of bfloat16 matrices on the tile unit, with bias and activation.
//
// The right matrix, packed ahead of time, comes in panels of 32 columns. One after the other meets panels of 32 rows of
// the left matrix, which stay in the L2 cache, as 2x2 tiles of sums. These are written while the tile unit is at work
// on those that follow. Where there are more terms than that cache has room for, it keeps sums from one block of them
// to the next.
//
// The terms of a sum are added up in an order that depends on their number alone.
#include "common/bfloat16_product.h"

#include "cpu/amx/packing.h"
#include "cpu/amx/product_pieces.h"
#include "cpu/flush_to_zero.h"
#include "cpu/gelu.h"
#include "cpu/parallel.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

static_assert(kPanel == kBFloat16Block && kTileDepth == kBFloat16Block);

// 2048 terms of 256 rows are 1 MiB, and the sums of these with 16 panels 512 KiB, of 2 MiB of an L2 cache. Fewer terms,
// for a panel of columns to stay in the L1 cache, gain less than fetching sums and putting them back takes.
constexpr int64_t kBlockSteps = 64, kBlockRows = 256, kBlockPanels = 16;
constexpr int64_t kLeastPanels = 2;
constexpr int64_t kPanelSums = kPanel * kPanel;

struct Identity {
  static FASTDIFF_INLINE Float of(Float v) { return v; }
};

template <class Gelu>
struct GeluOf {
  static FASTDIFF_INLINE Float of(Float v) { return Gelu::template evaluate<BFloat16>(v).value; }
};

// Sums of two panels that wait to be written, row by row.
template <class Activation>
class PendingSums {
 public:
  PendingSums() = default;
  PendingSums(const float* sums, const BFloat16* bias, BFloat16* y, int64_t stride, int64_t rows, int64_t columns)
      : sums_(sums),
        y_(y),
        stride_(stride),
        rows_(rows),
        present_(columns < kPanel ? (uint32_t{1} << columns) - 1 : ~uint32_t{0}) {
    if (!bias) return;
    const __m512i numbers = _mm512_maskz_loadu_epi16(present_, bias);
    first_bias_ = (Float)((UInt)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(numbers)) << 16);
    second_bias_ = (Float)((UInt)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(numbers, 1)) << 16);
  }

  FASTDIFF_INLINE void write_up_to(int64_t row) {
    for (; next_ < minimum(row, rows_); next_++) {
      const float* sums = sums_ + next_ * kPanel;
      const Float first = Activation::of(load(sums) + first_bias_);
      const Float second = Activation::of(load(sums + kLanes) + second_bias_);
      _mm512_mask_storeu_epi16(y_ + next_ * stride_, present_, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
  }

 private:
  const float* sums_ = nullptr;
  BFloat16* y_ = nullptr;
  int64_t stride_ = 0, rows_ = 0, next_ = 0;
  __mmask32 present_ = 0;
  Float first_bias_ = {}, second_bias_ = {};
};

// One thread's memory.
template <class Activation>
class Multiplier {
 public:
  explicit Multiplier(const BFloat16ProductParams& p)
      : p_(p),
        steps_(p.shape.term_blocks()),
        blocks_(maximum(ceil_div(steps_, kBlockSteps), 1)),
        left_(minimum(kBlockRows, ceil_div(p.rows, kPanel) * kPanel) * kBlockSteps * kTileDepth),
        sums_((blocks_ == 1 ? 2 : kBlockRows / kPanel * kBlockPanels) * kPanelSums) {}

  void run(const Piece& piece) {
    for (int64_t block = 0; block < blocks_; block++)
      run_block(piece, steps_ * block / blocks_, steps_ * (block + 1) / blocks_);
    pending_.write_up_to(kPanel);
    pending_ = {};
  }

 private:
  // Rows as left-hand tiles: where they are, if all of these exist, or packed.
  struct LeftPanel {
    const BFloat16* tiles;
    int64_t row_stride, step_stride;
  };

  // Adds the sums over a block of steps to those over the blocks before.
  void run_block(const Piece& piece, int64_t begin, int64_t end) {
    const int64_t row_panels = ceil_div(piece.rows, kPanel);
    for (int64_t i = 0; i < row_panels; i++) left_panels_[i] = left_panel(piece, i, begin, end);
    finish_writes();
    const int64_t prefetches =
        ceil_div(kBFloat16BlockNumbers * sizeof(BFloat16), kLineBytes * row_panels);  // a step, of the next panel
    for (int64_t panel = piece.first_panel; panel < piece.last_panel; panel++) {
      const BFloat16* right = p_.packed + (panel * steps_ + begin) * kBFloat16BlockNumbers;
      const char* next_right = reinterpret_cast<const char*>(right + steps_ * kBFloat16BlockNumbers);
      for (int64_t i = 0; i < row_panels; i++) {
        const int64_t slot = (panel - piece.first_panel) * row_panels + i;
        // Two by turns, where none need be kept: new sums need not wait until the last ones are read.
        float* sums = sums_ + (blocks_ == 1 ? slot % 2 : slot) * kPanelSums;
        if (piece.rows - i * kPanel > kTile) {
          add_steps<2>(left_panels_[i], right, end - begin, begin > 0, sums, next_right, prefetches);
        } else {
          add_steps<1>(left_panels_[i], right, end - begin, begin > 0, sums, next_right, prefetches);
        }
        if (end == steps_) write_later(sums, piece.first_row + i * kPanel, panel * kPanel);
      }
    }
  }

  LeftPanel left_panel(const Piece& piece, int64_t i, int64_t begin, int64_t end) {
    const int64_t terms = p_.shape.terms, first_term = begin * kTileDepth;
    const int64_t count = minimum(end * kTileDepth, terms) - first_term;
    const int64_t rows = minimum(kPanel, piece.rows - i * kPanel);
    const BFloat16* x = p_.x + (piece.first_row + i * kPanel) * terms + first_term;
    if (rows == kPanel && count % kTileDepth == 0) return {x, terms, kTileDepth};
    BFloat16* packed = left_ + i * kPanel * kBlockSteps * kTileDepth;
    pack_left(x, terms, rows, count, packed);
    return {packed, kTileDepth, kBFloat16BlockNumbers};
  }

  template <int kRows>
  void add_steps(const LeftPanel& left, const BFloat16* right, int64_t steps, bool add, float* sums,
                 const char*& next_right, int64_t prefetches) {
    using Sums = TileSums<kRows, 2>;
    if (add) {
      Sums::load(sums, kPanel);
    } else {
      Sums::clear();
    }
    for (int64_t k = 0; k < steps; k++) {
      Sums::add_product(left.tiles + k * left.step_stride, right + k * kBFloat16BlockNumbers, left.row_stride);
      for (int64_t i = 0; i < prefetches; i++, next_right += kLineBytes) prefetch(next_right);
      pending_.write_up_to((k + 1) * kPanel / steps);
    }
    Sums::store(sums, kPanel);
  }

  void write_later(const float* sums, int64_t row, int64_t column) {
    finish_writes();
    pending_.write_up_to(kPanel);
    pending_ = {sums,
                p_.bias ? p_.bias + column : nullptr,
                p_.y + row * p_.shape.columns + column,
                p_.shape.columns,
                minimum(kPanel, p_.rows - row),
                p_.shape.columns - column};
  }

  const BFloat16ProductParams& p_;
  int64_t steps_, blocks_;
  Scratch<BFloat16> left_;
  Scratch<float> sums_;
  LeftPanel left_panels_[kBlockRows / kPanel];
  PendingSums<Activation> pending_;
  TileRegisters registers_;
  FlushToZero flush_;
};

template <class Activation>
void multiply(const BFloat16ProductParams& p, const Threads& threads) {
  const Pieces pieces(1, p.rows, p.shape.columns, threads.count, {kBlockRows, kLeastPanels, kBlockPanels});
  parallel_with(threads, pieces.count(), 1, [&] {
    return [&, multiplier = Multiplier<Activation>(p)](int64_t begin, int64_t end) mutable {
      for (int64_t i = begin; i < end; i++) multiplier.run(pieces.at(i));
    };
  });
}

}  // namespace

void bfloat16_weight(const BFloat16WeightParams& p, const Threads& threads) {
  parallel_for(threads, p.shape.column_blocks(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t column = i * kPanel;
      pack_as_columns(p.weight + column * p.shape.terms, p.shape.terms, minimum(kPanel, p.shape.columns - column),
                      p.shape.terms, p.packed + i * p.shape.term_blocks() * kBFloat16BlockNumbers);
    }
  });
}

void bfloat16_product(const BFloat16ProductParams& p, const Threads& threads) {
  switch (p.activation) {
    case ProductActivation::none:
      return multiply<Identity>(p, threads);
    case ProductActivation::gelu:
      return multiply<GeluOf<ExactGelu>>(p, threads);
    case ProductActivation::gelu_tanh:
      return multiply<GeluOf<TanhGelu>>(p, threads);
  }
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
