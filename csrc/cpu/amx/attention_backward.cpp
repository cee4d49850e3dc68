// Backward attention of bfloat16 on the tile unit; for the formulas see cpu/attention_backward.cpp.
//
// Of 32 queries by 32 keys at a time, scores and dP are 2x2 tiles. P and dS are rounded to bfloat16, as pairs of
// queries, which are right-hand tiles: with dO and Q as columns on the left they give dV and dK transposed, and those
// are turned when they are written. As pairs of keys, dS is a left-hand matrix: with the keys on the right it gives dQ.
#include "cpu/amx/key_steps.h"
#include "cpu/amx/lane_sums.h"
#include "cpu/amx/packing.h"
#include "cpu/amx/probability.h"
#include "cpu/attention_backward_schedule.h"
#include "cpu/attention_blocks.h"
#include "cpu/flush_to_zero.h"

namespace fastdiff::cpu {
namespace avx512_bf16 {
void attention_backward(const AttentionBackwardParams&, const Threads&);
}

namespace FASTDIFF_ISA {
namespace {

constexpr int64_t kStepQueries = 2 * kTile;
constexpr int64_t kStepScores = kStepQueries * kStepKeys;

// Steps of queries and of keys of a block. The sums of dK and dV run over its queries, those of dQ over its keys: many,
// to be worth fetching the sums and putting them back; no more, for its P and dS to stay in the L2 cache.
constexpr int64_t kQuerySteps = 16, kKeySteps = 8;

int64_t depth_steps(const AttentionParams& p) { return ceil_div(p.head_dim, kTileDepth); }
int64_t dim_tiles(const AttentionParams& p) { return ceil_div(p.head_dim, kTile); }

// Calls visit(Count<number>, tile) for the tiles that hold the columns of a head, `number` of them from `tile` on: two
// at a time.
template <class Visit>
FASTDIFF_INLINE void for_pairs_of_tiles(int64_t tiles, const Visit& visit) {
  int64_t tile = 0;
  for (; tile + 2 <= tiles; tile += 2) visit(Count<2>{}, tile);
  if (tile < tiles) visit(Count<1>{}, tile);
}

// The keys and values of a step as right-hand matrices.
class KeyBlock {
 public:
  using Element = BFloat16;
  static constexpr int64_t kKeys = kStepKeys;

  KeyBlock(const AttentionParams& p, BFloat16* memory)
      : key_columns(memory),
        value_columns(key_columns + depth_steps(p) * 2 * kTileNumbers),
        key_rows(value_columns + depth_steps(p) * 2 * kTileNumbers) {}

  static int64_t size(const AttentionParams& p) { return (depth_steps(p) * 4 + dim_tiles(p)) * kTileNumbers; }

  void pack(const AttentionParams& p, int64_t sample, int64_t kv_head, int64_t first) const {
    const int64_t count = minimum(kStepKeys, keys_of(p, sample) - first);
    if (count <= 0) return;
    const int64_t key_stride = p.key.token_stride, value_stride = p.value.token_stride;
    const auto* key = head_of<BFloat16>(p.key, sample, kv_head) + first * key_stride;
    const auto* value = head_of<BFloat16>(p.value, sample, kv_head) + first * value_stride;
    const int64_t count_after = minimum(kStepKeys, keys_of(p, sample) - first - kStepKeys);  // of the next step
    prefetch_rows(key + kStepKeys * key_stride, key_stride, count_after, p.head_dim);
    prefetch_rows(value + kStepKeys * value_stride, value_stride, count_after, p.head_dim);
    pack_as_columns(key, key_stride, count, p.head_dim, key_columns);
    pack_as_columns(value, value_stride, count, p.head_dim, value_columns);
    pack_as_rows(key, key_stride, count, p.head_dim, key_rows);
  }

  BFloat16 *key_columns, *value_columns, *key_rows;
};

// Sums of dK and dV of a (sample, key head) over a part of its queries, transposed: for every step of keys and every 16
// columns of a head, these are 16 rows of 32 keys.
class KeySums {
  static constexpr int64_t kTileOfSums = kTile * kStepKeys;

 public:
  KeySums(const AttentionParams& p, float* memory) : memory_(memory), step_size_(dim_tiles(p) * kTileOfSums) {}

