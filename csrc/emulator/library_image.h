// The loaded library that holds the kernels: where its code begins, what of it is read-only, and which of its objects
// are __shared__ variables.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdiff::emulator {

struct MemoryRange {
  const char* begin;
  const char* end;

  bool contains(const void* address) const {
    const auto* byte = static_cast<const char*>(address);
    return begin <= byte && byte < end;
  }
};

struct LibraryImage {
  uintptr_t base = 0;
  std::vector<MemoryRange> read_only;         // code and constants
  std::vector<MemoryRange> shared_variables;  // exact extents of the __shared__ variables

  uintptr_t offset_of(const void* address) const { return reinterpret_cast<uintptr_t>(address) - base; }
};

// Read once, from the symbol table of the file the library was loaded from: it must not be stripped.
const LibraryImage& library_image();

}  // namespace fastdiff::emulator
