// Gaussian blur of interleaved images, separable, edges reflected about the end samples, within one grey level of float64.
//
// The kernel has radius ceil(3 sigma) and sums to one. 8-bit images are summed in 16-bit fixed point (lanes.h): the two
// samples at a distance share a weight, so their sum, which still fits, meets it in one product. 16-bit images, and wide
// kernels whose many roundings would add up to a level, are summed in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../lanes.h"

namespace fastfgssl {

// Weights at distance 0, 1, ..., radius; those beyond 0 count twice.
inline std::vector<double> GaussianKernel(double sigma) {
  const int radius = std::max(1, static_cast<int>(std::ceil(3 * sigma)));
  std::vector<double> kernel(radius + 1);
  double sum = 0;
  for (int d = 0; d <= radius; d++) {
    kernel[d] = std::exp(-0.5 * (d / sigma) * (d / sigma));
    sum += kernel[d] * (d ? 2 : 1);
  }
  for (double &weight : kernel) weight /= sum;
  return kernel;
}

// Index of the sample that stands at `i` when an axis of `count` samples is continued by reflection about its end samples.
inline int Reflect(int i, int count) {
  if (count == 1) return 0;
  const int period = 2 * (count - 1);
  i = (i % period + period) % period;
  return i < count ? i : period - i;
}

// Writes a row's reflected continuation, `radius` pixels a side, around `row` (width pixels of `channels` numbers).
template <typename T>
void ReflectRow(T *row, int width, int channels, int radius) {
  for (int d = 1; d <= radius; d++) {
    std::copy_n(row + Reflect(-d, width) * channels, channels, row - d * channels);
    std::copy_n(row + Reflect(width - 1 + d, width) * channels, channels, row + (width - 1 + d) * channels);
  }
}

// Blurs images; keeps its buffers from call to call. Not for two threads.
class Blurrer {
 public:
  // image, to: height x width x channels, apart from each other; sigma > 0 in pixels.
  void Run(const uint8_t *image, int height, int width, int channels, double sigma, uint8_t *to) {
    const std::vector<double> kernel = GaussianKernel(sigma);
    if (kernel.size() > kMostWeightsInFixedPoint) {
      RunInFloat(image, height, width, channels, kernel, to);
      return;
    }
    const int radius = static_cast<int>(kernel.size()) - 1, row_size = width * channels;
    // Q15 for pairs; what is left to one, in Q14, for the centre
    std::vector<int16_t> pair(radius + 1);
    int centre_weight = 1 << 14;
    for (int d = 1; d <= radius; d++) centre_weight -= pair[d] = static_cast<int16_t>(std::lround(kernel[d] * (1 << 15)));
    const Lanes centre = Lanes::Fill(static_cast<int16_t>(centre_weight));

    // one row of vertical sums, in 8.6, with its continuation; a short row is padded to a full block
    const int margin = radius * channels, padded = std::max(row_size, Lanes::kCount);
    const bool short_row = row_size < Lanes::kCount;
    sums_.assign(margin + padded + margin, 0);
    int16_t *sums = sums_.data() + margin;
    uint8_t block[Lanes::kCount] = {};
    const auto load = [&](const uint8_t *row, int i) {
      if (!short_row) return Lanes::Load<6>(row + i);
      std::memcpy(block, row, row_size);
      return Lanes::Load<6>(block);
    };
    for (int y = 0; y < height; y++) {
      const uint8_t *const *rows = FindRows(image, y, height, row_size, radius);
      ForLanes(padded, [&](int i) {
        Lanes sum = MultiplyRound(load(rows[0], i).ShiftLeft<1>(), centre);
        for (int d = 1; d <= radius; d++)
          sum = sum + MultiplyRound(load(rows[-d], i) + load(rows[d], i), Lanes::Fill(pair[d]));
        sum.Store(sums + i);
      });
      ReflectRow(sums, width, channels, radius);
      uint8_t *row_to = to + static_cast<int64_t>(y) * row_size;
      ForLanes(padded, [&](int i) {
        Lanes sum = MultiplyRound(Lanes::Load(sums + i).ShiftLeft<1>(), centre);
        for (int d = 1; d <= radius; d++)
          sum = sum + MultiplyRound(Lanes::Load(sums + i - d * channels) + Lanes::Load(sums + i + d * channels),
                                    Lanes::Fill(pair[d]));
        sum.StoreBytes<6>(short_row ? block : row_to + i);
      });
      if (short_row) std::memcpy(row_to, block, row_size);
    }
  }

  void Run(const uint16_t *image, int height, int width, int channels, double sigma, uint16_t *to) {
    RunInFloat(image, height, width, channels, GaussianKernel(sigma), to);
  }

 private:
  // A sum of r + 1 products is off by up to (r + 1) / 128 level; two of them and the last rounding must stay below one,
  // and pairs of white below 2^15.
  static constexpr size_t kMostWeightsInFixedPoint = 31;

  template <typename In>
  void RunInFloat(const In *image, int height, int width, int channels, const std::vector<double> &exact, In *to) {
    const std::vector<float> kernel(exact.begin(), exact.end());
    const int radius = static_cast<int>(kernel.size()) - 1, row_size = width * channels, margin = radius * channels;
    float_sums_.resize(margin + row_size + margin);
    float *sums = float_sums_.data() + margin;
    for (int y = 0; y < height; y++) {
      const In *const *rows = FindRows(image, y, height, row_size, radius);
      for (int i = 0; i < row_size; i++) sums[i] = kernel[0] * rows[0][i];
      for (int d = 1; d <= radius; d++)
        for (int i = 0; i < row_size; i++) sums[i] += kernel[d] * (rows[-d][i] + rows[d][i]);
      ReflectRow(sums, width, channels, radius);
      for (int i = 0; i < row_size; i++) {
        float sum = kernel[0] * sums[i] + 0.5f;
        for (int d = 1; d <= radius; d++) sum += kernel[d] * (sums[i - d * channels] + sums[i + d * channels]);
        *to++ = static_cast<In>(std::min(sum, static_cast<float>(std::numeric_limits<In>::max())));
      }
    }
  }

  // The rows at distances -radius..radius from row y, at indices of that name.
  template <typename In>
  const In *const *FindRows(const In *image, int y, int height, int row_size, int radius) {
    rows_.resize(2 * radius + 1);
    for (int d = -radius; d <= radius; d++) rows_[d + radius] = image + static_cast<int64_t>(Reflect(y + d, height)) * row_size;
    return reinterpret_cast<const In *const *>(rows_.data()) + radius;
  }

  std::vector<const void *> rows_;
  std::vector<int16_t> sums_;
  std::vector<float> float_sums_;
};

}  // namespace fastfgssl
