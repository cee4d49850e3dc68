#include "common/attention.h"

#include <tuple>
#include <vector>

#include "bindings/registration.h"
#include "bindings/tensors.h"

namespace fastdiff::bindings {
namespace {

// `tensor` is (batch, tokens, heads, head_dim); it is read in place unless its elements lie apart. (An empty tensor is
// its own copy, whatever its strides.)
AttentionOperand operand_of(const Tensor& tensor, Tensor* copy) {
  *copy = tensor.size(3) > 1 && tensor.stride(3) != 1 ? torch::stable::contiguous(tensor) : tensor;
  return {copy->const_data_ptr(), copy->stride(0), copy->stride(1), copy->stride(2)};
}

// The parameters of a call, and the copies that keep what they point to alive.
struct Call {
  AttentionParams params;
  Tensor query, key, value, kv_lengths;
};

void prepare(Call& call, const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& kv_lengths,
             double scale) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "attention: query and key must have 4 dimensions");
  STD_TORCH_CHECK(sizes_of(key) == sizes_of(value), "attention: value must have the shape of key");
  STD_TORCH_CHECK(key.size(0) == query.size(0) && key.size(3) == query.size(3),
                  "attention: key must have the batch and head_dim of query");
  STD_TORCH_CHECK(key.size(2) > 0 && query.size(2) % key.size(2) == 0,
                  "attention: the heads of key must divide those of query");
  STD_TORCH_CHECK(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
                  "attention: query, key and value must have one dtype");
  AttentionParams& p = call.params;
  p.batch = query.size(0);
  p.query_length = query.size(1);
  p.heads = query.size(2);
  p.head_dim = query.size(3);
  p.kv_length = key.size(1);
  p.kv_heads = key.size(2);
  p.dtype = dtype_of(query, "query");
  p.scale = static_cast<float>(scale);
  p.query = operand_of(query, &call.query);
  p.key = operand_of(key, &call.key);
  p.value = operand_of(value, &call.value);
  if (kv_lengths) {
    STD_TORCH_CHECK(
        kv_lengths->scalar_type() == ScalarType::Int && kv_lengths->dim() == 1 && kv_lengths->size(0) == p.batch,
        "attention: kv_lengths must be int32 (batch)");
    call.kv_lengths = torch::stable::contiguous(*kv_lengths);
    p.kv_lengths = static_cast<const int32_t*>(call.kv_lengths.const_data_ptr());
  }
}

template <class Backend>
std::tuple<Tensor, Tensor> forward(Tensor query, Tensor key, Tensor value, OptionalTensor kv_lengths, double scale) {
  Call call;
  prepare(call, query, key, value, kv_lengths, scale);
  AttentionParams& p = call.params;
  Tensor output = empty(sizes_of(query), query.scalar_type(), query);
  Tensor logsumexp = empty({p.batch, p.heads, p.query_length}, ScalarType::Float, query);
  p.output = output.mutable_data_ptr();
  p.logsumexp = static_cast<float*>(logsumexp.mutable_data_ptr());
  Backend::attention(p, query);
  return {output, logsumexp};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> backward(Tensor doutput, Tensor query, Tensor key, Tensor value, Tensor output,
                                            Tensor logsumexp, OptionalTensor kv_lengths, double scale) {
  STD_TORCH_CHECK(doutput.scalar_type() == query.scalar_type() && sizes_of(doutput) == sizes_of(query),
                  "attention_backward: doutput must have the shape and dtype of query");
  STD_TORCH_CHECK(
      output.scalar_type() == query.scalar_type() && sizes_of(output) == sizes_of(query) && output.is_contiguous(),
      "attention_backward: output must be contiguous, with the shape and dtype of query");
  Call call;
  prepare(call, query, key, value, kv_lengths, scale);
  AttentionBackwardParams b;
  b.forward = call.params;
  const AttentionParams& p = b.forward;
  const std::vector<int64_t> rows = {p.batch, p.heads, p.query_length};
  STD_TORCH_CHECK(
      logsumexp.scalar_type() == ScalarType::Float && sizes_of(logsumexp) == rows && logsumexp.is_contiguous(),
      "attention_backward: logsumexp must be contiguous float32 (batch, heads, query_length)");
  b.forward.output = output.mutable_data_ptr();
  b.forward.logsumexp = static_cast<float*>(logsumexp.mutable_data_ptr());
  Tensor doutput_copy;
  b.doutput = operand_of(doutput, &doutput_copy);
  Tensor dquery = empty(sizes_of(query), query.scalar_type(), query);
  Tensor dkey = empty(sizes_of(key), query.scalar_type(), query);
  Tensor dvalue = empty(sizes_of(key), query.scalar_type(), query);
  b.dquery = dquery.mutable_data_ptr();
  b.dkey = dkey.mutable_data_ptr();
  b.dvalue = dvalue.mutable_data_ptr();
  Backend::attention_backward(b, query);
  return {dquery, dkey, dvalue};
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? kv_lengths, float scale) -> (Tensor output, Tensor "
      "logsumexp)");
  library.def(
      "attention_backward(Tensor doutput, Tensor query, Tensor key, Tensor value, Tensor output, Tensor logsumexp, "
      "Tensor? kv_lengths, float scale) -> (Tensor dquery, Tensor dkey, Tensor dvalue)");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("attention", TORCH_BOX(&forward<Backend>));
  library.impl("attention_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
