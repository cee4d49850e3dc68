// sampler_step: one pass over all operands, a pack of each at a time.
#include "common/sampler_step.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;
constexpr int64_t kChunkElements = 16384;  // what a thread takes at a time

// The step on a range of elements, for operands that are known at compile time.
//
// A bfloat16 result comes from bfloat16 operands and from coefficients whose NaNs the bindings made canonical, so
// narrow_bfloat16 keeps every NaN.
template <class T, bool kGuided, int kHistory>
class Step {
 public:
  explicit Step(const SamplerStepParams& p) : params_(p) {
    int next = 0;
    const auto take = [&](const void* data) { inputs_[next++] = static_cast<const T*>(data); };
    take(p.sample);
    take(p.prediction);
    if constexpr (kGuided) take(p.uncond_prediction);
    for (int i = 0; i < kHistory; i++) take(p.history[i]);
  }

  void run(int64_t begin, int64_t end) const {
    const T* inputs[kInputs];
    for (int i = 0; i < kInputs; i++) inputs[i] = inputs_[i] + begin;
    T* result = static_cast<T*>(params_.result) + begin;
    const int64_t whole = (end - begin) / kPack * kPack;
    run_packs(inputs, result, whole);
    if (const int left = static_cast<int>(end - begin - whole)) run_partial(inputs, result, whole, left);
  }

 private:
  static constexpr int kInputs = 2 + kGuided + kHistory;
  static constexpr int kFirstHistory = 2 + kGuided;

  // Never inlined: the last elements go through the same instructions as all others. Two inlined copies might fuse
  // multiplications and additions differently, and an element's bits would depend on where it lies.
  __attribute__((noinline)) void run_packs(const T* const* inputs, T* result, int64_t count) const {
    // Copies, which the stores to `result` cannot change: the compiler keeps them in registers.
    const SamplerStepParams params = params_;
    const T* rows[kInputs];
    for (int k = 0; k < kInputs; k++) rows[k] = inputs[k];
    const float* c = params.coefficients;
    for (int64_t i = 0; i < count; i += kPack) {
      const Pack sample = load_pack(rows[0] + i);
      Pack guided = load_pack(rows[1] + i);
      if constexpr (kGuided) {
        const Pack uncond = load_pack(rows[2] + i);
        guided = {uncond.first + params.guidance_scale * (guided.first - uncond.first),
                  uncond.second + params.guidance_scale * (guided.second - uncond.second)};
      }
      Pack sum = {c[0] * sample.first + c[1] * guided.first, c[0] * sample.second + c[1] * guided.second};
      for (int k = 0; k < kHistory; k++) {
        const Pack entry = load_pack(rows[kFirstHistory + k] + i);
        sum = {sum.first + c[2 + k] * entry.first, sum.second + c[2 + k] * entry.second};
      }
      store_pack<false>(result + i, sum);
    }
  }

  void run_partial(const T* const* inputs, T* result, int64_t begin, int count) const {
    T padded[kInputs][kPack] = {}, padded_result[kPack];
    const T* rows[kInputs];
    for (int i = 0; i < kInputs; i++) {
      std::memcpy(padded[i], inputs[i] + begin, count * sizeof(T));
      rows[i] = padded[i];
    }
    run_packs(rows, padded_result, kPack);
    std::memcpy(result + begin, padded_result, count * sizeof(T));
  }

  const SamplerStepParams& params_;
  const T* inputs_[kInputs];
};

template <class T, bool kGuided, int kHistory>
void run(const SamplerStepParams& p, const Threads& threads) {
  const Step<T, kGuided, kHistory> step(p);
  parallel_for(threads, (p.count + kChunkElements - 1) / kChunkElements, [&](int64_t begin, int64_t end) {
    const int64_t stop = end * kChunkElements;
    step.run(begin * kChunkElements, stop < p.count ? stop : p.count);
  });
}

template <class T, bool kGuided>
void with_history(const SamplerStepParams& p, const Threads& threads) {
  static_assert(kMaxHistory == 4);
  switch (p.history_count) {
    case 0:
      return run<T, kGuided, 0>(p, threads);
    case 1:
      return run<T, kGuided, 1>(p, threads);
    case 2:
      return run<T, kGuided, 2>(p, threads);
    case 3:
      return run<T, kGuided, 3>(p, threads);
    default:
      return run<T, kGuided, 4>(p, threads);
  }
}

template <class T>
void with_guidance(const SamplerStepParams& p, const Threads& threads) {
  if (p.uncond_prediction) return with_history<T, true>(p, threads);
  return with_history<T, false>(p, threads);
}

}  // namespace

void sampler_step(const SamplerStepParams& p, const Threads& available) {
  const Threads threads{p.count < kSerialElements ? 1 : available.count, available.run};
  switch (p.dtype) {
    case DType::Float32:
      return with_guidance<float>(p, threads);
    case DType::BFloat16:
      return with_guidance<BFloat16>(p, threads);
    case DType::Float16:
      return with_guidance<Float16>(p, threads);
  }
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
