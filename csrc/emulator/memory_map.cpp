#include "emulator/memory_map.h"

#include <array>
#include <cstring>
#include <map>

#include "emulator/device.h"
#include "emulator/library_image.h"

namespace fastdiff::emulator {

namespace {

class MemoryMap {
 public:
  MemoryMap() {
    for (const MemoryRange& variable : library_image().shared_variables) {
      add(variable.begin, variable.end, AddressSpace::Shared, Contents::Uninitialised);
    }
  }

  void declare_global(const char* begin, const char* end, Contents contents) {
    Region* known = find(begin);
    if (known && end <= known->end) return;
    // Views of one storage may overlap: together they are one region.
    auto region = regions_.lower_bound(known ? known->begin : begin);
    while (region != regions_.end() && region->second->begin < end) {
      begin = std::min(begin, region->second->begin);
      end = std::max(end, region->second->end);
      if (region->second->contents == Contents::Initialised) contents = Contents::Initialised;
      region = regions_.erase(region);
    }
    add(begin, end, AddressSpace::Global, contents);
  }

  bool overlaps(const char* begin, const char* end) {
    const auto above = regions_.lower_bound(begin);
    return find(begin) || (above != regions_.end() && above->second->begin < end);
  }

  void clear_global() {
    for (auto region = regions_.begin(); region != regions_.end();) {
      region = region->second->space == AddressSpace::Global ? regions_.erase(region) : std::next(region);
    }
    recent_.fill(nullptr);
  }

  std::vector<MemoryRange> global_ranges() const {
    std::vector<MemoryRange> ranges;
    for (const auto& [begin, region] : regions_) {
      if (region->space == AddressSpace::Global) ranges.push_back({begin, region->end});
    }
    return ranges;
  }

  void set_dynamic_shared(const char* begin, size_t bytes) {
    regions_.erase(begin);
    recent_.fill(nullptr);
    if (bytes > 0) add(begin, begin + bytes, AddressSpace::Shared, Contents::Uninitialised);
  }

  Region* find(const char* address) {
    Region*& recent = recent_[(reinterpret_cast<uintptr_t>(address) >> 16) % recent_.size()];
    if (recent && recent->begin <= address && address < recent->end) return recent;
    Region* below = nearest_below(address);
    if (!below || address >= below->end) return nullptr;
    return recent = below;
  }

  Region* nearest_below(const char* address) {
    const auto above = regions_.upper_bound(address);
    return above == regions_.begin() ? nullptr : std::prev(above)->second.get();
  }

  Region* nearest_above(const char* address) {
    const auto above = regions_.upper_bound(address);
    return above == regions_.end() ? nullptr : above->second.get();
  }

 private:
  void add(const char* begin, const char* end, AddressSpace space, Contents contents) {
    regions_[begin] = std::make_unique<Region>(begin, end, space, contents);
    recent_.fill(nullptr);
  }

  std::map<const char*, std::unique_ptr<Region>> regions_;  // by begin, disjoint
  std::array<Region*, 64> recent_{};                        // a cache, by the address's 64 KiB page
};

MemoryMap& memory_map() {
  static MemoryMap map;
  return map;
}

alignas(1024) char dynamic_shared_storage[kMaxDynamicSharedBytes];

}  // namespace

void register_buffer(const void* address, size_t bytes, Contents contents) {
  if (!address || bytes == 0) return;
  const auto* begin = static_cast<const char*>(address);
  if (contents == Contents::Uninitialised && !memory_map().overlaps(begin, begin + bytes)) {
    std::memset(const_cast<void*>(address), 0xff, bytes);
  }
  memory_map().declare_global(begin, begin + bytes, contents);
}

std::vector<MemoryRange> declared_buffers() { return memory_map().global_ranges(); }

void clear_buffers() { memory_map().clear_global(); }

BufferScope::BufferScope() {
  static std::mutex one_scope_at_a_time;
  lock_ = std::unique_lock<std::mutex>(one_scope_at_a_time);
}

void* dynamic_shared_memory() { return dynamic_shared_storage; }

void set_dynamic_shared_bytes(size_t bytes) { memory_map().set_dynamic_shared(dynamic_shared_storage, bytes); }

Region* find_region(const void* address) { return memory_map().find(static_cast<const char*>(address)); }

std::string describe_outside(const void* address) {
  const auto* byte = static_cast<const char*>(address);
  const auto extent = [](const Region* region) {
    return std::to_string(region->end - region->begin) + " bytes of " + name_of(region->space) + " memory";
  };
  const Region* below = memory_map().nearest_below(byte);
  const Region* above = memory_map().nearest_above(byte);
  if (below && byte < below->end) return "straddles the end of " + extent(below);
  if (above && (!below || above->begin - byte < byte - below->end)) {
    return std::to_string(above->begin - byte) + " bytes before the start of " + extent(above);
  }
  return below ? std::to_string(byte - below->end) + " bytes past the end of " + extent(below)
               : "no memory is declared";
}

}  // namespace fastdiff::emulator
