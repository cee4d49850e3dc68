#include "emulator/reports.h"

#include <cstdio>
#include <map>
#include <tuple>

#include "emulator/library_image.h"

namespace fastdiff::emulator {

namespace {

using Key = std::tuple<Fault, const void*, const char*, int>;

struct Entry {
  Report report;
  uint3 block;
  uint3 thread;
  size_t count = 0;
};

std::map<Key, Entry>& entries() {
  static std::map<Key, Entry> map;
  return map;
}

const char* name_of(Fault fault) {
  switch (fault) {
    case Fault::ReadAfterWrite:
      return "read-after-write";
    case Fault::WriteAfterRead:
      return "write-after-read";
    case Fault::WriteAfterWrite:
      return "write-after-write";
    case Fault::UninitialisedRead:
      return "uninitialised-read";
    case Fault::StaleRead:
      return "stale-read";
    case Fault::OutOfBounds:
      return "out-of-bounds";
    case Fault::Misaligned:
      return "misaligned";
    case Fault::DivergentBarrier:
      return "divergent-barrier";
    case Fault::DivergentCollective:
      return "divergent-collective";
    case Fault::Deadlock:
      return "deadlock";
  }
  return "unknown";
}

std::string text(const CodePlace& place) {
  if (place.line.file) return std::string(place.line.file) + ":" + std::to_string(place.line.line);
  if (!place.instruction) return "";
  char offset[32];
  std::snprintf(offset, sizeof offset, "+0x%zx", static_cast<size_t>(library_image().offset_of(place.instruction)));
  return offset;
}

std::string text(uint3 index) {
  return std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z);
}

}  // namespace

void add_report(const Report& report) {
  const Key key{report.fault, report.place.instruction, report.place.line.file, report.place.line.line};
  Entry& entry = entries()[key];
  if (entry.count++ == 0) {
    entry.report = report;
    entry.block = builtin.block_index;
    entry.thread = builtin.thread_index;
  }
}

void clear_reports() { entries().clear(); }

std::string format_reports() {
  std::string lines;
  for (const auto& [key, entry] : entries()) {
    const Report& report = entry.report;
    for (const std::string& field :
         {std::string(name_of(report.fault)), std::string(report.space), text(report.place), text(report.other),
          text(entry.block), text(entry.thread), std::to_string(entry.count)}) {
      lines += field + "\t";
    }
    lines += report.detail + "\n";
  }
  return lines;
}

}  // namespace fastdiff::emulator
