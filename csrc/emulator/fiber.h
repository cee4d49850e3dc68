// A fiber: a call stack that can be left in the middle of a function and resumed later.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fastdiff::emulator {

class Fiber {
 public:
  // Makes the next switch to this fiber call `entry`, which must never return, on the given stack.
  void prepare(void* stack, size_t bytes, void (*entry)());

  // Leaves the running fiber, saved in `from`, and continues `to`.
  static void switch_between(Fiber& from, Fiber& to);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace fastdiff::emulator
