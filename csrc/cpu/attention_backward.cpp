// Backward attention, with P = exp(scores - logsumexp) worked out again from the operands, block by block:
//
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - rowsum(dO * O))      dQ = scale * dS K      dK = scale * dS^T Q
//
//   Dao, Fu, Ermon, Rudra and Re, "FlashAttention" (arXiv:2205.14135), algorithm 4
//
// The queries that meet a (sample, key head) are cut into parts, each with sums of its own for dK and dV, which are
// added in the order of the parts. The cut follows from the sizes of one sample alone, so the bits of a gradient depend
// neither on the number of threads nor on the rest of the batch.
#include "cpu/attention_blocks.h"
#include "cpu/flush_to_zero.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Queries and keys of a block. The sums of dK and dV run over its queries, as kTermsOfQueries terms.
constexpr int64_t kTermsOfQueries = 96, kKeys = 96;
template <class E>
constexpr int64_t kQueries = kTermsOfQueries * kTerms<E>;

constexpr int64_t kPartQueries = 1024;                   // fewer are not worth sums of their own
constexpr int64_t kPartElements = int64_t{1} << 24;      // of all sums of one (sample, key head)
constexpr int64_t kTogetherElements = int64_t{1} << 18;  // of keys and sums that stay in the L2 cache
constexpr int64_t kItemsPerThread = 4;                   // at a time

// The keys and values of a block as right-hand matrices.
template <class E>
class KeyBlock {
 public:
  KeyBlock(const AttentionParams& p, E* memory)
      : key_columns(memory), value_columns(key_columns + columns_size(p)), key_rows(value_columns + columns_size(p)) {}

  static int64_t size(const AttentionParams& p) {
    return 2 * columns_size(p) + kKeys / kTerms<E> * lanes_of(p.head_dim);
  }

  template <class T>
  void pack(const AttentionParams& p, int64_t sample, int64_t kv_head, int64_t first) const {
    const int64_t count = minimum(kKeys, keys_of(p, sample) - first);
    if (count <= 0) return;
    const T* key = head_of<T>(p.key, sample, kv_head) + first * p.key.token_stride;
    const T* value = head_of<T>(p.value, sample, kv_head) + first * p.value.token_stride;
    pack_columns(key, p.key.token_stride, count, p.head_dim, key_columns);
    pack_columns(value, p.value.token_stride, count, p.head_dim, value_columns);
    pack_rows(key, p.key.token_stride, count, p.head_dim, key_rows);
  }

  E *key_columns, *value_columns, *key_rows;

 private:
  static int64_t columns_size(const AttentionParams& p) { return kKeys * ceil_div(p.head_dim, kTerms<E>); }
};

// P and dS of a block of queries and a block of keys, as left-hand matrices.
template <class E>
class Scores {
  // Pairs of neighbouring keys for dQ are not those of neighbouring queries for dK.
  static constexpr bool kPairs = kTerms<E> == 2;
  using Number = std::conditional_t<kPairs, BFloat16, float>;

 public:
  Scores()
      : probabilities_(kTermsOfQueries * kKeys),
        dscores_(kTermsOfQueries * kKeys),
        dscores_of_keys_(kPairs ? kQueries<E> * kKeys : 0) {}

  // Of queries as rows and keys as columns, and the other way round.
  Left<E, kKeys / kTerms<E>> dscores() const { return {kPairs ? reinterpret_cast<const E*>(row(0)) : dscores_}; }
  Left<E, 1, kKeys> dscores_transposed() const { return {dscores_}; }
  Left<E, 1, kKeys> probabilities_transposed() const { return {probabilities_}; }

  // A vector of keys from `key` on, for kTerms queries from `query` on.
  FASTDIFF_INLINE void store_vector(int64_t query, int64_t key, const Float* probabilities, const Float* dscores) {
    const int64_t at = query / kTerms<E> * kKeys + key;
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
  Number* row(int64_t query) const { return dscores_of_keys_ + query * kKeys; }

  Scratch<E> probabilities_, dscores_;
  Scratch<Number> dscores_of_keys_;
};

// Sums of dK and dV of a (sample, key head) over a part of its queries; rows are padded to whole vectors.
struct KeySums {
  KeySums(const AttentionParams& p, float* memory)
      : dkey(memory), dvalue(memory + p.kv_length * lanes_of(p.head_dim)) {}

