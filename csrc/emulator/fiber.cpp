#include "emulator/fiber.h"

#include <cstdint>

namespace fastdiff::emulator {

#if defined(__x86_64__)

// A switch is a function call, so only the registers that a callee must preserve are saved. swapcontext would also make
// two system calls for the signal mask, which is thirty times slower.
extern "C" void fastdiff_switch_stack(void** save_stack_pointer, void* stack_pointer);

asm(R"(
.text
.hidden fastdiff_switch_stack
.globl fastdiff_switch_stack
.type fastdiff_switch_stack, @function
fastdiff_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastdiff_switch_stack, .-fastdiff_switch_stack
)");

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  // The first switch pops the registers and returns into `entry`, which expects to find a return address (here null) at
  // an address that is 8 modulo 16.
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  auto* frame = reinterpret_cast<void**>(top);
  *--frame = nullptr;
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--frame = nullptr;
  stack_pointer_ = frame;
}

void Fiber::switch_between(Fiber& from, Fiber& to) { fastdiff_switch_stack(&from.stack_pointer_, to.stack_pointer_); }

#else

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::switch_between(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

#endif

}  // namespace fastdiff::emulator
