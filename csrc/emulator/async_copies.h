// cp.async, for cuda/ptx.cuh. A copy is made as late as it may be: when its thread waits for it. Until then its
// destination holds NaNs, so that who reads it too early reads them. A GPU may write at any time between: the race
// detector is told of both moments.
#pragma once

namespace fastdiff::emulator {

// 16 bytes from global to shared memory, zeros unless `exists`.
void copy_async(void* to, const void* from, bool exists);

// The thread's copies since its last call are a group.
void commit_copies();

// Makes the copies of all of the thread's groups but the `pending` latest.
void wait_for_copies(int pending);

// Forgets all copies, at the start of a block.
void reset_async_copies();

}  // namespace fastdiff::emulator
