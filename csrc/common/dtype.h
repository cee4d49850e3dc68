#pragma once

#include <cstddef>
#include <cstdint>

namespace fastdiff {

// The element types every kernel accepts; arithmetic is float32 whatever the storage.
enum class DType : int32_t { Float32 = 0, BFloat16 = 1, Float16 = 2 };

constexpr size_t size_of(DType dtype) { return dtype == DType::Float32 ? 4 : 2; }

}  // namespace fastdiff
