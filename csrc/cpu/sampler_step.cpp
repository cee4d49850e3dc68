// sampler_step: one pass over all operands, a pack of each at a time, and with rescaled guidance one over the
// predictions before.
#include "common/sampler_step.h"

#include "cpu/element_type.h"
#include "cpu/packs.h"
#include "cpu/parallel.h"
#include "cpu/philox.h"
#include "cpu/sampler_step_rescale.h"
#include "cpu/streaming.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;
constexpr int64_t kChunkElements = 16384;  // what a thread takes at a time
constexpr int64_t kStretch = 512;          // of noise, drawn before it is used
static_assert(kChunkElements % kStretch == 0 && kStretch % (kPacksAtOnce * kPack) == 0);

// What the elements of one sample have in common.
struct SampleFactors {
  float guidance, rescale, model_sample, model_guided, limit, divisor, sample, guided, model, noise;
  float history[kMaxHistory];

  SampleFactors(const StepCoefficients& c, float rescale_factor, const float* dynamic_limit)
      : guidance(c.guidance),
        rescale(rescale_factor),
        model_sample(c.model_sample),
        model_guided(c.model_guided),
        limit(dynamic_limit ? *dynamic_limit : c.clip),
        divisor(dynamic_limit ? *dynamic_limit : 1.0f),
        sample(c.sample),
        guided(c.guided),
        model(c.model),
        noise(c.noise) {
    for (int k = 0; k < kMaxHistory; k++) history[k] = c.history[k];
    if (limit != limit) model_sample = divisor = NAN;  // the clip would ignore it
  }
};

// Where a stretch of elements lies in each array. Of a null array there is none.
template <class T, class P>
struct StepRows {
  const T* sample;
  const P* prediction;
  const P* uncond;
  const T* history[kMaxHistory];
  const float* noise;
  T* result;
  T* model;
  int history_count;
  bool stream_result, stream_model;

  StepRows(const SamplerStepParams& p, int64_t begin, bool stream)
      : sample(static_cast<const T*>(p.sample) + begin),
        prediction(static_cast<const P*>(p.prediction) + begin),
        uncond(p.uncond_prediction ? static_cast<const P*>(p.uncond_prediction) + begin : nullptr),
        noise(nullptr),
        result(static_cast<T*>(p.result) + begin),
        model(p.model ? static_cast<T*>(p.model) + begin : nullptr),
        history_count(p.history_count),
        stream_result(stream && p.result != p.sample),
        stream_model(stream) {
    for (int k = 0; k < history_count; k++) {
      history[k] = static_cast<const T*>(p.history[k]) + begin;
      // What was just read is in the cache.
      if (p.history[k] == p.model) stream_model = false;
    }
  }

  // What a step reads, so many elements ahead.
  RowsAhead ahead(int64_t elements) const {
    RowsAhead result;
    const auto add = [&](const auto* row) {
      result.rows[result.count] = reinterpret_cast<const char*>(row + elements);
      result.pack_bytes[result.count++] = kPack * sizeof *row;
    };
    static_assert(kMaxHistory + 3 <= RowsAhead::kMost);
    add(sample);
    add(prediction);
    if (uncond) add(uncond);
    for (int k = 0; k < history_count; k++) add(history[k]);
    return result;
  }

  void advance(int64_t elements) {
    sample += elements;
    prediction += elements;
    if (uncond) uncond += elements;
    for (int k = 0; k < history_count; k++) history[k] += elements;
    result += elements;
    if (model) model += elements;
  }
};

template <class T>
FASTDIFF_INLINE void store_pack(T* target, Pack v, bool stream) {
  if (stream) return store_pack<true>(target, v);
  store_pack<false>(target, v);
}

// Rounding to bfloat16 by addition keeps only NaNs whose low bits are clear. Those of other types may have them set.
template <class T, class P>
FASTDIFF_INLINE Pack roundable(Pack v) {
  if constexpr (std::is_same_v<T, BFloat16> && !std::is_same_v<P, BFloat16>) return canonical(v);
  return v;
}

// The step on `count` elements, whole packs.
//
// Never inlined: the last elements go through the same instructions as all others. Two inlined copies might fuse
// multiplications and additions differently, and an element's bits would depend on where it lies.
template <class T, class P>
__attribute__((noinline)) void run_packs(const StepRows<T, P>& rows, const SampleFactors& factors, int64_t count) {
  // Copies, which the stores cannot change: the compiler keeps them in registers.
  const StepRows<T, P> r = rows;
  const SampleFactors f = factors;
  const Float low = broadcast(-f.limit), high = broadcast(f.limit);
  const auto weigh = [](float factor, Pack v)
                         FASTDIFF_INLINE_LAMBDA { return Pack{factor * v.first, factor * v.second}; };
  const auto add = [](Pack sum, float factor, Pack v) FASTDIFF_INLINE_LAMBDA {
    return Pack{sum.first + factor * v.first, sum.second + factor * v.second};
  };
  for (int64_t i = 0; i < count; i += kPack) {
    const Pack sample = load_pack(r.sample + i);
    Pack guided = load_pack_as<T>(r.prediction + i);
    if (r.uncond) {
      const Pack uncond = load_pack_as<T>(r.uncond + i);
      guided = {f.rescale * guide(guided.first, uncond.first, f.guidance),
                f.rescale * guide(guided.second, uncond.second, f.guidance)};
    }
    Pack model = add(weigh(f.model_sample, sample), f.model_guided, guided);
    model = {smaller(high, larger(low, model.first)), smaller(high, larger(low, model.second))};
    if (f.divisor != 1.0f) model = {model.first / f.divisor, model.second / f.divisor};
    Pack sum = add(add(weigh(f.sample, sample), f.guided, guided), f.model, model);
    for (int k = 0; k < r.history_count; k++) sum = add(sum, f.history[k], load_pack(r.history[k] + i));
    if (r.noise) sum = add(sum, f.noise, load_pack_as<T>(r.noise + i));
    store_pack(r.result + i, roundable<T, P>(sum), r.stream_result);
    if (r.model) store_pack(r.model + i, roundable<T, P>(model), r.stream_model);
  }
}

