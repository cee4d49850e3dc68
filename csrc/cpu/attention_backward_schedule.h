// Who computes which part of the queries of backward attention, and when keys and values are packed for it.
//
// The queries that meet a (sample, key head) are cut into parts, each with sums of its own for dK and dV, which are
// added in the order of the parts. The cut follows from the sizes of one sample alone, so the bits of a gradient depend
// neither on the number of threads nor on the rest of the batch.
#pragma once

#include "common/attention.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr int64_t kPartQueries = 1024;                // fewer are not worth sums of their own
constexpr int64_t kPartElements = int64_t{1} << 24;   // of all sums of one (sample, key head)
constexpr int64_t kTogetherBytes = int64_t{1} << 20;  // of keys and sums that stay in the L2 cache
constexpr int64_t kItemsPerThread = 4;                // at a time

// The sums of dK and dV of one (sample, key head), a set for each part of its queries. A set is `size` numbers.
struct PartialSums {
  float* first;
  int64_t size, count;
};

// KeyBlock: KeyBlock::kKeys keys and values of one (sample, key head), packed. KeySums: the sums of dK and dV of one
// (sample, key head) over a part of its queries, and how blocks of keys of several are added up and written.
// QueryBlock: one thread's memory, and how it works out QueryBlock::kQueries queries of one head.
template <class KeyBlock, class KeySums, class QueryBlock>
class BackwardSchedule {
  using E = typename KeyBlock::Element;
  static constexpr int64_t kKeys = KeyBlock::kKeys, kQueries = QueryBlock::kQueries;

 public:
  BackwardSchedule(const AttentionBackwardParams& b, const Threads& threads)
      : b_(b),
        threads_(threads),
        units_(b.forward.batch * b.forward.kv_heads),
        key_blocks_(ceil_div(b.forward.kv_length, kKeys)),
        query_blocks_(ceil_div(b.forward.query_length, kQueries)),
        packed_size_(key_blocks_ * KeyBlock::size(b.forward)),
        sums_size_(KeySums::size(b.forward)),
        parts_(minimum(b.forward.heads ? ceil_div(b.forward.query_length, kPartQueries) : 0,
                       at_least_1(kPartElements / at_least_1(sums_size_)))),
        together_(at_least_1(minimum(kTogetherBytes / at_least_1(bytes_of_unit()), units_ * parts_ / wanted_items()))),
        at_once_(minimum(units_, together_ * ceil_div(wanted_items(), at_least_1(parts_)))),
        packed_(at_once_ * packed_size_),
        sums_(at_once_ * parts_ * sums_size_) {}

  void run() {
    for (int64_t begun = 0; begun < units_; begun += at_once_) {
      const int64_t count = minimum(at_once_, units_ - begun);
      for_each(count * key_blocks_, [&](int64_t i) { pack(begun, i / key_blocks_, i % key_blocks_); });
      const int64_t sets = ceil_div(count, together_);
      parallel_with(threads_, sets * parts_, 1, [&] {
        return [&, queries = QueryBlock(b_.forward)](int64_t begin, int64_t end) mutable {
          for (int64_t i = begin; i < end; i++) {
            const int64_t set = i / parts_;
            multiply_part(begun, count * set / sets, count * (set + 1) / sets, i % parts_, queries);
          }
        };
      });
      for_each(count * key_blocks_, [&](int64_t i) { write_keys(begun, i / key_blocks_, i % key_blocks_); });
    }
  }

 private:
  static int64_t at_least_1(int64_t n) { return maximum(1, n); }
  int64_t wanted_items() const { return kItemsPerThread * threads_.count; }
  int64_t bytes_of_unit() const {
    return packed_size_ * static_cast<int64_t>(sizeof(E)) + sums_size_ * static_cast<int64_t>(sizeof(float));
  }
  int64_t sample(int64_t unit) const { return unit / b_.forward.kv_heads; }
  int64_t kv_head(int64_t unit) const { return unit % b_.forward.kv_heads; }
  E* packed(int64_t i) const { return packed_ + i * packed_size_; }
  float* sums(int64_t i, int64_t part) const { return sums_ + (i * parts_ + part) * sums_size_; }

  template <class Body>
  void for_each(int64_t items, const Body& body) const {
    parallel_for(threads_, items, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) body(i);
    });
  }

  // Of the units in memory, which are those from `begun` on, the i-th; a block of its keys.
  void pack(int64_t begun, int64_t i, int64_t block) const {
    KeyBlock(b_.forward, packed(i) + block * KeyBlock::size(b_.forward))
        .pack(b_.forward, sample(begun + i), kv_head(begun + i), block * kKeys);
  }

  // A part of the queries, of the units [first, last) in memory: these take turns on a block of queries, as a page of
  // memory holds the rows of several heads.
  void multiply_part(int64_t begun, int64_t first, int64_t last, int64_t part, QueryBlock& queries) const {
    const int64_t group = b_.forward.heads / b_.forward.kv_heads;
    const int64_t first_block = query_blocks_ * part / parts_, last_block = query_blocks_ * (part + 1) / parts_;
    for (int64_t block = first_block; block < last_block; block++)
      for (int64_t i = first; i < last; i++)
        for (int64_t h = 0; h < group; h++)
          queries.run(b_, packed(i), KeySums(b_.forward, sums(i, part)), sample(begun + i),
                      kv_head(begun + i) * group + h, block * kQueries, block > first_block || h > 0,
                      i + 1 < last || h + 1 < group);
  }

  void write_keys(int64_t begun, int64_t i, int64_t block) const {
    KeySums::write(b_, {sums(i, 0), sums_size_, parts_}, sample(begun + i), kv_head(begun + i), block * kKeys);
  }

  const AttentionBackwardParams& b_;
  const Threads& threads_;
  // Units are pairs of a sample and a key head: up to `together_` of them share an item of work, `at_once_` are in
  // memory.
  int64_t units_, key_blocks_, query_blocks_, packed_size_, sums_size_, parts_, together_, at_once_;
  Scratch<E> packed_;
  Scratch<float> sums_;
};

template <class KeyBlock, class KeySums, class QueryBlock>
void attend_backward(const AttentionBackwardParams& b, const Threads& threads) {
  if (b.forward.batch == 0 || b.forward.head_dim == 0 || b.forward.kv_heads == 0) return;
  BackwardSchedule<KeyBlock, KeySums, QueryBlock>(b, threads).run();
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
