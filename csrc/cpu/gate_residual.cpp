// gate_residual: one pass over x and the residual, forward; one over x and the gradient, backward.
#include "cpu/parallel.h"
#include "cpu/token_sums.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

template <class T, bool kStream>
void run_rows(const GateResidualParams& p, Converted<T>& gate, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) {
    const int64_t sample = i / p.tokens, token = i % p.tokens;
    gate.move_to(sample, token);
    T* sum = dense_row<T>(p.sum, p, sample, token);
    for_each_sum(p, sample, token, gate,
                 [&](int64_t c, int count, Pack v) FASTDIFF_INLINE_LAMBDA { write<kStream>(sum, c, count, v); });
  }
  if (kStream) finish_streaming();
}

// dx = gate * dsum and, summed over the tokens that share it, dgate = dsum * x.
template <class T>
class Rows {
 public:
  explicit Rows(const GateResidualBackwardParams& b)
      : params_(b), forward_(b.forward), gate_(b.forward.gate, b.forward.channels, 1) {}

  void run(int64_t sample, int64_t token, float* const* sums) {
    gate_.move_to(sample, token);
    const T *dsum = row_of<T>(params_.dsum, sample, token), *x = row_of<T>(forward_.x, sample, token);
    T* dx = dense_row<T>(params_.dx, forward_, sample, token);
    float* dgate = forward_.gate.per_token && params_.dgate
                       ? params_.dgate + (sample * forward_.tokens + token) * forward_.channels
                       : nullptr;
    for_each_pack(forward_.channels, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
      const Pack gradient = read(dsum, i, count), of_token = gradient * read(x, i, count);
      write<false>(dx, i, count, gradient * gate_[i]);
      add_to(sums[0], i, of_token);
      if (dgate) write_floats<T>(dgate, i, count, of_token);
    });
  }

 private:
  const GateResidualBackwardParams& params_;
  const GateResidualParams& forward_;
  Converted<T> gate_;
};

template <class T>
void run_backward(const GateResidualBackwardParams& b, const Threads& threads) {
  const GateResidualParams& p = b.forward;
  TokenSums<T, 1> sums(p);
  sums.collect(threads, [&] { return Rows<T>(b); });
  if (!b.dgate || p.gate.per_token) return;
  sums.for_each(threads, [&](int64_t sample, int64_t channel, const double* sum) {
    b.dgate[sample * p.channels + channel] = static_cast<float>(sum[0]);
  });
}

}  // namespace

void gate_residual(const GateResidualParams& p, const Threads& available) {
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const bool stream = streams<T>(p.sum, p);
    parallel_with(threads_for(p, available), p.batch * p.tokens, 1, [&] {
      return [&, gate = Converted<T>(p.gate, p.channels, 1)](int64_t begin, int64_t end) mutable {
        return stream ? run_rows<T, true>(p, gate, begin, end) : run_rows<T, false>(p, gate, begin, end);
      };
    });
  });
}

void gate_residual_backward(const GateResidualBackwardParams& b, const Threads& available) {
  with_element_type(b.forward.dtype,
                    [&](auto element) { run_backward<decltype(element)>(b, threads_for(b.forward, available)); });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
