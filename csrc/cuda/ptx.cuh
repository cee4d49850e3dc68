// All inline PTX of the project: tensor cores, the loads of their operands, and asynchronous copies, for sm_80 and
// later. With platform.cuh, the only header that knows which world it is compiled for.
//
//   load_matrices(r, row)             ldmatrix: four 8x8 matrices of 16-bit elements from shared memory; lane 8 m + r
//                                     gives the address of row r of matrix m, and has elements 2 (lane % 4) and the
//                                     next of row lane / 4 of matrix m in r[m]
//   load_matrices_transposed(r, row)  the same of the transposed matrices
//   multiply_matrices<T>(d, a, b)     mma.m16n8k16: d (16, 8) += a (16, 16) b (16, 8), in float32
//   copy_async(to, from, exists)      cp.async: 16 bytes from global to shared memory, or zeros
//   commit_copies()                   the copies since the last call are a group
//   wait_for_copies<kPending>()       of this thread, until at most so many of its latest groups are under way
#pragma once

#include "cuda/platform.cuh"

#if defined(__CUDACC__)

namespace fastdiff {

__device__ __forceinline__ uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

template <typename T>
__device__ __forceinline__ void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace fastdiff

#else

#include "emulator/async_copies.h"
#include "emulator/tensor_cores.h"

namespace fastdiff {

using emulator::commit_copies;
using emulator::copy_async;
using emulator::load_matrices;
using emulator::load_matrices_transposed;

template <typename T>
void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::multiply_matrices(std::is_same_v<T, __half>, d, a, b);
}

template <int kPending>
void wait_for_copies() {
  emulator::wait_for_copies(kPending);
}

}  // namespace fastdiff

#endif
