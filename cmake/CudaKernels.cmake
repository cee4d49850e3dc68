# Adds the kernels of csrc/cuda to the target _C, with the CUDA runtime linked statically: the extension then needs no
# CUDA library of torch's, and loads beside a torch built without CUDA.
include(CheckLanguage)
if(FASTDIFF_CUDA STREQUAL "off")
  set(CMAKE_CUDA_COMPILER "")
else()
  check_language(CUDA)
endif()
if(FASTDIFF_CUDA STREQUAL "on" AND NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "FASTDIFF_CUDA=on, but no nvcc was found: put it on PATH or set CUDACXX")
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "fastdiff: CPU kernels only (FASTDIFF_CUDA=${FASTDIFF_CUDA})")
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  # The last one carries PTX too, for GPUs newer than this list.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 100-real 120)
endif()
enable_language(CUDA)
set_target_properties(_C PROPERTIES
  CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}"
  CUDA_STANDARD 17
  CUDA_RUNTIME_LIBRARY Static)
message(STATUS "fastdiff: CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}")

target_sources(_C PRIVATE
  csrc/cuda/add_noise.cu
  csrc/cuda/attention.cu
  csrc/cuda/device_limits.cu
  csrc/cuda/gate_residual.cu
  csrc/cuda/geglu.cu
  csrc/cuda/group_norm_silu.cu
  csrc/cuda/layer_norm_modulate.cu
  csrc/cuda/philox.cu
  csrc/cuda/qk_norm_rope.cu
  csrc/cuda/sampler_step.cu
  csrc/cuda/timestep_embedding.cu)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " cuda_archs)
target_compile_definitions(_C PRIVATE
  FASTDIFF_WITH_CUDA FASTDIFF_CUDA_ARCHS="${cuda_archs}" FASTDIFF_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}")
