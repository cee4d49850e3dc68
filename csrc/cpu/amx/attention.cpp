// Forward attention of bfloat16 on the tile unit.
//
// Both products go 32 queries by 32 keys at a time, as 2x2 tiles. With the product by the values, which have a column
// of ones, comes the sum of a query's probabilities as they were rounded, by which its output is divided: where one key
// has all the weight, its value comes out unchanged. The logarithm is that of the sum before rounding.
//
// Powers of two of the scores themselves, with nothing subtracted, do for almost all queries: they keep their relative
// precision over the whole range of exponents, and one look at their sum tells whether they have left it. The queries
// for which they have are worked out again with the largest score subtracted, as attention.cpp does it. Which of the
// two a query gets depends on its own scores and values alone.
#include "cpu/amx/lane_sums.h"
#include "cpu/amx/logarithm.h"
#include "cpu/amx/packed_head.h"
#include "cpu/amx/probability.h"
#include "cpu/attention_schedule.h"
#include "cpu/flush_to_zero.h"

namespace fastdiff::cpu {
namespace avx512_bf16 {
void attention(const AttentionParams&, const Threads&);
}

namespace FASTDIFF_ISA {
namespace {

// Scores that stay in the L1 cache twice, with room for the tiles that they meet: while those of one block become
// probabilities, the tile unit works on the values of the block before and on the scores of the next.
constexpr int64_t kBlockSteps = 3;
constexpr int64_t kBlockKeys = kBlockSteps * kStepKeys;

// Sums of powers of two between these lose nothing: a probability that counts is far above the least normal number, and
// the products by values have room up to the largest.
constexpr float kLeastSum = 0x1p-48f, kGreatestSum = 0x1p48f;

constexpr int64_t kRowsAtOnce = 2 * kTile;

// The keys of a block, and where their scores lie, which become their probabilities.
struct KeyBlock {
  float* scores_of(int64_t step) const { return scores + step * kRowsAtOnce * kStepKeys; }
  BFloat16* probabilities_of(int64_t step) const { return reinterpret_cast<BFloat16*>(scores_of(step)); }

  float* scores;
  int64_t first_step, count, steps;
};

// One thread's memory.
class QueryBlock {
 public:
  static constexpr int64_t kQueries = 4 * kRowsAtOnce;

  explicit QueryBlock(const AttentionParams& p)
      : depth_steps_(ceil_div(p.head_dim, kTileDepth)),
        value_tiles_(PackedHead::value_tiles(p)),
        output_stride_(ceil_div(value_tiles_, 2) * kTileDepth),
        query_(depth_steps_ * 2 * kTileNumbers),
        scores_(2 * kScoresOfBlock),
        output_(kRowsAtOnce * output_stride_) {
    std::memset(output_, 0, kRowsAtOnce * output_stride_ * sizeof(float));  // columns that no tile writes are read
  }

  void run(const AttentionParams& p, const PackedHead& packed, int64_t sample, int64_t head, int64_t first,
           int64_t rows) {
    const int64_t row = (sample * p.query_length + first) * p.heads + head;
    const Queries queries{
        head_of<BFloat16>(p.query, sample, head) + first * p.query.token_stride,
        static_cast<BFloat16*>(p.output) + row * p.head_dim,
        p.logsumexp ? p.logsumexp + (sample * p.heads + head) * p.query_length + first : nullptr,
        rows,
    };
    const int64_t keys = keys_of(p, sample);
    if (keys == 0) return write_zeros(p, queries);
    scale_ = p.scale * kLog2e;
    if (rows > kTile) {
      work_out<2>(p, packed, keys, queries);
    } else {
      work_out<1>(p, packed, keys, queries);
    }
  }

 private:
  // Rows of one head.
  struct Queries {
    Queries from(const AttentionParams& p, int64_t row) const {
      return {query + row * p.query.token_stride, output + row * p.heads * p.head_dim,
              logsumexp ? logsumexp + row : nullptr, minimum(kRowsAtOnce, rows - row)};
    }

    const BFloat16* query;
    BFloat16* output;
    float* logsumexp;
    int64_t rows;
  };

  static constexpr int64_t kScoresOfBlock = kBlockKeys * kRowsAtOnce;

