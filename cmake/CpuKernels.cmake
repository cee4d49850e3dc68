# The target `fastdiff_cpu_kernels`: every kernel of csrc/cpu, compiled once for each instruction set.
set(cpu_kernel_sources
  csrc/cpu/add_noise.cpp
  csrc/cpu/attention.cpp
  csrc/cpu/attention_backward.cpp
  csrc/cpu/gate_residual.cpp
  csrc/cpu/geglu.cpp
  csrc/cpu/group_norm_silu.cpp
  csrc/cpu/group_norm_silu_backward.cpp
  csrc/cpu/layer_norm_modulate.cpp
  csrc/cpu/layer_norm_modulate_backward.cpp
  csrc/cpu/philox.cpp
  csrc/cpu/qk_norm_rope.cpp
  csrc/cpu/qk_norm_rope_backward.cpp
  csrc/cpu/sampler_step.cpp
  csrc/cpu/table.cpp
  csrc/cpu/timestep_embedding.cpp
  csrc/cpu/winograd.cpp)
# Those that multiply matrices, for the tile unit; all others are those of avx512_bf16.
set(cpu_kernel_sources_amx
  csrc/cpu/amx/attention.cpp
  csrc/cpu/amx/attention_backward.cpp
  csrc/cpu/amx/bfloat16_product.cpp
  csrc/cpu/amx/split_product.cpp
  csrc/cpu/amx/table.cpp)
set(cpu_isas portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND cpu_isas avx2 avx512 avx512_bf16)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag("-mamx-tile -mamx-bf16" FASTDIFF_COMPILER_HAS_AMX)
  if(FASTDIFF_COMPILER_HAS_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    list(APPEND cpu_isas amx)
  endif()
endif()
set(cpu_flags_portable "")
set(cpu_flags_avx2 -mavx2 -mfma -mf16c)
set(cpu_flags_avx512 ${cpu_flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(cpu_flags_avx512_bf16 ${cpu_flags_avx512} -mavx512bf16)
set(cpu_flags_amx ${cpu_flags_avx512_bf16} -mamx-tile -mamx-bf16)

add_library(fastdiff_cpu_kernels INTERFACE)
foreach(isa ${cpu_isas})
  set(target fastdiff_cpu_${isa})
  set(sources ${cpu_kernel_sources})
  if(DEFINED cpu_kernel_sources_${isa})
    set(sources ${cpu_kernel_sources_${isa}})
  endif()
  add_library(${target} OBJECT ${sources})
  target_include_directories(${target} PRIVATE csrc)
  target_compile_definitions(${target} PRIVATE FASTDIFF_ISA=${isa})
  # No -ffast-math: NaN and infinity must come out as they go in. -Wno-psabi: vectors never cross a library's edge.
  # -Wno-uninitialized: GCC 12 flags its own AVX-512 intrinsics.
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra
                         -Wno-psabi -Wno-uninitialized ${cpu_flags_${isa}})
  target_link_libraries(fastdiff_cpu_kernels INTERFACE ${target})
  target_sources(fastdiff_cpu_kernels INTERFACE $<TARGET_OBJECTS:${target}>)
endforeach()
if(amx IN_LIST cpu_isas)
  target_compile_definitions(fastdiff_cpu_kernels INTERFACE FASTDIFF_AMX)
endif()
