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

// Calls body(begin, end) on disjoint ranges that cover [0, items), where each thread has a body of its own, from
// make(), and takes the next range when it is done with one: a thread does the more, the faster its core is. Cores
// differ in kind, and by what runs on their second hardware thread. Every `group` of neighbours is in one range, where
// there are groups for all threads.
template <class Make>
static inline void parallel_on_demand(const Threads& threads, int64_t items, int64_t group, const Make& make) {
  constexpr int64_t kRangesOfThread = 8;
  const int64_t workers = threads.count < items ? threads.count : items;
  if (workers <= 0) return;
  const int64_t unit = items >= group * workers ? group : 1;
  const int64_t share = items / (kRangesOfThread * workers) / unit * unit, size = share > unit ? share : unit;
  int64_t next = 0;
  parallel_for(threads, workers, [&](int64_t, int64_t) {
    auto body = make();
    for (int64_t begin; (begin = __atomic_fetch_add(&next, size, __ATOMIC_RELAXED)) < items;)
      body(begin, begin + size < items ? begin + size : items);
  });
}

}  // namespace fastdiff::cpu