  // Blocks of keys follow each other through all blocks of rows.
  template <int kRows>
  void work_out(const AttentionParams& p, const PackedHead& packed, int64_t keys, const Queries& queries) {
    const int64_t key_blocks = ceil_div(keys, kBlockKeys);
    const int64_t blocks = ceil_div(queries.rows, kRowsAtOnce) * key_blocks;
    const auto block_at = [&](int64_t i) { return key_block(keys, i % key_blocks, scores_ + i % 2 * kScoresOfBlock); };
    const auto rows_at = [&](int64_t i) { return queries.from(p, i / key_blocks * kRowsAtOnce); };
    uint32_t doubtful[kQueries / kRowsAtOnce];
    const auto finish = [&](int64_t i) {
      if ((i + 1) % key_blocks == 0) {
        const Queries rows = rows_at(i);
        doubtful[i / key_blocks] = write<kRows>(p, all_of(rows), rows, sums_[i / key_blocks % 2]);
      }
    };
    for (float& top : tops_) top = 0;
    pack(p, rows_at(0));
    Products<kRows> products(*this, p, packed);
    products.begin_scores(block_at(0));
    products.finish();
    for (int64_t i = 0; i < blocks; i++) {
      const KeyBlock block = block_at(i);
      if (i > 0) products.begin_values(block_at(i - 1), (i - 1) % key_blocks > 0);
      if (i + 1 < blocks) {
        if ((i + 1) % key_blocks == 0) pack(p, rows_at(i + 1));
        products.begin_scores(block_at(i + 1));
      }
      exponentiate<kRows>(block, rows_at(i).rows, nullptr, sums_[i / key_blocks % 2], i % key_blocks > 0, products);
      products.finish();
      if (i > 0) finish(i - 1);
    }
    products.begin_values(block_at(blocks - 1), key_blocks > 1);
    products.finish();
    finish(blocks - 1);
    for (int64_t i = 0; i * kRowsAtOnce < queries.rows; i++)
      if (doubtful[i]) work_out_again<kRows>(p, packed, keys, queries.from(p, i * kRowsAtOnce), doubtful[i]);
  }

  // The rows whose bit is set in `mask`, of scores of any size.
  template <int kRows>
  void work_out_again(const AttentionParams& p, const PackedHead& packed, int64_t keys, const Queries& rows,
                      uint32_t mask) {
    for (float& top : tops_) top = -INFINITY;
    pack(p, rows);
    Products<kRows> products(*this, p, packed);
    for (int64_t i = 0; i * kBlockKeys < keys; i++) {
      const KeyBlock block = key_block(keys, i, scores_);
      products.begin_scores(block);
      products.finish();
      raise_tops<kRows>(block, sums_[0], i > 0);
      exponentiate<kRows>(block, rows.rows, shifts_, sums_[0], i > 0, products);
      products.begin_values(block, i > 0);
      products.finish();
    }
    write<kRows>(p, mask, rows, sums_[0]);
  }

  static KeyBlock key_block(int64_t keys, int64_t i, float* scores) {
    const int64_t count = minimum(kBlockKeys, keys - i * kBlockKeys);
    return {scores, i * kBlockSteps, count, ceil_div(count, kStepKeys)};
  }

  static uint32_t all_of(const Queries& rows) { return static_cast<uint32_t>((uint64_t{1} << rows.rows) - 1); }

  void pack(const AttentionParams& p, const Queries& rows) const {
    pack_left(rows.query, p.query.token_stride, rows.rows, p.head_dim, query_);
    // Of the next head, whose turn may be next: early enough for rows that lie in memory.
    prefetch_rows(rows.query + p.query.head_stride, p.query.token_stride, rows.rows, p.head_dim);
    prefetch_rows(rows.output + p.head_dim, p.heads * p.head_dim, rows.rows, p.head_dim);
  }

  // Products of tiles, a few at a time: first those by the values of a block, which go to the output or are added to
  // it, then those of the queries by the keys of a block.
  template <int kRows>
  class Products {
   public:
    Products(const QueryBlock& block, const AttentionParams& p, const PackedHead& packed)
        : of_(block), p_(p), packed_(packed) {}

    void begin_values(const KeyBlock& block, bool add) {
      weighted_ = block;
      add_ = add;
      tile_ = step_ = 0;
      left_values_ = ceil_div(of_.value_tiles_, 2) * block.steps;
    }

    void begin_scores(const KeyBlock& block) {
      scored_ = block;
      score_step_ = depth_ = 0;
      left_scores_ = of_.depth_steps_ * block.steps;
    }

    int64_t left() const { return left_values_ + left_scores_; }

    void finish() {
      while (left() > 0) next();
    }

    FASTDIFF_INLINE void next() {
      finish_writes();
      if (left_values_ > 0) {
        left_values_--;
        add_values();
      } else {
        left_scores_--;
        score();
      }
    }

