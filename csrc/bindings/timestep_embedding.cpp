#include "common/timestep_embedding.h"

#include <cmath>

#include "bindings/registration.h"
#include "bindings/tensors.h"

namespace fastdiff::bindings {
namespace {

template <class Backend>
Tensor timestep_embedding(Tensor timestep, int64_t channels, bool flip_sin_to_cos, double downscale_freq_shift,
                          double scale, double max_period, ScalarType dtype) {
  STD_TORCH_CHECK(timestep.scalar_type() == ScalarType::Double && timestep.dim() == 1,
                  "timestep_embedding: timestep must be float64 with 1 dimension");
  STD_TORCH_CHECK(channels > 0, "timestep_embedding: channels must be positive");
  const double steps = static_cast<double>(channels / 2) - downscale_freq_shift;
  STD_TORCH_CHECK(channels == 1 || steps != 0, "timestep_embedding: downscale_freq_shift must not be channels // 2");
  const Tensor dense = torch::stable::contiguous(timestep);
  Tensor embedding = empty({timestep.size(0), channels}, dtype, timestep);
  TimestepEmbeddingParams p;
  p.count = timestep.size(0);
  p.channels = channels;
  p.dtype = dtype_of(embedding, "dtype");
  p.cosines_first = flip_sin_to_cos;
  p.decay = -std::log(max_period) / steps;
  p.scale = scale;
  p.timestep = static_cast<const double*>(dense.const_data_ptr());
  p.embedding = embedding.mutable_data_ptr();
  if (p.count) Backend::timestep_embedding(p, timestep);
  return embedding;
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "timestep_embedding(Tensor timestep, int channels, bool flip_sin_to_cos, float downscale_freq_shift, "
      "float scale, float max_period, ScalarType dtype) -> Tensor");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("timestep_embedding", TORCH_BOX(&timestep_embedding<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
