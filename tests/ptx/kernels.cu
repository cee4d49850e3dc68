// A matrix product through cp.async, ldmatrix and mma, and copies of it with a bug in the inline assembly, which
// test_tensor_cores.py must notice.
#include <cstdint>

namespace {

enum class Bug {
  None,
  SwappedFragmentsOfA,  // two operands of the mma in the wrong order
  SwappedFragmentsOfB,
  SwappedAccumulators,
  NotTransposed,    // ldmatrix of B without .trans
  SwappedMatrices,  // two destinations of an ldmatrix in the wrong order
  WaitsForTooFew,   // a wrong immediate: the last copies are still under way
  CopiesTooLittle,  // a wrong immediate: half of every copy is missing
};

constexpr int kM = 16, kN = 16, kDepth = 32;  // of a stage

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <Bug kBug>
__device__ void copy_16_bytes(void* shared, const void* global) {
  constexpr int kBytes = kBug == Bug::CopiesTooLittle ? 8 : 16;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes));
}

template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}

template <Bug kBug>
__device__ void load_a(uint32_t (&a)[4], const void* row) {
  if constexpr (kBug == Bug::SwappedMatrices) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %2, %1, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(row)));
  }
}

template <Bug kBug>
__device__ void load_b(uint32_t (&b)[2], const void* row) {
  if constexpr (kBug == Bug::NotTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(shared_address(row)));
  }
}

#define MMA(A, B, D)                                                                                        \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 " D ", " A ", " B ", {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <Bug kBug>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kBug == Bug::SwappedFragmentsOfA) {
    MMA("{%4, %6, %5, %7}", "{%8, %9}", "{%0, %1, %2, %3}");
  } else if constexpr (kBug == Bug::SwappedFragmentsOfB) {
    MMA("{%4, %5, %6, %7}", "{%9, %8}", "{%0, %1, %2, %3}");
  } else if constexpr (kBug == Bug::SwappedAccumulators) {
    MMA("{%4, %5, %6, %7}", "{%8, %9}", "{%0, %2, %1, %3}");
  } else {
    MMA("{%4, %5, %6, %7}", "{%8, %9}", "{%0, %1, %2, %3}");
  }
}

// D (16, 16) of float32 = A (16, depth) B (depth, 16) of bfloat16, all row-major, depth a multiple of 32. One block of
// two warps, of which each computes 8 columns; A and B come in stages of 32, one ahead.
template <Bug kBug>
__device__ void matrix_product(const uint16_t* a, const uint16_t* b, float* d, int depth) {
  __shared__ __align__(16) uint16_t stages[2][(kM + kN) * kDepth];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto copy_stage = [&](int stage) {
    uint16_t* to = stages[stage % 2];
    const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 8;  // 64 threads: 16 rows of A, 4 vectors each
    copy_16_bytes<kBug>(to + row * kDepth + column, a + row * depth + stage * kDepth + column);
    const int row_of_b = threadIdx.x / 2, column_of_b = threadIdx.x % 2 * 8;  // 32 rows of B, 2 vectors each
    copy_16_bytes<kBug>(to + kM * kDepth + row_of_b * kN + column_of_b,
                        b + (stage * kDepth + row_of_b) * kN + column_of_b);
    asm volatile("cp.async.commit_group;");
  };
  float sums[4] = {};
  copy_stage(0);
  for (int stage = 0; stage < depth / kDepth; ++stage) {
    if ((stage + 1) * kDepth < depth) {
      copy_stage(stage + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<kBug == Bug::WaitsForTooFew ? 1 : 0>();
    }
    __syncthreads();
    const uint16_t* tile_a = stages[stage % 2];
    const uint16_t* tile_b = tile_a + kM * kDepth;
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t fragment_a[4], fragment_b[2];
      load_a<kBug>(fragment_a, tile_a + lane % 16 * kDepth + k + lane / 16 * 8);
      load_b<kBug>(fragment_b, tile_b + (k + lane % 16) * kN + warp * 8);
      multiply<kBug>(sums, fragment_a, fragment_b);
    }
    __syncthreads();
  }
  const int row = lane / 4, column = warp * 8 + lane % 4 * 2;
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * kN + column + i % 2] = sums[i];
}

}  // namespace

#define PRODUCT_WITH(BUG)                                                                               \
  extern "C" __global__ void product_##BUG(const uint16_t* a, const uint16_t* b, float* d, int depth) { \
    matrix_product<Bug::BUG>(a, b, d, depth);                                                           \
  }

PRODUCT_WITH(None)
PRODUCT_WITH(SwappedFragmentsOfA)
PRODUCT_WITH(SwappedFragmentsOfB)
PRODUCT_WITH(SwappedAccumulators)
PRODUCT_WITH(NotTransposed)
PRODUCT_WITH(SwappedMatrices)
PRODUCT_WITH(WaitsForTooFew)
PRODUCT_WITH(CopiesTooLittle)
