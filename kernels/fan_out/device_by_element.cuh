// The fan-out by elements: a thread gathers the pixels of 16 bytes of output one by one. To be compared with `device.cuh`.
#pragma once

#include "device.cuh"

namespace fastfgssl::device {

template <int channels, typename In>
__device__ inline void LoadPixel(const In *image, uint32_t width, uint32_t y, uint32_t x, int flags, In (&pixel)[channels]) {
  if (flags & kFlip) x = width - 1 - x;
  const In *from = image + (static_cast<size_t>(y) * width + x) * channels;
  for (int c = 0; c < channels; c++) pixel[c] = __ldg(from + c);
  if constexpr (channels == 3)
    if (flags & kGrayscale) pixel[0] = pixel[1] = pixel[2] = Luminance(pixel[0], pixel[1], pixel[2]);
  if (flags & kSolarise)
    for (int c = 0; c < channels; c++) pixel[c] = Solarise(pixel[c]);
}

template <int channels, int vector, typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    FanOutByElement(const Sample<In, Out> *__restrict__ samples, const __grid_constant__ Format format) {
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * vector;
  if (first >= format.num_pixels * channels) return;
  const Sample<In, Out> &sample = samples[blockIdx.z];
  const int output = blockIdx.y;
  const In *image = output == 0 ? sample.anchor : sample.puzzle;
  const int flags = output == 0 ? sample.anchor_flags : sample.puzzle_flags;
  const uint32_t pixel_index = first / channels;
  uint32_t channel = first - pixel_index * channels;
  uint32_t y = format.width.Divide(pixel_index), x = pixel_index - y * format.width.divisor;
  alignas(16) Out values[vector];
  In pixel[channels];
  bool loaded = false;
#pragma unroll
  for (int i = 0; i < vector; i++) {
    if (!loaded) {
      uint32_t source_y = y, source_x = x;
      if (output >= 2) {
        const Grid &g = format.grids[output - 2];
        const uint32_t tile_row = g.tile_height.Divide(y), in_tile_y = y - tile_row * g.tile_height.divisor;
        const uint32_t tile_column = g.tile_width.Divide(x), in_tile_x = x - tile_column * g.tile_width.divisor;
        const uint32_t tile = __ldg(sample.tiles + g.first_tile + tile_row * g.side.divisor + tile_column);
        const uint32_t from_row = g.side.Divide(tile), from_column = tile - from_row * g.side.divisor;
        source_y = from_row * g.tile_height.divisor + in_tile_y;
        source_x = from_column * g.tile_width.divisor + in_tile_x;
      }
      LoadPixel<channels>(image, format.width.divisor, source_y, source_x, flags, pixel);
      loaded = true;
    }
    float value = pixel[0], mean = format.mean[0], inverse_std = format.inverse_std[0];
#pragma unroll
    for (int c = 1; c < channels; c++)
      if (channel == c) value = pixel[c], mean = format.mean[c], inverse_std = format.inverse_std[c];
    Convert(Normalise(value, mean, inverse_std), values[i]);
    if (++channel == channels) {
      channel = 0;
      loaded = false;
      if (++x == format.width.divisor) x = 0, y++;
    }
  }
  Out *to = sample.outputs[output] + first;
  if constexpr (vector * sizeof(Out) == 16) {
    *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(values);
  } else {
    for (int i = 0; i < vector; i++) to[i] = values[i];
  }
}

}  // namespace fastfgssl::device
