// How an op enters torch's registry, under one name for each backend that this library is compiled for.
//
// A binding has `define`, which names the op's schemas, and a template `implement<Backend>`, which gives them
// functions; at the end of the file FASTDIFF_REGISTER(define, implement) registers both. It is a macro
// because torch's own registration is one.
#pragma once

#include "bindings/backend.h"

#if defined(FASTDIFF_EMULATED)
#define FASTDIFF_REGISTER(define, implement)                                     \
  STABLE_TORCH_LIBRARY_FRAGMENT(FASTDIFF_EMULATED, library) { define(library); } \
  STABLE_TORCH_LIBRARY_IMPL(FASTDIFF_EMULATED, CPU, library) { implement<EmulatedBackend>(library); }
#elif defined(FASTDIFF_WITH_CUDA)
#define FASTDIFF_REGISTER(define, implement)                                            \
  STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) { define(library); }                 \
  STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) { implement<CpuBackend>(library); } \
  STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, library) { implement<CudaBackend>(library); }
#else
#define FASTDIFF_REGISTER(define, implement)                            \
  STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) { define(library); } \
  STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) { implement<CpuBackend>(library); }
#endif