  static int64_t size(const AttentionParams& p) {
    return 2 * ceil_div(p.kv_length, kStepKeys) * dim_tiles(p) * kTileOfSums;
  }

  float* dkey(int64_t step, int64_t tile) const { return memory_ + 2 * step * step_size_ + tile * kTileOfSums; }
  float* dvalue(int64_t step, int64_t tile) const { return dkey(step, tile) + step_size_; }

  // A step of dK and dV: the parts added up and rounded.
  static void write(const AttentionBackwardParams& b, const PartialSums& parts, int64_t sample, int64_t kv_head,
                    int64_t first) {
    const AttentionParams& p = b.forward;
    const int64_t valid = keys_of(p, sample) - first, count = minimum(kStepKeys, p.kv_length - first);
    const int64_t stride = p.kv_heads * p.head_dim;
    const int64_t at = (sample * p.kv_length + first) * stride + kv_head * p.head_dim;
    const KeySums sums(p, parts.first);
    const auto write_tile = [&](const float* source, int64_t columns, float factor, BFloat16* target) {
      for (int64_t half = 0; half < count; half += kTile, target += kTile * stride) {
        UInt rows[kTile];
        for (int64_t d = 0; d < kTile; d++) {
          Float sum = {};
          for (int64_t part = 0; part < (half < valid ? parts.count : 0); part++)
            sum += load(source + part * parts.size + d * kStepKeys + half);
          rows[d] = (UInt)(sum * factor);
        }
        transpose(rows);
        for (int64_t i = 0; i < minimum(kTile, count - half); i++)
          store_first_rounded(target + i * stride, half + i < valid ? (Float)rows[i] : Float{}, columns);
      }
    };
    // Of the next step.
    const int64_t after = at + kStepKeys * stride, count_after = minimum(kStepKeys, p.kv_length - first - kStepKeys);
    prefetch_rows(static_cast<BFloat16*>(b.dkey) + after, stride, count_after, p.head_dim);
    prefetch_rows(static_cast<BFloat16*>(b.dvalue) + after, stride, count_after, p.head_dim);
    for (int64_t tile = 0; tile < dim_tiles(p); tile++) {
      const int64_t d = tile * kTile, columns = p.head_dim - d;
      write_tile(sums.dkey(first / kStepKeys, tile), columns, p.scale, static_cast<BFloat16*>(b.dkey) + at + d);
      write_tile(sums.dvalue(first / kStepKeys, tile), columns, 1, static_cast<BFloat16*>(b.dvalue) + at + d);
    }
  }

 private:
  static void store_first_rounded(BFloat16* target, Float v, int64_t count) {
    const auto mask = static_cast<__mmask16>(count >= kTile ? 0xffff : (1u << count) - 1);
    _mm256_mask_storeu_epi16(target, mask, (__m256i)_mm512_cvtneps_pbh(v));
  }

  float* memory_;
  int64_t step_size_;
};

// One thread's memory: a block of queries of one head.
class QueryBlock {
  struct Rows {
    const BFloat16* data;
    int64_t stride;
  };

 public:
  static constexpr int64_t kQueries = kQuerySteps * kStepQueries;

  explicit QueryBlock(const AttentionParams& p)
      : head_dim_(p.head_dim),
        depth_steps_(depth_steps(p)),
        dim_tiles_(dim_tiles(p)),
        columns_(dim_tiles_ * kTile),
        query_(kQuerySteps * depth_steps_ * 2 * kTileNumbers),
        doutput_(kQuerySteps * depth_steps_ * 2 * kTileNumbers),
        query_columns_(kQuerySteps * dim_tiles_ * kTileNumbers),
        doutput_columns_(kQuerySteps * dim_tiles_ * kTileNumbers),
        probabilities_(kKeySteps * kQuerySteps * kStepScores),
        dscores_(kKeySteps * kQuerySteps * kStepScores),
        dscores_of_keys_(kKeySteps * kStepScores),
        dquery_(kQueries * columns_) {}

