// One image's views and puzzles on the CPU, each input read once and each output written once.
//
// The puzzle view is made in a buffer that stays in the second-level cache. Outputs are gathered from there in the order
// of their memory, so that they leave in whole cache lines past the caches: nothing of theirs is read or kept.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "rows.h"
#include "../blur/blur.h"

namespace fastfgssl {

// Writes a run of memory from its start to its end, in whole cache lines that bypass the caches. What is appended is read
// up to `kOverread` bytes beyond its end, so that no length needs code of its own.
class StreamWriter {
 public:
  static constexpr int kOverread = 64;

  explicit StreamWriter(void *to) {
    const auto address = reinterpret_cast<uintptr_t>(to);
    line_ = reinterpret_cast<char *>(address & ~uintptr_t{63});
    head_ = fill_ = address & 63;
  }
  ~StreamWriter() {
    Flush();
#ifdef __AVX2__
    _mm_sfence();  // stores past the caches are not in order with those that tell others of them
#endif
  }
  StreamWriter(const StreamWriter &) = delete;
  StreamWriter &operator=(const StreamWriter &) = delete;

  void Append(const void *from, int64_t size) {
    const char *bytes = static_cast<const char *>(from);
    while (size > 0) {
      const int count = static_cast<int>(std::min<int64_t>(size, kCapacity - fill_));
      for (int i = 0; i < count; i += 32) std::memcpy(buffer_ + fill_ + i, bytes + i, 32);
      fill_ += count;
      bytes += count;
      size -= count;
      if (fill_ == kCapacity) Flush();
    }
  }

 private:
  static constexpr int kCapacity = 4096;

  // All of the buffer; only the first and the last flush meet a line that is not whole.
  void Flush() {
    int i = 0;
    if (head_) {
      i = std::min(64, fill_);
      std::memcpy(line_ + head_, buffer_ + head_, i - head_);
      head_ = 0;
    }
#ifdef __AVX2__
    for (; i + 64 <= fill_; i += 64)
      for (int half = i; half < i + 64; half += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i *>(line_ + half),
                            _mm256_load_si256(reinterpret_cast<const __m256i *>(buffer_ + half)));
#endif
    std::memcpy(line_ + i, buffer_ + i, fill_ - i);
    line_ += fill_;
    fill_ = 0;
  }

  alignas(64) char buffer_[kCapacity + 64];
  char *line_;
  int head_, fill_;
};

// What is the same for all images of a batch.
struct FanOutFormat {
  int height, width, channels;
  std::vector<int> grids;
  std::vector<float> mean, inverse_std;  // width * channels values: those of the channels, repeated
};

// What is done to the source of one view.
struct ViewChanges {
  int flags;
  float sigma;  // of the blur; 0: none
};

// Makes the views of one image after another; keeps its buffers from call to call. Not for two threads.
template <typename In, typename Out>
class FanOut {
 public:
  // puzzle, anchor: sources, height x width x channels; tiles: the permutations of all grids, one after the other;
  // outputs: anchor, puzzle view, puzzles; null for one of the first two that is not wanted.
  void Run(const FanOutFormat &format, const In *puzzle, ViewChanges puzzle_changes, const In *anchor,
           ViewChanges anchor_changes, const int32_t *tiles, Out *const *outputs) {
    const int row_size = format.width * format.channels;
    // beyond the end: room for blocks that reach past the last row
    view_.resize(static_cast<size_t>(format.height) * row_size + kPadding);

    if (outputs[kAnchor]) {
      StreamWriter writer(outputs[kAnchor]);
      MakeView(format, anchor, anchor_changes, [&](int) { return view_.data(); }, &writer);
    }
    auto in_view = [&](int y) { return view_.data() + y * row_size; };
    if (outputs[kView]) {
      StreamWriter writer(outputs[kView]);
      MakeView(format, puzzle, puzzle_changes, in_view, &writer);
    } else if (!format.grids.empty()) {
      MakeView(format, puzzle, puzzle_changes, in_view, nullptr);
    }
    for (size_t g = 0; g < format.grids.size(); g++) {
      const int grid = format.grids[g], tile_height = format.height / grid;
      const int64_t tile_row = row_size / grid;
      StreamWriter writer(outputs[kPuzzle + g]);
      for (int tile_y = 0; tile_y < grid; tile_y++, tiles += grid) {
        from_.resize(grid);
        for (int tile_x = 0; tile_x < grid; tile_x++) {
          const int tile = tiles[tile_x];
          from_[tile_x] = view_.data() + (tile / grid) * tile_height * row_size + tile % grid * tile_row;
        }
        for (int y = 0; y < tile_height; y++)
          for (const Out *from : from_) writer.Append(from + y * row_size, tile_row * sizeof(Out));
      }
    }
  }

