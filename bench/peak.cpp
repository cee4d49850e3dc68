// What the arithmetic units of one core can do at most, for "% peak" in the benchmark's tables.
//
// Prints a line for each kind of product, "fp32 GFLOP/s" and, where the instruction set has them, "bf16 GFLOP/s":
// products of bfloat16 pairs, summed in float32, of vectors or of tiles. Built and run by bench/peak.py.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// A chain of multiply-adds waits for its own last result: only more chains than latency (4 or 5) times units (2 or 4)
// keep the units busy. They must fit the registers, which are 32 of 512 bits or 16 of 256.
#if defined(__AVX512F__)
using Vector = __m512;
constexpr std::size_t kChains = 24;
Vector fill(float value) { return _mm512_set1_ps(value); }
Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
#elif defined(__AVX2__)
using Vector = __m256;
constexpr std::size_t kChains = 12;
Vector fill(float value) { return _mm256_set1_ps(value); }
Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
#else
// The compiler fuses the two operations where its baseline has that.
using Vector = float __attribute__((vector_size(16)));
#if defined(__aarch64__)
constexpr std::size_t kChains = 24;
#else
constexpr std::size_t kChains = 12;
#endif
Vector fill(float value) { return Vector{value, value, value, value}; }
Vector multiply_add(Vector a, Vector b, Vector sum) { return a * b + sum; }
#endif

constexpr int kLanes = sizeof(Vector) / sizeof(float);

template <class Step, std::size_t... I>
void advance(Vector* chains, long steps, Step step, std::index_sequence<I...>) {
  for (long i = 0; i < steps; ++i) ((chains[I] = step(chains[I])), ...);
}

// Seconds of `steps` steps in every chain. The chains differ, and are used in the end, so that none can be left out.
template <class Step>
double time_chains(long steps, Step step) {
  Vector chains[kChains];
  for (std::size_t i = 0; i < kChains; ++i) chains[i] = fill(static_cast<float>(i));
  const auto start = std::chrono::steady_clock::now();
  advance(chains, steps, step, std::make_index_sequence<kChains>());
  Vector total = fill(0);
  for (Vector chain : chains) total = multiply_add(chain, chain, total);
  float lanes[kLanes];
  std::memcpy(lanes, &total, sizeof(total));
  volatile float sink = lanes[0];
  (void)sink;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// GFLOP/s of a run of `flops` operations that measures its own seconds: the best of many short ones, since what
// disturbs one makes it slower.
template <class Run>
double best_of_runs(double flops, Run run) {
  constexpr int kRuns = 1000;
  double best = 0;
  for (int i = 0; i < kRuns; ++i) best = std::max(best, 1e-9 * flops / run());
  return best;
}

constexpr long kSteps = 1 << 15;  // a fraction of the time slice that another program would take

// GFLOP/s of `step`, which is `flops` operations.
template <class Step>
double best_of_chains(int flops, Step step) {
  return best_of_runs(1.0 * flops * kChains * kSteps, [=] { return time_chains(kSteps, step); });
}

#if defined(__AMX_BF16__)
// The largest tiles: 16 rows of 32 numbers times 16 rows of 16 pairs. Four chains keep the unit busy.
double best_of_tiles() {
  syscall(SYS_arch_prctl, 0x1023, 18);  // asks Linux to save the tiles of this process
  struct alignas(64) {
    unsigned char palette = 1, start_row = 0, reserved[14] = {};
    unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64};
    unsigned char rows[16] = {16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("" : : "r"(&shapes) : "memory");  // the intrinsic of GCC tells the compiler of 8 of these 64 bytes
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  const double best = best_of_runs(4 * 2.0 * 16 * 16 * 32 * kSteps, [] {
    const auto start = std::chrono::steady_clock::now();
    for (long i = 0; i < kSteps; ++i) {
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 5);
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 5);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  _tile_release();
  return best;
}
#endif

}  // namespace

int main() {
  volatile float half = 0.5F;  // a factor that the compiler does not know; the sums stay finite and normal
  const Vector factor = fill(half);
  const auto fp32 = [=](Vector sum) { return multiply_add(sum, factor, factor); };
  std::printf("fp32 %.2f\n", best_of_chains(2 * kLanes, fp32));
#if defined(__AMX_BF16__)
  std::printf("bf16 %.2f\n", best_of_tiles());
#elif defined(__AVX512BF16__)
  const __m512bh pairs = _mm512_cvtne2ps_pbh(factor, factor);
  const auto bf16 = [=](Vector sum) { return _mm512_dpbf16_ps(sum, pairs, pairs); };
  std::printf("bf16 %.2f\n", best_of_chains(4 * kLanes, bf16));
#endif
}
