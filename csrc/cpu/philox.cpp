// philox_bits, philox_uniform and philox_normal: draws of a stretch of a sample at a time, in the cache, and from there
// to the output in its type.
#include "common/philox.h"

#include "cpu/element_type.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/philox.h"
#include "cpu/streaming.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 8192;
constexpr int64_t kChunkElements = 16384;  // what a thread takes at a time
constexpr int64_t kStretch = 512;          // drawn before it is written
static_assert(kChunkElements % kStretch == 0 && kStretch % (kPacksAtOnce * kPack) == 0);

// Elements [begin, end) of a sample are written by write(element, count, draws), a stretch at a time.
template <Draw kDraw, class Number, class Write>
void draw_range(const PhiloxParams& p, int64_t sample, int64_t begin, int64_t end, const Write& write) {
  alignas(64) Number draws[kStretch];
  for (int64_t element = begin; element < end; element += kStretch) {
    const int64_t count = minimum(kStretch, end - element);
    draw_packs<kDraw>(p.seeds[sample], p.offset, element / kPack, ceil_div(count, kPack), draws);
    write(element, count, draws);
  }
}

template <Draw kDraw, class Number, class Write>
void draw_all(const PhiloxParams& p, const Threads& available, const Write& write) {
  const Threads threads{p.batch * p.count < kSerialElements ? 1 : available.count, available.run};
  const int64_t chunks = ceil_div(p.count, kChunkElements);
  parallel_for(threads, p.batch * chunks, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t sample = item / chunks, begin = item % chunks * kChunkElements;
      draw_range<kDraw, Number>(p, sample, begin, minimum(begin + kChunkElements, p.count),
                                [&](int64_t element, int64_t count, const Number* draws) {
                                  write(sample * p.count + element, count, draws);
                                });
    }
    finish_streaming();
  });
}

template <class T, bool kStream, bool kClamp>
void write_numbers(T* target, int64_t count, const float* numbers, OpenInterval interval) {
  const auto number = [&](int64_t i) FASTDIFF_INLINE_LAMBDA {
    const Float v = load(numbers + i);
    return kClamp ? clamp(v, interval.low, interval.high) : v;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_in_order<kStream>(target + i, number(i));
  if (i == count) return;
  T last[kLanes];
  store_in_order(last, number(i));
  std::memcpy(target + i, last, (count - i) * sizeof(T));
}

template <Draw kDraw>
void draw_numbers(const PhiloxParams& p, const Threads& threads) {
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const OpenInterval interval = open_interval(p.dtype);
    const auto to_output = [&](auto stream) {
      draw_all<kDraw, float>(p, threads, [&](int64_t first, int64_t count, const float* numbers) {
        write_numbers<T, decltype(stream)::value, kDraw == Draw::Uniform>(static_cast<T*>(p.result) + first, count,
                                                                          numbers, interval);
      });
    };
    if (worth_streaming(p.result, p.batch, p.count * static_cast<int64_t>(sizeof(T))))
      return to_output(std::true_type{});
    return to_output(std::false_type{});
  });
}

}  // namespace

void philox(const PhiloxParams& p, const Threads& threads) {
  switch (p.draw) {
    case Draw::Bits:
      return draw_all<Draw::Bits, uint32_t>(p, threads, [&](int64_t first, int64_t count, const uint32_t* words) {
        int64_t* target = static_cast<int64_t*>(p.result) + first;
        for (int64_t i = 0; i < count; i++) target[i] = words[i];
      });
    case Draw::Uniform:
      return draw_numbers<Draw::Uniform>(p, threads);
    case Draw::Normal:
      return draw_numbers<Draw::Normal>(p, threads);
  }
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
