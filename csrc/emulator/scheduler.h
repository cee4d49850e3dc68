// Runs the threads of one block as fibers on the calling thread: start, barrier, wait, wake, exit, deadlock.
#pragma once

#include "emulator/fiber.h"
#include "emulator/launch.h"
#include "emulator/ready_queue.h"

namespace fastdiff::emulator {

constexpr int kLanes = 32;  // of a warp

enum class ThreadState : uint8_t { Ready, AtBarrier, InCollective, Exited };

struct EmulatedThread {
  Fiber fiber;
  ThreadState state;
  SourceLine waiting_at;
  int index;  // in the block
  uint3 position;

  int lane() const { return index % kLanes; }
  int warp() const { return index / kLanes; }
};

void set_schedule(Schedule schedule, uint64_t seed);
Schedule current_schedule();
Random& schedule_random();

// Runs one block of the kernel to its end; returns the error that stopped it, if any.
cudaError_t run_block(const LaunchConfiguration& configuration, const BoundKernel& kernel, uint3 block_index);

// Below: called while a kernel runs.

// The running thread; null outside kernels, and on any thread but the one that runs them.
EmulatedThread* running_thread();

// Whether [address, ...) is the running thread's own stack, its registers and local memory on a GPU.
bool on_own_stack(const void* address);

// To wait: mark the running thread, let whoever is able wake it (itself, too), and run the others until then.
void mark_waiting(ThreadState state, SourceLine site);
void wake(int thread_index);
void run_until_woken();

// Lanes of the warp that exist and have not exited.
unsigned live_lanes(int warp);

// Ends the launch, as a fault on a GPU does. Threads are left where they are.
[[noreturn]] void abandon_launch(cudaError_t error);

}  // namespace fastdiff::emulator
