// Backward qk_norm_rope. With xhat = x * rstd, z = xhat * weight and dz the gradient dy turned back by its angle,
//
//   dx = rstd * (dz * weight - xhat * mean(dz * weight * xhat)),   dweight = sum over all heads of dz * xhat.
//
// rstd is worked out again: x has to be read in any case. Tokens are cut into blocks by their number alone; each block
// has a row of its own for its part of dweight, and the rows are summed in order, so that the bits do not depend on the
// number of threads.
#include "cpu/parallel.h"
#include "cpu/qk_norm_rope_common.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Tokens of one partial sum of dweight: few enough for float32.
constexpr int64_t kBlockTokens = 32;

// The queries or the keys, as one thread works on them.
template <class T, bool kInterleaved, bool kWhole>
class Gradients {
 public:
  Gradients(const QkNormRopeParams& p, const NormRopeHeads& heads, const NormRopeGradients& gradients,
            const Pieces& pieces)
      : params_(p),
        heads_(heads),
        gradients_(gradients),
        pieces_(pieces),
        weight_(pieces.floats()),
        partner_sign_(pieces.floats()),
        own_(pieces.floats()),
        other_(pieces.floats()),
        dz_(pieces.floats()) {
    fill_lanes<T>(pieces, weight_, [&](int64_t i) { return load_weight(heads, i); });
    fill_lanes<T>(pieces, partner_sign_, [&](int64_t i) { return -sign_of(p, i); });
  }

  // Tokens [begin, end) of all samples. `dweight` holds a float for each lane of the pieces.
  void run(int64_t begin, int64_t end, float* dweight) {
    std::memset(dweight, 0, pieces_.floats() * sizeof(float));
    for (int64_t i = begin; i < end; i++) run_token(i / params_.tokens, i % params_.tokens, dweight);
  }

 private:
  void run_token(int64_t sample, int64_t token, float* dweight) {
    set_coefficients(sample, token);
    const T* x = head_at<T>(heads_.x, sample, token, 0);
    const T* dy = head_at<T>(gradients_.dy, sample, token, 0);
    T* dx = static_cast<T*>(gradients_.dx) + dense_head(params_, heads_.heads, sample, token);
    for (int64_t head = 0; head < heads_.heads; head++) {
      run_head(x, dy, dx, dweight);
      x += heads_.x.head_stride;
      dy += gradients_.dy.head_stride;
      dx += params_.head_dim;
    }
  }

  // dz = dy * own + (dy of the partner) * other
  void set_coefficients(int64_t sample, int64_t token) {
    const TableRow cos(params_, params_.cos, sample, token), sin(params_, params_.sin, sample, token);
    for (int i = 0; i < pieces_.count(); i++) {
      const Piece& piece = pieces_[i];
      store_lanes(own_, i * kPack, cos.template read<T>(piece.offset, piece.count, 1));
      Pack of_partner = sin.template read<T>(piece.partner, piece.count, 0);
      if (kInterleaved) of_partner = swap_pairs<T>(of_partner);
      store_lanes(other_, i * kPack, load_lanes(partner_sign_, i * kPack) * of_partner);
    }
  }

  void run_head(const T* x, const T* dy, T* dx, float* dweight) const {
    // Copies, which the stores cannot change: the compiler keeps them in registers.
    const int count = pieces_.count();
    const Piece* pieces = &pieces_[0];
    const float *own_factors = own_, *other_factors = other_, *weights = weight_;
    float* kept_dz = dz_;
    Pack squares = {}, products = {};
    for (int i = 0; i < count; i++) {
      const Piece piece = pieces[i];
      const Pack own = read<kWhole>(dy, piece.offset, piece.count);
      const Pack other = partner_of<kInterleaved, kWhole>(dy, piece, own);
      const Pack v = read<kWhole>(x, piece.offset, piece.count);
      const Pack dz = own * load_lanes(own_factors, i * kPack) + other * load_lanes(other_factors, i * kPack);
      store_lanes(kept_dz, i * kPack, dz);
      squares = multiply_add(v, v, squares);
      products = products + dz * load_lanes(weights, i * kPack) * v;
    }
    const float per_element = 1 / static_cast<float>(params_.head_dim);
    const float rstd = 1 / std::sqrt(sum_of_lanes(squares) * per_element + params_.eps);
    const Float scale = broadcast(rstd), slope = broadcast(-rstd * (sum_of_lanes(products) * per_element * rstd));
    for (int i = 0; i < count; i++) {
      const Piece piece = pieces[i];
      const Pack xhat = read<kWhole>(x, piece.offset, piece.count) * scale, dz = load_lanes(kept_dz, i * kPack);
      write<kWhole, false>(dx, piece.offset, piece.count, dz * load_lanes(weights, i * kPack) * scale + xhat * slope);
      store_lanes(dweight, i * kPack, load_lanes(dweight, i * kPack) + dz * xhat);
    }
  }

  const QkNormRopeParams& params_;
  const NormRopeHeads& heads_;
  const NormRopeGradients& gradients_;
  const Pieces& pieces_;
  Scratch<float> weight_, partner_sign_;
  Scratch<float> own_, other_;  // of the token at hand
  Scratch<float> dz_;           // of the head at hand
};

template <class T>
void sum_blocks(const Pieces& pieces, const float* partials, int64_t blocks, float* dweight) {
  if (!dweight) return;
  for (int i = 0; i < pieces.count(); i++)
    for (int k = 0; k < pieces[i].count; k++) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; block++)
        sum += partials[block * pieces.floats() + i * kPack + lane_of<T>(k)];
      dweight[pieces[i].offset + k] = static_cast<float>(sum);
    }
}

template <class T, bool kInterleaved, bool kWhole>
void run(const QkNormRopeBackwardParams& b, const Pieces& pieces, const Threads& threads) {
  const QkNormRopeParams& p = b.forward;
  const int64_t tokens = p.batch * p.tokens, blocks = ceil_div(tokens, kBlockTokens);
  Scratch<float> of_query(blocks * pieces.floats()), of_key(blocks * pieces.floats());
  using SomeGradients = Gradients<T, kInterleaved, kWhole>;
  parallel_with(threads, blocks, 1, [&] {
    return [&, query = SomeGradients(p, p.query, b.query, pieces), key = SomeGradients(p, p.key, b.key, pieces)](
               int64_t begin, int64_t end) mutable {
      for (int64_t block = begin; block < end; block++) {
        const int64_t first = block * kBlockTokens, last = minimum(tokens, first + kBlockTokens);
        query.run(first, last, of_query + block * pieces.floats());
        key.run(first, last, of_key + block * pieces.floats());
      }
    };
  });
  sum_blocks<T>(pieces, of_query, blocks, b.query.dweight);
  sum_blocks<T>(pieces, of_key, blocks, b.key.dweight);
}

}  // namespace

void qk_norm_rope_backward(const QkNormRopeBackwardParams& b, const Threads& available) {
  const QkNormRopeParams& p = b.forward;
  const int64_t elements = p.batch * p.tokens * (p.query.heads + p.key.heads) * p.head_dim;
  const Threads threads{elements < kSerialElements ? 1 : available.count, available.run};
  const Pieces pieces(p);
  with_element_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (pieces.whole()) {
      return p.interleaved ? run<T, true, true>(b, pieces, threads) : run<T, false, true>(b, pieces, threads);
    }
    return p.interleaved ? run<T, true, false>(b, pieces, threads) : run<T, false, false>(b, pieces, threads);
  });
}

}  // namespace fastdiff::cpu::FASTDIFF_ISA
