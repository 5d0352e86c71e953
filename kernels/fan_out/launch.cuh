// How the fan-out's kernel is launched, the same for DALI's batches and for tensors.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "device.cuh"

#ifndef FASTFGSSL_LAUNCH  // tests run kernels on a CPU
#define FASTFGSSL_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace fastfgssl::device {

// samples: [batch], in the device's memory; the sources have `channels` channels, 1 or 3.
template <typename In, typename Out>
cudaError_t LaunchFanOut(const Sample<In, Out> *samples, int batch, int num_outputs, int channels, const Format &format,
                         cudaStream_t stream) {
  const uint32_t run = kThreads * (16 / sizeof(Out));
  const dim3 blocks((format.num_pixels + run - 1) / run, num_outputs, batch);
  if (channels == 3)
    FASTFGSSL_LAUNCH((FanOut<3>), blocks, kThreads, stream, samples, format);
  else
    FASTFGSSL_LAUNCH((FanOut<1>), blocks, kThreads, stream, samples, format);
  return cudaGetLastError();
}

}  // namespace fastfgssl::device
