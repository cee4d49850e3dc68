// How a kernel runs work in parallel without knowing whose threads it runs on.
#pragma once

#include <cstdint>

namespace fastdiff::cpu {

struct Threads {
  int count;  // at most this many run at once
  void (*run)(int64_t items, void (*body)(void* context, int64_t begin, int64_t end), void* context);
};

// Calls body(begin, end) on disjoint ranges that cover [0, items).
template <class Body>
static inline void parallel_for(const Threads& threads, int64_t items, const Body& body) {
  if (items <= 0) return;
  if (threads.count <= 1 || items == 1) {
    body(int64_t{0}, items);
    return;
  }
  threads.run(
      items, [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastdiff::cpu
