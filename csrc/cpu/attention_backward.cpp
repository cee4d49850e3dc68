// Backward attention, with P = exp(scores - logsumexp) worked out again from the operands, block by block:
//
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - rowsum(dO * O))      dQ = scale * dS K      dK = scale * dS^T Q
//
//   Dao, Fu, Ermon, Rudra and Re, "FlashAttention" (arXiv:2205.14135), algorithm 4
#include "cpu/attention_backward_schedule.h"
#include "cpu/attention_blocks.h"
#include "cpu/flush_to_zero.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Queries and keys of a block. The sums of dK and dV run over its queries, as kTermsOfQueries terms.
constexpr int64_t kTermsOfQueries = 96, kKeysOfBlock = 96;
template <class E>
constexpr int64_t kQueriesOfBlock = kTermsOfQueries * kTerms<E>;

// The keys and values of a block as right-hand matrices.
template <class T>
class KeyBlock {
  using E = Factor<T>;

 public:
  using Element = E;
  static constexpr int64_t kKeys = kKeysOfBlock;

  KeyBlock(const AttentionParams& p, E* memory)
      : key_columns(memory), value_columns(key_columns + columns_size(p)), key_rows(value_columns + columns_size(p)) {}

  static int64_t size(const AttentionParams& p) {
    return 2 * columns_size(p) + kKeysOfBlock / kTerms<E> * lanes_of(p.head_dim);
  }

  void pack(const AttentionParams& p, int64_t sample, int64_t kv_head, int64_t first) const {
    const int64_t count = minimum(kKeysOfBlock, keys_of(p, sample) - first);
    if (count <= 0) return;
    const T* key = head_of<T>(p.key, sample, kv_head) + first * p.key.token_stride;
    const T* value = head_of<T>(p.value, sample, kv_head) + first * p.value.token_stride;
    pack_columns(key, p.key.token_stride, count, p.head_dim, key_columns);
    pack_columns(value, p.value.token_stride, count, p.head_dim, value_columns);
    pack_rows(key, p.key.token_stride, count, p.head_dim, key_rows);
  }

  E *key_columns, *value_columns, *key_rows;

 private:
  static int64_t columns_size(const AttentionParams& p) { return kKeysOfBlock * ceil_div(p.head_dim, kTerms<E>); }
};

// P and dS of a block of queries and a block of keys, as left-hand matrices.
template <class E>
class Scores {
  // Pairs of neighbouring keys for dQ are not those of neighbouring queries for dK.
  static constexpr bool kPairs = kTerms<E> == 2;
  using Number = std::conditional_t<kPairs, BFloat16, float>;

 public:
  Scores()
      : probabilities_(kTermsOfQueries * kKeysOfBlock),
        dscores_(kTermsOfQueries * kKeysOfBlock),
        dscores_of_keys_(kPairs ? kQueriesOfBlock<E> * kKeysOfBlock : 0) {}

  // Of queries as rows and keys as columns, and the other way round.
  Left<E, kKeysOfBlock / kTerms<E>> dscores() const { return {kPairs ? reinterpret_cast<const E*>(row(0)) : dscores_}; }
  Left<E, 1, kKeysOfBlock> dscores_transposed() const { return {dscores_}; }
  Left<E, 1, kKeysOfBlock> probabilities_transposed() const { return {probabilities_}; }

  // A vector of keys from `key` on, for kTerms queries from `query` on.
  FASTDIFF_INLINE void store_vector(int64_t query, int64_t key, const Float* probabilities, const Float* dscores) {
    const int64_t at = query / kTerms<E> * kKeysOfBlock + key;
    if constexpr (kPairs) {
      const UInt p = narrow_bfloat16(probabilities[0], probabilities[1]), ds = narrow_bfloat16(dscores[0], dscores[1]);
      std::memcpy(probabilities_ + at, &p, sizeof p);
      std::memcpy(dscores_ + at, &ds, sizeof ds);
      for (int i = 0; i < 2; i++) store_in_order(row(query + i) + key, dscores[i]);
    } else {
      store(probabilities_ + at, *probabilities);
      store(dscores_ + at, *dscores);
    }
  }

  // The key that the last of `count` is paired with is not there: it must count for nothing.
  void pair_with_zero(int64_t queries, int64_t count) {
    if (count % kTerms<E> == 0) return;
    for (int64_t r = 0; r < queries; r++) row(r)[count] = {};
  }

 private:
  Number* row(int64_t query) const { return dscores_of_keys_ + query * kKeysOfBlock; }

  Scratch<E> probabilities_, dscores_;
  Scratch<Number> dscores_of_keys_;
};

