// geglu: one pass over both halves of a row, forward and backward.
#include "common/geglu.h"

#include "cpu/element_type.h"
#include "cpu/gelu.h"
#include "cpu/packs.h"
#include "cpu/parallel.h"
#include "cpu/prefetch.h"
#include "cpu/streaming.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 16384;

Threads threads_for(const GegluParams& p, const Threads& available) {
  return {p.rows * p.features < kSerialElements ? 1 : available.count, available.run};
}

template <class T, class Activation, bool kStream>
void run_row(const T* x, T* y, int64_t features) {
  for_each_pack(features, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
    prefetch_ahead(x + i);
    prefetch_ahead(x + features + i);
    const Pack hidden = read(x, i, count), gate = read(x + features, i, count);
    const Pack activated = {Activation::template evaluate<T>(gate.first).value,
                            Activation::template evaluate<T>(gate.second).value};
    write<kStream>(y, i, count, hidden * activated);
  });
}

template <class T, class Activation, bool kStream>
void run_row_backward(const T* x, const T* dy, T* dx, int64_t features) {
  for_each_pack(features, [&](int64_t i, int count) FASTDIFF_INLINE_LAMBDA {
    prefetch_ahead(x + i);
    prefetch_ahead(x + features + i);
    prefetch_ahead(dy + i);
    const Pack hidden = read(x, i, count), gate = read(x + features, i, count), gradient = read(dy, i, count);
    const Gelu first = Activation::template evaluate<T>(gate.first),
               second = Activation::template evaluate<T>(gate.second);
    write<kStream>(dx, i, count, gradient * Pack{first.value, second.value});
    write<kStream>(dx + features, i, count, gradient * hidden * Pack{first.derivative, second.derivative});
  });
}

template <class T, class Activation, bool kStream>
void run(const GegluParams& p, const Threads& threads) {
  parallel_for(threads, p.rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      run_row<T, Activation, kStream>(static_cast<const T*>(p.x) + row * p.x_row_stride,
                                      static_cast<T*>(p.y) + row * p.features, p.features);
    if (kStream) finish_streaming();
  });
}

template <class T, class Activation, bool kStream>
void run(const GegluBackwardParams& b, const Threads& threads) {
  const GegluParams& p = b.forward;
  parallel_for(threads, p.rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      run_row_backward<T, Activation, kStream>(static_cast<const T*>(p.x) + row * p.x_row_stride,
                                               static_cast<const T*>(b.dy) + row * b.dy_row_stride,
                                               static_cast<T*>(b.dx) + row * 2 * p.features, p.features);
    if (kStream) finish_streaming();
  });
}

// Picks the kernel, whose output has `halves` times the features of y: forward for GegluParams, backward for
// GegluBackwardParams.
template <class Params>
void choose(const Params& params, const GegluParams& p, const void* output, int64_t halves, const Threads& available) {
  const Threads threads = threads_for(p, available);
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t half = p.features * static_cast<int64_t>(sizeof(T));  // both halves of a row of dx start aligned
    const bool stream = worth_streaming(output, p.rows * halves, half);
    if (p.tanh) return stream ? run<T, TanhGelu, true>(params, threads) : run<T, TanhGelu, false>(params, threads);
    return stream ? run<T, ExactGelu, true>(params, threads) : run<T, ExactGelu, false>(params, threads);
  });
}

}  // namespace

void geglu(const GegluParams& p, const Threads& available) { choose(p, p, p.y, 1, available); }

void geglu_backward(const GegluBackwardParams& b, const Threads& available) {
  choose(b, b.forward, b.dx, 2, available);
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
