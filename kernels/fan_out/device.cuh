// The fan-out as a CUDA kernel, free of DALI and torch: one launch a batch.
//
// A thread makes as many pixels of one output as fill whole vectors of 16 bytes: 8 in float16, 4 in float32. It loads
// the source in aligned words of 4 bytes, wherever the pixels begin, since pixels of one tile lie side by side in the
// source: a byte at a time would take as many loads as there are numbers. Sources are read from memory once; later
// outputs find them in the second-level cache, which stores that are evicted first leave to them. A transposed view's
// pixels lie below each other, and are loaded one by one: all threads of a block do, or none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arithmetic.h"

namespace fastfgssl::device {

constexpr int kThreads = 256, kWarp = 32;

// Division by a number that is known before the launch, exact for numbers below 2^31: a product and a shift.
// Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, theorem 4.2.
struct Divisor {
  uint32_t divisor, multiplier, shift;

  Divisor() = default;
  explicit Divisor(uint32_t d) : divisor(d), shift(31) {
    while ((uint64_t{1} << (shift - 31)) < d) shift++;
    multiplier = static_cast<uint32_t>((uint64_t{1} << shift) / d + 1);
  }
  __device__ uint32_t Divide(uint32_t number) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(number) * multiplier) >> shift);
  }
};

// A jigsaw of the batch's images, and where its permutation begins among those of a sample.
struct Grid {
  Divisor side, tile_height, tile_width;
  uint32_t first_tile;
};

// What is the same for all images of a batch.
struct Format {
  uint32_t num_pixels, height;
  Divisor width;
  float mean[3], inverse_std[3];  // on the scale of the source
  int roles[2 + kMaxGrids];       // what each output is: the anchor, the puzzle view, or 2 + the number of its grid
  Grid grids[kMaxGrids];
};

// Where an image's sources, outputs and permutations are.
template <typename In, typename Out>
struct Sample {
  const In *puzzle, *anchor;
  Out *outputs[2 + kMaxGrids];
  const int32_t *tiles;         // the permutations of all grids, one after the other
  int32_t puzzle_flags, anchor_flags;
};

__device__ inline void Convert(float value, float &out) { out = value; }
__device__ inline void Convert(float value, __half &out) { out = __float2half_rn(value); }

// Numbers of neighbouring pixels, packed in words as they lie in memory.
template <typename In, int count>
struct Packed {
  static constexpr int kWords = count * sizeof(In) / 4;
  static_assert(kWords * 4 == count * sizeof(In));
  uint32_t words[kWords];

  __device__ In operator[](int i) const {
    constexpr int in_word = 4 / sizeof(In);
    return static_cast<In>(words[i / in_word] >> (i % in_word) * 8 * sizeof(In));
  }

  // Bytes begin..end-1 from memory: byte i is at `origin` + i. Those before `begin` are kept, or if `from_top` those
  // from `end` on; the others become anything. Words without a byte that is asked for are not read.
  __device__ void Load(const char *origin, int begin, int end, bool from_top) {
    const auto address = reinterpret_cast<uintptr_t>(origin);
    const int ahead = address & 3;
    const uint32_t *aligned = reinterpret_cast<const uint32_t *>(address - ahead);
    uint32_t read[kWords + 1];
#pragma unroll
    for (int w = 0; w <= kWords; w++) {
      // word w has bytes 4 w - ahead .. 4 w - ahead + 3
      const bool is_asked = static_cast<uint32_t>(4 * w + 3 - ahead - begin) < static_cast<uint32_t>(end - begin + 3);
      read[w] = is_asked ? __ldg(aligned + w) : 0;
    }
#pragma unroll
    for (int w = 0; w < kWords; w++) {
      const uint32_t word = __funnelshift_r(read[w], read[w + 1], 8 * ahead);
      // the bytes of this word that are older than the run: below `begin`, or from `end` on
      const int older = 8 * (from_top ? end - 4 * w : begin - 4 * w);
      const uint32_t below = __funnelshift_lc(~0u, 0u, older > 0 ? older : 0);
      const uint32_t kept = from_top ? ~below : below;
      words[w] = (words[w] & kept) | (word & ~kept);
    }
  }
};

// Where a pixel of an output is in its view, and how many that are side by side in the output are so in the view.
struct Place {
  uint32_t y, x, run;
};

template <typename In, typename Out>
__device__ inline Place PlaceInView(const Sample<In, Out> &sample, const Format &format, int role, uint32_t y, uint32_t x) {
  if (role < kPuzzle) return {y, x, format.width.divisor - x};
  const Grid &grid = format.grids[role - kPuzzle];
  const uint32_t tile_row = grid.tile_height.Divide(y), tile_column = grid.tile_width.Divide(x);
  const uint32_t in_tile_x = x - tile_column * grid.tile_width.divisor;
  const uint32_t tile = __ldg(sample.tiles + grid.first_tile + tile_row * grid.side.divisor + tile_column);
  const uint32_t from_row = grid.side.Divide(tile), from_column = tile - from_row * grid.side.divisor;
  return {y + (from_row - tile_row) * grid.tile_height.divisor, from_column * grid.tile_width.divisor + in_tile_x,
          grid.tile_width.divisor - in_tile_x};
}