// Sums of dK and dV of a (sample, key head) over a part of its queries; rows are padded to whole vectors.
template <class T>
struct KeySums {
  KeySums(const AttentionParams& p, float* memory)
      : dkey(memory), dvalue(memory + p.kv_length * lanes_of(p.head_dim)) {}

  static int64_t size(const AttentionParams& p) { return 2 * p.kv_length * lanes_of(p.head_dim); }

  // A block of dK and dV: the parts added up, in the element type.
  static void write(const AttentionBackwardParams& b, const PartialSums& parts, int64_t sample, int64_t kv_head,
                    int64_t first) {
    const AttentionParams& p = b.forward;
    const int64_t keys = keys_of(p, sample), lanes = lanes_of(p.head_dim);
    const Scratch<float> row(lanes);
    const auto write_row = [&](const float* of_first_part, int64_t token, float factor, void* target) {
      for (int64_t d = 0; d < lanes; d += kLanes) {
        Float sum = {};
        for (int64_t part = 0; part < (token < keys ? parts.count : 0); part++)
          sum += load(of_first_part + part * parts.size + d);
        store(row + d, sum);
      }
      const int64_t at = ((sample * p.kv_length + token) * p.kv_heads + kv_head) * p.head_dim;
      narrow_row(row, p.head_dim, factor, static_cast<T*>(target) + at);
    };
    for (int64_t token = first; token < minimum(first + kKeysOfBlock, p.kv_length); token++) {
      write_row(parts.first + token * lanes, token, p.scale, b.dkey);
      write_row(parts.first + (p.kv_length + token) * lanes, token, 1.0f, b.dvalue);
    }
  }

  float *dkey, *dvalue;
};

// One thread's memory: a block of queries of one head.
template <class T>
class QueryBlock {
  using E = Factor<T>;
  using Precision = std::conditional_t<kTerms<E> == 2, BFloat16, float>;  // that P is kept in

  struct Rows {
    const T* data;
    int64_t stride;
  };

 public:
  static constexpr int64_t kQueries = kQueriesOfBlock<E>;

  explicit QueryBlock(const AttentionParams& p)
      : head_dim_(p.head_dim),
        depth_(ceil_div(p.head_dim, kTerms<E>)),
        lanes_(lanes_of(p.head_dim)),
        query_(depth_),
        doutput_(depth_),
        query_rows_(kTermsOfQueries * lanes_),
        doutput_rows_(kTermsOfQueries * lanes_),
        dquery_(kQueries * lanes_) {}

  // Queries [first, first + kQueries) of one head. `packed` and `sums` are of the (sample, key head); the sums are new
  // when `add` is false. With `ahead`, the same queries of the next head come next.
  void run(const AttentionBackwardParams& b, E* packed, const KeySums<T>& sums, int64_t sample, int64_t head,
           int64_t first, bool add, bool ahead) {
    const AttentionParams& p = b.forward;
    rows_ = minimum(kQueries, p.query_length - first);
    fetch(b, sample, head, first);
    const int64_t keys = keys_of(p, sample);
    for (int64_t key = 0; key < keys; key += kKeysOfBlock) {
      const KeyBlock<T> block(p, packed + key / kKeysOfBlock * KeyBlock<T>::size(p));
      const int64_t count = minimum(kKeysOfBlock, keys - key);
      score(block, count, p.scale * kLog2e, ahead && key == 0);
      const bool add_dquery = key > 0;
      accumulate(scores_.dscores(), rows_, block.key_rows, ceil_div(count, kTerms<E>), dquery_, add_dquery);
      const int64_t terms = ceil_div(rows_, kTerms<E>);
      accumulate(scores_.probabilities_transposed(), count, doutput_rows_, terms, sums.dvalue + key * lanes_, add);
      accumulate(scores_.dscores_transposed(), count, query_rows_, terms, sums.dkey + key * lanes_, add);
    }
    if (keys == 0) std::memset(dquery_, 0, rows_ * lanes_ * sizeof(float));
    for (int64_t r = 0; r < rows_; r++)
      narrow_row(dquery_ + r * lanes_, p.head_dim, p.scale,
                 static_cast<T*>(b.dquery) + dense_row(p, sample, head, first + r));
  }

