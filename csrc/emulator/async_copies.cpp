#include "emulator/async_copies.h"

#include <array>
#include <cstring>
#include <vector>

#include "emulator/device.h"
#include "emulator/memory_access.h"
#include "emulator/scheduler.h"

namespace fastdiff::emulator {

namespace {

constexpr size_t kCopyBytes = 16;

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int group;
  const void* instruction;
};

struct ThreadCopies {
  int open_group = 0;
  std::vector<Copy> under_way;
};

std::array<ThreadCopies, kMaxThreads> copies;

ThreadCopies& own_copies() { return copies[running_thread()->index]; }

void make(const Copy& copy) {
  check_access(copy.to, kCopyBytes, Access::CopyEnd, kCopyBytes, copy.instruction);
  if (copy.from) {
    std::memcpy(copy.to, copy.from, kCopyBytes);
  } else {
    std::memset(copy.to, 0, kCopyBytes);
  }
}

}  // namespace

void copy_async(void* to, const void* from, bool exists) {
  const void* instruction = __builtin_return_address(0);
  if (exists) check_access(from, kCopyBytes, Access::Read, kCopyBytes, instruction);
  check_access(to, kCopyBytes, Access::CopyBegin, kCopyBytes, instruction);
  std::memset(to, 0xff, kCopyBytes);
  own_copies().under_way.push_back({to, exists ? from : nullptr, own_copies().open_group, instruction});
}

void commit_copies() { ++own_copies().open_group; }

void wait_for_copies(int pending) {
  ThreadCopies& own = own_copies();
  size_t kept = 0;
  for (const Copy& copy : own.under_way) {
    if (copy.group < own.open_group - pending) {
      make(copy);
    } else {
      own.under_way[kept++] = copy;
    }
  }
  own.under_way.resize(kept);
}

void reset_async_copies() {
  for (ThreadCopies& thread : copies) thread = {};
}

}  // namespace fastdiff::emulator
