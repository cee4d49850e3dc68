// The memory that kernels may touch, as regions with a shadow: declared global buffers, the launch's dynamic shared
// memory, and every __shared__ variable.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "emulator/library_image.h"
#include "emulator/memory.h"
#include "emulator/shadow_cells.h"

namespace fastdiff::emulator {

enum class AddressSpace : uint8_t { Global, Shared };

inline const char* name_of(AddressSpace space) { return space == AddressSpace::Global ? "global" : "shared"; }

struct Region {
  const char* begin;
  const char* end;
  AddressSpace space;
  Contents contents;
  ShadowCells cells;

  Region(const char* begin, const char* end, AddressSpace space, Contents contents)
      : begin(begin), end(end), space(space), contents(contents), cells(static_cast<size_t>(end - begin)) {}
};

// The region that holds `address`, or null.
Region* find_region(const void* address);

// The declared global memory, in the order of its addresses.
std::vector<MemoryRange> declared_buffers();

// "12 bytes past the end of 4096 bytes of global memory", about the region nearest to `address`.
std::string describe_outside(const void* address);

// Gives the launch that begins `bytes` of dynamic shared memory at dynamic_shared_memory().
void set_dynamic_shared_bytes(size_t bytes);

// Most dynamic shared memory that any GPU gives a launch.
constexpr size_t kMaxDynamicSharedBytes = 227 * 1024;

}  // namespace fastdiff::emulator
