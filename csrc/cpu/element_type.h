#pragma once

#include "common/dtype.h"
#include "common/half_bits.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Picks the element type at run time: call(T{}).
template <class Call>
inline void with_element_type(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::Float32:
      return call(float{});
    case DType::BFloat16:
      return call(BFloat16{});
    case DType::Float16:
      return call(Float16{});
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
