// Forward attention of bfloat16 on the tile unit.
//
// Both products go 32 queries by 32 keys at a time, as 2x2 tiles. The sum of a query's probabilities comes with the
// product by the values, which have a column of ones; so what counts is the sum of the rounded probabilities, and keys
// that only fill a tile count for nothing.
//
// Powers of two of the scores themselves, with nothing subtracted, do for almost all queries: they keep their relative
// precision over the whole range of exponents, and one look at their sum tells whether they have left it. The queries
// for which they have are worked out again with the largest score subtracted, as attention.cpp does it. Which of the
// two a query gets depends on its own scores and values alone.
#include "cpu/amx/logarithm.h"
#include "cpu/amx/packed_head.h"
#include "cpu/attention_schedule.h"

namespace fastdiff::cpu {
namespace avx512_bf16 {
void attention(const AttentionParams&, const Threads&);
}

namespace FASTDIFF_ISA {
namespace {

constexpr int64_t kBlockSteps = 16;  // whose probabilities stay in the L1 cache
constexpr int64_t kBlockKeys = kBlockSteps * kStepKeys;

// Sums of powers of two between these lose nothing: a probability that counts is far above the least normal number, and
// the products by values have room up to the largest.
constexpr float kLeastSum = 0x1p-48f, kGreatestSum = 0x1p48f;

// Rounded 2^t in the upper half of every lane, garbage in the lower. The polynomial is a minimax approximation of 2^f
// on [0, 1] (relative error 7.5e-5) plus half a unit in the last place of a bfloat16 in [1, 2): what is cut off later
// is rounded to nearest.
FASTDIFF_INLINE Float power_of_two_to_cut(Float t) {
  constexpr int kAboveFloor = 0x09;
  const Float f = _mm512_reduce_ps(t, kAboveFloor);
  Float p = f * 0.0780245226f + 0.226067155f;
  p = p * f + 0.695833540f;
  p = p * f + (0.999925219f + 0x1p-8f);
  return _mm512_scalef_ps(p, t);  // by the floor of t
}

// The upper halves of the lanes of both as pairs.
FASTDIFF_INLINE UInt cut_to_pairs(Float first, Float second) {
  constexpr __mmask64 kLowerHalves = 0x3333333333333333;
  const __m512i positions = _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302);
  return (UInt)_mm512_mask_shuffle_epi8((__m512i)second, kLowerHalves, (__m512i)first, positions);
}

// One thread's memory.
class QueryBlock {
 public:
  static constexpr int64_t kQueries = 2 * kTile;

  explicit QueryBlock(const AttentionParams& p)
      : depth_steps_(ceil_div(p.head_dim, kTileDepth)),
        value_tiles_(PackedHead::value_tiles(p)),
        output_stride_(value_tiles_ * kTile),
        query_(depth_steps_ * 2 * kTileNumbers),
        scores_(kBlockSteps * kScoresOfStep),
        probabilities_(kBlockSteps * 2 * kTileNumbers),
        output_(kQueries * output_stride_) {}

  void run(const AttentionParams& p, const PackedHead& packed, int64_t sample, int64_t head, int64_t first,
           int64_t rows) {
    const int64_t stride = p.query.token_stride, keys = keys_of(p, sample);
    const auto* query = head_of<BFloat16>(p.query, sample, head) + first * stride;
    const int64_t row = (sample * p.query_length + first) * p.heads + head;
    auto* output = static_cast<BFloat16*>(p.output) + row * p.head_dim;
    float* logsumexp = p.logsumexp ? p.logsumexp + (sample * p.heads + head) * p.query_length + first : nullptr;
    if (keys == 0) return write_zeros(p, rows, output, logsumexp);
    gather(query, stride, rows, p.head_dim);
    prefetch_rows(query + rows * stride, stride, kQueries, p.head_dim);
    prefetch_rows(output, p.heads * p.head_dim, rows, p.head_dim);
    scale_ = p.scale * kLog2e;
    if (rows > kTile) {
      work_out<2>(p, packed, keys, rows, output, logsumexp);
    } else {
      work_out<1>(p, packed, keys, rows, output, logsumexp);
    }
  }

 private:
  static constexpr int64_t kScoresOfStep = kQueries * kStepKeys;

  float* scores_of(int64_t step) const { return scores_ + step * kScoresOfStep; }
  BFloat16* probabilities_of(int64_t step) const { return probabilities_ + step * 2 * kTileNumbers; }

  void gather(const BFloat16* query, int64_t stride, int64_t rows, int64_t head_dim) {
    for (int64_t step = 0; step < depth_steps_; step++) {
      BFloat16* target = query_ + step * 2 * kTileNumbers;
      for (int64_t r = 0; r < rows; r++)
        store_numbers(target + r * kTileDepth,
                      load_numbers(query + r * stride + step * kTileDepth, head_dim - step * kTileDepth));
      for (int64_t r = rows; r < kQueries; r++) store_numbers(target + r * kTileDepth, UInt{});
    }
  }