// blockIdx: x a run of the image, y the output, z the sample.
template <int channels, typename In, typename Out>
__global__ void __launch_bounds__(kThreads) FanOut(const Sample<In, Out> *__restrict__ samples, const __grid_constant__ Format format) {
  constexpr int kPixels = 16 / sizeof(Out), kNumbers = kPixels * channels;
  constexpr int kPixelBytes = channels * sizeof(In);
  const Sample<In, Out> &sample = samples[blockIdx.z];
  const int role = format.roles[blockIdx.y];
  const In *image = role == kAnchor ? sample.anchor : sample.puzzle;
  const int flags = role == kAnchor ? sample.anchor_flags : sample.puzzle_flags;
  const uint32_t width = format.width.divisor, height = format.height;
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * kPixels;
  const int count = first < format.num_pixels ? min(kPixels, static_cast<int>(format.num_pixels - first)) : 0;

  In pixels[kPixels][channels] = {};
  uint32_t y = format.width.Divide(first), x = first - y * width;
  if ((flags & kTranspose) && height == width) {
#pragma unroll
    for (int i = 0; i < kPixels; i++) {
      if (i >= count) break;
      const Place place = PlaceInView(sample, format, role, y, x);
      const uint32_t source_y = flags & kFlip ? width - 1 - place.x : place.x;
      const uint32_t source_x = flags & kVerticalFlip ? height - 1 - place.y : place.y;
      const In *from = image + (static_cast<int64_t>(source_y) * width + source_x) * channels;
      for (int c = 0; c < channels; c++) pixels[i][c] = __ldg(from + c);
      if (++x == width) x = 0, y++;
    }
  } else {
    // runs of pixels that lie side by side in the source; of a mirrored view in the opposite order, so the last goes first
    Packed<In, kNumbers> source = {};
    const bool mirrored = flags & kFlip;
    for (int i = 0; i < count;) {
      const Place place = PlaceInView(sample, format, role, y, x);
      const int run = min(count - i, static_cast<int>(place.run));
      const uint32_t source_y = flags & kVerticalFlip ? height - 1 - place.y : place.y;
      const uint32_t source_x = mirrored ? width - place.x - run : place.x;
      const int begin = mirrored ? kPixels - i - run : i;
      const char *from = reinterpret_cast<const char *>(image) + (static_cast<int64_t>(source_y) * width + source_x) * kPixelBytes;
      source.Load(from - begin * kPixelBytes, begin * kPixelBytes, (begin + run) * kPixelBytes, mirrored);
      i += run;
      x += run;
      if (x == width) x = 0, y++;
    }
#pragma unroll
    for (int i = 0; i < kPixels; i++)
      for (int c = 0; c < channels; c++) pixels[i][c] = source[i * channels + c];
    if (mirrored) {
#pragma unroll
      for (int i = 0; i < kPixels; i++)
        for (int c = 0; c < channels; c++) pixels[i][c] = source[(kPixels - 1 - i) * channels + c];
    }
  }

  if constexpr (channels == 3)
    if (flags & kGrayscale) {
#pragma unroll
      for (int i = 0; i < kPixels; i++)
        pixels[i][0] = pixels[i][1] = pixels[i][2] = Luminance(pixels[i][0], pixels[i][1], pixels[i][2]);
    }
  if (flags & kSolarise) {
#pragma unroll
    for (int i = 0; i < kPixels; i++)
      for (int c = 0; c < channels; c++) pixels[i][c] = Solarise(pixels[i][c]);
  }

  alignas(16) Out values[kNumbers];
#pragma unroll
  for (int i = 0; i < kPixels; i++)
    for (int c = 0; c < channels; c++)
      Convert(Normalise(pixels[i][c], format.mean[c], format.inverse_std[c]), values[i * channels + c]);

  Out *to = sample.outputs[blockIdx.y];
  const bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0;
  const uint4 *vectors = reinterpret_cast<const uint4 *>(values);
  // a warp's vectors leave in the order of memory, whole lines at a time
  __shared__ uint4 stage[kThreads * channels];
  uint4 *of_warp = stage + threadIdx.x / kWarp * (kWarp * channels);
  const int lane = threadIdx.x % kWarp;
  const uint32_t first_of_warp = first - lane * kPixels;
  const bool is_whole = first_of_warp + kWarp * kPixels <= format.num_pixels;
  if (aligned && is_whole) {
#pragma unroll
    for (int v = 0; v < channels; v++) of_warp[lane * channels + v] = vectors[v];
    __syncwarp();
    uint4 *lines = reinterpret_cast<uint4 *>(to + static_cast<int64_t>(first_of_warp) * channels);
#pragma unroll
    for (int v = 0; v < channels; v++) __stcs(lines + v * kWarp + lane, of_warp[v * kWarp + lane]);
  } else {
    to += static_cast<int64_t>(first) * channels;
#pragma unroll
    for (int i = 0; i < kNumbers; i++)
      if (i < count * channels) to[i] = values[i];
  }
}

// What `FanOut` needs to know of height x width images. mean, inverse_std: of each channel, on the scale of the source.
// roles: of the outputs, in their order.
template <typename Grids, typename Roles>
Format MakeFormat(int height, int width, int channels, const Grids &grids, const Roles &roles, const float *mean,
                  const float *inverse_std) {
  Format format = {};
  format.num_pixels = static_cast<uint32_t>(height) * width;
  format.height = height;
  format.width = Divisor(width);
  for (int c = 0; c < channels; c++) {
    format.mean[c] = mean[c];
    format.inverse_std[c] = inverse_std[c];
  }
  std::copy(roles.begin(), roles.end(), format.roles);
  uint32_t g = 0, first_tile = 0;
  for (int side : grids) {
    format.grids[g++] = {Divisor(side), Divisor(height / side), Divisor(width / side), first_tile};
    first_tile += side * side;
  }
  return format;
}

}  // namespace fastfgssl::device
