#include "emulator/scheduler.h"

#include <sys/mman.h>

#include <array>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "emulator/async_copies.h"
#include "emulator/collectives_state.h"
#include "emulator/race_detector.h"
#include "emulator/reports.h"

namespace fastdiff::emulator {

BuiltinVariables builtin;

namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kStackBytes = 64 * 1024;

// The stacks of a block's threads, each with an unmapped page below it so that an overflow faults at once.
class Stacks {
 public:
  Stacks() {
    void* pages = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<char*>(pages);
    for (int i = 0; i < kMaxThreads; ++i) mprotect(of(i), kPageBytes, PROT_NONE);
  }

  char* of(int thread) const { return begin_ + thread * kStackBytes; }

  // Bytes usable above the guard page. Staggered, so that the hot frames of all threads do not share cache sets.
  size_t usable_bytes(int thread) const { return kStackBytes - kPageBytes - (thread % kLanes) * 192; }

 private:
  char* begin_;
};

struct Block {
  const BoundKernel* kernel = nullptr;
  std::vector<EmulatedThread> threads = std::vector<EmulatedThread>(kMaxThreads);
  Stacks stacks;
  Fiber host;  // the caller of run_block
  ReadyQueue ready;
  int thread_count = 0;
  int live = 0;
  std::array<unsigned, kMaxThreads / kLanes> live_lanes{};
  int at_barrier = 0;
  EmulatedThread* first_at_barrier = nullptr;
  bool barrier_sites_differ = false;
  cudaError_t error = cudaSuccess;
};

Block& block() {
  static Block instance;
  return instance;
}

Schedule schedule = Schedule::RoundRobin;
Random random_source(0);

// Thread-local: the launchers' host code is instrumented too, and may run on other threads meanwhile.
thread_local EmulatedThread* running __attribute__((tls_model("initial-exec"))) = nullptr;

// Neither the sites nor their strings are unique objects, so compare by value.
bool same_site(SourceLine a, SourceLine b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

void switch_to(Fiber& from, EmulatedThread& to) {
  running = &to;
  builtin.thread_index = to.position;
  Fiber::switch_between(from, to.fiber);
}

// Called for threads in ascending order, so that the report does not depend on the schedule.
void add_waiting_site(Report& report, const EmulatedThread& thread) {
  if (!report.place.line.file) {
    report.place.line = thread.waiting_at;
  } else if (!report.other.line.file && !same_site(thread.waiting_at, report.place.line)) {
    report.other.line = thread.waiting_at;
  }
}

[[noreturn]] void report_deadlock() {
  Report report{Fault::Deadlock, "", {}, {}, ""};
  int at_barrier = 0;
  int in_collective = 0;
  for (int i = 0; i < block().thread_count; ++i) {
    const EmulatedThread& thread = block().threads[i];
    if (thread.state == ThreadState::Exited) continue;
    ++(thread.state == ThreadState::AtBarrier ? at_barrier : in_collective);
    add_waiting_site(report, thread);
  }
  report.detail = std::to_string(at_barrier) + " threads wait in __syncthreads, " + std::to_string(in_collective) +
                  " in a warp collective, " + std::to_string(block().thread_count - block().live) + " have exited";
  add_report(report);
  abandon_launch(cudaErrorLaunchTimeout);
}

void check_divergence() {
  const Block& b = block();
  const int exited = b.thread_count - b.live;
  if (!b.barrier_sites_differ && exited == 0) return;
  Report report{Fault::DivergentBarrier, "", {}, {}, ""};
  report.detail = exited > 0 ? std::to_string(exited) + " of " + std::to_string(b.thread_count) + " threads had exited"
                             : "threads of the block wait at different barriers";
  for (int i = 0; i < b.thread_count; ++i) {
    if (b.threads[i].state == ThreadState::AtBarrier) add_waiting_site(report, b.threads[i]);
  }
  add_report(report);
}

void release_barrier() {
  check_divergence();
  Block& b = block();
  b.at_barrier = 0;
  b.barrier_sites_differ = false;
  race_detector_block_barrier();
  for (int i = 0; i < b.thread_count; ++i) {
    if (b.threads[i].state == ThreadState::AtBarrier) wake(i);
  }
}

void exit_running_thread() {
  Block& b = block();
  running->state = ThreadState::Exited;
  --b.live;
  b.live_lanes[running->warp()] &= ~(1u << running->lane());
  complete_collectives_without(running->warp());
  if (b.live == 0) {
    EmulatedThread* last = running;
    running = nullptr;
    Fiber::switch_between(last->fiber, b.host);
  }
  if (b.at_barrier == b.live) release_barrier();
  run_until_woken();
}

void thread_main() {
  block().kernel->invoke(block().kernel->closure);
  exit_running_thread();
}

void prepare_thread(int index, dim3 block_dim) {
  Block& b = block();
  EmulatedThread& thread = b.threads[index];
  const auto linear = static_cast<unsigned>(index);
  thread.index = index;
  b.live_lanes[thread.warp()] |= 1u << thread.lane();
  thread.position = {linear % block_dim.x, linear / block_dim.x % block_dim.y, linear / (block_dim.x * block_dim.y)};
  thread.fiber.prepare(b.stacks.of(index) + kPageBytes, b.stacks.usable_bytes(index), thread_main);
  wake(index);
}

}  // namespace

void set_schedule(Schedule chosen, uint64_t seed) {
  schedule = chosen;
  random_source = Random(seed);
}

Schedule current_schedule() { return schedule; }

Random& schedule_random() { return random_source; }

EmulatedThread* running_thread() { return running; }

bool on_own_stack(const void* address) {
  const auto* byte = static_cast<const char*>(address);
  const char* stack = block().stacks.of(running->index);
  return stack <= byte && byte < stack + kStackBytes;
}

unsigned live_lanes(int warp) { return block().live_lanes[warp]; }

void mark_waiting(ThreadState state, SourceLine site) {
  running->state = state;
  running->waiting_at = site;
}

void wake(int thread_index) {
  block().threads[thread_index].state = ThreadState::Ready;
  block().ready.push(thread_index);
}

void run_until_woken() {
  EmulatedThread* self = running;
  if (block().ready.empty()) report_deadlock();
  EmulatedThread& next = block().threads[block().ready.pop(schedule, random_source)];
  if (&next != self) switch_to(self->fiber, next);
}

void barrier(SourceLine site) {
  Block& b = block();
  mark_waiting(ThreadState::AtBarrier, site);
  if (b.at_barrier++ == 0) b.first_at_barrier = running;
  if (!same_site(site, b.first_at_barrier->waiting_at)) b.barrier_sites_differ = true;
  if (b.at_barrier == b.live) release_barrier();
  run_until_woken();
}

void abandon_launch(cudaError_t error) {
  block().error = error;
  EmulatedThread* self = running;
  running = nullptr;
  Fiber::switch_between(self->fiber, block().host);
  __builtin_unreachable();
}

cudaError_t run_block(const LaunchConfiguration& configuration, const BoundKernel& kernel, uint3 block_index) {
  Block& b = block();
  const dim3 dim = configuration.block;
  b.kernel = &kernel;
  b.thread_count = b.live = static_cast<int>(dim.x * dim.y * dim.z);
  b.at_barrier = 0;
  b.barrier_sites_differ = false;
  b.error = cudaSuccess;
  b.ready.clear();
  b.live_lanes.fill(0);
  builtin = {{}, block_index, dim, configuration.grid};
  race_detector_begin_block();
  reset_collectives();
  reset_async_copies();
  for (int i = 0; i < b.thread_count; ++i) prepare_thread(i, dim);
  switch_to(b.host, b.threads[b.ready.pop(schedule, random_source)]);
  return b.error;
}

}  // namespace fastdiff::emulator
