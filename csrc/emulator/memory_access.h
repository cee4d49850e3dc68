// The check that every memory access of a kernel passes before it is made.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/race_detector.h"

namespace fastdiff::emulator {

// `alignment` is what the access needs on a GPU: its size, or 1 if the compiler was told that it may be unaligned.
// An access that a GPU would fault on is reported and ends the launch before it is made.
void check_access(const void* address, size_t bytes, Access access, size_t alignment, const void* instruction);

// Accesses checked so far.
uint64_t& access_counter();

}  // namespace fastdiff::emulator
