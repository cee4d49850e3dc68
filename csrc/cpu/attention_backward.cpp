// Backward attention, with P = exp(scores - logsumexp) worked out again from the operands, block by block:
//
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - rowsum(dO * O))      dQ = scale * dS K      dK = scale * dS^T Q
//
//   Dao, Fu, Ermon, Rudra and Re, "FlashAttention" (arXiv:2205.14135), algorithm 4
//
// One thread takes all queries of a (sample, key head), so that dK and dV are summed in one order.
#include "cpu/attention_blocks.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Longer than in the forward pass: dK and dV travel to memory and back once a block.
constexpr int64_t kBackwardQueryBlock = 2 * kQueryBlock;

// Everything about the keys of one (sample, key head), a block of keys after the other.
class Keys {
 public:
  explicit Keys(const AttentionParams& p)
      : depth_(p.head_dim),
        lanes_(lanes_of(p.head_dim)),
        blocks_(ceil_div(p.kv_length, kKeyBlock)),
        key_columns_(blocks_ * kKeyBlock * depth_),
        value_columns_(blocks_ * kKeyBlock * depth_),
        key_rows_(blocks_ * kKeyBlock * lanes_),
        dkey_(blocks_ * kKeyBlock * lanes_),
        dvalue_(blocks_ * kKeyBlock * lanes_) {}

  template <class T>
  void pack(const AttentionParams& p, int64_t sample, int64_t head) {
    keys_ = keys_of(p, sample);
    for (int64_t block = 0; block < used_blocks(); block++) {
      const T* key = head_of<T>(p.key, sample, head) + block * kKeyBlock * p.key.token_stride;
      const T* value = head_of<T>(p.value, sample, head) + block * kKeyBlock * p.value.token_stride;
      pack_columns(key, p.key.token_stride, count(block), depth_, key_columns(block));
      pack_columns(value, p.value.token_stride, count(block), depth_, value_columns(block));
      pack_rows(key, p.key.token_stride, count(block), depth_, key_rows(block));
    }
    std::memset(dkey_, 0, blocks_ * kKeyBlock * lanes_ * sizeof(float));
    std::memset(dvalue_, 0, blocks_ * kKeyBlock * lanes_ * sizeof(float));
  }

  template <class T>
  void write(const AttentionBackwardParams& b, int64_t sample, int64_t head) const {
    const AttentionParams& p = b.forward;
    for (int64_t token = 0; token < p.kv_length; token++) {
      const int64_t at = ((sample * p.kv_length + token) * p.kv_heads + head) * depth_;
      narrow_row(dkey_ + token * lanes_, depth_, p.scale, static_cast<T*>(b.dkey) + at);
      narrow_row(dvalue_ + token * lanes_, depth_, 1.0f, static_cast<T*>(b.dvalue) + at);
    }
  }

  int64_t used_blocks() const { return ceil_div(keys_, kKeyBlock); }
  int64_t count(int64_t block) const { return minimum(kKeyBlock, keys_ - block * kKeyBlock); }
  float* key_columns(int64_t block) const { return key_columns_ + block * kKeyBlock * depth_; }
  float* value_columns(int64_t block) const { return value_columns_ + block * kKeyBlock * depth_; }
  float* key_rows(int64_t block) const { return key_rows_ + block * kKeyBlock * lanes_; }
  float* dkey(int64_t block) const { return dkey_ + block * kKeyBlock * lanes_; }
  float* dvalue(int64_t block) const { return dvalue_ + block * kKeyBlock * lanes_; }

 private:
  int64_t depth_, lanes_, blocks_, keys_ = 0;
  Scratch<float> key_columns_, value_columns_, key_rows_, dkey_, dvalue_;
};

// A block of queries of one head.
class Queries {
 public:
  explicit Queries(const AttentionParams& p)
      : depth_(p.head_dim),
        lanes_(lanes_of(p.head_dim)),
        query_(depth_),
        doutput_(depth_),
        output_(depth_),
        query_rows_(kBackwardQueryBlock * lanes_),
        doutput_rows_(kBackwardQueryBlock * lanes_),
        dquery_(kBackwardQueryBlock * lanes_),
        probabilities_(kBackwardQueryBlock * kKeyBlock),
        dscores_(kBackwardQueryBlock * kKeyBlock) {}

  template <class T>
  void run(const AttentionBackwardParams& b, const Keys& keys, int64_t sample, int64_t head, int64_t first) {
    const int64_t rows = minimum(kBackwardQueryBlock, b.forward.query_length - first);
    fetch<T>(b, sample, head, first, rows);
    for (int64_t block = 0; block < keys.used_blocks(); block++) add_keys(keys, block, rows, b.forward.scale);
    for (int64_t r = 0; r < rows; r++)
      narrow_row(dquery_ + r * lanes_, depth_, b.forward.scale,
                 static_cast<T*>(b.dquery) + row_of(b.forward, sample, head, first + r));
  }

