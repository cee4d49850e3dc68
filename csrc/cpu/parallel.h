// Work spread over threads. Cores differ in kind, and by what runs on their second hardware thread: so a thread that
// has done its share takes what others have left of theirs.
#pragma once

#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

enum class Order { Forward, Backward };

// Ranges, numbered from 0, of which every thread has a share. It takes them in order, and so finds in its cache what an
// earlier call has left there; other threads take them from the other end.
class Shares {
 public:
  Shares(int64_t ranges, int64_t threads, Order order) : threads_(threads), order_(order), shares_(threads) {
    for (int64_t t = 0; t < threads; t++)
      shares_[t].left = ranges * t / threads + kOneLast * (ranges * (t + 1) / threads);
  }

  // A range that no thread has taken before, or -1 if there is none.
  int64_t take(int64_t thread) {
    for (int64_t k = 0; k < threads_; k++) {
      uint64_t& left = shares_[(thread + k) % threads_].left;
      uint64_t now = __atomic_load_n(&left, __ATOMIC_RELAXED);
      const bool from_front = (k == 0) == (order_ == Order::Forward);
      while (first(now) < last(now))
        if (exchange(left, now, from_front ? now + 1 : now - kOneLast)) return from_front ? first(now) : last(now) - 1;
    }
    return -1;
  }

 private:
  static constexpr uint64_t kOneLast = uint64_t{1} << 32;
  struct alignas(64) Share {
    uint64_t left;  // the first, and in the upper half the one after the last
  };
  static int64_t first(uint64_t left) { return left % kOneLast; }
  static int64_t last(uint64_t left) { return left / kOneLast; }
  // Where `left` is no longer `now`, that becomes what it is.
  static bool exchange(uint64_t& left, uint64_t& now, uint64_t then) {
    return __atomic_compare_exchange_n(&left, &now, then, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  }

  int64_t threads_;
  Order order_;
  Scratch<Share> shares_;
};

// Calls body(begin, end) on disjoint ranges that cover [0, items), where each thread has a body of its own, from
// make(). Every `group` of neighbours is in one range, where there are groups for all threads.
template <class Make>
void parallel_with(const Threads& available, int64_t items, int64_t group, const Make& make,
                   Order order = Order::Forward) {
  constexpr int64_t kRangesOfThread = 8;  // so the last one ends soon after the others
  const int64_t threads = minimum(available.count, items);
  if (threads <= 0) return;
  if (threads == 1) {
    decltype(auto) body = make();
    body(int64_t{0}, items);
    return;
  }
  const int64_t unit = items >= group * threads ? group : 1;
  const int64_t size = maximum(unit, items / (kRangesOfThread * threads) / unit * unit);
  Shares shares(ceil_div(items, size), threads, order);
  const auto work = [&](int64_t first, int64_t last) {
    // Of threads that one stands for, where others are not to be had, the first takes all.
    for (int64_t thread = first; thread < last; thread++) {
      int64_t range = shares.take(thread);
      if (range < 0) return;
      decltype(auto) body = make();
      for (; range >= 0; range = shares.take(thread)) body(range * size, minimum(items, (range + 1) * size));
    }
  };
  using Work = decltype(work);
  available.run(
      threads, [](void* context, int64_t begin, int64_t end) { (*static_cast<const Work*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

// Calls body(begin, end) on disjoint ranges that cover [0, items).
template <class Body>
void parallel_for(const Threads& threads, int64_t items, const Body& body, Order order = Order::Forward) {
  parallel_with(threads, items, 1, [&]() -> const Body& { return body; }, order);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
