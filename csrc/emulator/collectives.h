// Warp collectives: shuffles, votes, __syncwarp, and functions of the whole warp. The last lane of the mask to arrive
// computes for all of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulator/device.h"

namespace fastdiff::emulator {

enum class CollectiveKind : uint8_t { Shuffle, Ballot, SyncWarp, WholeWarp };

// Computes from and to what each of the 32 lanes has brought along.
using WarpFunction = void (*)(void* const* lanes);

// One lane's part in a collective; lives on that lane's stack until the collective completes.
struct CollectiveCall {
  CollectiveKind kind;
  unsigned mask;
  SourceLine site;
  uint64_t value = 0;   // what the lane contributes
  int source_lane = 0;  // Shuffle: the lane whose value it gets
  uint64_t result = 0;
  WarpFunction function = nullptr;  // WholeWarp: what to compute
  void* part = nullptr;             // WholeWarp: the lane's part in it
};

// Waits for the other lanes of the mask, then returns with `result` set.
void run_collective(CollectiveCall& call);

// Index of the running thread in its warp.
int current_lane();

template <typename T>
T shuffle(unsigned mask, T value, int source_lane, SourceLine site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4-byte and 8-byte values");
  CollectiveCall call{CollectiveKind::Shuffle, mask, site, 0, source_lane};
  std::memcpy(&call.value, &value, sizeof value);
  run_collective(call);
  std::memcpy(&value, &call.result, sizeof value);
  return value;
}

inline unsigned ballot(unsigned mask, bool predicate, SourceLine site) {
  CollectiveCall call{CollectiveKind::Ballot, mask, site, predicate};
  run_collective(call);
  return static_cast<unsigned>(call.result);
}

// First and last lane of the segment of `width` lanes (a power of two) that holds `lane`.
inline int first_of_segment(int lane, int width) { return lane & ~(width - 1); }
inline int last_of_segment(int lane, int width) { return lane | (width - 1); }

// Runs `function` once all 32 lanes have called this; a warp that lacks lanes is reported.
inline void run_whole_warp(WarpFunction function, void* part, SourceLine site) {
  CollectiveCall call{CollectiveKind::WholeWarp, 0xffffffffu, site};
  call.function = function;
  call.part = part;
  run_collective(call);
}

// CUDA's functions. The defaulted last arguments record the place of the call.

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  return shuffle(mask, value, first_of_segment(current_lane(), width) | (source & (width - 1)), {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  const int lane = current_lane();
  const int source = lane ^ lane_mask;
  return shuffle(mask, value, source > last_of_segment(lane, width) ? lane : source, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const int lane = current_lane();
  const int source = lane + static_cast<int>(delta);
  return shuffle(mask, value, source > last_of_segment(lane, width) ? lane : source, {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const int lane = current_lane();
  const int source = lane - static_cast<int>(delta);
  return shuffle(mask, value, source < first_of_segment(lane, width) ? lane : source, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  return ballot(mask, predicate != 0, {file, line});
}

inline int __any_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return ballot(mask, predicate != 0, {file, line}) != 0;
}

inline int __all_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return ballot(mask, predicate == 0, {file, line}) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  CollectiveCall call{CollectiveKind::SyncWarp, mask, {file, line}};
  run_collective(call);
}

}  // namespace fastdiff::emulator

using fastdiff::emulator::__all_sync;
using fastdiff::emulator::__any_sync;
using fastdiff::emulator::__ballot_sync;
using fastdiff::emulator::__shfl_down_sync;
using fastdiff::emulator::__shfl_sync;
using fastdiff::emulator::__shfl_up_sync;
using fastdiff::emulator::__shfl_xor_sync;
using fastdiff::emulator::__syncwarp;