  // Queries [first, first + kQueries) of one head. `packed` and `sums` are of the (sample, key head); the sums are new
  // when `add` is false. With `ahead`, the same queries of the next head come next.
  void run(const AttentionBackwardParams& b, BFloat16* packed, const KeySums& sums, int64_t sample, int64_t head,
           int64_t first, bool add, bool ahead) {
    const AttentionParams& p = b.forward;
    rows_ = minimum(kQueries, p.query_length - first);
    query_steps_ = ceil_div(rows_, kStepQueries);
    scale_ = p.scale * kLog2e;
    fetch(b, sample, head, first);
    const int64_t keys = keys_of(p, sample);
    for (int64_t key = 0; key < keys; key += kKeySteps * kStepKeys) {
      const int64_t first_step = key / kStepKeys, count = minimum(kKeySteps * kStepKeys, keys - key);
      const auto block = [&](int64_t step) FASTDIFF_INLINE_LAMBDA {
        return KeyBlock(p, packed + (first_step + step) * KeyBlock::size(p));
      };
      for (int64_t q = 0; q < query_steps_; q++) {
        if (ahead && key == 0) prefetch_next_head(q);
        differentiate(block, q, count);
        add_dquery(block, q, ceil_div(count, kStepKeys), key > 0);
      }
      for (int64_t step = 0; step * kStepKeys < count; step++) add_keys(sums, first_step, step, count, add);
    }
    if (keys == 0) std::memset(dquery_, 0, rows_ * columns_ * sizeof(float));
    for (int64_t r = 0; r < rows_; r++)
      narrow_row(dquery_ + r * columns_, head_dim_, p.scale,
                 static_cast<BFloat16*>(b.dquery) + dense_row(p, sample, head, first + r));
  }

 private:
  // Of the step `q` of queries.
  BFloat16* query(int64_t q) const { return query_ + q * depth_steps_ * 2 * kTileNumbers; }
  BFloat16* doutput(int64_t q) const { return doutput_ + q * depth_steps_ * 2 * kTileNumbers; }
  BFloat16* query_columns(int64_t q) const { return query_columns_ + q * dim_tiles_ * kTileNumbers; }
  BFloat16* doutput_columns(int64_t q) const { return doutput_columns_ + q * dim_tiles_ * kTileNumbers; }
  // And the step `k` of keys of a block.
  BFloat16* probabilities(int64_t q, int64_t k) const { return probabilities_ + (k * kQuerySteps + q) * kStepScores; }
  BFloat16* dscores(int64_t q, int64_t k) const { return dscores_ + (k * kQuerySteps + q) * kStepScores; }

  void fetch(const AttentionBackwardParams& b, int64_t sample, int64_t head, int64_t first) {
    const AttentionParams& p = b.forward;
    const Rows query_rows{head_of<BFloat16>(p.query, sample, head) + first * p.query.token_stride,
                          p.query.token_stride};
    const Rows doutput_rows{head_of<BFloat16>(b.doutput, sample, head) + first * b.doutput.token_stride,
                            b.doutput.token_stride};
    const Rows output_rows{static_cast<const BFloat16*>(p.output) + dense_row(p, sample, head, first),
                           p.heads * head_dim_};
    next_head_[0] = {query_rows.data + p.query.head_stride, query_rows.stride};
    next_head_[1] = {doutput_rows.data + b.doutput.head_stride, doutput_rows.stride};
    next_head_[2] = {output_rows.data + head_dim_, output_rows.stride};
    const float* logsumexp = p.logsumexp + (sample * p.heads + head) * p.query_length + first;
    for (int64_t q = 0; q < query_steps_; q++) {
      const int64_t row = q * kStepQueries, count = minimum(kStepQueries, rows_ - row);
      const auto pack = [&](const Rows& rows, BFloat16* left, BFloat16* left_columns) {
        pack_left(rows.data + row * rows.stride, rows.stride, count, head_dim_, left);
        turn_left(left, dim_tiles_, left_columns);
      };
      pack(query_rows, query(q), query_columns(q));
      pack(doutput_rows, doutput(q), doutput_columns(q));
      for (int64_t r = 0; r < kStepQueries; r += kTile)
        store(deltas_ + row + r,
              multiply_rows(doutput(q) + r * kTileDepth, output_rows.data + (row + r) * output_rows.stride,
                            output_rows.stride, count - r));
      // Queries that are not there have no weight.
      for (int64_t r = 0; r < kStepQueries; r++)
        shifts_[row + r] = r < count ? -kLog2e * logsumexp[row + r] : -INFINITY;
    }
  }

