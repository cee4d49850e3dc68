// Forward attention: the scores of a block of queries against a block of keys stay in the L1 cache, between two small
// matrix products. Softmax over many key blocks is had online, by rescaling what came before:
//
//   Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv:1805.02867)
//   Dao, Fu, Ermon, Rudra and Re, "FlashAttention" (arXiv:2205.14135)
//
// A block is fixed by its place in its own sample and head, so the bits of a result depend neither on the number of
// threads nor on the rest of the batch.
#include "cpu/attention_blocks.h"
#include "cpu/attention_schedule.h"
#include "cpu/flush_to_zero.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// The keys and values of one (sample, key head), packed block by block: keys as columns, values as rows.
template <class T>
class PackedHead {
 public:
  using Element = Factor<T>;

  static int64_t size(const AttentionParams& p) { return blocks(p) * (key_block_size(p) + value_block_size(p)); }
  static int64_t blocks(const AttentionParams& p) { return ceil_div(p.kv_length, kKeyBlock); }

  PackedHead(const AttentionParams& p, Element* memory)
      : keys_(memory), values_(memory + blocks(p) * key_block_size(p)) {}

  Element* key_block(const AttentionParams& p, int64_t block) const { return keys_ + block * key_block_size(p); }
  Element* value_block(const AttentionParams& p, int64_t block) const { return values_ + block * value_block_size(p); }

  void pack(const AttentionParams& p, int64_t sample, int64_t kv_head, int64_t block) const {
    const int64_t first = block * kKeyBlock, count = minimum(kKeyBlock, keys_of(p, sample) - first);
    if (count <= 0) return;
    pack_columns(head_of<T>(p.key, sample, kv_head) + first * p.key.token_stride, p.key.token_stride, count, p.head_dim,
                 key_block(p, block));
    pack_rows(head_of<T>(p.value, sample, kv_head) + first * p.value.token_stride, p.value.token_stride, count,
              p.head_dim, value_block(p, block));
  }

 private:
  static int64_t key_block_size(const AttentionParams& p) { return kKeyBlock * ceil_div(p.head_dim, kTerms<Element>); }
  static int64_t value_block_size(const AttentionParams& p) {
    return kKeyBlock / kTerms<Element> * lanes_of(p.head_dim);
  }

  Element *keys_, *values_;
};

// What is known of a query's softmax so far: the largest score, and the sum of 2^(score - top). Scores are logarithms
// to base 2.
struct Softmax {
  float top, sum;
};

// The lanes of the last vector of `count` keys that hold a key.
Int valid_lanes(int64_t count) {
  int32_t valid[kLanes];
  for (int lane = 0; lane < kLanes; lane++) valid[lane] = lane < count - (lanes_of(count) - kLanes) ? -1 : 0;
  Int mask;
  std::memcpy(&mask, valid, sizeof mask);
  return mask;
}

// Queries whose scores become probabilities together: one alone is a chain of dependent steps.
constexpr int kRowsAtOnce = 4;
static_assert(kQueryBlock % kRowsAtOnce == 0, "the rows after the last query lie within the block");

// Scores of kRowsAtOnce queries against a block of keys become 2^(score - top), with the top of this and all earlier
// blocks, as the left-hand matrix that multiplies the values, where the scores were. `earlier` is what earlier sums
// have to be multiplied by. Lanes without a key become 0.
template <class T>
FASTDIFF_INLINE void exponentiate(float* scores, int64_t vectors, Int valid, Softmax* softmax, float* earlier) {
  using Number = std::conditional_t<kTerms<Factor<T>> == 2, BFloat16, float>;
  const auto larger_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return larger(a, b); };
  const auto add_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return a + b; };
  const auto lane_of_row = [](int r) { return r * (kLanes / kRowsAtOnce); };
  const int64_t last = (vectors - 1) * kLanes;
  Float top[kRowsAtOnce], sum[kRowsAtOnce] = {};
#pragma GCC unroll 4
  for (int r = 0; r < kRowsAtOnce; r++) {
    top[r] = valid ? load(scores + r * kKeyBlock + last) : broadcast(-INFINITY);
    store(scores + r * kKeyBlock + last, top[r]);
  }
  for (int64_t i = 0; i < last; i += kLanes)
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; r++) top[r] = larger(top[r], load(scores + r * kKeyBlock + i));
  float tops[kLanes], sums[kLanes], shift[kRowsAtOnce];
  store(tops, across_lanes(top, larger_lanes));
