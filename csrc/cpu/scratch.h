#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Memory for one call, in whole cache lines: a vector that straddles two takes twice as long. Plain C: nothing here may
// instantiate library templates (see simd.h).
template <class Value>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : values_(static_cast<Value*>(std::aligned_alloc(64, (count * sizeof(Value) + 127) / 64 * 64))) {
    if (!values_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(values_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator Value*() const { return values_; }

 private:
  Value* values_;
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
