// The functions that `g++ -fsanitize=thread` calls before every memory access. Kernels are compiled with that flag and
// linked with these instead of libtsan: the compiler finds the accesses, the rules are ours.
#include "emulator/memory_access.h"

using fastdiff::emulator::Access;
using fastdiff::emulator::check_access;

extern "C" {

// The names are the compiler's, one a size, so that no template can stand for them.
#define FASTDIFF_INSTRUMENT_ALIGNED(bytes)                                           \
  void __tsan_read##bytes(void* address) {                                           \
    check_access(address, bytes, Access::Read, bytes, __builtin_return_address(0));  \
  }                                                                                  \
  void __tsan_write##bytes(void* address) {                                          \
    check_access(address, bytes, Access::Write, bytes, __builtin_return_address(0)); \
  }
#define FASTDIFF_INSTRUMENT_UNALIGNED(bytes)                                     \
  void __tsan_unaligned_read##bytes(void* address) {                             \
    check_access(address, bytes, Access::Read, 1, __builtin_return_address(0));  \
  }                                                                              \
  void __tsan_unaligned_write##bytes(void* address) {                            \
    check_access(address, bytes, Access::Write, 1, __builtin_return_address(0)); \
  }

FASTDIFF_INSTRUMENT_ALIGNED(1)
FASTDIFF_INSTRUMENT_ALIGNED(2)
FASTDIFF_INSTRUMENT_ALIGNED(4)
FASTDIFF_INSTRUMENT_ALIGNED(8)
FASTDIFF_INSTRUMENT_ALIGNED(16)
FASTDIFF_INSTRUMENT_UNALIGNED(2)
FASTDIFF_INSTRUMENT_UNALIGNED(4)
FASTDIFF_INSTRUMENT_UNALIGNED(8)
FASTDIFF_INSTRUMENT_UNALIGNED(16)

#undef FASTDIFF_INSTRUMENT_ALIGNED
#undef FASTDIFF_INSTRUMENT_UNALIGNED

void __tsan_read_range(void* address, size_t bytes) {
  check_access(address, bytes, Access::Read, 1, __builtin_return_address(0));
}

void __tsan_write_range(void* address, size_t bytes) {
  check_access(address, bytes, Access::Write, 1, __builtin_return_address(0));
}

// Guards of function-local statics, in the launchers' host code.
char __tsan_atomic8_load(const volatile char* address, int) { return __atomic_load_n(address, __ATOMIC_ACQUIRE); }

void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

}  // extern "C"
