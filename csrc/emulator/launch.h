// fastdiff::launch for the emulator: packs the kernel and its arguments, runs the grid to its end, returns the error.
#pragma once

#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

#include "emulator/device.h"

namespace fastdiff::emulator {

struct KernelArgument {
  const void* data;
  size_t bytes;
};

// A kernel with its arguments bound, its type erased.
struct BoundKernel {
  void (*invoke)(const void* closure);
  const void* closure;  // holds the arguments; kernels may read it, as they may read their parameters on a GPU
  size_t closure_bytes;
  const void* function;
  const KernelArgument* arguments;
  size_t argument_count;
};

struct LaunchConfiguration {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
};

// Runs every block to its end, or until a fault that would stop a GPU: out of bounds, misaligned, deadlocked.
cudaError_t run_grid(const LaunchConfiguration& configuration, const BoundKernel& kernel);

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   Arguments&&... arguments) {
  struct Closure {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Closure closure{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto invoke = [](const void* erased) {
    const auto* bound = static_cast<const Closure*>(erased);
    std::apply(bound->kernel, bound->arguments);
  };
  const auto each_argument = [](const auto&... argument) {
    return std::array<KernelArgument, sizeof...(Parameters)>{KernelArgument{&argument, sizeof argument}...};
  };
  const auto described = std::apply(each_argument, closure.arguments);
  return run_grid({grid, block, shared_bytes}, {invoke, &closure, sizeof closure, reinterpret_cast<const void*>(kernel),
                                                described.data(), described.size()});
}

}  // namespace fastdiff::emulator
