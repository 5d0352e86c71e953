// Antialiased separable resize of interleaved images, as Pillow and torchvision compute it, within one grey level.
//
// An output sample is a weighted sum of input samples under a filter that is widened by the scale (linear: triangle;
// cubic: Catmull-Rom, a = -1/2), cut at the edges of the region and normalised. Rows are summed first: a vertical sum is
// contiguous in memory and leaves fewer rows for the horizontal one.
//
// 8-bit images are summed in 16-bit fixed point: weights in Q14, pixels in 8.7, summed rows in 8.6, results in 8.5, each
// product rounded once, of 1 or 3 channels. 16-bit images, and reductions whose many taps would add up too many roundings, in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../lanes.h"

namespace fastfgssl {

enum class Interpolation { kLinear, kCubic };

// Pixels [y0, y1) x [x0, x1) of an image.
struct Region {
  int y0, x0, y1, x1;
};

inline double FilterValue(Interpolation interpolation, double x) {
  x = std::abs(x);
  if (interpolation == Interpolation::kLinear) return x < 1 ? 1 - x : 0;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// Most input samples that one output sample needs.
inline int CountTaps(int in, int out, Interpolation interpolation) {
  const double support = std::max(static_cast<double>(in) / out, 1.0) * (interpolation == Interpolation::kLinear ? 1 : 2);
  return 2 * static_cast<int>(std::ceil(support)) + 1;
}

// Which of an axis's samples each output sample needs, and how much of each. Weights are padded with zeros to `stride`, a
// multiple of `at_once`.
template <typename Weight>
struct AxisWeights {
  int stride;
  std::vector<int> first, count;  // for each output sample
  std::vector<Weight> weights;    // [out][stride]

  AxisWeights(int start, int stop, int out, Interpolation interpolation, int at_once) {
    const double scale = static_cast<double>(stop - start) / out;
    const double widening = std::max(scale, 1.0);
    const double support = widening * (interpolation == Interpolation::kLinear ? 1 : 2);
    const int taps = CountTaps(stop - start, out, interpolation);
    stride = (taps + at_once - 1) / at_once * at_once;
    first.resize(out);
    count.resize(out);
    weights.assign(static_cast<size_t>(out) * stride, 0);
    std::vector<double> exact(taps);
    for (int i = 0; i < out; i++) {
      const double centre = start + (i + 0.5) * scale;
      first[i] = std::max(static_cast<int>(centre - support + 0.5), start);
      count[i] = std::min(static_cast<int>(centre + support + 0.5), stop) - first[i];
      double sum = 0;
      for (int k = 0; k < count[i]; k++)
        sum += exact[k] = FilterValue(interpolation, (first[i] + k - centre + 0.5) / widening);
      Weight *to = Of(i);
      if constexpr (std::is_same_v<Weight, int16_t>) {
        // they sum to exactly one: what rounding leaves over goes to the largest
        int left = 1 << 14, largest = 0;
        for (int k = 0; k < count[i]; k++) {
          left -= to[k] = static_cast<int16_t>(std::lround(exact[k] / sum * (1 << 14)));
          if (to[k] > to[largest]) largest = k;
        }
        to[largest] += left;
      } else {
        for (int k = 0; k < count[i]; k++) to[k] = static_cast<Weight>(exact[k] / sum);
      }
    }
  }

  int End(int i) const { return first[i] + count[i]; }
  Weight *Of(int i) { return weights.data() + static_cast<size_t>(i) * stride; }
  const Weight *Of(int i) const { return weights.data() + static_cast<size_t>(i) * stride; }
};

// Fixed point: the weighted sum of `taps` rows of `size` numbers.
inline void SumRows(const uint8_t *from, int64_t row_size, int size, const int16_t *weights, int taps, int16_t *to) {
  int i = 0;
  for (; i + 3 * Lanes::kCount <= size; i += 3 * Lanes::kCount) {
    Lanes sums[3] = {Lanes::Fill(0), Lanes::Fill(0), Lanes::Fill(0)};
    const uint8_t *row = from + i;
    for (int k = 0; k < taps; k++, row += row_size) {
      const Lanes weight = Lanes::Fill(weights[k]);
      for (int b = 0; b < 3; b++) sums[b] = sums[b] + MultiplyRound(Lanes::Load<7>(row + 16 * b), weight);
    }
    for (int b = 0; b < 3; b++) sums[b].Store(to + i + 16 * b);
  }
  for (; i < size; i++) {
    int16_t sum = 0;
    for (int k = 0; k < taps; k++) sum += MultiplyRound(static_cast<int16_t>(from[k * row_size + i] << 7), weights[k]);
    to[i] = sum;
  }
}

// Fixed point: an output row of pixels of 3 numbers from such a sum, spread to 4 numbers a pixel, pixel `start` first. Weights
// of zero meet what stands beyond its end.
inline void SumColumnsOfPixels(const int16_t *row, int start, const AxisWeights<int16_t> &axis, int out, uint8_t *to) {
  const auto pixel = [&](int x) {
    const int16_t *from = row + (axis.first[x] - start) * 4, *weights = axis.Of(x);
    Lanes sum = Lanes::Fill(0);
    for (int k = 0; k < axis.stride; k += 4)
      sum = sum + MultiplyRound(Lanes::Load(from + 4 * k), Lanes::LoadRepeated(weights + k));
    return sum;
  };
  const auto four = [&](int x) {
    const int last = out - 1;
    return Lanes::SumsOfFours(pixel(x), pixel(std::min(x + 1, last)), pixel(std::min(x + 2, last)),
                              pixel(std::min(x + 3, last)));
  };
  int x = 0;
  for (; x + 6 <= out; x += 4) four(x).StoreBytesThreeOfFour<5>(to + 3 * x);
  for (; x < out; x += 4) {  // 4 bytes more than meant would leave the image
    uint8_t bytes[Lanes::kCount];
    four(x).StoreBytesThreeOfFour<5>(bytes);
    std::copy_n(bytes, 3 * std::min(4, out - x), to + 3 * x);
  }
}

// Fixed point: the same of pixels of one number, with the same bits as one of 3 equal numbers, for integers are summed in any
// order. Weights of zero meet what stands up to `stride` numbers beyond its end.
inline void SumColumnsOfNumbers(const int16_t *row, int start, const AxisWeights<int16_t> &axis, int out, uint8_t *to) {
  const auto number = [&](int x) {
    const int16_t *from = row + axis.first[x] - start, *weights = axis.Of(x);
    Lanes sum = Lanes::Fill(0);
    for (int k = 0; k < axis.stride; k += Lanes::kCount)
      sum = sum + MultiplyRound(Lanes::Load(from + k), Lanes::Load(weights + k));
    return sum;
  };
  for (int x = 0; x < out; x += Lanes::kCount) {
    Lanes numbers[Lanes::kCount];
    for (int i = 0; i < Lanes::kCount; i++) numbers[i] = number(std::min(x + i, out - 1));
    uint8_t bytes[Lanes::kCount];
    Lanes::SumsOfSixteens(numbers).StoreBytes<5>(bytes);
    std::copy_n(bytes, std::min(Lanes::kCount, out - x), to + x);
  }
}

// Resizes regions of images; keeps its buffers, and the weights of the last region, from call to call. Not for two threads.
class Resizer {
 public:
  // image: height x width x channels, of which `region` becomes `to`, out_height x out_width x channels.
  template <typename In>
  void Run(const In *image, int width, int channels, const Region &region, Interpolation interpolation, int out_height,
           int out_width, In *to) {
    const int taps = std::max(CountTaps(region.y1 - region.y0, out_height, interpolation),
                              CountTaps(region.x1 - region.x0, out_width, interpolation));
    if constexpr (std::is_same_v<In, uint8_t>) {
      if ((channels == 3 || channels == 1) && taps <= kMostTapsInFixedPoint) {
        RunInFixedPoint(image, width, channels, region, interpolation, out_height, out_width, to);
        return;
      }
    }
    RunInFloat(image, width, channels, region, interpolation, out_height, out_width, to);
  }

 private:
  // Each of a sum's roundings adds up to half a step of 1/64 or 1/32 grey level.
  static constexpr int kMostTapsInFixedPoint = 32;

  // The weights of both axes; those of the last call are kept, since images of one size follow each other.
  template <typename Weight>
  class WeightCache {
   public:
    struct Axes {
      const AxisWeights<Weight> *rows, *columns;
    };
    Axes Find(const Region &region, Interpolation interpolation, int out_height, int out_width, int at_once) {
      const std::vector<int> key = {region.y0,  region.x0, region.y1, region.x1, static_cast<int>(interpolation),
                                    out_height, out_width, at_once};
      if (key != key_) {
        axes_.clear();
        axes_.emplace_back(region.y0, region.y1, out_height, interpolation, at_once);
        axes_.emplace_back(region.x0, region.x1, out_width, interpolation, at_once);
        key_ = key;
      }
      return {&axes_[0], &axes_[1]};
    }

   private:
    std::vector<int> key_;
    std::vector<AxisWeights<Weight>> axes_;
  };

  // The rows that the next sum needs and this one does not: the decoded image has left the caches meanwhile.
  static void Prefetch(const uint8_t *from, int64_t row_size, int size, int rows) {
    for (int k = 0; k < rows; k++)
      for (int i = 0; i < size; i += 64) __builtin_prefetch(from + k * row_size + i);
  }

  // channels: 1 or 3.
  void RunInFixedPoint(const uint8_t *image, int width, int channels, const Region &region, Interpolation interpolation,
                       int out_height, int out_width, uint8_t *to) {
    const bool is_grey = channels == 1;
    const auto [rows, columns] =
        weights_.Find(region, interpolation, out_height, out_width, is_grey ? Lanes::kCount : 4);
    const int region_width = region.x1 - region.x0, size = channels * region_width;
    const int64_t row_size = static_cast<int64_t>(width) * channels;
    sums_.resize(static_cast<size_t>(size) + (is_grey ? columns->stride : Lanes::kCount));
    if (!is_grey) pixels_.resize(4 * (static_cast<size_t>(region_width) + columns->stride));
    for (int y = 0; y < out_height; y++, to += static_cast<int64_t>(out_width) * channels) {
      const uint8_t *from = image + rows->first[y] * row_size + region.x0 * channels;
      if (y + 1 < out_height)
        Prefetch(image + rows->End(y) * row_size + region.x0 * channels, row_size, size, rows->End(y + 1) - rows->End(y));
      SumRows(from, row_size, size, rows->Of(y), rows->count[y], sums_.data());
      if (is_grey) {
        SumColumnsOfNumbers(sums_.data(), region.x0, *columns, out_width, to);
      } else {
        for (int x = 0; x < region_width; x += 4) Lanes::LoadThreeAsFour(&sums_[3 * x]).Store(&pixels_[4 * x]);
        SumColumnsOfPixels(pixels_.data(), region.x0, *columns, out_width, to);
      }
    }
  }

  template <typename In>
  void RunInFloat(const In *image, int width, int channels, const Region &region, Interpolation interpolation,
                  int out_height, int out_width, In *to) {
    const auto [rows, columns] = float_weights_.Find(region, interpolation, out_height, out_width, 4);
    const int values = (region.x1 - region.x0) * channels;
    float_sums_.resize(values);
    for (int y = 0; y < out_height; y++) {
      std::fill(float_sums_.begin(), float_sums_.end(), 0.0f);
      for (int k = 0; k < rows->count[y]; k++) {
        const In *from = image + (static_cast<int64_t>(rows->first[y] + k) * width + region.x0) * channels;
        const float weight = rows->Of(y)[k];
        for (int i = 0; i < values; i++) float_sums_[i] += weight * from[i];
      }
      for (int x = 0; x < out_width; x++) {
        const float *from = float_sums_.data() + (columns->first[x] - region.x0) * channels;
        for (int c = 0; c < channels; c++) {
          float sum = 0.5f;
          for (int k = 0; k < columns->count[x]; k++) sum += columns->Of(x)[k] * from[k * channels + c];
          *to++ = static_cast<In>(std::clamp(sum, 0.0f, static_cast<float>(std::numeric_limits<In>::max())));
        }
      }
    }
  }

  WeightCache<int16_t> weights_;
  WeightCache<float> float_weights_;
  std::vector<int16_t> sums_, pixels_;  // a row of them: 3 numbers a pixel, 4 numbers a pixel
  std::vector<float> float_sums_;
};

}  // namespace fastfgssl