 private:
  static constexpr int kPadding = StreamWriter::kOverread;
  static constexpr int kBandSize = 8192;

  // Rows of a view, each made at row_at(y) and given to the writer, if there is one.
  template <typename RowAt>
  void MakeView(const FanOutFormat &format, const In *image, ViewChanges changes, RowAt row_at, StreamWriter *writer) {
    if (format.height != format.width) changes.flags &= ~kTranspose;  // would read beyond the image
    const int row_size = format.width * format.channels;
    if (changes.sigma > 0) {
      blurred_.resize(static_cast<size_t>(format.height) * row_size);
      blurrer_.Run(image, format.height, format.width, format.channels, changes.sigma, blurred_.data());
      image = blurred_.data();
    }
    // some rows at a time: what was just written in narrow blocks must not be read in wide ones at once
    const int band = std::max(1, kBandSize / row_size);
    for (int y0 = 0; y0 < format.height; y0 += band) {
      const int y1 = std::min(y0 + band, format.height);
      const In *from = image + static_cast<int64_t>(y0) * row_size;
      if (changes.flags) {
        band_.resize(static_cast<size_t>(band) * row_size);
        if (changes.flags & kTranspose)
          TransposeRows(format, image, changes.flags, y0, y1);
        else
          CopyRows(format, image, changes.flags, y0, y1, std::min(y1 + band, format.height));
        ChangeColours(format, changes.flags, y1 - y0);
        from = band_.data();
      }
      for (int y = y0; y < y1; y++, from += row_size) {
        Out *row = row_at(y);
        NormaliseRow(from, format.mean.data(), format.inverse_std.data(), row_size, row);
        if (writer) writer->Append(row, row_size * sizeof(Out));
      }
    }
  }

  // Rows y0..y1-1 of a view into `band_`, mirrored if asked for; those up to `next` are asked for ahead of time.
  void CopyRows(const FanOutFormat &format, const In *image, int flags, int y0, int y1, int next) {
    const int row_size = format.width * format.channels;
    auto source = [&](int y) { return image + int64_t{flags & kVerticalFlip ? format.height - 1 - y : y} * row_size; };
    // what is mirrored is read backwards, which the processor's own prefetching does not see coming
    for (int y = y1; y < next; y++)
      for (int i = 0; i < row_size; i += 64 / sizeof(In)) __builtin_prefetch(source(y) + i);
    In *to = band_.data();
    for (int y = y0; y < y1; y++, to += row_size) {
      if (!(flags & kFlip))
        std::copy_n(source(y), row_size, to);
      else if (format.channels == 3)
        FlipRow<In, 3>(source(y), format.width, to);
      else
        FlipRow<In, 1>(source(y), format.width, to);
    }
  }

  // The same of a view that is transposed.
  void TransposeRows(const FanOutFormat &format, const In *image, int flags, int y0, int y1) {
    if (format.channels == 3)
      fastfgssl::TransposeRows<In, 3>(image, format.width, flags, y0, y1, band_.data());
    else
      fastfgssl::TransposeRows<In, 1>(image, format.width, flags, y0, y1, band_.data());
  }

  // Grayscale and solarise, where the flags ask for them, of the first rows of `band_`.
  void ChangeColours(const FanOutFormat &format, int flags, int count) {
    const int size = count * format.width * format.channels;
    if ((flags & kGrayscale) && format.channels == 3) MakeGrey(band_.data(), count * format.width);
    if (flags & kSolarise)
      for (int i = 0; i < size; i++) band_[i] = Solarise(band_[i]);
  }

  Blurrer blurrer_;
  std::vector<In> blurred_, band_;
  std::vector<Out> view_;
  std::vector<const Out *> from_;
};

}  // namespace fastfgssl
