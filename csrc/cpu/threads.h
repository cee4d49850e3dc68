// How a kernel runs work in parallel without knowing whose threads it runs on.
#pragma once

#include <cstdint>

namespace fastdiff::cpu {

struct Threads {
  int count;  // at most this many run at once
  void (*run)(int64_t items, void (*body)(void* context, int64_t begin, int64_t end), void* context);
};

}  // namespace fastdiff::cpu
