// The one header that knows which world a kernel is compiled for: nvcc and a GPU, or g++ and csrc/emulator. Kernels and
// launchers include it instead of any CUDA header and are otherwise the same source in both worlds.
//
//   dynamic_shared<T>()   the block's dynamic shared memory
//   ld16(p), st16(p, v)   one 16-byte access each
//   ld16_written(p)       the same of memory that this thread may write later in the launch
//   launch(...)           starts a kernel, returns the launch error
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

namespace fastdiff {

// Start of the block's dynamic shared memory, aligned to 16 bytes. Every call in a kernel returns the same address.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char fastdiff_dynamic_shared[];
  return reinterpret_cast<T*>(fastdiff_dynamic_shared);
}

// 16-byte load from global memory that nobody writes during the launch; `address` is 16-byte aligned. The intrinsic
// keeps the access whole: nvcc splits a plain `uint4` dereference into four loads when only its parts are used.
__device__ __forceinline__ uint4 ld16(const void* address) { return __ldg(static_cast<const uint4*>(address)); }

// 16-byte load from global memory that no other thread writes during the launch, but this one may after it.
__device__ __forceinline__ uint4 ld16_written(const void* address) {
  return __ldca(static_cast<const uint4*>(address));
}

// 16-byte store to global memory; `address` is 16-byte aligned. Kept whole for the same reason.
__device__ __forceinline__ void st16(void* address, uint4 value) { __stwb(static_cast<uint4*>(address), value); }

// Dynamic shared memory that a kernel may use without asking for more.
constexpr size_t kDefaultDynamicSharedBytes = 48 * 1024;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (shared_bytes > kDefaultDynamicSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  // Unlike <<<>>>, this returns the error of this very launch and leaves cudaGetLastError() to others.
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace fastdiff

#else

#include "emulator/device.h"
#include "emulator/launch.h"

namespace fastdiff {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared_memory());
}

using emulator::launch;
using emulator::ld16;
using emulator::ld16_written;
using emulator::st16;

}  // namespace fastdiff

#endif