 private:
  int64_t row_of(const AttentionParams& p, int64_t sample, int64_t head, int64_t token) const {
    return ((sample * p.query_length + token) * p.heads + head) * depth_;
  }

  template <class T>
  void fetch(const AttentionBackwardParams& b, int64_t sample, int64_t head, int64_t first, int64_t rows) {
    const AttentionParams& p = b.forward;
    const T* query = head_of<T>(p.query, sample, head) + first * p.query.token_stride;
    const T* doutput = head_of<T>(b.doutput, sample, head) + first * b.doutput.token_stride;
    query_.gather(query, p.query.token_stride, rows, depth_);
    doutput_.gather(doutput, b.doutput.token_stride, rows, depth_);
    output_.gather(static_cast<const T*>(p.output) + row_of(p, sample, head, first), p.heads * depth_, rows, depth_);
    pack_rows<float>(query, p.query.token_stride, rows, depth_, query_rows_);
    pack_rows<float>(doutput, b.doutput.token_stride, rows, depth_, doutput_rows_);
    for (int64_t r = 0; r < rows; r++) {
      delta_[r] = delta(r);
      logsumexp_[r] = p.logsumexp[(sample * p.heads + head) * p.query_length + first + r];
    }
    std::memset(dquery_, 0, rows * lanes_ * sizeof(float));
  }

  // Of one row: the sum of doutput * output.
  float delta(int64_t row) const {
    double sum = 0;
    for (int64_t d = 0; d < depth_; d += kLongestSum) {
      const float* doutput = doutput_.part_of_row(row, d / kLongestSum);
      const float* output = output_.part_of_row(row, d / kLongestSum);
      for (int64_t i = 0; i < minimum(kLongestSum, depth_ - d); i++) sum += double(doutput[i]) * output[i];
    }
    return static_cast<float>(sum);
  }

  void add_keys(const Keys& keys, int64_t block, int64_t rows, float scale) {
    const int64_t count = keys.count(block), score_vectors = ceil_div(count, kLanes), vectors = lanes_ / kLanes;
    multiply<false>(query_.left(), rows, keys.key_columns(block), depth_, score_vectors, probabilities_, kKeyBlock,
                    scale * kLog2e);
    multiply<false>(doutput_.left(), rows, keys.value_columns(block), depth_, score_vectors, dscores_, kKeyBlock);
    for (int64_t r = 0; r < rows; r++) {
      const Float logsumexp = broadcast(logsumexp_[r] * kLog2e), delta = broadcast(delta_[r]);
      for (int64_t i = r * kKeyBlock; i < r * kKeyBlock + score_vectors * kLanes; i += kLanes) {
        const Float p = power_of_two_or_zero(load(probabilities_ + i) - logsumexp);
        store(probabilities_ + i, p);
        store(dscores_ + i, p * (load(dscores_ + i) - delta));
      }
    }
    multiply<true>(Left<float, kKeyBlock>{dscores_}, rows, keys.key_rows(block), count, vectors, dquery_, lanes_);
    multiply<true>(Left<float, 1, kKeyBlock>{probabilities_}, count, doutput_rows_, rows, vectors, keys.dvalue(block),
                   lanes_);
    multiply<true>(Left<float, 1, kKeyBlock>{dscores_}, count, query_rows_, rows, vectors, keys.dkey(block), lanes_);
  }

  int64_t depth_, lanes_;
  RowBlock<float, kBackwardQueryBlock> query_, doutput_, output_;
  Scratch<float> query_rows_, doutput_rows_, dquery_, probabilities_, dscores_;
  float delta_[kBackwardQueryBlock], logsumexp_[kBackwardQueryBlock];
};

template <class T>
void backward(const AttentionBackwardParams& b, const Threads& threads) {
  const AttentionParams& p = b.forward;
  const int64_t group = p.heads / p.kv_heads;
  parallel_for(threads, p.batch * p.kv_heads, [&](int64_t begin, int64_t end) {
    Keys keys(p);
    Queries queries(p);
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t sample = unit / p.kv_heads, kv_head = unit % p.kv_heads;
      keys.pack<T>(p, sample, kv_head);
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t first = 0; first < p.query_length; first += kBackwardQueryBlock)
          queries.run<T>(b, keys, sample, head, first);
      keys.write<T>(b, sample, kv_head);
    }
  });
}

}  // namespace

void attention_backward(const AttentionBackwardParams& b, const Threads& threads) {
  if (b.forward.batch == 0 || b.forward.head_dim == 0 || b.forward.kv_heads == 0) return;
  with_element_type(b.forward.dtype, [&](auto element) { backward<decltype(element)>(b, threads); });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
