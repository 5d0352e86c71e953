// How the fan-out's kernel is launched, the same for DALI's batches and for tensors.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "device.cuh"
#include "device_by_element.cuh"

#ifndef FASTFGSSL_LAUNCH  // tests run kernels on a CPU
#define FASTFGSSL_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace fastfgssl::device {

enum Variant : int { kStaged, kDirect, kByElement };

// samples: [batch], in the device's memory; the sources have `channels` channels, 1 or 3.
template <int channels, typename In, typename Out>
void LaunchFanOut(const Sample<In, Out> *samples, int batch, int num_outputs, const Format &format, cudaStream_t stream,
                  Variant variant) {
  constexpr int vector = 16 / sizeof(Out);
  const uint32_t run = kThreads * vector;
  const dim3 blocks((format.num_pixels + run - 1) / run, num_outputs, batch);
  if (variant == kStaged)
    FASTFGSSL_LAUNCH((FanOut<channels, true>), blocks, kThreads, stream, samples, format);
  else if (variant == kDirect)
    FASTFGSSL_LAUNCH((FanOut<channels, false>), blocks, kThreads, stream, samples, format);
  else
    FASTFGSSL_LAUNCH((FanOutByElement<channels, vector>),
                     dim3((format.num_pixels * channels + run - 1) / run, num_outputs, batch), kThreads, stream, samples,
                     format);
}

template <typename In, typename Out>
cudaError_t LaunchFanOut(const Sample<In, Out> *samples, int batch, int num_outputs, int channels, const Format &format,
                         cudaStream_t stream, Variant variant = kStaged) {
  if (channels == 3)
    LaunchFanOut<3>(samples, batch, num_outputs, format, stream, variant);
  else
    LaunchFanOut<1>(samples, batch, num_outputs, format, stream, variant);
  return cudaGetLastError();
}

}  // namespace fastfgssl::device
