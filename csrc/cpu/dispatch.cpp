#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace fastdiff::cpu {

#define FASTDIFF_DECLARE_ISA(isa)                                                    \
  namespace isa {                                                                    \
  void group_norm_silu(const GroupNormSiluParams&, const Threads&);                  \
  void group_norm_silu_backward(const GroupNormSiluBackwardParams&, const Threads&); \
  void sampler_step(const SamplerStepParams&, const Threads&);                       \
  }
FASTDIFF_DECLARE_ISA(portable)
FASTDIFF_DECLARE_ISA(avx2)
FASTDIFF_DECLARE_ISA(avx512)
#undef FASTDIFF_DECLARE_ISA

namespace {

struct Candidate {
  Kernels kernels;
  bool supported;
};

// From the least to the most capable.
std::vector<Candidate> candidates() {
  std::vector<Candidate> all = {
      {{"portable", portable::group_norm_silu, portable::group_norm_silu_backward, portable::sampler_step}, true},
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  // Every processor with AVX2 has F16C, which older compilers cannot ask for by name.
  all.push_back({{"avx2", avx2::group_norm_silu, avx2::group_norm_silu_backward, avx2::sampler_step}, avx2});
  all.push_back({{"avx512", avx512::group_norm_silu, avx512::group_norm_silu_backward, avx512::sampler_step}, avx512});
#endif
  return all;
}

std::string join(const std::vector<std::string>& names) {
  std::string joined;
  for (const auto& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

Kernels choose() {
  const char* forced = std::getenv("FASTDIFF_CPU_ISA");
  const auto all = candidates();
  for (auto candidate = all.rbegin(); candidate != all.rend(); ++candidate) {
    if (!candidate->supported) continue;
    if (!forced || !*forced || std::string(forced) == candidate->kernels.isa) return candidate->kernels;
  }
  throw std::runtime_error(std::string("FASTDIFF_CPU_ISA is '") + forced +
                           "', but this build on this processor offers: " + join(isas_supported()));
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

std::vector<std::string> isas_built() {
  std::vector<std::string> names;
  for (const auto& candidate : candidates()) names.emplace_back(candidate.kernels.isa);
  return names;
}

std::vector<std::string> isas_supported() {
  std::vector<std::string> names;
  for (const auto& candidate : candidates())
    if (candidate.supported) names.emplace_back(candidate.kernels.isa);
  return names;
}

}  // namespace fastdiff::cpu
