// Forward attention: the scores of a block of queries against a block of keys stay in the L1 cache, between two small
// matrix products. Softmax over many key blocks is had online, by rescaling what came before:
//
//   Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv:1805.02867)
//   Dao, Fu, Ermon, Rudra and Re, "FlashAttention" (arXiv:2205.14135)
//
// A block is fixed by its place in its own sample and head, so the bits of a result depend neither on the number of
// threads nor on the rest of the batch.
#include "cpu/attention_blocks.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many multiplications, waking a thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 18;

// Elements of packed keys and values to hold at once, where one head alone does not need more.
constexpr int64_t kPackedElements = int64_t{8} << 20;

// The keys and values of one (sample, key head), packed block by block: keys as columns, values as rows.
template <class E>
struct PackedHead {
  E *keys, *values;

  static int64_t key_block_size(const AttentionParams& p) { return kKeyBlock * ceil_div(p.head_dim, kTerms<E>); }
  static int64_t value_block_size(const AttentionParams& p) { return kKeyBlock / kTerms<E> * lanes_of(p.head_dim); }
  static int64_t size(const AttentionParams& p) { return blocks(p) * (key_block_size(p) + value_block_size(p)); }
  static int64_t blocks(const AttentionParams& p) { return ceil_div(p.kv_length, kKeyBlock); }

  PackedHead(const AttentionParams& p, E* memory) : keys(memory), values(memory + blocks(p) * key_block_size(p)) {}

  E* key_block(const AttentionParams& p, int64_t block) const { return keys + block * key_block_size(p); }
  E* value_block(const AttentionParams& p, int64_t block) const { return values + block * value_block_size(p); }
};

template <class T, class E>
void pack_block(const AttentionParams& p, int64_t sample, int64_t kv_head, int64_t block, const PackedHead<E>& packed) {
  const int64_t first = block * kKeyBlock, count = minimum(kKeyBlock, keys_of(p, sample) - first);
  if (count <= 0) return;
  pack_columns(head_of<T>(p.key, sample, kv_head) + first * p.key.token_stride, p.key.token_stride, count, p.head_dim,
               packed.key_block(p, block));
  pack_rows(head_of<T>(p.value, sample, kv_head) + first * p.value.token_stride, p.value.token_stride, count,
            p.head_dim, packed.value_block(p, block));
}

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

// Scores of kRows queries against a block of keys become 2^(score - top), with the top of this and all earlier
// blocks, as the left-hand matrix that multiplies the values, where the scores were. `earlier` is what
// earlier sums have to be multiplied by. Several rows at a time, as one alone is a chain of dependent steps. Lanes
// without a key become 0.
template <int kRows, class T>
FASTDIFF_INLINE void exponentiate(float* scores, int64_t vectors, Int valid, Softmax* softmax, float* earlier) {
  using Number = std::conditional_t<kTerms<Factor<T>> == 2, BFloat16, float>;
  const auto larger_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return larger(a, b); };
  const auto add_lanes = [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return a + b; };
  const int64_t last = (vectors - 1) * kLanes;
  Float top[kRows], shift[kRows], sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    const Float masked = valid ? load(scores + r * kKeyBlock + last) : broadcast(-INFINITY);
    store(scores + r * kKeyBlock + last, masked);
    top[r] = larger(broadcast(softmax[r].top), masked);
    sum[r] = Float{};
  }
  for (int64_t i = 0; i < last; i += kLanes)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) top[r] = larger(top[r], load(scores + r * kKeyBlock + i));
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    top[r] = across_lanes(top[r], larger_lanes);
    // -infinity less -infinity would be NaN, although another block may hold a finite score.
    shift[r] = top[r] > -INFINITY ? top[r] : Float{};
  }
  for (int64_t i = 0; i <= last; i += kLanes)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      float* row = scores + r * kKeyBlock;
      const Float e = power_of_two_or_zero(load(row + i) - shift[r]);
      store_in_order(reinterpret_cast<Number*>(row) + i, e);  // narrower numbers fall behind what is still to be read
      sum[r] += e;
    }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    const bool as_before = softmax[r].sum == 0 || softmax[r].top == top[r][0];
    const float factor = as_before ? 1 : power_of_two_or_zero(softmax[r].top - shift[r])[0];
    softmax[r] = {top[r][0], softmax[r].sum * factor + across_lanes(sum[r], add_lanes)[0]};
    earlier[r] = factor;
  }
}

// One thread's memory.
template <class T>
class Block {
  using E = Factor<T>;

