#include "emulator/race_detector.h"

#include <array>

#include "emulator/library_image.h"
#include "emulator/reports.h"

namespace fastdiff::emulator {

namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;

// Flags beside the thread number in ShadowCell::reader.
constexpr uint16_t kThreadBits = 0x03ff;
constexpr uint16_t kManyInWarp = 0x0400;   // several lanes of that thread's warp, at read_clock
constexpr uint16_t kManyInBlock = 0x0800;  // threads of several warps, in read_epoch
constexpr uint16_t kOtherBlocks = 0x1000;  // also blocks of this launch before this one

// Beside the thread number in ShadowCell::writer.
constexpr uint16_t kUnderWay = 0x8000;  // by an asynchronous copy that the thread has not waited for

struct Clock {
  bool enabled = true;
  uint32_t epoch = 1;
  uint32_t block_begin = 1;   // epoch in which the running block began
  uint32_t launch_begin = 1;  // epoch in which its launch began
  std::array<uint16_t, kMaxWarps> warp{};
};

Clock now;

// One access, as the rules see it.
struct Accessor {
  uint16_t thread;
  int warp;
  AddressSpace space;
  Access access;
  uint32_t place;

  bool same_warp(uint16_t other) const { return (other & kThreadBits) / kWarpSize == warp; }
};

// Whether an access at (epoch, clock) by another lane of the accessor's warp is ordered before the accessor's.
bool before_in_warp(uint16_t clock, const Accessor& accessor) { return clock < now.warp[accessor.warp]; }

bool written_in_scope(const ShadowCell& cell, AddressSpace space) {
  return cell.write_epoch >= (space == AddressSpace::Shared ? now.block_begin : now.launch_begin);
}

bool conflicts_with_write(const ShadowCell& cell, const Accessor& accessor) {
  if (!written_in_scope(cell, accessor.space)) return false;
  if (cell.write_epoch < now.block_begin) return true;  // another block of this launch
  if (cell.writer & kUnderWay) {
    return accessor.access != Access::CopyEnd || (cell.writer & kThreadBits) != accessor.thread;
  }
  if (cell.write_epoch < now.epoch || cell.writer == accessor.thread) return false;
  return !(accessor.same_warp(cell.writer) && before_in_warp(cell.write_clock, accessor));
}

bool read_by_other_blocks(const ShadowCell& cell) {
  return cell.read_epoch >= now.launch_begin && (cell.read_epoch < now.block_begin || (cell.reader & kOtherBlocks));
}

bool conflicts_with_reads(const ShadowCell& cell, const Accessor& accessor) {
  if (accessor.space == AddressSpace::Global && read_by_other_blocks(cell)) return true;
  if (cell.read_epoch < now.epoch) return false;
  if (cell.reader & kManyInBlock) return true;
  const bool only_me = !(cell.reader & kManyInWarp) && (cell.reader & kThreadBits) == accessor.thread;
  return !only_me && !(accessor.same_warp(cell.reader) && before_in_warp(cell.read_clock, accessor));
}

// Who has read the cell in this epoch, once the accessor has.
uint16_t readers_with(const ShadowCell& cell, const Accessor& accessor) {
  if (cell.read_epoch < now.epoch) return accessor.thread;
  if (cell.reader & kManyInBlock) return accessor.thread | kManyInBlock;
  if (!accessor.same_warp(cell.reader)) return accessor.thread | kManyInBlock;
  // Readers that a __syncwarp ordered before the accessor need not be remembered: what follows it follows them.
  if (before_in_warp(cell.read_clock, accessor)) return accessor.thread;
  const bool only_me = !(cell.reader & kManyInWarp) && (cell.reader & kThreadBits) == accessor.thread;
  return only_me ? accessor.thread : accessor.thread | kManyInWarp;
}

void record_read(ShadowCell& cell, const Accessor& accessor) {
  const uint16_t other_blocks = read_by_other_blocks(cell) ? kOtherBlocks : 0;
  cell.reader = readers_with(cell, accessor) | other_blocks;
  cell.read_epoch = now.epoch;
  cell.read_clock = now.warp[accessor.warp];
  cell.read_place = accessor.place;
}

void record_write(ShadowCell& cell, const Accessor& accessor) {
  cell.writer = accessor.access == Access::CopyBegin ? accessor.thread | kUnderWay : accessor.thread;
  cell.write_epoch = now.epoch;
  cell.write_clock = now.warp[accessor.warp];
  cell.write_place = accessor.place;
}

CodePlace place_at(uint32_t offset) {
  return {reinterpret_cast<const void*>(library_image().base + offset), SourceLine{}};
}

std::string earlier_access(const char* verb, uint16_t thread, uint32_t epoch) {
  if (epoch < now.block_begin) return std::string(verb) + " by another block of the launch";
  if (thread & kUnderWay) return "a copy of thread " + std::to_string(thread & kThreadBits) + " was under way";
  return std::string(verb) + " by thread " + std::to_string(thread & kThreadBits) + " of the block";
}

// At most one report of a kind for an access, however many cells it spans.
struct AccessReports {
  const Region& region;
  const void* instruction;
  unsigned reported = 0;  // bit set of Fault

