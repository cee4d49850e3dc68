// The ordering rules of CUDA, checked at every access.
//
// Time is counted in epochs: a new one begins at every block and at every __syncthreads, so two accesses of one block
// in different epochs are ordered. Inside an epoch, the accesses of one warp are ordered by its clock, which a
// __syncwarp of the whole warp advances; a __syncwarp of part of a warp orders nothing here. Shuffles and votes order
// no memory. An asynchronous copy is ordered with nothing before its own thread has waited for it. Blocks of one launch
// are never ordered, launches always are. So a race is found whenever its two accesses run, whatever the schedule.
#pragma once

#include "emulator/memory_map.h"

namespace fastdiff::emulator {

enum class Access : uint8_t {
  Read,
  ReadOnlyLoad,  // through the read-only cache, which sees no writes of the same launch
  Write,
  CopyBegin,  // an asynchronous copy, which may write at any time from here on
  CopyEnd,    // until its thread has waited for it
};

inline bool is_write(Access access) { return access >= Access::Write; }

// Off: accesses are still checked for bounds and alignment.
void set_race_detection(bool enabled);

void race_detector_begin_launch();
void race_detector_begin_block();
void race_detector_block_barrier();
void race_detector_warp_barrier(int warp);

// Checks and records an access of `thread` to [offset, offset + bytes) of the region, which holds it.
void check_order(Region& region, size_t offset, size_t bytes, Access access, int thread, const void* instruction);

}  // namespace fastdiff::emulator