  static int64_t size(const AttentionParams& p) { return 2 * p.kv_length * lanes_of(p.head_dim); }

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
  explicit QueryBlock(const AttentionParams& p)
      : head_dim_(p.head_dim),
        depth_(ceil_div(p.head_dim, kTerms<E>)),
        lanes_(lanes_of(p.head_dim)),
        query_(depth_),
        doutput_(depth_),
        query_rows_(kTermsOfQueries * lanes_),
        doutput_rows_(kTermsOfQueries * lanes_),
        dquery_(kQueries<E> * lanes_) {}

  // Queries [first, first + kQueries) of one head. `packed` and `sums` are of the (sample, key head); the sums are new
  // when `add` is false. With `ahead`, the same queries of the next head come next.
  void run(const AttentionBackwardParams& b, E* packed, const KeySums& sums, int64_t sample, int64_t head,
           int64_t first, bool add, bool ahead) {
    const AttentionParams& p = b.forward;
    rows_ = minimum(kQueries<E>, p.query_length - first);
    fetch(b, sample, head, first);
    const int64_t keys = keys_of(p, sample);
    for (int64_t key = 0; key < keys; key += kKeys) {
      const KeyBlock<E> block(p, packed + key / kKeys * KeyBlock<E>::size(p));
      const int64_t count = minimum(kKeys, keys - key);
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
                 static_cast<T*>(b.dquery) + row_of(p, sample, head, first + r));
  }

 private:
  static int64_t row_of(const AttentionParams& p, int64_t sample, int64_t head, int64_t token) {
    return ((sample * p.query_length + token) * p.heads + head) * p.head_dim;
  }

  void fetch(const AttentionBackwardParams& b, int64_t sample, int64_t head, int64_t first) {
    const AttentionParams& p = b.forward;
    const int64_t query_stride = p.query.token_stride, doutput_stride = b.doutput.token_stride;
    const T* query = head_of<T>(p.query, sample, head) + first * query_stride;
    const T* doutput = head_of<T>(b.doutput, sample, head) + first * doutput_stride;
    const int64_t output_stride = p.heads * p.head_dim;
    const T* output = static_cast<const T*>(p.output) + row_of(p, sample, head, first);
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
  void score(const KeyBlock<E>& block, int64_t count, float scale, bool ahead) {
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
  RowBlock<E, kQueries<E>> query_, doutput_;
  Scratch<E> query_rows_, doutput_rows_;
  Scratch<float> dquery_;
  Scores<E> scores_;
  float delta_[kQueries<E>], logsumexp_[kQueries<E>];
  FlushToZero flush_;
};

template <class T>
class Backward {
  using E = Factor<T>;

 public:
  Backward(const AttentionBackwardParams& b, const Threads& threads)
      : b_(b),
        threads_(threads),
        units_(b.forward.batch * b.forward.kv_heads),
        key_blocks_(ceil_div(b.forward.kv_length, kKeys)),
        query_blocks_(ceil_div(b.forward.query_length, kQueries<E>)),
        packed_size_(key_blocks_ * KeyBlock<E>::size(b.forward)),
        sums_size_(KeySums::size(b.forward)),
        parts_(minimum(b.forward.heads ? ceil_div(b.forward.query_length, kPartQueries) : 0,
                       at_least_1(kPartElements / at_least_1(sums_size_)))),
        together_(at_least_1(
            minimum(kTogetherElements / at_least_1(packed_size_ + sums_size_), units_ * parts_ / wanted_items()))),
        at_once_(minimum(units_, together_ * ceil_div(wanted_items(), at_least_1(parts_)))),
        packed_(at_once_ * packed_size_),
        sums_(at_once_ * parts_ * sums_size_) {}

  void run() {
    for (int64_t begun = 0; begun < units_; begun += at_once_) {
      const int64_t count = minimum(at_once_, units_ - begun);
      for_each(count * key_blocks_, [&](int64_t i) { pack(begun, i / key_blocks_, i % key_blocks_ * kKeys); });
      const int64_t sets = ceil_div(count, together_);
      parallel_for(threads_, sets * parts_, [&](int64_t begin, int64_t end) {
        QueryBlock<T> queries(b_.forward);
        for (int64_t i = begin; i < end; i++) {
          const int64_t set = i / parts_;
          multiply_part(begun, count * set / sets, count * (set + 1) / sets, i % parts_, queries);
        }
      });
      for_each(count * key_blocks_, [&](int64_t i) { write_keys(begun, i / key_blocks_, i % key_blocks_ * kKeys); });
    }
  }

 private:
  static int64_t at_least_1(int64_t n) { return maximum(1, n); }
  int64_t wanted_items() const { return kItemsPerThread * threads_.count; }
  int64_t sample(int64_t unit) const { return unit / b_.forward.kv_heads; }
  int64_t kv_head(int64_t unit) const { return unit % b_.forward.kv_heads; }
  E* packed(int64_t i) const { return packed_ + i * packed_size_; }
  KeySums sums(int64_t i, int64_t part) const { return {b_.forward, sums_ + (i * parts_ + part) * sums_size_}; }

  template <class Body>
  void for_each(int64_t items, const Body& body) const {
    parallel_for(threads_, items, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) body(i);
    });
  }

