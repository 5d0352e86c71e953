// The operator's schema and its CPU backend: a sample a task, a row at a time.
//
// Each source row is read once and written once to its view; from there, still in the first cache, its tiles are copied
// to their places in every puzzle.

#include "dali_operator.h"

#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "dali/core/float16.h"

namespace fastfgssl {
namespace {

struct RowFormat {
  int64_t width, channels;
  int flags;
  const float *mean, *inverse_std;  // width * channels values each: those of the channels, repeated
};

inline void StoreEight(float *to, const float (&values)[8]) { std::memcpy(to, values, sizeof(values)); }

inline void StoreEight(dali::float16 *to, const float (&values)[8]) {
#ifdef __F16C__
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph(_mm256_loadu_ps(values), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int k = 0; k < 8; k++) to[k] = dali::float16(values[k]);
#endif
}

// Flip, grayscale and solarise of one row, where the flags ask for them; returns where the result stands.
template <typename In>
const In *DistortRow(const In *row, In *scratch, const RowFormat &format) {
  const int64_t width = format.width, channels = format.channels, count = width * channels;
  if (!format.flags) return row;
  if (format.flags & kFlip) {
    for (int64_t x = 0; x < width; x++)
      for (int64_t c = 0; c < channels; c++) scratch[x * channels + c] = row[(width - 1 - x) * channels + c];
  } else {
    std::memcpy(scratch, row, count * sizeof(In));
  }
  if ((format.flags & kGrayscale) && channels == 3) {
    for (int64_t x = 0; x < width; x++) {
      In *pixel = scratch + 3 * x;
      pixel[0] = pixel[1] = pixel[2] = Luminance(pixel[0], pixel[1], pixel[2]);
    }
  }
  if (format.flags & kSolarise)
    for (int64_t i = 0; i < count; i++) scratch[i] = Solarise(scratch[i]);
  return scratch;
}

template <typename In, typename Out>
void NormaliseRow(const In *row, Out *to, const RowFormat &format) {
  const int64_t count = format.width * format.channels;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    float values[8];
    for (int k = 0; k < 8; k++) values[k] = Normalise(row[i + k], format.mean[i + k], format.inverse_std[i + k]);
    StoreEight(to + i, values);
  }
  for (; i < count; i++) to[i] = static_cast<Out>(Normalise(row[i], format.mean[i], format.inverse_std[i]));
}

}  // namespace

