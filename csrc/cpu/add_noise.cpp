// add_noise: both outputs from one pass over clean data and noise.
#include "common/add_noise.h"

#include "cpu/element_type.h"
#include "cpu/packs.h"
#include "cpu/parallel.h"
#include "cpu/streaming.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;
constexpr int64_t kChunkElements = 16384;  // what a thread takes at a time

// Of one sample, as float32. A NaN becomes one that rounding to bfloat16 keeps.
class Factors {
 public:
  Factors(const AddNoiseParams& p, int64_t sample)
      : alpha(narrow(p, p.alpha, sample)),
        sigma(narrow(p, p.sigma, sample)),
        target_clean(narrow(p, p.target_clean, sample)),
        target_noise(narrow(p, p.target_noise, sample)) {}

  float alpha, sigma, target_clean, target_noise;

 private:
  static float narrow(const AddNoiseParams& p, const void* factors, int64_t sample) {
    const float factor = p.wide_factors ? static_cast<float>(static_cast<const double*>(factors)[sample])
                                        : static_cast<const float*>(factors)[sample];
    return factor == factor ? factor : NAN;
  }
};

// Never inlined: the last elements go through the same instructions as all others.
template <class T, bool kStream>
__attribute__((noinline)) void run_packs(const T* clean, const T* noise, T* noisy, T* target, int64_t count,
                                         const Factors& factors) {
  const Factors f = factors;
  for (int64_t i = 0; i < count; i += kPack) {
    const Pack x = load_pack(clean + i), eps = load_pack(noise + i);
    store_pack<kStream>(noisy + i,
                        {f.alpha * x.first + f.sigma * eps.first, f.alpha * x.second + f.sigma * eps.second});
    store_pack<kStream>(target + i, {f.target_clean * x.first + f.target_noise * eps.first,
                                     f.target_clean * x.second + f.target_noise * eps.second});
  }
}

template <class T, bool kStream>
void run_range(const AddNoiseParams& p, int64_t begin, int64_t count, const Factors& factors) {
  const T* clean = static_cast<const T*>(p.clean) + begin;
  const T* noise = static_cast<const T*>(p.noise) + begin;
  T* noisy = static_cast<T*>(p.noisy) + begin;
  T* target = static_cast<T*>(p.target) + begin;
  const int64_t whole = count / kPack * kPack;
  run_packs<T, kStream>(clean, noise, noisy, target, whole, factors);
  if (whole == count) return;
  const size_t rest = (count - whole) * sizeof(T);
  T padded[4][kPack] = {};
  std::memcpy(padded[0], clean + whole, rest);
  std::memcpy(padded[1], noise + whole, rest);
  run_packs<T, false>(padded[0], padded[1], padded[2], padded[3], kPack, factors);
  std::memcpy(noisy + whole, padded[2], rest);
  std::memcpy(target + whole, padded[3], rest);
}

template <class T, bool kStream>
void run(const AddNoiseParams& p, const Threads& threads) {
  const int64_t chunks = ceil_div(p.count, kChunkElements);
  parallel_for(threads, p.batch * chunks, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t sample = item / chunks, begin = item % chunks * kChunkElements;
      run_range<T, kStream>(p, sample * p.count + begin, minimum(kChunkElements, p.count - begin), Factors(p, sample));
    }
    if (kStream) finish_streaming();
  });
}

}  // namespace

void add_noise(const AddNoiseParams& p, const Threads& available) {
  const Threads threads{p.batch * p.count < kSerialElements ? 1 : available.count, available.run};
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t row_bytes = p.count * static_cast<int64_t>(sizeof(T));
    const bool stream = worth_streaming(p.noisy, p.batch, row_bytes) && worth_streaming(p.target, p.batch, row_bytes);
    return stream ? run<T, true>(p, threads) : run<T, false>(p, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
