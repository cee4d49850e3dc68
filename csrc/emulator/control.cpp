// The C interface through which tests steer the emulator (tests/emulation.py).
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "emulator/emulated_device.h"
#include "emulator/grid.h"
#include "emulator/memory.h"
#include "emulator/memory_access.h"
#include "emulator/memory_map.h"
#include "emulator/ready_queue.h"
#include "emulator/reports.h"
#include "emulator/scheduler.h"

#define FASTDIFF_EXPORT extern "C" __attribute__((visibility("default")))

namespace emulator = fastdiff::emulator;

// `schedule` is a Schedule; `seed` matters to Schedule::Random only.
FASTDIFF_EXPORT void fastdiff_emulator_configure(int schedule, uint64_t seed, int detect_races) {
  emulator::set_schedule(static_cast<emulator::Schedule>(schedule), seed);
  emulator::set_race_detection(detect_races != 0);
}

FASTDIFF_EXPORT void fastdiff_emulator_set_device(int sm_count, size_t shared_bytes_per_block) {
  emulator::emulated_device() = {sm_count, shared_bytes_per_block};
}

// Writes the reports, cut to `capacity` and terminated by zero; returns the capacity that holds them whole.
FASTDIFF_EXPORT size_t fastdiff_emulator_reports(char* buffer, size_t capacity) {
  const std::string text = emulator::format_reports();
  if (capacity > 0) {
    const size_t length = std::min(text.size(), capacity - 1);
    std::memcpy(buffer, text.data(), length);
    buffer[length] = 0;
  }
  return text.size() + 1;
}

FASTDIFF_EXPORT void fastdiff_emulator_clear_reports() { emulator::clear_reports(); }

// A null executor gives the launches back to the emulator.
FASTDIFF_EXPORT void fastdiff_emulator_set_executor(emulator::Executor executor) { emulator::set_executor(executor); }

// Writes the begin and end of each declared buffer, as many as `capacity` has room for; returns how many there are.
FASTDIFF_EXPORT size_t fastdiff_emulator_buffers(uint64_t (*bounds)[2], size_t capacity) {
  const std::vector<emulator::MemoryRange> buffers = emulator::declared_buffers();
  for (size_t i = 0; i < std::min(capacity, buffers.size()); ++i) {
    bounds[i][0] = reinterpret_cast<uintptr_t>(buffers[i].begin);
    bounds[i][1] = reinterpret_cast<uintptr_t>(buffers[i].end);
  }
  return buffers.size();
}

// Launches, blocks and memory accesses since the library was loaded.
FASTDIFF_EXPORT void fastdiff_emulator_counters(uint64_t counters[3]) {
  counters[0] = emulator::grid_counters().launches;
  counters[1] = emulator::grid_counters().blocks;
  counters[2] = emulator::access_counter();
}

FASTDIFF_EXPORT void fastdiff_emulator_register_buffer(const void* address, size_t bytes, int initialised) {
  emulator::register_buffer(address, bytes,
                            initialised ? emulator::Contents::Initialised : emulator::Contents::Uninitialised);
}

FASTDIFF_EXPORT void fastdiff_emulator_clear_buffers() { emulator::clear_buffers(); }