template <>
void Views<dali::CPUBackend>::RunImpl(dali::Workspace &ws) {
  const auto &puzzle_source = ws.Input<dali::CPUBackend>(0);
  const auto &anchor_source = ws.Input<dali::CPUBackend>(1);
  const int batch = puzzle_source.num_samples();
  const int num_outputs = 2 + static_cast<int>(grids_.size());
  for (int o = 0; o < num_outputs; o++) ws.Output<dali::CPUBackend>(o).SetLayout("HWC");

  const int64_t row_size = width_ * channels_;
  std::vector<float> mean(row_size), inverse_std(row_size);
  for (int64_t i = 0; i < row_size; i++) {
    mean[i] = scaled_mean_[i % channels_];
    inverse_std[i] = inverse_std_[i % channels_];
  }

  auto fan_out = [&](int sample, auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    std::vector<In> scratch(row_size);
    const auto format = [&](int flags) { return RowFormat{width_, channels_, flags, mean.data(), inverse_std.data()}; };
    const RowFormat puzzle_format = format(puzzle_flags_[sample].data[0]);
    const RowFormat anchor_format = format(anchor_flags_[sample].data[0]);
    const In *puzzle_image = static_cast<const In *>(puzzle_source.raw_tensor(sample));
    const In *anchor_image = static_cast<const In *>(anchor_source.raw_tensor(sample));
    std::vector<Out *> outputs(num_outputs);
    for (int o = 0; o < num_outputs; o++)
      outputs[o] = static_cast<Out *>(ws.Output<dali::CPUBackend>(o).raw_mutable_tensor(sample));

    // where each tile of the view goes, for each grid: the inverse of its permutation
    std::vector<int32_t> place(num_tiles_);
    for (size_t g = 0, first = 0; g < grids_.size(); first += grids_[g] * grids_[g], g++) {
      const int32_t *tiles = tiles_.data() + static_cast<size_t>(sample) * num_tiles_ + first;
      for (int t = 0; t < grids_[g] * grids_[g]; t++) place[first + tiles[t]] = t;
    }

    for (int64_t y = 0; y < height_; y++) {
      NormaliseRow(DistortRow(anchor_image + y * row_size, scratch.data(), anchor_format), outputs[0] + y * row_size,
                   anchor_format);
      Out *row = outputs[1] + y * row_size;
      NormaliseRow(DistortRow(puzzle_image + y * row_size, scratch.data(), puzzle_format), row, puzzle_format);
      for (size_t g = 0, first = 0; g < grids_.size(); first += grids_[g] * grids_[g], g++) {
        const int64_t grid = grids_[g], tile_height = height_ / grid, tile_row = row_size / grid;
        const int32_t *row_places = place.data() + first + y / tile_height * grid;
        for (int64_t tile = 0; tile < grid; tile++) {
          const int64_t place_y = row_places[tile] / grid, place_x = row_places[tile] % grid;
          Out *to = outputs[2 + g] + (place_y * tile_height + y % tile_height) * row_size + place_x * tile_row;
          std::memcpy(to, row + tile * tile_row, tile_row * sizeof(Out));
        }
      }
    }
  };

  auto &threads = ws.GetThreadPool();
  for (int sample = 0; sample < batch; sample++) {
    threads.AddWork([&, sample](int) {
      const bool half = dtype_ == DALI_FLOAT16;
      if (puzzle_source.type() == DALI_UINT8)
        half ? fan_out(sample, uint8_t{}, dali::float16{}) : fan_out(sample, uint8_t{}, float{});
      else
        half ? fan_out(sample, uint16_t{}, dali::float16{}) : fan_out(sample, uint16_t{}, float{});
    });
  }
  threads.RunAll();
}

}  // namespace fastfgssl

DALI_SCHEMA(FastfgsslViews)
    .DocStr("Makes anchor, puzzle view and every jigsaw puzzle of images, normalised, in one pass.\n\n"
            "Inputs: the source of the puzzle view and that of the anchor (HWC, uint8 or uint16, 1 or 3 channels). "
            "Outputs: anchor, puzzle view, and a puzzle for each grid (HWC).")
    .NumInput(2)
    .InputLayout(0, {"HWC"})
    .InputLayout(1, {"HWC"})
    .OutputFn([](const dali::OpSpec &spec) { return 2 + static_cast<int>(spec.GetRepeatedArgument<int>("grids").size()); })
    .AddOptionalArg("grids", "Tiles a side of each puzzle.", std::vector<int>{})
    .AddOptionalArg("permutations",
                                      "The permutations of all grids, one after the other: tile t of a puzzle is tile [t] of "
                                      "the puzzle view, row-major.",
                                      std::vector<int>{}, true)
    .AddOptionalArg("puzzle_flags", "Of the puzzle view: 1 flip + 2 grayscale + 4 solarise.", 0, true)
    .AddOptionalArg("anchor_flags", "Of the anchor: 1 flip + 2 grayscale + 4 solarise.", 0, true)
    .AddOptionalArg("mean", "Mean of each channel, where white is 1.", std::vector<float>{0.0f})
    .AddOptionalArg("std", "Standard deviation of each channel, where white is 1.",
                                        std::vector<float>{1.0f})
    .AddOptionalTypeArg("dtype", "FLOAT or FLOAT16.", DALI_FLOAT);

DALI_REGISTER_OPERATOR(FastfgsslViews, fastfgssl::Views<dali::CPUBackend>, dali::CPU);
