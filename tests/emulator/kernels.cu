// Small kernels for the emulator's own tests, in pairs: one with a planted fault and its clean twin, chosen by the
// template argument. A line with a planted fault ends in "// fault: <kind>", where test_emulator.py looks it up.
#include <cstring>

#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"

namespace fastdiff {
namespace {

constexpr int kThreads = 64;

// Every thread gets its neighbour's value through shared memory.
template <bool kFaulty>
__global__ void read_after_write(float* data) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = data[threadIdx.x];
  if (!kFaulty) __syncthreads();
  data[threadIdx.x] = values[(threadIdx.x + 1) % kThreads];  // fault: read-after-write
}

// Two rotations by one; the second must not begin before the first has been read.
template <bool kFaulty>
__global__ void write_after_read(float* data) {
  float* values = dynamic_shared<float>();
  float value = data[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = value;  // fault: write-after-read
    __syncthreads();
    value = values[(threadIdx.x + 1) % kThreads];
    if (!kFaulty) __syncthreads();
  }
  data[threadIdx.x] = value;
}

template <bool kFaulty>
__global__ void write_after_write(float* data) {
  __shared__ float total;
  if (kFaulty || threadIdx.x == 5) {
    total = data[threadIdx.x];  // fault: write-after-write
  }
  __syncthreads();
  data[threadIdx.x] = total;
}

// A vector that goes from shared memory to global memory in one expression.
template <bool kFaulty>
__global__ void passed_on(float* data) {
  constexpr int kCount = kThreads / 4;
  __shared__ uint4 vectors[kCount];
  if (threadIdx.x < kCount) vectors[threadIdx.x] = ld16(data + 4 * threadIdx.x);
  if (!kFaulty) __syncthreads();
  if (threadIdx.x < kCount) st16(data + 4 * threadIdx.x, vectors[kCount - 1 - threadIdx.x]);  // fault: read-after-write
}

template <bool kFaulty>
__global__ void uninitialised_read(float* data) {
  __shared__ float values[kThreads];
  if (!kFaulty || threadIdx.x != 7) values[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = values[kThreads - 1 - threadIdx.x];  // fault: uninitialised-read
}

template <bool kFaulty>
__global__ void out_of_bounds_read(float* data) {
  const float next = data[kFaulty || threadIdx.x + 1 < kThreads ? threadIdx.x + 1 : 0];  // fault: out-of-bounds
  __syncthreads();
  data[threadIdx.x] = next;
}

template <bool kFaulty>
__global__ void out_of_bounds_write(float* data) {
  const float value = data[threadIdx.x];
  __syncthreads();
  data[static_cast<int>(threadIdx.x) - (kFaulty ? 1 : 0)] = value;  // fault: out-of-bounds
}

// One array overruns into the place where nvcc puts the next.
template <bool kFaulty>
__global__ void out_of_bounds_static(float* data) {
  __shared__ float first[2048];
  __shared__ float second[2048];
  first[threadIdx.x] = data[threadIdx.x];
  second[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  const float value = first[threadIdx.x + (kFaulty && threadIdx.x == 3 ? 2048 : 0)];  // fault: out-of-bounds
  data[threadIdx.x] = value + second[threadIdx.x];
}

template <bool kFaulty>
__global__ void out_of_bounds_dynamic(float* data) {
  float* values = dynamic_shared<float>();
  const int index = static_cast<int>(threadIdx.x) + (kFaulty ? 1 : 0);
  values[index] = data[threadIdx.x];  // fault: out-of-bounds
  data[threadIdx.x] = values[index];
}

// 16-byte loads from a pointer that is 4 bytes off.
template <bool kFaulty>
__global__ void misaligned_load(float* data) {
  if (threadIdx.x >= kThreads / 4 - 1) return;
  const uint4 bits = ld16(data + 4 * threadIdx.x + (kFaulty ? 1 : 0));  // fault: misaligned
  st16(data + 4 * threadIdx.x, bits);
}

template <bool kFaulty>
__global__ void misaligned_store(float* data) {
  if (threadIdx.x >= kThreads / 4 - 1) return;
  const uint4 bits = ld16(data + 4 * threadIdx.x);
  st16(data + 4 * threadIdx.x + (kFaulty ? 2 : 0), bits);  // fault: misaligned
}

template <bool kFaulty>
__global__ void stale_read(float* data) {
  if (threadIdx.x >= kThreads / 4) return;
  uint4 bits = ld16(data + 4 * threadIdx.x);
  st16(data + 4 * threadIdx.x, bits);
  if (kFaulty) {
    bits = ld16(data + 4 * threadIdx.x);  // fault: stale-read
  } else {
    bits = ld16_written(data + 4 * threadIdx.x);
  }
  st16(data + 4 * threadIdx.x, bits);
}

template <bool kFaulty>
__global__ void divergent_barrier(float* data) {
  const float value = data[threadIdx.x];
  if (kFaulty && threadIdx.x >= 32) {
    __syncthreads();
  } else {
    __syncthreads();  // fault: divergent-barrier
  }
  data[threadIdx.x] = value;
}

template <bool kFaulty>
__global__ void exit_before_barrier(float* data) {
  const float value = data[threadIdx.x];
  if (kFaulty && threadIdx.x >= 32) return;
  __syncthreads();  // fault: divergent-barrier
  data[threadIdx.x] = value;
}

// Half of a warp waits for the block, the other half for the warp.
template <bool kFaulty>
__global__ void deadlock(float* data) {
  float value = data[threadIdx.x];
  if (kFaulty && threadIdx.x < 16) {
    __syncthreads();  // fault: deadlock
  } else {
    value = __shfl_xor_sync(0xffffffffu, value, 0);
  }
  data[threadIdx.x] = value;
}

template <bool kFaulty>
__global__ void divergent_collective(float* data) {
  const float value = data[threadIdx.x];
  bool any = true;
  if (kFaulty && threadIdx.x % 2) {
    any = __any_sync(0xffffffffu, value > 0.0f);
  } else {
    __syncwarp();
  }
  if (any) data[threadIdx.x] = value;
}

// Each block passes through memory that its neighbour writes.
template <bool kFaulty>
__global__ void cross_block(float* data) {
  const int mine = static_cast<int>(blockIdx.x) * (kThreads / 2) + static_cast<int>(threadIdx.x);
  const float value = data[(mine + (kFaulty ? kThreads / 2 : 0)) % kThreads];
  data[mine] = value;
}

// A warp's threads exchange values, ordered by __syncwarp alone.
template <bool kFaulty>
__global__ void warp_exchange(float* data) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = data[threadIdx.x];
  if (!kFaulty) __syncwarp();
  const float value = values[threadIdx.x ^ 1];  // fault: read-after-write
  __syncwarp();
  values[threadIdx.x] = value;
  __syncwarp();
  data[threadIdx.x] = values[threadIdx.x ^ 1];
}

// All lanes read one value, then one lane replaces it: ordered for its warp, not for the other.
template <bool kFaulty>
__global__ void broadcast_then_write(float* data) {
  __shared__ float values[2];
  const int slot = kFaulty ? 0 : threadIdx.x / 32;
  if (threadIdx.x % 32 == 0 && (!kFaulty || threadIdx.x == 0)) values[slot] = data[threadIdx.x];
  __syncthreads();
  const float value = values[slot];
  __syncwarp();
  if (threadIdx.x % 32 == 0 && (!kFaulty || threadIdx.x == 0)) {
    values[slot] = 2.0f * value;  // fault: write-after-read
  }
  __syncwarp();
  data[threadIdx.x] = data[threadIdx.x] + value;
}

// An asynchronous copy to where others still read.
template <bool kFaulty>
__global__ void async_copy_too_early(float* data) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  const float value = values[(threadIdx.x + 1) % kThreads];
  if (!kFaulty) __syncthreads();
  const int part = static_cast<int>(threadIdx.x) - 3 * kThreads / 4;
  if (part >= 0) {
    copy_async(values + 4 * part, data + 4 * part, true);  // fault: write-after-read
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  data[threadIdx.x] = value + values[threadIdx.x];
}

// A copy that is read, after a barrier, before its thread has waited for it; the second half of it is zeros.
template <bool kFaulty>
__global__ void async_copy_unfinished(float* data) {
  __shared__ float values[kThreads];
  if (threadIdx.x < kThreads / 4) {
    copy_async(values + 4 * threadIdx.x, data + 4 * threadIdx.x, threadIdx.x < kThreads / 8);
  }
  commit_copies();
  commit_copies();  // an empty group
  wait_for_copies<kFaulty ? 2 : 1>();
  __syncthreads();
  data[threadIdx.x] = values[threadIdx.x];  // fault: read-after-write
}

// A copy whose place is taken, after a barrier, before its thread has waited for it.
template <bool kFaulty>
__global__ void async_copy_overwritten(float* data) {
  __shared__ float values[kThreads];
  if (threadIdx.x < kThreads / 4) copy_async(values + 4 * threadIdx.x, data + 4 * threadIdx.x, true);
  commit_copies();
  if (!kFaulty) wait_for_copies<0>();
  __syncthreads();
  values[threadIdx.x] = 1.0f;  // fault: write-after-write
  __syncthreads();
  data[threadIdx.x] = values[threadIdx.x];
}

// A lane is missing where the whole warp must come.
template <bool kFaulty>
__global__ void missing_lane(float* data) {
  __shared__ uint32_t words[kThreads][4];
  for (uint32_t& word : words[threadIdx.x]) word = 0;
  __syncthreads();
  if (kFaulty && threadIdx.x == 3) return;
  uint32_t r[4];
  load_matrices(r, words[threadIdx.x]);  // fault: divergent-collective
  data[threadIdx.x] = static_cast<float>(r[0]);
}

constexpr int kRows = 16, kDepth = 16, kColumns = 8;

// Rows 0 to 7 of a (16, 16) times b (16, 8), or rows 8 to 15, where a[i][k] = 16 i + k and b[k][j] = (8 k + j) % 7 - 3.
template <typename T, bool kLower>
__global__ void matrix_product(float* data) {
  __shared__ T a[kRows][kDepth];
  __shared__ T b[kDepth][kColumns];
  for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) a[i / kDepth][i % kDepth] = T(static_cast<float>(i));
  for (int i = threadIdx.x; i < kDepth * kColumns; i += kThreads) {
    b[i / kColumns][i % kColumns] = T(static_cast<float>(i % 7 - 3));
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t left[4], right[4];
  load_matrices(left, &a[lane % 16][lane / 16 * 8]);
  load_matrices_transposed(right, b[lane % 16]);
  float d[4] = {};
  multiply_matrices<T>(d, left, {right[0], right[1]});
  for (int i = 0; i < 2; ++i) data[lane / 4 * kColumns + lane % 4 * 2 + i] = d[kLower ? 2 + i : i];
}

// The sum over the block in every thread, by warp shuffles and one exchange through shared memory.
__global__ void block_sum(float* data) {
  __shared__ float partial[kThreads / 32];
  float value = data[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  data[threadIdx.x] = partial[0] + partial[1];
}

// What each collective gives, one value a lane of the first warp.
__global__ void collectives(float* data) {
  if (threadIdx.x >= 32) return;
  const unsigned all = 0xffffffffu;
  const float lane = static_cast<float>(threadIdx.x);
  float sum = __shfl_sync(all, lane, 3, 8);                               // 8 * (lane / 8) + 3
  sum = 100.0f * sum + __shfl_up_sync(all, lane, 1, 16);                  // lane - 1, not below the half
  sum = 10.0f * sum + (__any_sync(all, threadIdx.x == 9) ? 1.0f : 0.0f);  // 1
  sum = 10.0f * sum + (__all_sync(all, threadIdx.x != 9) ? 1.0f : 0.0f);  // 0
  const unsigned votes = __ballot_sync(all, threadIdx.x % 3 == 0);        // bits 0, 3, 6 ...
  data[threadIdx.x] = 10.0f * sum + ((votes >> threadIdx.x & 1) ? 1.0f : 0.0f);
}

struct NamedKernel {
  const char* name;
  void (*faulty)(float*);
  void (*clean)(float*);
  int blocks = 1;
  size_t shared_bytes = 0;
};

constexpr size_t kSharedBytes = kThreads * sizeof(float);

const NamedKernel kKernels[] = {
    {"read_after_write", read_after_write<true>, read_after_write<false>},
    {"write_after_read", write_after_read<true>, write_after_read<false>, 1, kSharedBytes},
    {"write_after_write", write_after_write<true>, write_after_write<false>},
    {"passed_on", passed_on<true>, passed_on<false>},
    {"uninitialised_read", uninitialised_read<true>, uninitialised_read<false>},
    {"out_of_bounds_read", out_of_bounds_read<true>, out_of_bounds_read<false>},
    {"out_of_bounds_write", out_of_bounds_write<true>, out_of_bounds_write<false>},
    {"out_of_bounds_static", out_of_bounds_static<true>, out_of_bounds_static<false>},
    {"out_of_bounds_dynamic", out_of_bounds_dynamic<true>, out_of_bounds_dynamic<false>, 1, kSharedBytes},
    {"misaligned_load", misaligned_load<true>, misaligned_load<false>},
    {"misaligned_store", misaligned_store<true>, misaligned_store<false>},
    {"stale_read", stale_read<true>, stale_read<false>},
    {"divergent_barrier", divergent_barrier<true>, divergent_barrier<false>},
    {"exit_before_barrier", exit_before_barrier<true>, exit_before_barrier<false>},
    {"deadlock", deadlock<true>, deadlock<false>},
    {"divergent_collective", divergent_collective<true>, divergent_collective<false>},
    {"cross_block", cross_block<true>, cross_block<false>, 2},
    {"warp_exchange", warp_exchange<true>, warp_exchange<false>},
    {"broadcast_then_write", broadcast_then_write<true>, broadcast_then_write<false>},
    {"async_copy_too_early", async_copy_too_early<true>, async_copy_too_early<false>},
    {"async_copy_unfinished", async_copy_unfinished<true>, async_copy_unfinished<false>},
    {"async_copy_overwritten", async_copy_overwritten<true>, async_copy_overwritten<false>},
    {"missing_lane", missing_lane<true>, missing_lane<false>},
    {"matrix_product", matrix_product<__half, true>, matrix_product<__half, false>},
    {"matrix_product_of_bfloat16", matrix_product<__nv_bfloat16, true>, matrix_product<__nv_bfloat16, false>},
    {"block_sum", nullptr, block_sum},
    {"collectives", nullptr, collectives},
};

}  // namespace
}  // namespace fastdiff

// Runs a kernel on `data`, 64 floats; returns its cudaError_t, or -1 for an unknown name.
extern "C" __attribute__((visibility("default"))) int run_self_test_kernel(const char* name, int faulty, float* data) {
  for (const auto& kernel : fastdiff::kKernels) {
    if (std::strcmp(kernel.name, name) != 0) continue;
    const int threads = kernel.blocks == 1 ? fastdiff::kThreads : fastdiff::kThreads / kernel.blocks;
    return fastdiff::launch(faulty ? kernel.faulty : kernel.clean, dim3(kernel.blocks), dim3(threads),
                            kernel.shared_bytes, nullptr, data);
  }
  return -1;
}

// Launches an empty grid, an oversized block or too much shared memory, as numbered; returns the cudaError_t.
extern "C" __attribute__((visibility("default"))) int run_bad_configuration(int which, float* data) {
  const dim3 grid(which == 0 ? 0 : 1);
  const dim3 block(which == 1 ? 1025 : 64);
  const size_t shared_bytes = which == 2 ? 300 * 1024 : 0;
  return fastdiff::launch(&fastdiff::block_sum, grid, block, shared_bytes, nullptr, data);
}
