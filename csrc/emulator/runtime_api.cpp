// The few functions of the CUDA runtime that launchers call beside launch().
#include <cuda_runtime_api.h>

#include "emulator/emulated_device.h"

namespace fastdiff::emulator {

EmulatedDevice& emulated_device() {
  static EmulatedDevice device;
  return device;
}

}  // namespace fastdiff::emulator

extern "C" const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorMisalignedAddress:
      return "misaligned address";
    case cudaErrorLaunchTimeout:
      return "the launch timed out and was terminated";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "unrecognized error code";
  }
}

extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& device = fastdiff::emulator::emulated_device();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.sm_count;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(device.shared_bytes_per_block);
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}
