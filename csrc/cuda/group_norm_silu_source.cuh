// Where the vectors of a unit are read from. A source is called with the unit and the number of one of its vectors.
#pragma once

#include "cuda/group_norm_silu_unit.cuh"

namespace fastdiff::cuda {

template <typename T, bool kAligned>
struct GlobalSource {
  const T* data;
  Cursor cursor;

  __device__ __forceinline__ uint4 operator()(const Unit& unit, int vector) const {
    return load_vector<T, kAligned>(data + cursor.start + vector * cursor.step, unit.template valid<T>(vector));
  }
};

// A load from global memory that leaves a copy in shared memory for the second pass of the same lane.
template <typename T, bool kAligned>
struct KeepingSource {
  GlobalSource<T, kAligned> global;
  uint4* slab;
  Cursor cursor;

  __device__ __forceinline__ uint4 operator()(const Unit& unit, int vector) const {
    return slab[cursor.start + vector * cursor.step] = global(unit, vector);
  }
};

struct SharedSource {
  const uint4* slab;
  Cursor cursor;

  __device__ __forceinline__ uint4 operator()(const Unit&, int vector) const {
    return slab[cursor.start + vector * cursor.step];
  }
};

template <typename T, bool kChannelsLast, bool kAligned>
__device__ __forceinline__ GlobalSource<T, kAligned> global_source(const Activation& activation, const Unit& unit,
                                                                   const GroupNormSiluTiling& tiling) {
  return {static_cast<const T*>(activation.data),
          cursor<T, kChannelsLast>(unit, {activation.batch_stride, activation.stride}, tiling.lanes)};
}

}  // namespace fastdiff::cuda
