#include "emulator/grid.h"

#include <mutex>
#include <numeric>
#include <vector>

#include "emulator/emulated_device.h"
#include "emulator/launch.h"
#include "emulator/library_image.h"
#include "emulator/memory_map.h"
#include "emulator/race_detector.h"
#include "emulator/scheduler.h"

namespace fastdiff::emulator {

namespace {

MemoryRange kernel_parameters{nullptr, nullptr};
Executor executor = nullptr;

bool exceeds(dim3 size, dim3 limit) { return size.x > limit.x || size.y > limit.y || size.z > limit.z; }
bool is_empty(dim3 size) { return size.x == 0 || size.y == 0 || size.z == 0; }

// The limits of the emulated device, and those of every GPU of compute capability 8.0 and later.
cudaError_t check_configuration(const LaunchConfiguration& configuration) {
  const dim3 max_grid(2147483647, 65535, 65535);
  const dim3 max_block(1024, 1024, 64);
  const dim3 block = configuration.block;
  if (is_empty(configuration.grid) || is_empty(block)) return cudaErrorInvalidConfiguration;
  if (exceeds(configuration.grid, max_grid) || exceeds(block, max_block)) return cudaErrorInvalidConfiguration;
  if (static_cast<uint64_t>(block.x) * block.y * block.z > kMaxThreads) return cudaErrorInvalidConfiguration;
  const size_t shared_limit = std::min(emulated_device().shared_bytes_per_block, kMaxDynamicSharedBytes);
  if (configuration.shared_bytes > shared_limit) return cudaErrorInvalidValue;
  return cudaSuccess;
}

// The order in which the schedule runs the blocks.
std::vector<uint64_t> block_order(uint64_t count) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (current_schedule() == Schedule::Reverse) std::reverse(order.begin(), order.end());
  if (current_schedule() == Schedule::Random) {
    for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[schedule_random().below(i)]);
  }
  return order;
}

cudaError_t run_by_executor(const LaunchConfiguration& configuration, const BoundKernel& kernel) {
  const dim3 grid = configuration.grid, block = configuration.block;
  const LaunchRecord launch = {library_image().offset_of(kernel.function),
                               {grid.x, grid.y, grid.z},
                               {block.x, block.y, block.z},
                               configuration.shared_bytes,
                               kernel.argument_count,
                               kernel.arguments};
  return static_cast<cudaError_t>(executor(&launch));
}

uint3 unflatten(uint64_t index, dim3 size) {
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
          static_cast<unsigned>(index / size.x / size.y)};
}

}  // namespace

GridCounters& grid_counters() {
  static GridCounters counters;
  return counters;
}

void set_executor(Executor replacement) { executor = replacement; }

bool is_kernel_parameter(const void* address) { return kernel_parameters.contains(address); }

cudaError_t run_grid(const LaunchConfiguration& configuration, const BoundKernel& kernel) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  if (const cudaError_t error = check_configuration(configuration); error != cudaSuccess) return error;

  ++grid_counters().launches;
  if (executor) return run_by_executor(configuration, kernel);

  const auto* closure = static_cast<const char*>(kernel.closure);
  kernel_parameters = {closure, closure + kernel.closure_bytes};
  set_dynamic_shared_bytes(configuration.shared_bytes);
  race_detector_begin_launch();
  const dim3 grid = configuration.grid;
  for (const uint64_t index : block_order(static_cast<uint64_t>(grid.x) * grid.y * grid.z)) {
    ++grid_counters().blocks;
    if (const cudaError_t error = run_block(configuration, kernel, unflatten(index, grid)); error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace fastdiff::emulator
