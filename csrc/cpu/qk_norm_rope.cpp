// Forward qk_norm_rope: a head is read for its mean square, and again, from the nearest cache, to be normalised and
// rotated. The weight is folded into the token's cosines and sines, once for all its heads.
#include "cpu/parallel.h"
#include "cpu/qk_norm_rope_common.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Outputs so large that no consumer finds them in a cache are stored past the caches.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

bool streams(const QkNormRopeParams& p, const NormRopeHeads& heads, const Pieces& pieces) {
  const int64_t bytes = size_of(p.dtype);
  for (int i = 0; i < pieces.count(); i++)
    if (pieces[i].offset * bytes % 64) return false;
  const bool aligned = reinterpret_cast<uintptr_t>(heads.y) % 64 == 0 && p.head_dim * bytes % 64 == 0;
  return aligned && p.batch * p.tokens * heads.heads * p.head_dim * bytes >= kStreamBytes;
}

// The queries or the keys, as one thread works on them.
// Heads at a time: the chain of one head's mean square hides behind the other's.
constexpr int kTogether = 4;

template <class T, bool kInterleaved, bool kWhole>
class Heads {
 public:
  Heads(const QkNormRopeParams& p, const NormRopeHeads& heads, const Pieces& pieces)
      : params_(p),
        heads_(heads),
        pieces_(pieces),
        streams_(streams(p, heads, pieces)),
        weight_(pieces.floats()),
        partner_weight_(pieces.floats()),
        own_(pieces.floats()),
        other_(pieces.floats()) {
    fill_lanes<T>(pieces, weight_, [&](int64_t i) { return load_weight(heads, i); });
    fill_lanes<T>(pieces, partner_weight_, [&](int64_t i) {
      return i < p.rotary_dim ? sign_of(p, i) * load_weight(heads, partner_index(i)) : 0.0f;
    });
  }

  void run(int64_t sample, int64_t token) {
    set_coefficients(sample, token);
    const T* x = head_at<T>(heads_.x, sample, token, 0);
    T* y = static_cast<T*>(heads_.y) + dense_head(params_, heads_.heads, sample, token);
    if (streams_) {
      run_heads<true>(x, y);
    } else {
      run_heads<false>(x, y);
    }
  }

  bool streamed() const { return streams_; }

 private:
  int64_t partner_index(int64_t index) const {
    if (kInterleaved) return index ^ 1;
    const int64_t half = params_.rotary_dim / 2;
    return index < half ? index + half : index - half;
  }

  // y = xhat * own + (xhat of the partner) * other
  void set_coefficients(int64_t sample, int64_t token) {
    const TableRow cos(params_, params_.cos, sample, token), sin(params_, params_.sin, sample, token);
    for (int i = 0; i < pieces_.count(); i++) {
      const Piece& piece = pieces_[i];
      store_lanes(own_, i * kPack, load_lanes(weight_, i * kPack) * cos.template read<T>(piece.offset, piece.count, 1));
      store_lanes(other_, i * kPack,
                  load_lanes(partner_weight_, i * kPack) * sin.template read<T>(piece.offset, piece.count, 0));
    }
  }

  template <bool kStream>
  void run_heads(const T* x, T* y) const {
    const int64_t x_stride = heads_.x.head_stride, y_stride = params_.head_dim;
    int64_t head = 0;
    for (; head + kTogether <= heads_.heads; head += kTogether)
      run_some<kTogether, kStream>(x + head * x_stride, x_stride, y + head * y_stride);
    for (; head < heads_.heads; head++) run_some<1, kStream>(x + head * x_stride, x_stride, y + head * y_stride);
  }

  template <int kHeads, bool kStream>
  FASTDIFF_INLINE void run_some(const T* x, int64_t x_stride, T* y) const {
    // Copies, which the stores to `y` cannot change: the compiler keeps them in registers.
    const int count = pieces_.count();
    const Piece* pieces = &pieces_[0];
    const float *own_factors = own_, *other_factors = other_;
    const int64_t y_stride = params_.head_dim;
    Pack squares[kHeads] = {};
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; h++)
      for (int i = 0; i < count; i++) {
        const Pack v = read<kWhole>(x + h * x_stride, pieces[i].offset, pieces[i].count);
        squares[h] = multiply_add(v, v, squares[h]);
      }
    Float rstd[kHeads];
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; h++) {
      const float mean_square = sum_of_lanes(squares[h]) / static_cast<float>(params_.head_dim);
      rstd[h] = broadcast(1 / std::sqrt(mean_square + params_.eps));
    }
    for (int h = 0; h < kHeads; h++, x += x_stride, y += y_stride)
      for (int i = 0; i < count; i++) {
        const Piece piece = pieces[i];
        const Pack own = read<kWhole>(x, piece.offset, piece.count);
        const Pack other = partner_of<kInterleaved, kWhole>(x, piece, own);
        write<kWhole, kStream>(y, piece.offset, piece.count,
                               multiply_add(own * rstd[h], load_lanes(own_factors, i * kPack),
                                            (other * rstd[h]) * load_lanes(other_factors, i * kPack)));
      }
  }

  const QkNormRopeParams& params_;
  const NormRopeHeads& heads_;
  const Pieces& pieces_;
  const bool streams_;
  Scratch<float> weight_, partner_weight_;  // the latter signed
  Scratch<float> own_, other_;              // of the token at hand
};

template <class T, bool kInterleaved, bool kWhole>
void run(const QkNormRopeParams& p, const Pieces& pieces, const Threads& threads) {
  using SomeHeads = Heads<T, kInterleaved, kWhole>;
  parallel_with(threads, p.batch * p.tokens, 1, [&] {
    return [&, query = SomeHeads(p, p.query, pieces), key = SomeHeads(p, p.key, pieces)](int64_t begin,
                                                                                         int64_t end) mutable {
      for (int64_t i = begin; i < end; i++) {
        query.run(i / p.tokens, i % p.tokens);
        key.run(i / p.tokens, i % p.tokens);
      }
      if (query.streamed() || key.streamed()) finish_streaming();
    };
  });
}

}  // namespace

void qk_norm_rope(const QkNormRopeParams& p, const Threads& available) {
  const int64_t elements = p.batch * p.tokens * (p.query.heads + p.key.heads) * p.head_dim;
  const Threads threads{elements < kSerialElements ? 1 : available.count, available.run};
  const Pieces pieces(p);
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (pieces.whole())
      return p.interleaved ? run<T, true, true>(p, pieces, threads) : run<T, false, true>(p, pieces, threads);
    return p.interleaved ? run<T, true, false>(p, pieces, threads) : run<T, false, false>(p, pieces, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
