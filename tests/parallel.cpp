// Runs parallel_with of csrc/cpu/parallel.h on threads that come all at once, one after the other, the last one first,
// or of which one stands for all; says what it did wrong.
#include "cpu/parallel.h"

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

using fastdiff::cpu::Threads;
using fastdiff::cpu::FASTDIFF_ISA::Order;
using Body = void (*)(void*, int64_t, int64_t);

void at_once(int64_t items, Body body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < items; i++) threads.emplace_back(body, context, i, i + 1);
  for (std::thread& thread : threads) thread.join();
}

void last_one_first(int64_t items, Body body, void* context) {
  for (int64_t i = items - 1; i >= 0; i--) body(context, i, i + 1);
}

void one_for_all(int64_t items, Body body, void* context) { body(context, 0, items); }

// What is wrong, or null.
const char* run(const Threads& threads, int64_t items, int64_t group, Order order) {
  std::vector<std::atomic<int>> times(items);
  std::atomic<bool> empty{false}, split{false};
  std::atomic<int> bodies{0};
  fastdiff::cpu::FASTDIFF_ISA::parallel_with(
      threads, items, group,
      [&] {
        bodies++;
        return [&](int64_t begin, int64_t end) {
          if (begin >= end) empty = true;
          if (begin % group || (end % group && end != items)) split = true;
          for (int64_t i = begin; i < end; i++) times[i]++;
        };
      },
      order);
  for (const std::atomic<int>& count : times)
    if (count != 1) return count ? "an item was done twice" : "an item was left out";
  if (empty) return "an empty range";
  if (split && items >= group * threads.count) return "a group was split";
  if (bodies > threads.count) return "more bodies than threads";
  if (threads.run != at_once && bodies > 1) return "a body for a thread that came too late";
  return nullptr;
}

}  // namespace

int main() {
  for (const auto run_threads : {at_once, last_one_first, one_for_all})
    for (const int count : {1, 2, 3, 5, 8})
      for (const int64_t items : {0, 1, 2, 3, 7, 8, 9, 31, 64, 65, 100, 129, 1000, 4097})
        for (const int64_t group : {1, 3, 8, 50})
          for (const Order order : {Order::Forward, Order::Backward})
            if (const char* wrong = run({count, run_threads}, items, group, order))
              std::printf("%s: %d threads, %ld items, groups of %ld\n", wrong, count, static_cast<long>(items),
                          static_cast<long>(group));
}
