// The operator's CUDA backend: one launch a batch.
//
// A thread makes 16 bytes of one output, which it stores at once; it gathers the source pixels that belong there, at half
// the bytes or fewer and mostly from the second-level cache, where the first output's reads have left them.

#include <cuda_fp16.h>

#include "dali_operator.h"

#include "dali/core/cuda_error.h"
#include "dali/core/fast_div.h"
#include "dali/kernels/dynamic_scratchpad.h"

namespace fastfgssl {
namespace {

constexpr int kThreads = 256;

// A sample's place in the batch: its sources, its outputs and its permutations.
template <typename In, typename Out>
struct SampleDesc {
  const In *puzzle, *anchor;
  Out *outputs[2 + kMaxGrids];  // anchor, puzzle view, puzzles
  const int32_t *tiles;
  int puzzle_flags, anchor_flags;
};

// A jigsaw of the batch's images: divisors of pixel coordinates, and where its permutation begins.
struct GridDesc {
  dali::fast_div<uint32_t> grid, tile_height, tile_width;
  int first_tile;
};

struct BatchDesc {
  uint32_t width, size;  // pixels of a row; elements of an image
  dali::fast_div<uint32_t> width_div, channels_div;
  float mean[3], inverse_std[3];
  GridDesc grids[kMaxGrids];
};

__device__ inline void Convert(float value, float &out) { out = value; }
__device__ inline void Convert(float value, __half &out) { out = __float2half_rn(value); }

// One source pixel as the view shows it; all channels, since grayscale mixes them.
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

// blockIdx: x a run of the image, y the output, z the sample. `vector` elements a thread, 16 bytes where that is aligned.
template <int channels, int vector, typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    FanOut(const SampleDesc<In, Out> *__restrict__ samples, const BatchDesc *__restrict__ batch) {
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * vector;
  if (first >= batch->size) return;
  const SampleDesc<In, Out> &sample = samples[blockIdx.z];
  const int output = blockIdx.y;
  const In *image = output == 0 ? sample.anchor : sample.puzzle;
  const int flags = output == 0 ? sample.anchor_flags : sample.puzzle_flags;

  uint32_t channel, x;
  const uint32_t pixel_index = dali::div_mod(channel, first, batch->channels_div);
  uint32_t y = dali::div_mod(x, pixel_index, batch->width_div);

  alignas(16) Out values[vector];
  In pixel[channels];
  bool loaded = false;
#pragma unroll
  for (int i = 0; i < vector; i++) {
    if (!loaded) {
      uint32_t source_y = y, source_x = x;
      if (output >= 2) {
        const GridDesc &g = batch->grids[output - 2];
        uint32_t in_tile_y, in_tile_x, tile_x;
        const uint32_t tile_row = dali::div_mod(in_tile_y, y, g.tile_height);
        const uint32_t tile_column = dali::div_mod(in_tile_x, x, g.tile_width);
        const uint32_t tile = __ldg(sample.tiles + g.first_tile + tile_row * static_cast<uint32_t>(g.grid) + tile_column);
        source_y = dali::div_mod(tile_x, tile, g.grid) * static_cast<uint32_t>(g.tile_height) + in_tile_y;
        source_x = tile_x * static_cast<uint32_t>(g.tile_width) + in_tile_x;
      }
      LoadPixel<channels>(image, batch->width, source_y, source_x, flags, pixel);
      loaded = true;
    }
    // indices that are known at compile time keep `pixel` in registers
    float value = pixel[0], mean = batch->mean[0], inverse_std = batch->inverse_std[0];
#pragma unroll
    for (int c = 1; c < channels; c++)
      if (channel == c) value = pixel[c], mean = batch->mean[c], inverse_std = batch->inverse_std[c];
    Convert(Normalise(value, mean, inverse_std), values[i]);
    if (++channel == channels) {
      channel = 0;
      loaded = false;
      if (++x == batch->width) x = 0, y++;
    }
  }
  Out *to = sample.outputs[output] + first;
  if constexpr (vector * sizeof(Out) == 16) {
    *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(values);
  } else {
    for (int i = 0; i < vector; i++) to[i] = values[i];
  }
}

template <int channels, typename In, typename Out>
void Launch(const std::vector<SampleDesc<In, Out>> &samples, const BatchDesc &batch, int num_outputs, cudaStream_t stream) {
  dali::kernels::DynamicScratchpad scratchpad(stream);
  auto [samples_gpu, batch_gpu] = scratchpad.ToContiguousGPU(stream, samples, dali::make_cspan(&batch, 1));
  constexpr int vector = 16 / sizeof(Out);
  bool aligned = batch.size % vector == 0;
  for (const auto &sample : samples)
    for (int o = 0; o < num_outputs; o++) aligned &= reinterpret_cast<uintptr_t>(sample.outputs[o]) % 16 == 0;
  const uint32_t run = kThreads * (aligned ? vector : 1);
  const dim3 blocks((batch.size + run - 1) / run, num_outputs, samples.size());
  if (aligned)
    FanOut<channels, vector><<<blocks, kThreads, 0, stream>>>(samples_gpu, batch_gpu);
  else
    FanOut<channels, 1><<<blocks, kThreads, 0, stream>>>(samples_gpu, batch_gpu);
  CUDA_CALL(cudaGetLastError());
}

}  // namespace

template <>
void Views<dali::GPUBackend>::RunImpl(dali::Workspace &ws) {
  const auto &puzzle_source = ws.Input<dali::GPUBackend>(0);
  const auto &anchor_source = ws.Input<dali::GPUBackend>(1);
  const int batch_size = puzzle_source.num_samples();
  const int num_outputs = 2 + static_cast<int>(grids_.size());
  for (int o = 0; o < num_outputs; o++) ws.Output<dali::GPUBackend>(o).SetLayout("HWC");

  BatchDesc batch;
  batch.width = width_;
  batch.size = height_ * width_ * channels_;
  batch.width_div = static_cast<uint32_t>(width_);
  batch.channels_div = static_cast<uint32_t>(channels_);
  for (int c = 0; c < channels_; c++) {
    batch.mean[c] = scaled_mean_[c];
    batch.inverse_std[c] = inverse_std_[c];
  }
  int first_tile = 0;
  for (size_t g = 0; g < grids_.size(); g++) {
    const uint32_t grid = grids_[g];
    batch.grids[g] = {grid, static_cast<uint32_t>(height_ / grid), static_cast<uint32_t>(width_ / grid), first_tile};
    first_tile += grid * grid;
  }

  dali::kernels::DynamicScratchpad scratchpad(ws.stream());
  const int32_t *tiles = num_tiles_ ? scratchpad.ToGPU(ws.stream(), tiles_) : nullptr;

  auto run = [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    std::vector<SampleDesc<In, Out>> samples(batch_size);
    for (int i = 0; i < batch_size; i++) {
      auto &sample = samples[i];
      sample.puzzle = static_cast<const In *>(puzzle_source.raw_tensor(i));
      sample.anchor = static_cast<const In *>(anchor_source.raw_tensor(i));
      for (int o = 0; o < num_outputs; o++)
        sample.outputs[o] = static_cast<Out *>(ws.Output<dali::GPUBackend>(o).raw_mutable_tensor(i));
      sample.tiles = tiles + static_cast<size_t>(i) * num_tiles_;
      sample.puzzle_flags = puzzle_flags_[i].data[0];
      sample.anchor_flags = anchor_flags_[i].data[0];
    }
    if (channels_ == 3)
      Launch<3>(samples, batch, num_outputs, ws.stream());
    else
      Launch<1>(samples, batch, num_outputs, ws.stream());
  };
  const bool half = dtype_ == DALI_FLOAT16;
  if (puzzle_source.type() == DALI_UINT8)
    half ? run(uint8_t{}, __half{}) : run(uint8_t{}, float{});
  else
    half ? run(uint16_t{}, __half{}) : run(uint16_t{}, float{});
}

}  // namespace fastfgssl

DALI_REGISTER_OPERATOR(FastfgsslViews, fastfgssl::Views<dali::GPUBackend>, dali::GPU);
