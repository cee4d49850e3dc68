// Products of matrices cut into pieces that threads take one by one.
#pragma once

#include "cpu/amx/tiles.h"
#include "cpu/integers.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr int64_t kPanel = 2 * kTile;  // rows or columns

// Some rows and panels of columns of one product.
struct Piece {
  int64_t product, first_row, rows, first_panel, last_panel;
};

constexpr int64_t kAnyNumber = int64_t{1} << 40;

struct PieceLimits {
  int64_t most_rows;
  int64_t least_panels;  // of columns, where there are as many
  int64_t most_panels;
};

// Blocks of rows. Where those are too few to keep all threads busy until the end they are cut by columns, and where
// there would be less than one for each thread into smaller blocks of rows, for which the right matrix is read more
// often.
class Pieces {
 public:
  Pieces(int64_t products, int64_t rows, int64_t columns, int64_t threads, const PieceLimits& limits)
      : rows_(rows),
        row_panels_(ceil_div(rows, kPanel)),
        column_panels_(ceil_div(columns, kPanel)),
        row_parts_(ceil_div(rows, limits.most_rows)),
        column_parts_(maximum(ceil_div(column_panels_, limits.most_panels), 1)),
        count_(products * row_parts_ * column_parts_) {
    if (count_ == 0 || threads <= 1) return;
    const int64_t wanted = ceil_div(kPiecesOfThread * threads, products * row_parts_);
    column_parts_ = maximum(column_parts_, minimum(wanted, column_panels_ / limits.least_panels));
    row_parts_ = minimum(row_parts_ * ceil_div(threads, products * row_parts_ * column_parts_), row_panels_);
    count_ = products * row_parts_ * column_parts_;
  }

  int64_t count() const { return count_; }

  Piece at(int64_t i) const {
    const int64_t column_part = i % column_parts_, row_part = i / column_parts_ % row_parts_;
    const int64_t first_row = row_panels_ * row_part / row_parts_ * kPanel;
    const int64_t last_row = minimum(row_panels_ * (row_part + 1) / row_parts_ * kPanel, rows_);
    return {i / column_parts_ / row_parts_, first_row, last_row - first_row,
            column_panels_ * column_part / column_parts_, column_panels_ * (column_part + 1) / column_parts_};
  }

 private:
  static constexpr int64_t kPiecesOfThread = 6;

  int64_t rows_, row_panels_, column_panels_, row_parts_, column_parts_, count_;
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
