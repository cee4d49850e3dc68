// What the forward and backward CPU kernels of qk_norm_rope share: how a head is cut into packs, and the coefficients
// by which a token's heads are rotated.
#pragma once

#include <cmath>

#include "common/qk_norm_rope.h"
#include "cpu/element_type.h"
#include "cpu/integers.h"
#include "cpu/packs.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;

// At most a pack of consecutive elements of a head.
struct Piece {
  int64_t offset;
  int count;
  int64_t partner;  // where the pack begins that holds the other half of each pair; interleaved: `offset`
};

// A head, cut so that the other half of a pack's pairs is a pack, too: half-split pairs are cut in the middle and
// where they end.
class Pieces {
 public:
  explicit Pieces(const QkNormRopeParams& p) : pieces_(p.head_dim / kPack + 3) {
    const int64_t half = p.interleaved ? 0 : p.rotary_dim / 2;
    cut(0, half, half);
    cut(half, 2 * half, -half);
    cut(2 * half, p.head_dim, 0);
  }

  int count() const { return count_; }
  // Whether no piece is shorter than a pack.
  bool whole() const { return whole_; }
  const Piece& operator[](int index) const { return pieces_[index]; }
  // Of an array that holds a float for each lane of each piece.
  int64_t floats() const { return int64_t{count_} * kPack; }

 private:
  void cut(int64_t begin, int64_t end, int64_t to_partner) {
    whole_ = whole_ && (end - begin) % kPack == 0;
    for (int64_t offset = begin; offset < end; offset += kPack)
      pieces_[count_++] = {offset, static_cast<int>(minimum(kPack, end - offset)), offset + to_partner};
  }

  Scratch<Piece> pieces_;
  int count_ = 0;
  bool whole_ = true;
};

template <bool kWhole, class T>
FASTDIFF_INLINE Pack read(const T* head, int64_t offset, int count) {
  return kWhole || count == kPack ? load_pack(head + offset) : load_partial(head + offset, count);
}

template <bool kWhole, bool kStream, class T>
FASTDIFF_INLINE void write(T* head, int64_t offset, int count, Pack v) {
  if (kWhole || count == kPack) {
    store_pack<kStream>(head + offset, v);
  } else {
    store_partial(head + offset, v, count);
  }
}

// The other half of each pair of interleaved elements.
template <class T>
FASTDIFF_INLINE Pack swap_pairs(Pack v) {
  if constexpr (lane_of<T>(1) == kLanes) {
    return {v.second, v.first};  // even elements stand in the one vector, odd ones in the other
  } else {
    constexpr auto lanes = std::make_index_sequence<kLanes>{};
    return {exchange_lanes<1>(v.first, lanes), exchange_lanes<1>(v.second, lanes)};
  }
}

// `own`, read at the piece's offset, with the other half of each of its pairs.
template <bool kInterleaved, bool kWhole, class T>
FASTDIFF_INLINE Pack partner_of(const T* head, const Piece& piece, Pack own) {
  if constexpr (kInterleaved) {
    return swap_pairs<T>(own);
  } else {
    return read<kWhole>(head, piece.partner, piece.count);
  }
}

// kPack floats, arranged as load_pack arranges as many elements of type T.
template <class T>
FASTDIFF_INLINE Pack arrange(const float* values) {
  return canonical(load_pack_as<T>(values));
}

inline float load_weight(const NormRopeHeads& heads, int64_t index) {
  if (!heads.weight) return 1;
  const auto load = [&](const auto* weight) {
    const float value = to_float(weight[index]);
    return value == value ? value : NAN;
  };
  switch (heads.weight_dtype) {
    case DType::BFloat16:
      return load(static_cast<const BFloat16*>(heads.weight));
    case DType::Float16:
      return load(static_cast<const Float16*>(heads.weight));
    default:
      return load(static_cast<const float*>(heads.weight));
  }
}

// +1 where an element is the second of its pair, -1 where it is the first.
inline float sign_of(const QkNormRopeParams& p, int64_t index) {
  const bool second = p.interleaved ? index % 2 == 1 : index >= p.rotary_dim / 2;
  return second ? 1.0f : -1.0f;
}

// A value for every element of a head, in the lanes of its pieces: of_element(index).
template <class T, class OfElement>
inline void fill_lanes(const Pieces& pieces, float* lanes, const OfElement& of_element) {
  for (int i = 0; i < pieces.count(); i++)
    for (int k = 0; k < kPack; k++)
      lanes[i * kPack + lane_of<T>(k)] = k < pieces[i].count ? of_element(pieces[i].offset + k) : 0.0f;
}

// Rows of cos or sin, read piece by piece.
class TableRow {
 public:
  TableRow(const QkNormRopeParams& p, const RotaryTable& table, int64_t sample, int64_t token)
      : values_(token < p.text_tokens
                    ? nullptr
                    : table.data + sample * table.batch_stride + (token - p.text_tokens) * table.token_stride),
        length_(p.rotary_dim) {}

  // What lies beyond the table is `absent`.
  template <class T>
  FASTDIFF_INLINE Pack read(int64_t offset, int count, float absent) const {
    if (!values_ || offset >= length_) return {broadcast(absent), broadcast(absent)};
    const int64_t there = minimum(count, length_ - offset);
    if (there == kPack) return arrange<T>(values_ + offset);
    float padded[kPack];
    for (int k = 0; k < kPack; k++) padded[k] = k < there ? values_[offset + k] : absent;
    return arrange<T>(padded);
  }

 private:
  const float* values_;
  int64_t length_;
};

template <class T>
const T* head_at(const AttentionOperand& operand, int64_t sample, int64_t token, int64_t head) {
  return static_cast<const T*>(operand.data) + sample * operand.batch_stride + token * operand.token_stride +
         head * operand.head_stride;
}

// Where a head lies in a dense (batch, tokens, heads, head_dim).
inline int64_t dense_head(const QkNormRopeParams& p, int64_t heads, int64_t sample, int64_t token) {
  return (sample * p.tokens + token) * heads * p.head_dim;
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