#pragma GCC unroll 4
  for (int r = 0; r < kRowsAtOnce; r++) {
    const float before = softmax[r].top, now = tops[lane_of_row(r)] > before ? tops[lane_of_row(r)] : before;
    // -infinity less -infinity would be NaN, although another block may hold a finite score.
    shift[r] = now > -INFINITY ? now : 0;
    const bool as_before = softmax[r].sum == 0 || before == now;
    earlier[r] = as_before ? 1 : power_of_two_or_zero(broadcast(before - shift[r]))[0];
    softmax[r].top = now;
  }
  const auto power_at = [&](int r, int64_t i) FASTDIFF_INLINE_LAMBDA {
    return power_of_two_or_zero<Number>(load(scores + r * kKeyBlock + i) - shift[r]);
  };
  // Narrower numbers fall behind what is still to be read.
  const auto numbers = [&](int r) FASTDIFF_INLINE_LAMBDA { return reinterpret_cast<Number*>(scores + r * kKeyBlock); };
  for (int64_t i = 0; i < vectors / 2 * kPack; i += kPack)
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; r++) {
      const Pack e = {power_at(r, i), power_at(r, i + kLanes)};
      store_in_order(numbers(r) + i, e);
      sum[r] += e.first + e.second;
    }
  if (vectors % 2)
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; r++) {
      const Float e = power_at(r, last);
      store_in_order(numbers(r) + last, e);
      sum[r] += e;
    }
  store(sums, across_lanes(sum, add_lanes));
#pragma GCC unroll 4
  for (int r = 0; r < kRowsAtOnce; r++) softmax[r].sum = softmax[r].sum * earlier[r] + sums[lane_of_row(r)];
}

// One thread's memory.
template <class T>
class Block {
  using E = Factor<T>;

 public:
  static constexpr int64_t kQueries = kQueryBlock;

  explicit Block(const AttentionParams& p)
      : depth_(ceil_div(p.head_dim, kTerms<E>)),
        columns_(lanes_of(p.head_dim)),
        query_(depth_),
        scores_(kQueryBlock * kKeyBlock),
        output_(kQueryBlock * columns_) {}

  // Rows [first, first + rows) of one head of the output.
  void run(const AttentionParams& p, const PackedHead<T>& packed, int64_t sample, int64_t head, int64_t first,
           int64_t rows) {
    const T* query = head_of<T>(p.query, sample, head) + first * p.query.token_stride;
    query_.gather(query, p.query.token_stride, rows, p.head_dim);
    prefetch_rows(query + rows * p.query.token_stride, p.query.token_stride, kQueryBlock, p.head_dim);
    prefetch_rows(output_row(p, sample, first, head), p.heads * p.head_dim, rows, p.head_dim);
    for (Softmax& softmax : softmax_) softmax = {-INFINITY, 0};
    const int64_t keys = keys_of(p, sample);
    for (int64_t begin = 0; begin < keys; begin += kKeyBlock)
      add_keys(p, packed, begin / kKeyBlock, minimum(kKeyBlock, keys - begin), rows);
    if (keys == 0) std::memset(output_, 0, rows * columns_ * sizeof(float));
    write(p, sample, head, first, rows);
  }

 private:
  void add_keys(const AttentionParams& p, const PackedHead<T>& packed, int64_t block, int64_t count, int64_t rows) {
    const int64_t vectors = ceil_div(count, kLanes);
    multiply<false>(query_.left(), rows, packed.key_block(p, block), depth_, count, scores_, kKeyBlock,
                    p.scale * kLog2e);
    const Int valid = valid_lanes(count);
    float earlier[kQueryBlock];
    for (int64_t r = 0; r < rows; r += kRowsAtOnce)
      exponentiate<T>(scores_ + r * kKeyBlock, vectors, valid, softmax_ + r, earlier + r);
    if (block > 0) rescale_output(earlier, rows);
    const Left<E, kKeyBlock> probabilities{reinterpret_cast<const E*>(static_cast<float*>(scores_))};
    const auto add_values = block > 0 ? multiply<true, Left<E, kKeyBlock>> : multiply<false, Left<E, kKeyBlock>>;
    add_values(probabilities, rows, packed.value_block(p, block), ceil_div(count, kTerms<E>), p.head_dim, output_,
               columns_, 1);
  }

  void rescale_output(const float* factors, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
      if (factors[r] == 1) continue;
      for (float* d = output_ + r * columns_; d < output_ + (r + 1) * columns_; d += kLanes)
        store(d, load(d) * factors[r]);
    }
  }

  static T* output_row(const AttentionParams& p, int64_t sample, int64_t token, int64_t head) {
    return static_cast<T*>(p.output) + ((sample * p.query_length + token) * p.heads + head) * p.head_dim;
  }

  void write(const AttentionParams& p, int64_t sample, int64_t head, int64_t first, int64_t rows) const {
    for (int64_t r = 0; r < rows; r++) {
      const int64_t token = first + r;
      const Softmax& softmax = softmax_[r];
      // A sum of 0 over keys makes 0 / 0; without keys the output is the 0 it was set to.
      narrow_row(output_ + r * columns_, p.head_dim, keys_of(p, sample) == 0 ? 1.0f : 1.0f / softmax.sum,
                 output_row(p, sample, token, head));
      if (p.logsumexp)
        p.logsumexp[(sample * p.heads + head) * p.query_length + token] =
            (softmax.top + std::log2(softmax.sum)) / kLog2e;
    }
  }

  int64_t depth_, columns_;
  RowBlock<E, kQueryBlock> query_;
  Scratch<float> scores_, output_;
  Softmax softmax_[kQueryBlock];
  FlushToZero flush_;
};

}  // namespace

void attention(const AttentionParams& p, const Threads& threads) {
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    attend<PackedHead<T>, Block<T>>(p, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
