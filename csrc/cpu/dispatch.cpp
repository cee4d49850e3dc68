#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

#if defined(FASTDIFF_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdiff::cpu {

// csrc/cpu/table.cpp, compiled once for each instruction set.
namespace portable {
Kernels table();
}
namespace avx2 {
Kernels table();
}
namespace avx512 {
Kernels table();
}
namespace avx512_bf16 {
Kernels table();
}
// csrc/cpu/amx/table.cpp
namespace amx {
Kernels table();
}

namespace {

// `table` is compiled for its instruction set, like the kernels: it may be called only where that is supported.
struct Candidate {
  const char* isa;
  Kernels (*table)();
  bool supported;
};

#if defined(FASTDIFF_AMX)
// Whether there is a tile unit that multiplies bfloat16, and Linux lets this process use it: its registers are so large
// that it must be asked to save them, once for all threads.
bool may_use_tiles() {
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || ~edx & (kBf16 | kTiles)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// From the least to the most capable.
std::vector<Candidate> candidates() {
  std::vector<Candidate> all = {{"portable", portable::table, true}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  // Every processor with AVX2 has F16C, which older compilers cannot ask for by name.
  all.push_back({"avx2", avx2::table, avx2});
  all.push_back({"avx512", avx512::table, avx512});
  const bool products = avx512 && __builtin_cpu_supports("avx512bf16");
  all.push_back({"avx512_bf16", avx512_bf16::table, products});
#if defined(FASTDIFF_AMX)
  static const bool tiles = products && may_use_tiles();
  all.push_back({"amx", amx::table, tiles});
#endif
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
    if (!forced || !*forced || std::string(forced) == candidate->isa) return candidate->table();
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
  for (const auto& candidate : candidates()) names.emplace_back(candidate.isa);
  return names;
}

std::vector<std::string> isas_supported() {
  std::vector<std::string> names;
  for (const auto& candidate : candidates())
    if (candidate.supported) names.emplace_back(candidate.isa);
  return names;
}

}  // namespace fastdiff::cpu
