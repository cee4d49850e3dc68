// Forward qk_norm_rope: a head is read for its mean square, and again, from the nearest cache, to be normalised and
// rotated. The weight is folded into the token's cosines and sines, once for all its heads.
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
template <class T, bool kInterleaved>
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
    for (int64_t head = 0; head < heads_.heads; head++, x += heads_.x.head_stride, y += params_.head_dim) {
      if (streams_) {
        run_head<true>(x, y);
      } else {
        run_head<false>(x, y);
      }
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
      store_lanes(own_, i, load_lanes(weight_, i) * cos.template read<T>(piece.offset, piece.count, 1));
      store_lanes(other_, i, load_lanes(partner_weight_, i) * sin.template read<T>(piece.offset, piece.count, 0));
    }
  }

  template <bool kStream>
  void run_head(const T* x, T* y) const {
    Pack squares = {};
    for (int i = 0; i < pieces_.count(); i++) {
      const Pack v = read(x, pieces_[i].offset, pieces_[i].count);
      squares = squares + v * v;
    }
    const float mean_square = sum_of_lanes(squares) / static_cast<float>(params_.head_dim);
    const Float rstd = broadcast(1 / std::sqrt(mean_square + params_.eps));
    for (int i = 0; i < pieces_.count(); i++) {
      const Piece& piece = pieces_[i];
      const Pack own = read(x, piece.offset, piece.count), other = partner_of<T, kInterleaved>(x, piece, own);
      write<kStream>(y, piece.offset, piece.count,
                     (own * rstd) * load_lanes(own_, i) + (other * rstd) * load_lanes(other_, i));
    }
  }

  const QkNormRopeParams& params_;
  const NormRopeHeads& heads_;
  const Pieces& pieces_;
  const bool streams_;
  Scratch<float> weight_, partner_weight_;  // the latter signed
  Scratch<float> own_, other_;              // of the token at hand
};

template <class T, bool kInterleaved>
void run(const QkNormRopeParams& p, const Threads& threads) {
  const Pieces pieces(p);
  parallel_for(threads, p.batch * p.tokens, [&](int64_t begin, int64_t end) {
    Heads<T, kInterleaved> query(p, p.query, pieces), key(p, p.key, pieces);
    for (int64_t i = begin; i < end; i++) {
      query.run(i / p.tokens, i % p.tokens);
      key.run(i / p.tokens, i % p.tokens);
    }
    if (query.streamed() || key.streamed()) finish_streaming();
  });
}

}  // namespace

void qk_norm_rope(const QkNormRopeParams& p, const Threads& available) {
  const int64_t elements = p.batch * p.tokens * (p.query.heads + p.key.heads) * p.head_dim;
  const Threads threads{elements < kSerialElements ? 1 : available.count, available.run};
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    return p.interleaved ? run<T, true>(p, threads) : run<T, false>(p, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