   private:
    FASTDIFF_INLINE void add_values() {
      for_pairs_or_half((of_.value_tiles_ - tile_) * kTile, [&](auto pairs) FASTDIFF_INLINE_LAMBDA {
        using Sums = TileSums<kRows, decltype(pairs)::value ? 2 : 1>;
        float* target = of_.output_ + tile_ * kTile;
        if (step_ == 0) {
          if (add_) {
            Sums::load(target, of_.output_stride_);
          } else {
            Sums::clear();
          }
        }
        Sums::add_product(weighted_.probabilities_of(step_),
                          packed_.values(p_, weighted_.first_step + step_) + tile_ * kTileNumbers);
        if (++step_ < weighted_.steps) return;
        Sums::store(target, of_.output_stride_);
        step_ = 0;
        tile_ += 2;
      });
    }

    FASTDIFF_INLINE void score() {
      for_pairs_or_half(scored_.count - score_step_ * kStepKeys, [&](auto pairs) FASTDIFF_INLINE_LAMBDA {
        using Sums = TileSums<kRows, decltype(pairs)::value ? 2 : 1>;
        if (depth_ == 0) Sums::clear();
        Sums::add_product(of_.query_ + depth_ * 2 * kTileNumbers,
                          packed_.keys(p_, scored_.first_step + score_step_) + depth_ * 2 * kTileNumbers);
        if (++depth_ < of_.depth_steps_) return;
        Sums::store(scored_.scores_of(score_step_), kStepKeys);
        depth_ = 0;
        score_step_++;
      });
    }

    const QueryBlock& of_;
    const AttentionParams& p_;
    const PackedHead& packed_;
    KeyBlock weighted_{}, scored_{};
    bool add_ = false;
    int64_t tile_ = 0, step_ = 0, left_values_ = 0, score_step_ = 0, depth_ = 0, left_scores_ = 0;
  };

  // Scores of a block and of `rows` queries become probabilities, less the `shifts` of their queries if there are any,
  // which are added to the sums, or begin them. A row of probabilities is half as long as one of scores: it falls
  // behind what is still to be read. The products of tiles that are left are done meanwhile: apart, vectors and tiles
  // would wait for each other.
  template <int kRows>
  void exponentiate(const KeyBlock& block, int64_t rows, const float* shifts, float* sums, bool add,
                    Products<kRows>& products) {
    const int64_t whole_steps = block.count / kStepKeys, rest = block.count % kStepKeys;
    const auto valid_first = first_lanes(minimum(rest, kTile)), valid_second = first_lanes(rest - kTile);
    const Float scale = broadcast(scale_);
    const int64_t count = products.left();
    for (int64_t r = 0; r < rows; r++) {
      const Float shift = broadcast(shifts ? shifts[r] : 0);
      const auto power_at = [&](int64_t step, int64_t i) FASTDIFF_INLINE_LAMBDA {
        return power_of_two_by_floor(multiply_add(load(block.scores_of(step) + r * kStepKeys + i), scale, -shift));
      };
      float* target = sums + r * kLanes;
      Float sum = add ? load(target) : Float{};
      for (int64_t step = 0; step < whole_steps; step++) {
        const Float first = power_at(step, 0), second = power_at(step, kTile);
        sum += first + second;
        store_numbers(block.probabilities_of(step) + r * kTileDepth, round_to_pairs(first, second));
      }
      if (rest > 0) {
        const Float first = _mm512_maskz_mov_ps(valid_first, power_at(whole_steps, 0));
        // Of half a step, no more than that has been written.
        const Float second = rest > kTile ? _mm512_maskz_mov_ps(valid_second, power_at(whole_steps, kTile)) : Float{};
        sum += first + second;
        store_numbers(block.probabilities_of(whole_steps) + r * kTileDepth, round_to_pairs(first, second));
      }
      store(target, sum);
      while ((count - products.left()) * rows < (r + 1) * count) products.next();
    }
  }

  static __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << maximum(count, 0)) - 1); }

