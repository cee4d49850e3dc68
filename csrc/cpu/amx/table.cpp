// The kernels of AVX-512 with bfloat16 products, but for those that multiply matrices.
#include "cpu/kernels.h"

namespace fastdiff::cpu {
namespace avx512_bf16 {
Kernels table();
}

namespace amx {

void attention(const AttentionParams&, const Threads&);
void attention_backward(const AttentionBackwardParams&, const Threads&);
void bfloat16_product(const BFloat16ProductParams&, const Threads&);
void bfloat16_weight(const BFloat16WeightParams&, const Threads&);
bool split_product(const SplitProductParams&, const Threads&);
void split_weight(const SplitWeightParams&, const Threads&);

Kernels table() {
  Kernels kernels = avx512_bf16::table();
  kernels.isa = "amx";
  kernels.attention = attention;
  kernels.attention_backward = attention_backward;
  kernels.bfloat16_product = bfloat16_product;
  kernels.bfloat16_weight = bfloat16_weight;
  kernels.split_product = split_product;
  kernels.split_weight = split_weight;
  return kernels;
}

}  // namespace amx
}  // namespace fastdiff::cpu
