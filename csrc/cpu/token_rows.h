// The rows of the kernels that work on one token's channels at a time: gate_residual and layer_norm_modulate.
#pragma once

#include "common/gate_residual.h"
#include "cpu/element_type.h"
#include "cpu/packs.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"
#include "cpu/threads.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;

inline Threads threads_for(const GateResidualParams& p, const Threads& available) {
  return {p.batch * p.tokens * p.channels < kSerialElements ? 1 : available.count, available.run};
}

template <class T>
const T* row_of(const TokenOperand& operand, int64_t sample, int64_t token) {
  return static_cast<const T*>(operand.data) + sample * operand.batch_stride + token * operand.token_stride;
}

template <class T>
T* dense_row(void* data, const GateResidualParams& p, int64_t sample, int64_t token) {
  return static_cast<T*>(data) + (sample * p.tokens + token) * p.channels;
}

template <class T>
bool streams(const void* output, const GateResidualParams& p) {
  return worth_streaming(output, p.batch * p.tokens, p.channels * static_cast<int64_t>(sizeof(T)));
}

// One token's row of an operand in float32, in the lanes of a T: converted again only where it changes.
template <class T>
class Converted {
 public:
  Converted(const TokenOperand& operand, int64_t channels, float absent)
      : operand_(operand), channels_(channels), lanes_(lanes_of_row(channels)) {
    for (int64_t i = 0; i < lanes_of_row(channels); i++) lanes_[i] = absent;
  }

  // Whether the row differs from the one before.
  bool move_to(int64_t sample, int64_t token) {
    if (!operand_.data) return false;
    const int64_t at = sample * operand_.batch_stride + token * operand_.token_stride;
    if (at == at_) return false;
    at_ = at;
    with_element_type(operand_.dtype, [&](auto element) {
      const auto* row = static_cast<const decltype(element)*>(operand_.data) + at;
      for_each_pack(channels_, [&](int64_t i, int count)
                                   FASTDIFF_INLINE_LAMBDA { store_lanes(lanes_, i, read_as<T>(row, i, count)); });
    });
    return true;
  }

  FASTDIFF_INLINE Pack operator[](int64_t offset) const { return load_lanes(lanes_, offset); }
  explicit operator bool() const { return operand_.data != nullptr; }

 private:
  const TokenOperand& operand_;
  int64_t channels_, at_ = -1;
  Scratch<float> lanes_;
};

// Calls row(offset, count, sum) with residual + gate * x, residual + x, or x, for every pack of a token.
template <class T, class Row>
FASTDIFF_INLINE void for_each_sum(const GateResidualParams& p, int64_t sample, int64_t token, const Converted<T>& gate,
                                  const Row& row) {
  const T* x = row_of<T>(p.x, sample, token);
  const auto branch = [&](int64_t i, int n) FASTDIFF_INLINE_LAMBDA {
    prefetch(x + i + p.x.token_stride);
    return read(x, i, n);
  };
  if (!p.residual.data) {
    for_each_pack(p.channels, [&](int64_t i, int n) FASTDIFF_INLINE_LAMBDA { row(i, n, branch(i, n)); });
    return;
  }
  const T* stem = row_of<T>(p.residual, sample, token);
  const auto residual = [&](int64_t i, int n) FASTDIFF_INLINE_LAMBDA {
    prefetch(stem + i + p.residual.token_stride);
    return read(stem, i, n);
  };
  if (gate) {
    for_each_pack(p.channels, [&](int64_t i, int n) FASTDIFF_INLINE_LAMBDA {
      row(i, n, multiply_add(gate[i], branch(i, n), residual(i, n)));
    });
  } else {
    for_each_pack(p.channels,
                  [&](int64_t i, int n) FASTDIFF_INLINE_LAMBDA { row(i, n, residual(i, n) + branch(i, n)); });
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
