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

// Scores that stay in the L1 cache, with room for the tiles that they meet. All of them before all probabilities: while
// the tile unit is at work, vectors of 512 bits have one execution port instead of two, so that doing both at once
// gains nothing.
constexpr int64_t kBlockSteps = 5;
constexpr int64_t kBlockKeys = kBlockSteps * kStepKeys;

// Sums of powers of two between these lose nothing: a probability that counts is far above the least normal number, and
// the products by values have room up to the largest.
constexpr float kLeastSum = 0x1p-48f, kGreatestSum = 0x1p48f;

constexpr int64_t kRowsAtOnce = 2 * kTile;

// One thread's memory.
class QueryBlock {
 public:
  static constexpr int64_t kQueries = 4 * kRowsAtOnce;

  explicit QueryBlock(const AttentionParams& p)
      : depth_steps_(ceil_div(p.head_dim, kTileDepth)),
        value_tiles_(PackedHead::value_tiles(p)),
        output_stride_(ceil_div(value_tiles_, 2) * kTileDepth),
        query_(depth_steps_ * 2 * kTileNumbers),
        scores_(kBlockSteps * kScoresOfStep),
        output_(kRowsAtOnce * output_stride_) {
    std::memset(output_, 0, kRowsAtOnce * output_stride_ * sizeof(float));  // columns that no tile writes are read
  }

  void run(const AttentionParams& p, const PackedHead& packed, int64_t sample, int64_t head, int64_t first,
           int64_t rows) {
    for (int64_t row = 0; row < rows; row += kRowsAtOnce)
      run_rows(p, packed, sample, head, first + row, minimum(kRowsAtOnce, rows - row));
  }

 private:
  void run_rows(const AttentionParams& p, const PackedHead& packed, int64_t sample, int64_t head, int64_t first,
                int64_t rows) {
    const int64_t keys = keys_of(p, sample);
    const int64_t row = (sample * p.query_length + first) * p.heads + head;
    auto* output = static_cast<BFloat16*>(p.output) + row * p.head_dim;
    float* logsumexp = p.logsumexp ? p.logsumexp + (sample * p.heads + head) * p.query_length + first : nullptr;
    if (keys == 0) return write_zeros(p, rows, output, logsumexp);
    const int64_t stride = p.query.token_stride;
    const auto* query = head_of<BFloat16>(p.query, sample, head) + first * stride;
    pack_left(query, stride, rows, p.head_dim, query_);
    // Of the next head, whose turn may be next: early enough for rows that lie in memory.
    prefetch_rows(query + p.query.head_stride, stride, rows, p.head_dim);
    prefetch_rows(output + p.head_dim, p.heads * p.head_dim, rows, p.head_dim);
    scale_ = p.scale * kLog2e;
    if (rows > kTile) {
      work_out<2>(p, packed, keys, rows, output, logsumexp);
    } else {
      work_out<1>(p, packed, keys, rows, output, logsumexp);
    }
  }

  static constexpr int64_t kScoresOfStep = kRowsAtOnce * kStepKeys;

  float* scores_of(int64_t step) const { return scores_ + step * kScoresOfStep; }
  BFloat16* probabilities_of(int64_t step) const { return reinterpret_cast<BFloat16*>(scores_of(step)); }

  template <int kRows>
  void work_out(const AttentionParams& p, const PackedHead& packed, int64_t keys, int64_t rows, BFloat16* output,
                float* logsumexp) {
    multiply<kRows>(p, packed, keys, false);
    const uint32_t all = static_cast<uint32_t>((uint64_t{1} << rows) - 1);
    const uint32_t doubtful = write<kRows>(p, all, output, logsumexp);
    if (doubtful == 0) return;
    multiply<kRows>(p, packed, keys, true);
    write<kRows>(p, doubtful, output, logsumexp);
  }

  // The output, not yet divided by the sums; with `large`, of scores of any size.
  template <int kRows>
  void multiply(const AttentionParams& p, const PackedHead& packed, int64_t keys, bool large) {
    for (float& top : tops_) top = large ? -INFINITY : 0;
    for (int64_t key = 0; key < keys; key += kBlockKeys) {
      const int64_t count = minimum(kBlockKeys, keys - key), steps = ceil_div(count, kStepKeys);
      for (int64_t step = 0; step < steps; step++)
        score<kRows>(p, packed, key / kStepKeys + step, count - step * kStepKeys, step);
      if (large) raise_tops<kRows>(count, key > 0);
      exponentiate<kRows>(count, large ? shifts_ : nullptr, key > 0);
      add_values<kRows>(p, packed, key / kStepKeys, steps, key > 0);
    }
  }

  // The scores of a step, of which `left` keys are left, go where those of the step `target` of a block are.
  template <int kRows>
  void score(const AttentionParams& p, const PackedHead& packed, int64_t step, int64_t left, int64_t target) const {
    const BFloat16* keys = packed.keys(p, step);
    finish_writes();
    for_pairs_or_half(left, [&](auto pairs) {
      using Sums = TileSums<kRows, decltype(pairs)::value ? 2 : 1>;
      Sums::clear();
      for (int64_t k = 0; k < depth_steps_; k++)
        Sums::add_product(query_ + k * 2 * kTileNumbers, keys + k * 2 * kTileNumbers);
      Sums::store(scores_of(target), kStepKeys);
    });
  }