  // Of the units in memory, which are those from `begun` on, the i-th; its block of keys from `first` on.
  void pack(int64_t begun, int64_t i, int64_t first) const {
    const KeyBlock<E> block(b_.forward, packed(i) + first / kKeys * KeyBlock<E>::size(b_.forward));
    block.template pack<T>(b_.forward, sample(begun + i), kv_head(begun + i), first);
  }

  // A part of the queries, of the units [first, last) in memory: these take turns on a block of queries, as a page of
  // memory holds the rows of several heads.
  void multiply_part(int64_t begun, int64_t first, int64_t last, int64_t part, QueryBlock<T>& queries) const {
    const int64_t group = b_.forward.heads / b_.forward.kv_heads;
    const int64_t first_block = query_blocks_ * part / parts_, last_block = query_blocks_ * (part + 1) / parts_;
    for (int64_t block = first_block; block < last_block; block++)
      for (int64_t i = first; i < last; i++)
        for (int64_t h = 0; h < group; h++)
          queries.run(b_, packed(i), sums(i, part), sample(begun + i), kv_head(begun + i) * group + h,
                      block * kQueries<E>, block > first_block || h > 0, i + 1 < last || h + 1 < group);
  }

  // A block of dK and dV: the parts added up, in the element type.
  void write_keys(int64_t begun, int64_t i, int64_t first) const {
    const AttentionParams& p = b_.forward;
    const int64_t unit = begun + i, keys = keys_of(p, sample(unit)), lanes = lanes_of(p.head_dim);
    const Scratch<float> row(lanes);
    const auto write = [&](float* of_first_part, int64_t token, float factor, void* target) {
      for (int64_t d = 0; d < lanes; d += kLanes) {
        Float sum = {};
        for (int64_t part = 0; part < (token < keys ? parts_ : 0); part++)
          sum += load(of_first_part + part * sums_size_ + token * lanes + d);
        store(row + d, sum);
      }
      const int64_t at = ((sample(unit) * p.kv_length + token) * p.kv_heads + kv_head(unit)) * p.head_dim;
      narrow_row(row, p.head_dim, factor, static_cast<T*>(target) + at);
    };
    for (int64_t token = first; token < minimum(first + kKeys, p.kv_length); token++) {
      write(sums(i, 0).dkey, token, p.scale, b_.dkey);
      write(sums(i, 0).dvalue, token, 1.0f, b_.dvalue);
    }
  }

  const AttentionBackwardParams& b_;
  const Threads& threads_;
  // Units are pairs of a sample and a key head: up to `together_` of them share an item of work, `at_once_` are in
  // memory.
  int64_t units_, key_blocks_, query_blocks_, packed_size_, sums_size_, parts_, together_, at_once_;
  Scratch<E> packed_;
  Scratch<float> sums_;
};

}  // namespace

void attention_backward(const AttentionBackwardParams& b, const Threads& threads) {
  if (b.forward.batch == 0 || b.forward.head_dim == 0 || b.forward.kv_heads == 0) return;
  with_element_type(b.forward.dtype, [&](auto element) { Backward<decltype(element)>(b, threads).run(); });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