  // Makes up what each query's scores have subtracted, before a block of them is exponentiated, and rescales the output
  // of earlier blocks to that.
  template <int kRows>
  void raise_tops(const KeyBlock& block, float* sums, bool rescale) {
    const auto larger_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return larger(a, b); };
    const int64_t vectors = ceil_div(block.count, kTile);
    const __mmask16 valid = first_lanes(block.count - (vectors - 1) * kTile);
    for (int64_t r = 0; r < kRows * kTile; r++) {
      const auto scores = [&](int64_t vector) {
        return block.scores_of(vector / 2) + r * kStepKeys + vector % 2 * kTile;
      };
      float* last = scores(vectors - 1);
      store(last, _mm512_mask_blend_ps(valid, _mm512_set1_ps(scale_ < 0 ? INFINITY : -INFINITY), load(last)));
      Float top = broadcast(tops_[r]);
      for (int64_t v = 0; v < vectors; v++) top = larger(load(scores(v)) * scale_, top);
      const float before = tops_[r], now = across_lanes(top, larger_lanes)[0];
      // -infinity less -infinity would be NaN, although another block may hold a finite score.
      shifts_[r] = now > -INFINITY ? now : 0;
      tops_[r] = now;
      if (!rescale || before == now) continue;
      const float factor = power_of_two_or_zero(broadcast(before - shifts_[r]))[0];
      for (float* d = output_ + r * output_stride_; d < output_ + (r + 1) * output_stride_; d += kLanes)
        store(d, load(d) * factor);
      store(sums + r * kLanes, load(sums + r * kLanes) * factor);
    }
  }

  // Divides the rows whose bit is set in `mask` by their sums. Returns the bits of those that are not what they should
  // be if nothing was subtracted from the scores: their sum has left the range where all that counts is a normal
  // number, or values were too large for it.
  template <int kRows>
  uint32_t write(const AttentionParams& p, uint32_t mask, const Queries& rows, const float* lane_sums) const {
    uint32_t doubtful = 0;
    for (int64_t tile = 0; tile < kRows; tile++) {
      float sums[kTile], reciprocals[kTile], logarithms[kTile];
      for (int64_t r = 0; r < kTile; r++) sums[r] = output_[(tile * kTile + r) * output_stride_ + p.head_dim];
      const Float sum = load(sums);
      store(reciprocals, 1 / sum);
      const Float logarithm = logarithm_to_base_2(sums_of_rows(lane_sums + tile * kTile * kLanes));
      store(logarithms, (load(tops_ + tile * kTile) + logarithm) * (1 / kLog2e));
      const __mmask16 good = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(kLeastSum), _CMP_GE_OQ) &
                             _mm512_cmp_ps_mask(sum, _mm512_set1_ps(kGreatestSum), _CMP_LE_OQ);
      doubtful |= static_cast<uint32_t>(static_cast<__mmask16>(~good)) << (tile * kTile);
      for (int64_t r = 0; r < kTile; r++) {
        const int64_t row = tile * kTile + r;
        if (!(mask >> row & 1)) continue;
        BFloat16* target = rows.output + row * p.heads * p.head_dim;
        if (!write_row(output_ + row * output_stride_, p.head_dim, reciprocals[r], target))
          doubtful |= uint32_t{1} << row;
        if (rows.logsumexp) rows.logsumexp[row] = logarithms[r];
      }
    }
    return doubtful & mask;
  }

  // Of 16 rows of 16, a lane each.
  static Float sums_of_rows(const float* rows) {
    Float sums[kTile];
    for (int64_t r = 0; r < kTile; r++) sums[r] = load(rows + r * kLanes);
    return sums_of_lanes(sums);
  }

  // Whether all numbers are finite.
  static bool write_row(const float* source, int64_t columns, float factor, BFloat16* target) {
    Float nan_if_any = {};
    for (int64_t d = 0; d < columns; d += kTileDepth) {
      const Float first = load(source + d) * factor, second = load(source + d + kTile) * factor;
      nan_if_any = multiply_add(first, Float{}, multiply_add(second, Float{}, nan_if_any));
      const auto present = static_cast<__mmask32>(columns - d >= kTileDepth ? ~0u : (1u << (columns - d)) - 1);
      _mm512_mask_storeu_epi16(target + d, present, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
    return _mm512_cmp_ps_mask(nan_if_any, nan_if_any, _CMP_UNORD_Q) == 0;
  }

  static void write_zeros(const AttentionParams& p, const Queries& queries) {
    for (int64_t r = 0; r < queries.rows; r++) {
      std::memset(queries.output + r * p.heads * p.head_dim, 0, p.head_dim * sizeof(BFloat16));
      if (queries.logsumexp) queries.logsumexp[r] = -INFINITY;
    }
  }

  int64_t depth_steps_, value_tiles_, output_stride_;
  Scratch<BFloat16> query_;
  Scratch<float> scores_;
  Scratch<float> output_;
  float scale_ = 0;
  // Of the probabilities of every query so far, a sum for each lane, of two blocks of rows; and what scores have
  // subtracted.
  alignas(64) float sums_[2][kRowsAtOnce * kLanes] = {}, tops_[kRowsAtOnce], shifts_[kRowsAtOnce];
  TileRegisters registers_;
  FlushToZero flush_;
};

}  // namespace

void attention(const AttentionParams& p, const Threads& threads) {
  if (p.dtype != DType::BFloat16) return avx512_bf16::attention(p, threads);
  attend<PackedHead, QueryBlock>(p, threads);
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff::cpu