  // output = probabilities * values of a block, or output + that.
  template <int kRows>
  void add_values(const AttentionParams& p, const PackedHead& packed, int64_t first_step, int64_t steps,
                  bool add) const {
    finish_writes();
    const auto add_columns = [&](auto sums, int64_t tile) {
      using Sums = decltype(sums);
      float* target = output_ + tile * kTile;
      if (add) {
        Sums::load(target, output_stride_);
      } else {
        Sums::clear();
      }
      for (int64_t step = 0; step < steps; step++)
        Sums::add_product(probabilities_of(step), packed.values(p, first_step + step) + tile * kTileNumbers);
      Sums::store(target, output_stride_);
    };
    int64_t tile = 0;
    for (; tile + 2 <= value_tiles_; tile += 2) add_columns(TileSums<kRows, 2>{}, tile);
    if (tile < value_tiles_) add_columns(TileSums<kRows, 1>{}, tile);
  }

  // Scores of `count` keys become probabilities, less the `shifts` of their queries if there are any, which are added
  // to the sums, or begin them. A row of probabilities is half as long as one of scores: it falls behind what is still
  // to be read.
  template <int kRows>
  void exponentiate(int64_t count, const float* shifts, bool add) {
    const int64_t whole_steps = count / kStepKeys, rest = count % kStepKeys;
    const auto valid_first = first_lanes(minimum(rest, kTile)), valid_second = first_lanes(rest - kTile);
    const Float scale = broadcast(scale_);
    for (int64_t r = 0; r < kRows * kTile; r++) {
      const Float shift = broadcast(shifts ? shifts[r] : 0);
      const auto power_at = [&](int64_t step, int64_t i) FASTDIFF_INLINE_LAMBDA {
        return power_of_two_by_floor(multiply_add(load(scores_of(step) + r * kStepKeys + i), scale, -shift));
      };
      float* target = sums_ + r * kLanes;
      Float sum = add ? load(target) : Float{};
      for (int64_t step = 0; step < whole_steps; step++) {
        const Float first = power_at(step, 0), second = power_at(step, kTile);
        sum += first + second;
        store_numbers(probabilities_of(step) + r * kTileDepth, round_to_pairs(first, second));
      }
      if (rest > 0) {
        const Float first = _mm512_maskz_mov_ps(valid_first, power_at(whole_steps, 0));
        const Float second = _mm512_maskz_mov_ps(valid_second, power_at(whole_steps, kTile));
        sum += first + second;
        store_numbers(probabilities_of(whole_steps) + r * kTileDepth, round_to_pairs(first, second));
      }
      store(target, sum);
    }
  }

  static __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << maximum(count, 0)) - 1); }

  // Makes up what each query's scores have subtracted, before a block of them is exponentiated, and rescales the output
  // of earlier blocks to that.
  template <int kRows>
  void raise_tops(int64_t count, bool rescale) {
    const auto larger_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return larger(a, b); };
    const int64_t vectors = ceil_div(count, kTile);
    const __mmask16 valid = first_lanes(count - (vectors - 1) * kTile);
    for (int64_t r = 0; r < kRows * kTile; r++) {
      const auto scores = [&](int64_t vector) { return scores_of(vector / 2) + r * kStepKeys + vector % 2 * kTile; };
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
      store(sums_ + r * kLanes, load(sums_ + r * kLanes) * factor);
    }
  }

  // Divides the rows whose bit is set in `rows` by their sums. Returns the bits of those that are not what they should
  // be if nothing was subtracted from the scores: their sum has left the range where all that counts is a normal
  // number, or values were too large for it.
  template <int kRows>
  uint32_t write(const AttentionParams& p, uint32_t rows, BFloat16* output, float* logsumexp) const {
    uint32_t doubtful = 0;
    for (int64_t tile = 0; tile < kRows; tile++) {
      float sums[kTile], reciprocals[kTile], logarithms[kTile];
      for (int64_t r = 0; r < kTile; r++) sums[r] = output_[(tile * kTile + r) * output_stride_ + p.head_dim];
      const Float sum = load(sums);
      store(reciprocals, 1 / sum);
      const Float logarithm = logarithm_to_base_2(sums_of_rows(sums_ + tile * kTile * kLanes));
      store(logarithms, (load(tops_ + tile * kTile) + logarithm) * (1 / kLog2e));
      const __mmask16 good = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(kLeastSum), _CMP_GE_OQ) &
                             _mm512_cmp_ps_mask(sum, _mm512_set1_ps(kGreatestSum), _CMP_LE_OQ);
      doubtful |= static_cast<uint32_t>(static_cast<__mmask16>(~good)) << (tile * kTile);
      for (int64_t r = 0; r < kTile; r++) {
        const int64_t row = tile * kTile + r;
        if (!(rows >> row & 1)) continue;
        BFloat16* target = output + row * p.heads * p.head_dim;
        if (!write_row(output_ + row * output_stride_, p.head_dim, reciprocals[r], target))
          doubtful |= uint32_t{1} << row;
        if (logsumexp) logsumexp[row] = logarithms[r];
      }
    }
    return doubtful & rows;
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

  static void write_zeros(const AttentionParams& p, int64_t rows, BFloat16* output, float* logsumexp) {
    for (int64_t r = 0; r < rows; r++) {
      std::memset(output + r * p.heads * p.head_dim, 0, p.head_dim * sizeof(BFloat16));
      if (logsumexp) logsumexp[r] = -INFINITY;
    }
  }

  int64_t depth_steps_, value_tiles_, output_stride_;
  Scratch<BFloat16> query_;
  Scratch<float> scores_;
  Scratch<float> output_;
  float scale_ = 0;
  // Of the probabilities of every query so far, a sum for each lane; and what its scores have subtracted.
  alignas(64) float sums_[kRowsAtOnce * kLanes], tops_[kRowsAtOnce], shifts_[kRowsAtOnce];
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
