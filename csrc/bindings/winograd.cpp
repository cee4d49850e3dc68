// The two halves of a 3x3 convolution around the products that fastdiff/nn/winograd.py leaves to a library. On a CPU
// only: cuDNN has such algorithms of its own.
#include "common/winograd.h"

#include <vector>

#include "bindings/registration.h"

namespace fastdiff::bindings {
namespace {

const float* checked_floats(const Tensor& tensor, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "winograd: ", name, " must be float32");
  STD_TORCH_CHECK(sizes_of(tensor) == sizes && tensor.is_contiguous(), "winograd: ", name,
                  " must be contiguous and of the shape that the other arguments ask for");
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Of a (N, H, W, C) map, which is how a channels-last one lies in memory.
WinogradTiles tiles_of(const Tensor& map, int64_t first, int64_t count) {
  STD_TORCH_CHECK(map.dim() == 4 && map.is_contiguous() && map.scalar_type() == ScalarType::Float,
                  "winograd: the map must be (N, H, W, C), contiguous and float32");
  WinogradTiles tiles;
  tiles.batch = map.size(0);
  tiles.height = map.size(1);
  tiles.width = map.size(2);
  tiles.channels = map.size(3);
  tiles.first = first;
  tiles.count = count;
  STD_TORCH_CHECK(tiles.channels % kWinogradChannels == 0, "winograd: channels must be a multiple of ",
                  kWinogradChannels, ", got ", tiles.channels);
  const int64_t all = tiles.batch * tiles.rows() * tiles.columns();
  STD_TORCH_CHECK(0 <= first && 0 <= count && count <= all && first <= all - count, "winograd: ", count, " tiles from ",
                  first, " on must lie among the ", all, " of the map");
  return tiles;
}

Tensor winograd_input(Tensor x, int64_t first, int64_t count) {
  WinogradInputParams p;
  p.tiles = tiles_of(x, first, count);
  p.x = static_cast<const float*>(x.const_data_ptr());
  Tensor parts = empty({kWinogradParts, count, p.tiles.channels}, ScalarType::Float, x);
  p.parts = static_cast<float*>(parts.mutable_data_ptr());
  CpuBackend::winograd_input(p, x);
  return parts;
}

void winograd_output(std::vector<Tensor> products, OptionalTensor bias, Tensor y, int64_t first) {
  STD_TORCH_CHECK(products.size() == kWinogradParts, "winograd: there must be 16 products, got ", products.size());
  STD_TORCH_CHECK(products[0].dim() == 2, "winograd: products must be (tiles, channels)");
  WinogradOutputParams p;
  p.tiles = tiles_of(y, first, products[0].size(0));
  for (int i = 0; i < kWinogradParts; i++)
    p.products[i] = checked_floats(products[i], {p.tiles.count, p.tiles.channels}, "products");
  if (bias) p.bias = checked_floats(*bias, {p.tiles.channels}, "bias");
  p.y = static_cast<float*>(y.mutable_data_ptr());
  CpuBackend::winograd_output(p, y);
}

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) {
  library.def("winograd_input(Tensor x, int first, int count) -> Tensor");
  library.def("winograd_output(Tensor[] products, Tensor? bias, Tensor(a!) y, int first) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("winograd_input", TORCH_BOX(&winograd_input));
  library.impl("winograd_output", TORCH_BOX(&winograd_output));
}

}  // namespace
}  // namespace fastdiff::bindings
