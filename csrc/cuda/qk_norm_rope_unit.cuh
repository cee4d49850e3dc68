// What the kernels of qk_norm_rope share: which elements of a head a lane owns, and the coefficients of their rotation.
//
// A head is cut into units of two vectors that hold whole pairs, one unit a lane; a team of lanes owns the head. Pairs
// lie within a vector (interleaved) or across the two (half-split). A team takes several heads of one token, for which
// it keeps the coefficients in registers. Heads that cannot be cut so go element by element. Which way is taken depends
// on the shape of a head alone, and within each way sums are taken in one order, so that a sample's bits depend neither
// on its batch nor on its alignment.
#pragma once

#include "common/qk_norm_rope.h"
#include "cuda/platform.cuh"
#include "cuda/team.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

constexpr int kNormRopeThreads = 256;

// How a launch cuts the work.
struct NormRopeTiling {
  int lanes;       // of a team
  int team_heads;  // heads of a token that a team takes one after the other
};

// Elements of a unit; in registers the first vector comes first.
template <typename T>
constexpr int kUnitWidth = 2 * kVectorWidth<T>;

// The other half of the pair of a unit's element.
template <typename T, bool kInterleaved>
__device__ __forceinline__ constexpr int partner_of(int i) {
  return kInterleaved ? i ^ 1 : i ^ kVectorWidth<T>;
}

// -1 for the first of a pair, 1 for the second.
template <typename T, bool kInterleaved>
__device__ __forceinline__ constexpr float sign_of(int i) {
  return (kInterleaved ? i & 1 : i & kVectorWidth<T>) != 0 ? 1.0f : -1.0f;
}

// Where a lane's two vectors begin in a head.
struct HeadUnit {
  int64_t first;
  int64_t second;
  bool exists;
  bool rotates;
};

template <typename T, bool kInterleaved>
__device__ __forceinline__ HeadUnit head_unit(const QkNormRopeParams& params, int index) {
  const int64_t offset = int64_t{index} * kUnitWidth<T>;
  const bool exists = offset < params.head_dim, rotates = offset < params.rotary_dim;
  if (!kInterleaved && rotates) return {offset / 2, (params.rotary_dim + offset) / 2, exists, rotates};
  return {offset, offset + kVectorWidth<T>, exists, rotates};
}

template <typename T, bool kAligned>
__device__ __forceinline__ void load_unit(const T* head, const HeadUnit& unit, uint4 (&raw)[2]) {
  raw[0] = load_vector<T, kAligned>(head + unit.first, kVectorWidth<T>);
  raw[1] = load_vector<T, kAligned>(head + unit.second, kVectorWidth<T>);
}

template <typename T>
__device__ __forceinline__ void unpack_unit(const uint4 (&raw)[2], float (&values)[kUnitWidth<T>]) {
  constexpr int kWidth = kVectorWidth<T>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float vector[kWidth];
    unpack<T>(raw[half], vector);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[half * kWidth + i] = vector[i];
  }
}

// `head` is dense and so always aligned.
template <typename T>
__device__ __forceinline__ void store_unit(T* head, const HeadUnit& unit, const float (&values)[kUnitWidth<T>]) {
  constexpr int kWidth = kVectorWidth<T>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float vector[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) vector[i] = values[half * kWidth + i];
    st16(head + (half == 0 ? unit.first : unit.second), pack<T>(vector));
  }
}

// A unit's part of a row of floats.
template <typename T, bool kAligned>
__device__ __forceinline__ void load_row(const float* row, const HeadUnit& unit, float (&values)[kUnitWidth<T>]) {
  constexpr int kWidth = kVectorWidth<T>;
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; i += 4) {
    const float* source = row + (i < kWidth ? unit.first + i : unit.second + i - kWidth);
    float four[4];
    unpack<float>(load_vector<float, kAligned>(source, 4), four);
#pragma unroll
    for (int k = 0; k < 4; ++k) values[i + k] = four[k];
  }
}

template <typename T>
__device__ __forceinline__ void load_weights(const NormRopeHeads& heads, const HeadUnit& unit,
                                             float (&weights)[kUnitWidth<T>]) {
  constexpr int kWidth = kVectorWidth<T>;
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; ++i) {
    const int64_t index = i < kWidth ? unit.first + i : unit.second + i - kWidth;
    weights[i] = heads.weight != nullptr && unit.exists ? load_element(heads.weight, index, heads.weight_dtype) : 1.0f;
  }
}

// The row of a token that is rotated.
__device__ __forceinline__ const float* table_row(const QkNormRopeParams& params, const RotaryTable& table,
                                                  int64_t sample, int64_t token) {
  return table.data + sample * table.batch_stride + (token - params.text_tokens) * table.token_stride;
}

// A block works on the queries (blockIdx.y == 0) or on the keys.
__device__ __forceinline__ NormRopeHeads heads_of_block(const QkNormRopeParams& params) {
  if (blockIdx.y == 0) return params.query;
  return params.key;
}

template <typename T>
__device__ __forceinline__ const T* head_at(const AttentionOperand& operand, int64_t sample, int64_t token,
                                            int64_t head) {
  return static_cast<const T*>(operand.data) + sample * operand.batch_stride + token * operand.token_stride +
         head * operand.head_stride;
}

__device__ __forceinline__ int64_t dense_head(const QkNormRopeParams& params, int64_t heads, int64_t sample,
                                              int64_t token, int64_t head) {
  return ((sample * params.tokens + token) * heads + head) * params.head_dim;
}

// What a team takes at a time: some heads of a token.
struct TeamWork {
  int64_t sample;
  int64_t token;
  int64_t first_head;
  int64_t end_head;  // first_head where there is no work left
};

__device__ __forceinline__ int64_t work_count(const QkNormRopeParams& params, int64_t heads, int team_heads) {
  return params.batch * params.tokens * ((heads + team_heads - 1) / team_heads);
}

__device__ __forceinline__ TeamWork team_work(const QkNormRopeParams& params, int64_t heads, int team_heads,
                                              int64_t index) {
  if (index >= work_count(params, heads, team_heads)) return {0, 0, 0, 0};
  const int64_t groups = (heads + team_heads - 1) / team_heads, place = index / groups;
  const int64_t first = index % groups * team_heads;
  return {place / params.tokens, place % params.tokens, first, min(first + team_heads, heads)};
}

__device__ __forceinline__ float reciprocal_norm(const QkNormRopeParams& params, float squares) {
  return rsqrtf(__fdiv_rn(squares, static_cast<float>(params.head_dim)) + params.eps);
}

// Where an element stands, for kernels that go element by element.
struct ElementPlace {
  int64_t partner;
  float sign;  // -1 for the first of a pair, 1 for the second, 0 for what is not rotated
};

__device__ __forceinline__ ElementPlace element_place(const QkNormRopeParams& params, int64_t token, int64_t index) {
  if (token < params.text_tokens || index >= params.rotary_dim) return {index, 0.0f};
  if (params.interleaved) return {index ^ 1, index % 2 == 0 ? -1.0f : 1.0f};
  const int64_t half = params.rotary_dim / 2;
  return index < half ? ElementPlace{index + half, -1.0f} : ElementPlace{index - half, 1.0f};
}

__device__ __forceinline__ float load_weight(const NormRopeHeads& heads, int64_t index) {
  return heads.weight == nullptr ? 1.0f : load_element(heads.weight, index, heads.weight_dtype);
}

}  // namespace fastdiff::cuda