 public:
  explicit Block(const AttentionParams& p)
      : depth_(ceil_div(p.head_dim, kTerms<E>)),
        columns_(lanes_of(p.head_dim)),
        query_(depth_),
        scores_(kQueryBlock * kKeyBlock),
        output_(kQueryBlock * columns_) {}

  // Rows [first, first + rows) of one head of the output.
  void run(const AttentionParams& p, const PackedHead<E>& packed, int64_t sample, int64_t head, int64_t first,
           int64_t rows) {
    const T* query = head_of<T>(p.query, sample, head) + first * p.query.token_stride;
    query_.gather(query, p.query.token_stride, rows, p.head_dim);
    prefetch_rows<0>(query + rows * p.query.token_stride, p.query.token_stride, kQueryBlock, p.head_dim);
    prefetch_rows<1>(output_row(p, sample, first, head), p.heads * p.head_dim, rows, p.head_dim);
    for (int64_t r = 0; r < rows; r++) softmax_[r] = {-INFINITY, 0};
    const int64_t keys = keys_of(p, sample);
    for (int64_t begin = 0; begin < keys; begin += kKeyBlock)
      add_keys(p, packed, begin / kKeyBlock, minimum(kKeyBlock, keys - begin), rows);
    if (keys == 0) std::memset(output_, 0, rows * columns_ * sizeof(float));
    write(p, sample, head, first, rows);
  }

 private:
  void add_keys(const AttentionParams& p, const PackedHead<E>& packed, int64_t block, int64_t count, int64_t rows) {
    const int64_t vectors = ceil_div(count, kLanes);
    multiply<false>(query_.left(), rows, packed.key_block(p, block), depth_, vectors, scores_, kKeyBlock,
                    p.scale * kLog2e);
    const Int valid = valid_lanes(count);
    float earlier[kQueryBlock];
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
      exponentiate<4, T>(scores_ + r * kKeyBlock, vectors, valid, softmax_ + r, earlier + r);
    for (; r < rows; r++) exponentiate<1, T>(scores_ + r * kKeyBlock, vectors, valid, softmax_ + r, earlier + r);
    if (block > 0) rescale_output(earlier, rows);
    const Left<E, kKeyBlock> probabilities{reinterpret_cast<const E*>(static_cast<float*>(scores_))};
    const auto add_values = block > 0 ? multiply<true, Left<E, kKeyBlock>> : multiply<false, Left<E, kKeyBlock>>;
    add_values(probabilities, rows, packed.value_block(p, block), ceil_div(count, kTerms<E>), columns_ / kLanes,
               output_, columns_, 1);
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
};

template <class T>
void forward(const AttentionParams& p, const Threads& threads) {
  using Head = PackedHead<Factor<T>>;
  const int64_t units = p.batch * p.kv_heads, group = p.heads / p.kv_heads;
  const int64_t query_blocks = ceil_div(p.query_length, kQueryBlock), key_blocks = Head::blocks(p);
  const int64_t size = Head::size(p);
  const int64_t at_once = minimum(units, maximum(1, size ? kPackedElements / size : units));
  const Scratch<Factor<T>> memory(at_once * size);
  for (int64_t first = 0; first < units; first += at_once) {
    const int64_t count = minimum(at_once, units - first);
    const auto packed = [&](int64_t i) { return Head(p, memory + i * size); };
    parallel_for(threads, count * key_blocks, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t unit = first + i / key_blocks;
        pack_block<T>(p, unit / p.kv_heads, unit % p.kv_heads, i % key_blocks, packed(i / key_blocks));
      }
    });
    parallel_for(threads, count * group * query_blocks, [&](int64_t begin, int64_t end) {
      Block<T> block(p);
      for (int64_t i = begin; i < end; i++) {
        const int64_t local = i / (group * query_blocks), unit = first + local;
        const int64_t head = unit % p.kv_heads * group + i / query_blocks % group, row = i % query_blocks * kQueryBlock;
        block.run(p, packed(local), unit / p.kv_heads, head, row, minimum(kQueryBlock, p.query_length - row));
      }
    });
  }
}

}  // namespace

void attention(const AttentionParams& p, const Threads& available) {
  if (p.batch * p.heads * p.query_length * p.head_dim == 0) return;
  const bool serial = p.batch * p.heads * p.query_length * p.kv_length * p.head_dim < kSerialProducts;
  const Threads threads{serial ? 1 : available.count, available.run};
  with_element_type(p.dtype, [&](auto element) { forward<decltype(element)>(p, threads); });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
