// What the emulator found: one report for each kind of fault at each place in the source, with a count.
#pragma once

#include <string>

#include "emulator/device.h"

namespace fastdiff::emulator {

enum class Fault : uint8_t {
  ReadAfterWrite,     // read of what another thread wrote, no barrier between
  WriteAfterRead,     // write of what another thread read, no barrier between
  WriteAfterWrite,    // write of what another thread wrote, no barrier between
  UninitialisedRead,  // of shared memory not written by this block, or of an uninitialised buffer
  StaleRead,          // a read-only load (ld16) of memory written by the same launch
  OutOfBounds,
  Misaligned,
  DivergentBarrier,     // not every thread of the block reached the same __syncthreads
  DivergentCollective,  // lanes of one warp meet in different collectives, or with different masks
  Deadlock,
};

// A place in a kernel: an instruction of the library, or, where the kernel called the emulator, a source line.
struct CodePlace {
  const void* instruction = nullptr;
  SourceLine line;
};

struct Report {
  Fault fault;
  const char* space = "";  // "global", "shared" or empty
  CodePlace place;
  CodePlace other;  // of the conflicting access or the other waiting thread
  std::string detail;
};

// Adds a report about the running thread.
void add_report(const Report& report);

void clear_reports();

// One line a report, fields separated by tabs: fault, space, place, other place, block, thread, count, detail. A place
// is "file:line", "+0x<offset in the library>" or empty. tests/emulation.py reads this.
std::string format_reports();

}  // namespace fastdiff::emulator
