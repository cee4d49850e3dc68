#include "emulator/memory_access.h"

#include "emulator/grid.h"
#include "emulator/library_image.h"
#include "emulator/reports.h"
#include "emulator/scheduler.h"

namespace fastdiff::emulator {

namespace {

uint64_t accesses = 0;

bool is_builtin_variable(const void* address) {
  const auto* begin = reinterpret_cast<const char*>(&builtin);
  return MemoryRange{begin, begin + sizeof builtin}.contains(address);
}

bool is_constant(const void* address) {
  for (const MemoryRange& range : library_image().read_only) {
    if (range.contains(address)) return true;
  }
  return is_kernel_parameter(address);
}

[[noreturn]] void fault(Fault fault, const char* space, const void* instruction, const std::string& detail,
                        cudaError_t error) {
  add_report({fault, space, {instruction, SourceLine{}}, {}, detail});
  abandon_launch(error);
}

}  // namespace

uint64_t& access_counter() { return accesses; }

void check_access(const void* address, size_t bytes, Access access, size_t alignment, const void* instruction) {
  if (!running_thread() || on_own_stack(address) || is_builtin_variable(address)) return;
  ++accesses;
  Region* region = find_region(address);
  const auto* byte = static_cast<const char*>(address);
  if (!region || byte + bytes > region->end) {
    if (!is_write(access) && is_constant(address)) return;
    const char* verb = is_write(access) ? "write of " : "read of ";
    fault(Fault::OutOfBounds, region ? name_of(region->space) : "", instruction,
          verb + std::to_string(bytes) + " bytes " + describe_outside(address), cudaErrorIllegalAddress);
  }
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fault(Fault::Misaligned, name_of(region->space), instruction,
          std::to_string(bytes) + " bytes at an address that is " +
              std::to_string(reinterpret_cast<uintptr_t>(address) % alignment) + " modulo " + std::to_string(alignment),
          cudaErrorMisalignedAddress);
  }
  check_order(*region, static_cast<size_t>(byte - region->begin), bytes, access, running_thread()->index, instruction);
}

uint4 checked_load(const void* address) {
  check_access(address, sizeof(uint4), Access::ReadOnlyLoad, sizeof(uint4), __builtin_return_address(0));
  return *static_cast<const uint4*>(address);
}

uint4 checked_load_of_written(const void* address) {
  check_access(address, sizeof(uint4), Access::Read, sizeof(uint4), __builtin_return_address(0));
  return *static_cast<const uint4*>(address);
}

void checked_store(void* address, uint4 value) {
  check_access(address, sizeof(uint4), Access::Write, sizeof(uint4), __builtin_return_address(0));
  *static_cast<uint4*>(address) = value;
}

}  // namespace fastdiff::emulator