// Fewer elements than a pack has, through copies of whole packs.
template <class T, class P>
void run_partial(const StepRows<T, P>& rows, const SampleFactors& factors, int64_t count) {
  T sample[kPack] = {}, history[kMaxHistory][kPack] = {}, result[kPack], model[kPack];
  P prediction[kPack] = {}, uncond[kPack] = {};
  StepRows<T, P> padded = rows;
  const auto pad = [&](auto& row, auto& copy) {
    std::memcpy(copy, row, count * sizeof *row);
    row = copy;
  };
  pad(padded.sample, sample);
  pad(padded.prediction, prediction);
  if (rows.uncond) pad(padded.uncond, uncond);
  for (int k = 0; k < rows.history_count; k++) pad(padded.history[k], history[k]);
  padded.result = result;
  if (rows.model) padded.model = model;
  padded.stream_result = padded.stream_model = false;
  run_packs(padded, factors, kPack);
  std::memcpy(rows.result, result, count * sizeof(T));
  if (rows.model) std::memcpy(rows.model, model, count * sizeof(T));
}

template <class T, class P>
void run_range(const StepRows<T, P>& rows, const SampleFactors& factors, int64_t count) {
  const int64_t whole = count / kPack * kPack;
  run_packs(rows, factors, whole);
  if (whole == count) return;
  StepRows<T, P> rest = rows;
  rest.advance(whole);
  if (rest.noise) rest.noise += whole;
  run_partial(rest, factors, count - whole);
}

// Elements from `begin` of a sample on.
template <class T, class P>
void run_noisy_range(StepRows<T, P> rows, const SampleFactors& factors, int64_t begin, int64_t count, uint64_t seed,
                     uint64_t offset) {
  alignas(64) float noise[kStretch];
  for (int64_t done = 0; done < count; done += kStretch) {
    const int64_t stretch = minimum(kStretch, count - done);
    draw_packs<Draw::Normal>(seed, offset, (begin + done) / kPack, ceil_div(stretch, kPack), noise,
                             rows.ahead(kStretch));
    rows.noise = noise;
    run_range(rows, factors, stretch);
    rows.advance(kStretch);
  }
}

template <class T, class P>
void run(const SamplerStepParams& p, const StepCoefficients& c, int64_t step, const float* rescale,
         const Threads& threads) {
  const int64_t row_bytes = p.count * static_cast<int64_t>(sizeof(T));
  const bool stream =
      worth_streaming(p.result, p.batch, row_bytes) && (!p.model || worth_streaming(p.model, p.batch, row_bytes));
  const int64_t chunks = ceil_div(p.count, kChunkElements);
  parallel_for(threads, p.batch * chunks, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t sample = item / chunks, begin = item % chunks * kChunkElements;
      const int64_t count = minimum(kChunkElements, p.count - begin);
      const SampleFactors factors(c, rescale ? rescale[sample] : 1.0f, p.limits ? p.limits + sample : nullptr);
      const StepRows<T, P> rows(p, sample * p.count + begin, stream);
      if (p.seeds) {
        run_noisy_range(rows, factors, begin, count, p.seeds[sample], step + 1);
      } else {
        run_range(rows, factors, count);
      }
    }
    finish_streaming();
  });
}

// The row, with NaNs that rounding to bfloat16 keeps.
StepCoefficients row_of(const SamplerStepParams& p, int64_t step) {
  float columns[kStepColumns];
  const bool exists = step >= 0 && step < p.steps;
  if (exists) std::memcpy(columns, p.coefficients + step, sizeof columns);
  for (float& column : columns)
    if (!exists || column != column) column = NAN;
  StepCoefficients row;
  std::memcpy(&row, columns, sizeof row);
  return row;
}

// Whether a sample's elements need to be told from another's.
bool is_per_sample(const SamplerStepParams& p, bool rescaled) { return p.seeds || p.limits || rescaled; }

template <class T, class P>
void run_step(SamplerStepParams p, const Threads& threads) {
  const int64_t step = p.step ? *p.step : p.step_value;
  const StepCoefficients c = row_of(p, step);
  const bool rescaled = p.uncond_prediction && c.rescale != 0 && p.count > 1;
  if (c.noise == 0) p.seeds = nullptr;
  if (!is_per_sample(p, rescaled)) {
    p.count *= p.batch;
    p.batch = 1;
  }
  if (!rescaled) return run<T, P>(p, c, step, nullptr, threads);
  const Scratch<float> factors(p.batch);
  rescale_factors<P>(p, c, kChunkElements, threads, factors);
  run<T, P>(p, c, step, factors, threads);
}

}  // namespace

void sampler_step(const SamplerStepParams& p, const Threads& available) {
  const Threads threads{p.batch * p.count < kSerialElements ? 1 : available.count, available.run};
  with_element_type(p.dtype, [&](auto element) {
    with_element_type(p.prediction_dtype,
                      [&](auto prediction) { run_step<decltype(element), decltype(prediction)>(p, threads); });
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
