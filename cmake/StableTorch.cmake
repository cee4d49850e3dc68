# The target `stable_torch`: torch's headers and the libraries behind its stable ABI, from the torch that Python
# imports. Not find_package(Torch): that would bind the binary to one torch and ask for its CUDA toolkit.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import torch, pathlib; root = pathlib.Path(torch.__file__).parent; print(root, torch.__version__, sep=';')"
  OUTPUT_VARIABLE torch_location OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(GET torch_location 0 STABLE_TORCH_ROOT)
list(GET torch_location 1 STABLE_TORCH_VERSION)
if(STABLE_TORCH_VERSION VERSION_LESS 2.13)
  message(FATAL_ERROR "fastdiff needs torch >= 2.13 to build, found ${STABLE_TORCH_VERSION}")
endif()

add_library(stable_torch INTERFACE)
target_include_directories(stable_torch SYSTEM INTERFACE ${STABLE_TORCH_ROOT}/include)
# Only what torch 2.13 promised to keep: the binary then runs with every later torch.
target_compile_definitions(stable_torch INTERFACE TORCH_TARGET_VERSION=0x020d000000000000)
foreach(name c10 torch_cpu)
  find_library(STABLE_TORCH_${name} ${name} PATHS ${STABLE_TORCH_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(stable_torch INTERFACE ${STABLE_TORCH_${name}})
endforeach()