  // The product of each of 16 rows, which start in a left-hand tile, with one of `count` rows; a lane each.
  Float multiply_rows(const BFloat16* left, const BFloat16* rows, int64_t stride, int64_t count) const {
    Float sums[kTile];
    for (int64_t r = 0; r < kTile; r++) {
      sums[r] = Float{};
      for (int64_t d = 0; r < count && d < head_dim_; d += kTileDepth)
        sums[r] = multiply_add(load_numbers(left + d / kTileDepth * 2 * kTileNumbers + r * kTileDepth, kTileDepth),
                               load_numbers(rows + r * stride + d, head_dim_ - d), sums[r]);
    }
    return sums_of_lanes(sums);
  }

  void prefetch_next_head(int64_t q) const {
    const int64_t row = q * kStepQueries;
    for (const Rows& next : next_head_)
      prefetch_rows(next.data + row * next.stride, next.stride, minimum(kStepQueries, rows_ - row), head_dim_);
  }

  // P and dS of a step of queries and `count` keys. The scores are a step of keys ahead, or each would wait for the
  // tile unit.
  template <class Block>
  FASTDIFF_INLINE void differentiate(const Block& block, int64_t q, int64_t count) {
    const int64_t steps = ceil_div(count, kStepKeys), rest = count % kStepKeys;
    score(block(0), q, 0, count);
    for (int64_t k = 0; k < steps; k++) {
      if (k + 1 < steps) score(block(k + 1), q, k + 1, count - (k + 1) * kStepKeys);
      if (k + 1 < steps || rest == 0) {
        differentiate_step<2, false>(q, k, kStepKeys);
      } else {
        for_pairs_or_half(rest,
                          [&](auto pairs) { differentiate_step<decltype(pairs)::value ? 2 : 1, true>(q, k, rest); });
      }
    }
  }

  float* scores(int64_t k) { return scores_ + k % 2 * kStepScores; }
  float* dprobabilities(int64_t k) { return dprobabilities_ + k % 2 * kStepScores; }

  // The scores and dP of a step of queries and a step of keys, of which `keys_left` are there.
  FASTDIFF_INLINE void score(const KeyBlock& keys, int64_t q, int64_t k, int64_t keys_left) {
    finish_writes();
    for_pairs_or_half(keys_left, [&](auto pairs) {
      using Sums = TileSums<2, decltype(pairs)::value ? 2 : 1>;
      const auto multiply = [&](const BFloat16* left, const BFloat16* right, float* target) FASTDIFF_INLINE_LAMBDA {
        Sums::clear();
        for (int64_t d = 0; d < depth_steps_; d++)
          Sums::add_product(left + d * 2 * kTileNumbers, right + d * 2 * kTileNumbers);
        Sums::store(target, kStepKeys);
      };
      multiply(query(q), keys.key_columns, scores(k));
      multiply(doutput(q), keys.value_columns, dprobabilities(k));
    });
    // Those of queries that are not there are NaN with a key that is not finite.
    const int64_t rows = rows_ - q * kStepQueries;
    if (rows >= kStepQueries) return;
    for (float* of_step : {scores(k), dprobabilities(k)})
      std::memset(of_step + rows * kStepKeys, 0, (kStepQueries - rows) * kStepKeys * sizeof(float));
  }

