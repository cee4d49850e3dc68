// The threads of a block that can run, and the order in which they do.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

namespace fastdiff::emulator {

constexpr int kMaxThreads = 1024;  // of a block

enum class Schedule : int {
  RoundRobin,  // the longest ready first: threads and blocks in ascending order
  Reverse,     // the latest ready first: threads and blocks in descending order
  Random,
};

// xorshift64*: small, seeded, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}

  // Uniform enough in [0, bound).
  uint64_t below(uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1dull >> 32) % bound;
  }

 private:
  uint64_t state_;
};

// Ring buffer of thread numbers. A thread is in it at most once, so it cannot overflow.
class ReadyQueue {
 public:
  void clear() { count_ = 0; }
  bool empty() const { return count_ == 0; }

  void push(int thread) { at(count_++) = thread; }

  int pop(Schedule schedule, Random& random) {
    if (schedule == Schedule::Random) std::swap(at(0), at(static_cast<int>(random.below(count_))));
    --count_;
    if (schedule == Schedule::Reverse) return at(count_);
    const int thread = at(0);
    head_ = (head_ + 1) % kMaxThreads;
    return thread;
  }

 private:
  int& at(int position) { return threads_[(head_ + position) % kMaxThreads]; }

  std::array<int, kMaxThreads> threads_{};
  int head_ = 0;
  int count_ = 0;
};

}  // namespace fastdiff::emulator
