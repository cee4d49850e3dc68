#include "common/qk_norm_rope.h"

#include <tuple>
#include <vector>

#include "bindings/registration.h"
#include "bindings/tensors.h"

namespace fastdiff::bindings {
namespace {

// Hands out tensors as the kernels read them, and keeps the copies that this takes alive.
class Operands {
 public:
  // Read in place unless the elements of a row lie apart.
  Tensor take(const Tensor& tensor) {
    const int64_t last = tensor.dim() - 1;
    if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
    copies_.push_back(torch::stable::contiguous(tensor));
    return copies_.back();
  }

  AttentionOperand heads(const Tensor& tensor) {
    const Tensor operand = take(tensor);
    return {operand.const_data_ptr(), operand.stride(0), operand.stride(1), operand.stride(2)};
  }

  RotaryTable table(const Tensor& tensor, const QkNormRopeParams& p, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "qk_norm_rope: ", name, " must be float32");
    const int64_t dims = tensor.dim();
    STD_TORCH_CHECK((dims == 2 || (dims == 3 && tensor.size(0) == p.batch)) &&
                        tensor.size(dims - 2) == p.tokens - p.text_tokens && tensor.size(dims - 1) == p.rotary_dim,
                    "qk_norm_rope: ", name, " must be (tokens - text_tokens, rotary_dim), or have the batch before");
    const Tensor operand = take(tensor);
    return {static_cast<const float*>(operand.const_data_ptr()), dims == 3 ? operand.stride(0) : 0,
            operand.stride(dims - 2)};
  }

  NormRopeHeads side(const Tensor& tensor, const OptionalTensor& weight, const char* name) {
    NormRopeHeads side;
    side.heads = tensor.size(2);
    side.x = heads(tensor);
    if (!weight) return side;
    STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == tensor.size(3), "qk_norm_rope: ", name,
                    "_weight must have one entry for each element of a head");
    side.weight = take(*weight).const_data_ptr();
    side.weight_dtype = dtype_of(*weight, name);
    return side;
  }

 private:
  std::vector<Tensor> copies_;
};

QkNormRopeParams prepare(Operands& operands, const Tensor& query, const Tensor& key, const OptionalTensor& query_weight,
                         const OptionalTensor& key_weight, const Tensor& cos, const Tensor& sin, int64_t text_tokens,
                         double eps, bool interleaved) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "qk_norm_rope: query and key must have 4 dimensions");
  STD_TORCH_CHECK(key.size(0) == query.size(0) && key.size(1) == query.size(1) && key.size(3) == query.size(3),
                  "qk_norm_rope: key must have the batch, tokens and head_dim of query");
  STD_TORCH_CHECK(key.scalar_type() == query.scalar_type(), "qk_norm_rope: key must have the dtype of query");
  QkNormRopeParams p;
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.head_dim = query.size(3);
  p.rotary_dim = cos.dim() > 0 ? cos.size(cos.dim() - 1) : 0;
  p.text_tokens = text_tokens;
  STD_TORCH_CHECK(p.head_dim > 0, "qk_norm_rope: query must have at least one element a head");
  STD_TORCH_CHECK(text_tokens >= 0 && text_tokens <= p.tokens,
                  "qk_norm_rope: text_tokens must be 0 to the tokens of query");
  STD_TORCH_CHECK(p.rotary_dim % 2 == 0 && p.rotary_dim <= p.head_dim,
                  "qk_norm_rope: the last size of cos must be even and at most head_dim");
  p.dtype = dtype_of(query, "query");
  p.interleaved = interleaved;
  p.eps = static_cast<float>(eps);
  p.cos = operands.table(cos, p, "cos");
  p.sin = operands.table(sin, p, "sin");
  p.query = operands.side(query, query_weight, "query");
  p.key = operands.side(key, key_weight, "key");
  return p;
}

template <class Backend>
std::tuple<Tensor, Tensor> forward(Tensor query, Tensor key, OptionalTensor query_weight, OptionalTensor key_weight,
                                   Tensor cos, Tensor sin, int64_t text_tokens, double eps, bool interleaved) {
  Operands operands;
  QkNormRopeParams p = prepare(operands, query, key, query_weight, key_weight, cos, sin, text_tokens, eps, interleaved);
  Tensor rotated_query = empty(sizes_of(query), query.scalar_type(), query);
  Tensor rotated_key = empty(sizes_of(key), key.scalar_type(), key);
  p.query.y = rotated_query.mutable_data_ptr();
  p.key.y = rotated_key.mutable_data_ptr();
  Backend::qk_norm_rope(p, query);
  return {rotated_query, rotated_key};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor drotated_query, Tensor drotated_key, Tensor query,
                                                    Tensor key, OptionalTensor query_weight, OptionalTensor key_weight,
                                                    Tensor cos, Tensor sin, int64_t text_tokens, double eps,
                                                    bool interleaved) {
  Operands operands;
  QkNormRopeBackwardParams b;
  b.forward = prepare(operands, query, key, query_weight, key_weight, cos, sin, text_tokens, eps, interleaved);
  const auto gradients = [&](const Tensor& dy, const Tensor& x, bool has_weight, NormRopeGradients* side) {
    STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type() && sizes_of(dy) == sizes_of(x),
                    "qk_norm_rope_backward: gradients must have the shape and dtype of what they belong to");
    side->dy = operands.heads(dy);
    Tensor dx = empty(sizes_of(x), x.scalar_type(), x);
    side->dx = dx.mutable_data_ptr();
    Tensor dweight = empty({has_weight ? b.forward.head_dim : 0}, ScalarType::Float, x);
    if (has_weight) side->dweight = static_cast<float*>(dweight.mutable_data_ptr());
    return std::make_pair(dx, dweight);
  };
  const auto [dquery, dquery_weight] = gradients(drotated_query, query, query_weight.has_value(), &b.query);
  const auto [dkey, dkey_weight] = gradients(drotated_key, key, key_weight.has_value(), &b.key);
  Backend::qk_norm_rope_backward(b, query);
  return {dquery, dkey, dquery_weight, dkey_weight};
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "qk_norm_rope(Tensor query, Tensor key, Tensor? query_weight, Tensor? key_weight, Tensor cos, Tensor sin, "
      "int text_tokens, float eps, bool interleaved) -> (Tensor rotated_query, Tensor rotated_key)");
  library.def(
      "qk_norm_rope_backward(Tensor drotated_query, Tensor drotated_key, Tensor query, Tensor key, "
      "Tensor? query_weight, Tensor? key_weight, Tensor cos, Tensor sin, int text_tokens, float eps, bool interleaved) "
      "-> (Tensor dquery, Tensor dkey, Tensor dquery_weight, Tensor dkey_weight)");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("qk_norm_rope", TORCH_BOX(&forward<Backend>));
  library.impl("qk_norm_rope_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