 private:
  void fetch(const AttentionBackwardParams& b, int64_t sample, int64_t head, int64_t first) {
    const AttentionParams& p = b.forward;
    const int64_t query_stride = p.query.token_stride, doutput_stride = b.doutput.token_stride;
    const T* query = head_of<T>(p.query, sample, head) + first * query_stride;
    const T* doutput = head_of<T>(b.doutput, sample, head) + first * doutput_stride;
    const int64_t output_stride = p.heads * p.head_dim;
    const T* output = static_cast<const T*>(p.output) + dense_row(p, sample, head, first);
    next_head_[0] = {query + p.query.head_stride, query_stride};
    next_head_[1] = {doutput + b.doutput.head_stride, doutput_stride};
    next_head_[2] = {output + p.head_dim, output_stride};
    query_.gather(query, query_stride, rows_, p.head_dim);
    doutput_.gather(doutput, doutput_stride, rows_, p.head_dim);
    pack_rows<E>(query, query_stride, rows_, p.head_dim, query_rows_);
    pack_rows<E>(doutput, doutput_stride, rows_, p.head_dim, doutput_rows_);
    for (int64_t r = 0; r < rows_; r++) {
      delta_[r] = product_of_rows(doutput + r * doutput_stride, output + r * output_stride, p.head_dim);
      logsumexp_[r] = kLog2e * p.logsumexp[(sample * p.heads + head) * p.query_length + first + r];
    }
  }

  static float product_of_rows(const T* a, const T* b, int64_t columns) {
    Float sum = {};
    int64_t d = 0;
    for (; d + kLanes <= columns; d += kLanes) sum += load_in_order(a + d) * load_in_order(b + d);
    const int rest = static_cast<int>(columns - d);
    if (rest) sum += load_first_in_order(a + d, rest) * load_first_in_order(b + d, rest);
    return across_lanes(sum, [](Float x, Float y) FASTDIFF_INLINE_LAMBDA { return x + y; })[0];
  }

  // P and dS, tile by tile, so that the scores and dP never leave the L1 cache. With `ahead`, asks on the way for the
  // same rows of the next head.
  void score(const KeyBlock<T>& block, int64_t count, float scale, bool ahead) {
    for_each_tile(
        rows_, ceil_div(count, kLanes), [&](auto rows, auto width, int64_t r, int64_t first) FASTDIFF_INLINE_LAMBDA {
          constexpr int kRows = decltype(rows)::value, kWidth = decltype(width)::value, kStride = kWidth * kLanes;
          alignas(64) float scores[kTileSums * kLanes], dprobabilities[kTileSums * kLanes];
          const int64_t panel = first * kLanes * depth_;
          if (ahead && first == 0)
            for (const Rows& next : next_head_)
              prefetch_rows(next.data + r * next.stride, next.stride, kRows, head_dim_);
          multiply_tile_in_parts<kRows, kWidth, false>(query_.left().from(r, 0), block.key_columns + panel, depth_,
                                                       scale, scores, kStride);
          multiply_tile_in_parts<kRows, kWidth, false>(doutput_.left().from(r, 0), block.value_columns + panel, depth_,
                                                       1, dprobabilities, kStride);
          for (int row = 0; row < kRows; row += kTerms<E>)
            for (int w = 0; w < kWidth; w++) {
              Float p[kTerms<E>] = {}, ds[kTerms<E>] = {};
              for (int i = 0; i < minimum(kTerms<E>, kRows); i++) {
                const int at = (row + i) * kStride + w * kLanes;
                p[i] = power_of_two_or_zero<Precision>(load(scores + at) - logsumexp_[r + row + i]);
                ds[i] = p[i] * (load(dprobabilities + at) - delta_[r + row + i]);
              }
              scores_.store_vector(r + row, (first + w) * kLanes, p, ds);
            }
        });
    scores_.pair_with_zero(rows_, count);
  }

  // sums (rows, head_dim) += a (rows, depth) * b
  template <class Matrix>
  void accumulate(const Matrix& a, int64_t rows, const E* b, int64_t depth, float* sums, bool add) const {
    const auto product = add ? multiply<true, Matrix> : multiply<false, Matrix>;
    product(a, rows, b, depth, head_dim_, sums, lanes_, 1);
  }

  int64_t head_dim_, depth_, lanes_, rows_ = 0;
  Rows next_head_[3];
  RowBlock<E, kQueries> query_, doutput_;
  Scratch<E> query_rows_, doutput_rows_;
  Scratch<float> dquery_;
  Scores<E> scores_;
  float delta_[kQueries], logsumexp_[kQueries];
  FlushToZero flush_;
};

}  // namespace

void attention_backward(const AttentionBackwardParams& b, const Threads& threads) {
  with_element_type(b.forward.dtype, [&](auto element) {
    using T = decltype(element);
    attend_backward<KeyBlock<T>, KeySums<T>, QueryBlock<T>>(b, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
