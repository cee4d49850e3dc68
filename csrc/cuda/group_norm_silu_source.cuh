// Where the vectors of a unit are read from. A source is called with the unit and the number of one of its vectors.
#pragma once

#include "cuda/group_norm_silu_unit.cuh"
#include "cuda/ptx.cuh"

namespace fastdiff::cuda {

template <typename T, bool kAligned>
struct GlobalSource {
  const T* data;
  Cursor cursor;

  __device__ __forceinline__ const T* address(int vector) const { return data + cursor.start + vector * cursor.step; }

  __device__ __forceinline__ uint4 operator()(const Unit& unit, int vector) const {
    return load_vector<T, kAligned>(address(vector), unit.template valid<T>(vector));
  }
};

// What a lane has brought into shared memory itself.
struct SharedSource {
  const uint4* slab;
  Cursor cursor;

  __device__ __forceinline__ uint4 operator()(const Unit&, int vector) const {
    return slab[cursor.start + vector * cursor.step];
  }
};

// Brings a lane's vectors of a unit into shared memory: asynchronous copies, which have to be waited for, where 16
// bytes can be copied at once.
template <typename T, bool kAligned>
__device__ __forceinline__ void keep_unit(const Unit& unit, const GlobalSource<T, kAligned>& global, uint4* slab,
                                          const Cursor& cursor) {
  for (int k = 0; k < unit.count; ++k) {
    uint4* slot = slab + cursor.start + k * cursor.step;
    if constexpr (kAligned) {
      copy_async(slot, global.address(k), true);
    } else {
      *slot = global(unit, k);
    }
  }
}

template <typename T, bool kChannelsLast, bool kAligned>
__device__ __forceinline__ GlobalSource<T, kAligned> global_source(const Activation& activation, const Unit& unit,
                                                                   const GroupNormSiluTiling& tiling) {
  return {static_cast<const T*>(activation.data),
          cursor<T, kChannelsLast>(unit, {activation.batch_stride, activation.stride}, tiling.lanes)};
}

}  // namespace fastdiff::cuda