  // Of kHalves of the keys; with kRest, `count` of them are there.
  template <int kHalves, bool kRest>
  void differentiate_step(int64_t q, int64_t k, int64_t count) {
    const float *scores_of_step = scores(k), *dprobabilities_of_step = dprobabilities(k);
    const float *shifts = shifts_ + q * kStepQueries, *deltas = deltas_ + q * kStepQueries;
    BFloat16 *probabilities_of_step = probabilities(q, k), *dscores_of_step = dscores(q, k);
    BFloat16* dscores_of_keys = dscores_of_keys_ + k * kStepScores;
    const auto valid = static_cast<__mmask16>((1u << (count - (kHalves - 1) * kTile)) - 1);
    const Float scale = broadcast(scale_);
    for (int64_t r = 0; r < kTile; r++) {
      UInt p[2][2] = {}, ds[2][2] = {};  // by halves of the queries and of the keys
#pragma GCC unroll 2
      for (int64_t i = 0; i < 2; i++) {
        const int64_t row = r + i * kTile;
#pragma GCC unroll 2
        for (int64_t j = 0; j < kHalves; j++) {
          const int64_t at = row * kStepKeys + j * kTile;
          Float probability =
              power_of_two_by_floor(multiply_add(load(scores_of_step + at), scale, broadcast(shifts[row])));
          Float dscore = probability * (load(dprobabilities_of_step + at) - broadcast(deltas[row]));
          if (kRest && j == kHalves - 1) {
            probability = _mm512_maskz_mov_ps(valid, probability);
            dscore = _mm512_maskz_mov_ps(valid, dscore);
          }
          p[i][j] = ready_to_cut(probability);
          ds[i][j] = ready_to_cut(dscore);
        }
      }
#pragma GCC unroll 2
      for (int64_t j = 0; j < kHalves; j++) {
        const int64_t at = j * kTileNumbers + r * kTileDepth;
        store_numbers(probabilities_of_step + at, cut_to_pairs(p[0][j], p[1][j]));
        store_numbers(dscores_of_step + at, cut_to_pairs(ds[0][j], ds[1][j]));
      }
#pragma GCC unroll 2
      for (int64_t i = 0; i < 2; i++)
        store_numbers(dscores_of_keys + i * kTileNumbers + r * kTileDepth, cut_to_pairs(ds[i][0], ds[i][1]));
    }
  }

  // dQ, but for the scale, of a step of queries = dS * K of a block of keys, or dQ + that.
  template <class Block>
  FASTDIFF_INLINE void add_dquery(const Block& block, int64_t q, int64_t key_steps, bool add) const {
    finish_writes();
    for_pairs_of_tiles(dim_tiles_, [&](auto tiles, int64_t tile) {
      using Sums = TileSums<2, decltype(tiles)::value>;
      float* target = dquery_ + q * kStepQueries * columns_ + tile * kTile;
      if (add) {
        Sums::load(target, columns_);
      } else {
        Sums::clear();
      }
      for (int64_t k = 0; k < key_steps; k++)
        Sums::add_product(dscores_of_keys_ + k * kStepScores, block(k).key_rows + tile * kTileNumbers);
      Sums::store(target, columns_);
    });
  }

  // Of the step `k` of a block of keys: dV = dO^T * P and dK = Q^T * dS, transposed, or what they were and that.
  void add_keys(const KeySums& sums, int64_t first_step, int64_t k, int64_t count, bool add) const {
    finish_writes();
    for_pairs_or_half(count - k * kStepKeys, [&](auto pairs) {
      for_pairs_of_tiles(dim_tiles_, [&](auto tiles, int64_t tile) {
        using Sums = TileSums<decltype(tiles)::value, decltype(pairs)::value ? 2 : 1>;
        const auto multiply = [&](const BFloat16* left, const BFloat16* right, float* target) FASTDIFF_INLINE_LAMBDA {
          if (add) {
            Sums::load(target, kStepKeys);
          } else {
            Sums::clear();
          }
          for (int64_t q = 0; q < query_steps_; q++)
            Sums::add_product(left + (q * dim_tiles_ + tile) * kTileNumbers, right + q * kStepScores);
          Sums::store(target, kStepKeys);
        };
        multiply(doutput_columns_, probabilities(0, k), sums.dvalue(first_step + k, tile));
        multiply(query_columns_, dscores(0, k), sums.dkey(first_step + k, tile));
      });
    });
  }

  int64_t head_dim_, depth_steps_, dim_tiles_, columns_, rows_ = 0, query_steps_ = 0;
  float scale_ = 0;
  Rows next_head_[3];
  Scratch<BFloat16> query_, doutput_, query_columns_, doutput_columns_;
  Scratch<BFloat16> probabilities_, dscores_, dscores_of_keys_;
  Scratch<float> dquery_;
  alignas(64) float scores_[2 * kStepScores], dprobabilities_[2 * kStepScores];  // of two steps of keys
  // Of each query: what is added to its scores and subtracted from its dP.
  alignas(64) float shifts_[kQueries], deltas_[kQueries];
  TileRegisters registers_;
  FlushToZero flush_;
};

}  // namespace

void attention_backward(const AttentionBackwardParams& b, const Threads& threads) {
  if (b.forward.dtype != DType::BFloat16) return avx512_bf16::attention_backward(b, threads);
  attend_backward<KeyBlock, KeySums, QueryBlock>(b, threads);
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff::cpu
