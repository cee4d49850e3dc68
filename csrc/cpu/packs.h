// Rows of elements worked on pack by pack, and rows of float32 numbers kept in the order of a pack's lanes.
#pragma once

#include <cmath>

#include "cpu/integers.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

FASTDIFF_INLINE Pack operator+(Pack a, Pack b) { return {a.first + b.first, a.second + b.second}; }
FASTDIFF_INLINE Pack operator-(Pack a, Pack b) { return {a.first - b.first, a.second - b.second}; }
FASTDIFF_INLINE Pack operator*(Pack a, Pack b) { return {a.first * b.first, a.second * b.second}; }
FASTDIFF_INLINE Pack operator+(Pack a, Float b) { return {a.first + b, a.second + b}; }
FASTDIFF_INLINE Pack operator-(Pack a, Float b) { return {a.first - b, a.second - b}; }
FASTDIFF_INLINE Pack operator*(Pack a, Float b) { return {a.first * b, a.second * b}; }

FASTDIFF_INLINE Pack multiply_add(Pack a, Pack b, Pack sum) {
  return {multiply_add(a.first, b.first, sum.first), multiply_add(a.second, b.second, sum.second)};
}

FASTDIFF_INLINE float sum_of_lanes(Pack v) {
  return across_lanes(v.first + v.second, [](Float a, Float b) FASTDIFF_INLINE_LAMBDA { return a + b; })[0];
}

// Calls body(offset, count) for the packs of a row; `count` is kPack for all but the last.
template <class Body>
FASTDIFF_INLINE void for_each_pack(int64_t elements, const Body& body) {
  int64_t offset = 0;
  for (; offset + kPack <= elements; offset += kPack) body(offset, kPack);
  if (offset < elements) body(offset, static_cast<int>(elements - offset));
}

// Lanes without an element read as zero.
template <class T>
FASTDIFF_INLINE Pack read(const T* row, int64_t offset, int count) {
  return count == kPack ? load_pack(row + offset) : load_partial(row + offset, count);
}

template <bool kStream, class T>
FASTDIFF_INLINE void write(T* row, int64_t offset, int count, Pack v) {
  if (count == kPack) {
    store_pack<kStream>(row + offset, v);
  } else {
    store_partial(row + offset, v, count);
  }
}

// `v` with the lanes that have no element set to zero.
template <class T>
FASTDIFF_INLINE Pack keep(Pack v, int count) {
  return count == kPack ? v : keep_first<T>(v, count);
}

// Floats in a row that is kept in the order of lanes.
inline int64_t lanes_of_row(int64_t elements) { return ceil_div(elements, kPack) * kPack; }

FASTDIFF_INLINE Pack load_lanes(const float* row, int64_t offset) {
  return {load(row + offset), load(row + offset + kLanes)};
}

FASTDIFF_INLINE void store_lanes(float* row, int64_t offset, Pack v) {
  store(row + offset, v.first);
  store(row + offset + kLanes, v.second);
}

// Rounding to bfloat16 by addition keeps only NaNs whose low bits are clear; what comes from users may hold any.
FASTDIFF_INLINE Pack canonical(Pack v) {
  const Float nan = broadcast(NAN);
  return {v.first == v.first ? v.first : nan, v.second == v.second ? v.second : nan};
}

template <int kFirst, size_t... kLane>
FASTDIFF_INLINE Float every_other(Float a, Float b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane + kFirst)...);
}

// A whole pack of elements of another type, in the lanes where one of T has them.
template <class T, class Source>
FASTDIFF_INLINE Pack load_pack_as(const Source* source) {
  if constexpr (lane_of<T>(1) == lane_of<Source>(1)) {
    return load_pack(source);
  } else {
    const Float low = load_in_order(source), high = load_in_order(source + kLanes);
    if constexpr (lane_of<T>(1) == 1) return {low, high};
    constexpr auto kOrder = std::make_index_sequence<kLanes>{};
    return {every_other<0>(low, high, kOrder), every_other<1>(low, high, kOrder)};
  }
}

// A pack of elements of another type, in the lanes where one of T has them.
template <class T, class Source>
FASTDIFF_INLINE Pack read_as(const Source* row, int64_t offset, int count) {
  if constexpr (lane_of<T>(1) == lane_of<Source>(1)) {
    return canonical(read(row, offset, count));
  } else {
    float lanes[kPack] = {};
    for (int k = 0; k < count; k++) lanes[lane_of<T>(k)] = to_float(row[offset + k]);
    return canonical(load_lanes(lanes, 0));
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