  void add(Fault fault, CodePlace other, const std::string& detail) {
    const unsigned bit = 1u << static_cast<int>(fault);
    if (reported & bit) return;
    reported |= bit;
    add_report({fault, name_of(region.space), {instruction, SourceLine{}}, other, detail});
  }
};

bool is_uninitialised(const ShadowCell& cell, const Region& region) {
  if (region.contents == Contents::Initialised) return false;
  return region.space == AddressSpace::Shared ? cell.write_epoch < now.block_begin : cell.write_epoch == 0;
}

void check_read(ShadowCell& cell, const Region& region, const Accessor& accessor, AccessReports& reports) {
  if (is_uninitialised(cell, region)) reports.add(Fault::UninitialisedRead, {}, "");
  if (conflicts_with_write(cell, accessor)) {
    reports.add(Fault::ReadAfterWrite, place_at(cell.write_place),
                earlier_access("written", cell.writer, cell.write_epoch));
  } else if (accessor.access == Access::ReadOnlyLoad && written_in_scope(cell, accessor.space)) {
    reports.add(Fault::StaleRead, place_at(cell.write_place), earlier_access("written", cell.writer, cell.write_epoch));
  }
  record_read(cell, accessor);
}

void check_write(ShadowCell& cell, const Accessor& accessor, AccessReports& reports) {
  if (conflicts_with_write(cell, accessor)) {
    reports.add(Fault::WriteAfterWrite, place_at(cell.write_place),
                earlier_access("written", cell.writer, cell.write_epoch));
  }
  if (conflicts_with_reads(cell, accessor)) {
    reports.add(Fault::WriteAfterRead, place_at(cell.read_place), earlier_access("read", cell.reader, cell.read_epoch));
  }
  record_write(cell, accessor);
}

}  // namespace

void set_race_detection(bool enabled) { now.enabled = enabled; }

void race_detector_begin_launch() { now.launch_begin = now.epoch + 1; }

void race_detector_begin_block() {
  race_detector_block_barrier();
  now.block_begin = now.epoch;
}

void race_detector_block_barrier() {
  ++now.epoch;
  now.warp.fill(0);
}

void race_detector_warp_barrier(int warp) { ++now.warp[warp]; }

void check_order(Region& region, size_t offset, size_t bytes, Access access, int thread, const void* instruction) {
  if (!now.enabled) return;
  const Accessor accessor{static_cast<uint16_t>(thread), thread / kWarpSize, region.space, access,
                          static_cast<uint32_t>(library_image().offset_of(instruction))};
  AccessReports reports{region, instruction};
  for (size_t byte = offset / kBytesPerCell * kBytesPerCell; byte < offset + bytes; byte += kBytesPerCell) {
    ShadowCell& cell = region.cells.at_byte(byte);
    if (is_write(access)) {
      check_write(cell, accessor, reports);
    } else {
      check_read(cell, region, accessor, reports);
    }
  }
}

}  // namespace fastdiff::emulator
