// Who computes which block of queries of forward attention, and when keys and values are packed for it.
#pragma once

#include "common/attention.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many multiplications, waking a thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 18;

// Bytes of packed keys and values to hold at once, where one head alone does not need more.
constexpr int64_t kPackedBytes = int64_t{32} << 20;

// Packed keys and values of a sample that stay in the L2 cache together, in bytes.
constexpr int64_t kSharedBytes = int64_t{256} << 10;

// Head: the keys and values of one (sample, key head), packed block by block. Block: one thread's memory, and how it
// works out Block::kQueries queries of one head.
template <class Head, class Block>
void attend(const AttentionParams& p, const Threads& available) {
  if (p.batch * p.heads * p.query_length * p.head_dim == 0) return;
  const bool serial = p.batch * p.heads * p.query_length * p.kv_length * p.head_dim < kSerialProducts;
  const Threads threads{serial ? 1 : available.count, available.run};
  using E = typename Head::Element;
  constexpr int64_t kQueries = Block::kQueries;
  const int64_t units = p.batch * p.kv_heads, group = p.heads / p.kv_heads;
  const int64_t query_blocks = ceil_div(p.query_length, kQueries), key_blocks = Head::blocks(p);
  const int64_t size = Head::size(p), bytes = size * static_cast<int64_t>(sizeof(E));
  // Neighbouring heads share cache lines of the queries and of the output: a block of queries goes through all heads,
  // unless their keys and values would push each other out of the cache.
  const bool fits = p.kv_heads * bytes <= kSharedBytes;
  const int64_t heads_in_turn = fits ? p.heads : 1, whole = fits ? p.kv_heads : 1;
  const int64_t at_once = minimum(units, maximum(1, size ? kPackedBytes / (bytes * whole) : units) * whole);
  const Scratch<E> memory(at_once * size);
  for (int64_t first = 0; first < units; first += at_once) {
    const int64_t count = minimum(at_once, units - first);
    const auto packed = [&](int64_t i) { return Head(p, memory + i * size); };
    parallel_for(threads, count * key_blocks, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t unit = first + i / key_blocks;
        packed(i / key_blocks).pack(p, unit / p.kv_heads, unit % p.kv_heads, i % key_blocks);
      }
    });
    parallel_with(threads, count * group * query_blocks, heads_in_turn, [&] {
      return [&, block = Block(p)](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; i++) {
          const int64_t turn = heads_in_turn * query_blocks, row = i % turn / heads_in_turn * kQueries;
          const int64_t local = i / turn * heads_in_turn + i % heads_in_turn, head = first * group + local;
          block.run(p, packed(local / group), head / p.heads, head % p.heads, row,
                    minimum(kQueries, p.query_length - row));
        }
      };
    });
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
