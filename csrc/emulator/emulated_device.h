// The GPU that the emulator pretends to be. Launch plans depend on it, so tests choose it.
#pragma once

#include <cstddef>

namespace fastdiff::emulator {

struct EmulatedDevice {
  int sm_count = 132;                          // of an H100
  size_t shared_bytes_per_block = 227 * 1024;  // the opt-in maximum, static and dynamic together
};

EmulatedDevice& emulated_device();

}  // namespace fastdiff::emulator