  template <int kRows>
  void work_out(const AttentionParams& p, const PackedHead& packed, int64_t keys, int64_t rows, BFloat16* output,
                float* logsumexp) {
    for (int64_t key = 0; key < keys; key += kBlockKeys) {
      const int64_t count = minimum(kBlockKeys, keys - key), steps = ceil_div(count, kStepKeys);
      score<kRows>(p, packed, key / kStepKeys, count, 0);
      for (int64_t step = 0; step < steps; step++) {
        // Ahead, so that the tile unit is at work while probabilities are.
        const int64_t left = count - step * kStepKeys;
        if (left > kStepKeys) score<kRows>(p, packed, key / kStepKeys + step + 1, left - kStepKeys, (step + 1) % 2);
        for_pairs_or_half(left, [&](auto pairs) {
          exponentiate<kRows, decltype(pairs)::value>(scores_of(step % 2), nullptr, probabilities_of(step));
        });
      }
      add_values<kRows>(p, packed, key / kStepKeys, steps, key > 0);
    }
    for (int64_t r = 0; r < kRows * kTile; r++) tops_[r] = 0;
    uint32_t wanted = static_cast<uint32_t>((uint64_t{1} << rows) - 1);
    wanted = write<kRows>(p, wanted, output, logsumexp);
    if (wanted == 0) return;
    work_out_large<kRows>(p, packed, keys);
    write<kRows>(p, wanted, output, logsumexp);
  }

  // The same for scores of any size.
  template <int kRows>
  void work_out_large(const AttentionParams& p, const PackedHead& packed, int64_t keys) {
    for (float& top : tops_) top = -INFINITY;
    for (int64_t key = 0; key < keys; key += kBlockKeys) {
      const int64_t count = minimum(kBlockKeys, keys - key), steps = ceil_div(count, kStepKeys);
      for (int64_t step = 0; step < steps; step++)
        score<kRows>(p, packed, key / kStepKeys + step, count - step * kStepKeys, step);
      raise_tops<kRows>(count, key > 0);
      for (int64_t step = 0; step < steps; step++)
        for_pairs_or_half(count - step * kStepKeys, [&](auto pairs) {
          exponentiate<kRows, decltype(pairs)::value>(scores_of(step), shifts_, probabilities_of(step));
        });
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

  // Scores of a step become probabilities, less the `shifts` of their queries if there are any.
  template <int kRows, bool kPairs>
  FASTDIFF_INLINE void exponentiate(const float* scores, const float* shifts, BFloat16* probabilities) const {
    const Float scale = broadcast(scale_);
    for (int64_t r = 0; r < kRows * kTile; r++) {
      const Float shift = broadcast(shifts ? shifts[r] : 0);
      const auto power_at = [&](int64_t i) FASTDIFF_INLINE_LAMBDA {
        return power_of_two_to_cut(multiply_add(load(scores + r * kStepKeys + i), scale, -shift));
      };
      const Float second = kPairs ? power_at(kTile) : Float{};
      store_numbers(probabilities + r * kTileDepth, cut_to_pairs(power_at(0), second));
    }
  }

  // Makes up what each query's scores have subtracted, before a block of them is exponentiated, and rescales the output
  // of earlier blocks to that.
  template <int kRows>
  void raise_tops(int64_t count, bool rescale) {
    const auto larger_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return larger(a, b); };
    const int64_t vectors = ceil_div(count, kTile);
    const auto valid = static_cast<__mmask16>((1u << (count - (vectors - 1) * kTile)) - 1);
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
      store(logarithms, (load(tops_ + tile * kTile) + logarithm_to_base_2(sum)) * (1 / kLog2e));
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

  // Whether all numbers are finite.
  static bool write_row(const float* source, int64_t columns, float factor, BFloat16* target) {
    narrow_row(source, columns, factor, target);
    Float nan_if_any = {};
    int64_t d = 0;
    for (; d < columns; d += kLanes) nan_if_any += load(source + d) * factor * 0.0f;
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
  Scratch<BFloat16> probabilities_;
  Scratch<float> output_;
  float scale_ = 0;
  alignas(64) float tops_[kQueries] = {}, shifts_[kQueries];
  TileRegisters registers_;
};

}  // namespace

void attention(const AttentionParams& p, const Threads& threads) {
  if (p.dtype != DType::BFloat16) return avx512_bf16::attention(p, threads);
  attend<PackedHead, QueryBlock>(p, threads);
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff::cpu
