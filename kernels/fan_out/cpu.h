// One image's views and puzzles on the CPU, each input read once and each output written once.
//
// The puzzle view is made in a buffer that stays in the second-level cache. Outputs are gathered from there in the order
// of their memory, so that they leave in whole cache lines past the caches: nothing of theirs is read or kept.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "arithmetic.h"
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

// A row of numbers, normalised. `restrict` lets the compiler use its widest vectors.
template <typename In>
inline void NormaliseRow(const In *__restrict row, const float *__restrict mean, const float *__restrict inverse_std,
                         int count, float *__restrict to) {
  for (int i = 0; i < count; i++) to[i] = Normalise(row[i], mean[i], inverse_std[i]);
}

#ifdef __F16C__
inline __m256i LoadEight(const uint8_t *from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
}
inline __m256i LoadEight(const uint16_t *from) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
#endif

// A float16 number as it lies in memory.
struct Half {
  uint16_t bits;
};

// To nearest even, as the vector instruction does.
inline Half RoundToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000)
    magnitude = 0x7e00;  // NaN
  else if (magnitude >= 0x47800000)
    magnitude = 0x7c00;  // 65536 and more: infinity
  else if (magnitude < 0x38800000)  // below 2^-14: a sum with 1/2 has its last place where a subnormal half has it
    magnitude = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  else
    magnitude = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return {static_cast<uint16_t>(sign | magnitude)};
}

// The same, rounded to nearest even.
template <typename In>
inline void NormaliseRow(const In *__restrict row, const float *__restrict mean, const float *__restrict inverse_std,
                         int count, Half *__restrict to) {
  int i = 0;
#ifdef __F16C__  // and with it AVX
  for (; i + 8 <= count; i += 8) {
    const __m256 difference = _mm256_sub_ps(_mm256_cvtepi32_ps(LoadEight(row + i)), _mm256_loadu_ps(mean + i));
    const __m256 values = _mm256_mul_ps(difference, _mm256_loadu_ps(inverse_std + i));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + i), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; i++) to[i] = RoundToHalf(Normalise(row[i], mean[i], inverse_std[i]));
}

// A row of pixels, mirrored.
template <typename In, int channels>
inline void FlipRow(const In *__restrict row, int width, In *__restrict to) {
  int x = 0;
#ifdef __AVX2__
  if constexpr (sizeof(In) == 1 && channels == 3) {
    // five pixels a block, of which a sixteenth byte is overwritten by the next
    const __m128i mirror = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
    for (; x + 6 <= width; x += 5) {
      const In *from = row + 3 * (width - x) - 16;
      _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 3 * x),
                       _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)), mirror));
    }
  }
#endif
  for (; x < width; x++)
    for (int c = 0; c < channels; c++) to[x * channels + c] = row[(width - 1 - x) * channels + c];
}

template <typename In>
inline void GrayscaleRow(In *row, int width) {
  for (In *pixel = row; pixel < row + 3 * width; pixel += 3)
    pixel[0] = pixel[1] = pixel[2] = Luminance(pixel[0], pixel[1], pixel[2]);
}

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
  void MakeView(const FanOutFormat &format, const In *image, const ViewChanges &changes, RowAt row_at, StreamWriter *writer) {
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
        // a mirrored row is read backwards, which the processor's own prefetching does not see coming
        const int64_t ahead = std::min(band, format.height - y1) * static_cast<int64_t>(row_size);
        for (int64_t i = 0; i < ahead; i += 64 / sizeof(In)) __builtin_prefetch(from + (y1 - y0) * row_size + i);
        band_.resize(static_cast<size_t>(band) * row_size);
        for (int y = y0; y < y1; y++)
          DistortRow(format, image + static_cast<int64_t>(y) * row_size, changes.flags, band_.data() + (y - y0) * row_size);
        from = band_.data();
      }
      for (int y = y0; y < y1; y++, from += row_size) {
        Out *row = row_at(y);
        NormaliseRow(from, format.mean.data(), format.inverse_std.data(), row_size, row);
        if (writer) writer->Append(row, row_size * sizeof(Out));
      }
    }
  }

  // Flip, grayscale and solarise, where the flags ask for them.
  static void DistortRow(const FanOutFormat &format, const In *row, int flags, In *to) {
    const int row_size = format.width * format.channels;
    const bool colour = format.channels == 3;
    if (!(flags & kFlip))
      std::copy_n(row, row_size, to);
    else if (colour)
      FlipRow<In, 3>(row, format.width, to);
    else
      FlipRow<In, 1>(row, format.width, to);
    if ((flags & kGrayscale) && colour) GrayscaleRow(to, format.width);
    if (flags & kSolarise)
      for (int i = 0; i < row_size; i++) to[i] = Solarise(to[i]);
  }

  Blurrer blurrer_;
  std::vector<In> blurred_, band_;
  std::vector<Out> view_;
  std::vector<const Out *> from_;
};

}  // namespace fastfgssl
