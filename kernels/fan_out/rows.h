// Rows of an image on the CPU: mirrored, transposed, grey, normalised.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "arithmetic.h"

namespace fastfgssl {

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

#ifdef __AVX2__
// Four pixels of three bytes, no byte beyond them.
inline __m128i LoadFourPixels(const uint8_t *from) {
  int32_t last;
  std::memcpy(&last, from + 8, 4);
  return _mm_insert_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)), last, 2);
}
inline void StoreFourPixels(__m128i pixels, uint8_t *to) {
  const int32_t last = _mm_extract_epi32(pixels, 2);
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to), pixels);
  std::memcpy(to + 8, &last, 4);
}

// Four columns of four pixels each, from four rows, as rows of `to`. is_reversed: the columns from right to left.
inline void TransposeBlock(const uint8_t *const *rows, bool is_reversed, uint8_t *to, int64_t row_size) {
  // a pixel a word, and back
  const __m128i widen = is_reversed ? _mm_setr_epi8(9, 10, 11, -1, 6, 7, 8, -1, 3, 4, 5, -1, 0, 1, 2, -1)
                                    : _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
  const __m128i narrow = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  __m128i row[4], pair[4];
  for (int i = 0; i < 4; i++) row[i] = _mm_shuffle_epi8(LoadFourPixels(rows[i]), widen);
  pair[0] = _mm_unpacklo_epi32(row[0], row[1]);
  pair[1] = _mm_unpacklo_epi32(row[2], row[3]);
  pair[2] = _mm_unpackhi_epi32(row[0], row[1]);
  pair[3] = _mm_unpackhi_epi32(row[2], row[3]);
  for (int i = 0; i < 4; i += 2) {
    StoreFourPixels(_mm_shuffle_epi8(_mm_unpacklo_epi64(pair[i], pair[i + 1]), narrow), to + i * row_size);
    StoreFourPixels(_mm_shuffle_epi8(_mm_unpackhi_epi64(pair[i], pair[i + 1]), narrow), to + (i + 1) * row_size);
  }
}
#endif

// Rows y0..y1-1 of a square image whose rows and columns are exchanged, and which is then mirrored as `flags` say.
template <typename In, int channels>
void TransposeRows(const In *__restrict image, int side, int flags, int y0, int y1, In *__restrict to) {
  const int64_t row_size = int64_t{side} * channels;
  const bool is_reversed = flags & kVerticalFlip;
  auto source = [&](int x, int y) {
    return image + (flags & kFlip ? side - 1 - x : x) * row_size + (is_reversed ? side - 1 - y : y) * channels;
  };
  auto copy = [&](int x, int y) { std::memcpy(to + (y - y0) * row_size + x * channels, source(x, y), channels * sizeof(In)); };
  int x = 0;
#ifdef __AVX2__
  if constexpr (sizeof(In) == 1 && channels == 3) {
    const int next = std::min(2 * y1 - y0, side) - 1;  // the last column of the next call, which reads far apart again
    for (; x + 4 <= side; x += 4) {
      for (int i = 0; i < 4; i++) __builtin_prefetch(source(x + i, next));
      int y = y0;
      for (; y + 4 <= y1; y += 4) {
        const In *rows[4];
        for (int i = 0; i < 4; i++) rows[i] = source(x + i, is_reversed ? y + 3 : y);
        TransposeBlock(rows, is_reversed, to + (y - y0) * row_size + x * channels, row_size);
      }
      for (; y < y1; y++)
        for (int i = x; i < x + 4; i++) copy(i, y);
    }
  }
#endif
  for (; x < side; x++)
    for (int y = y0; y < y1; y++) copy(x, y);
}

template <typename In>
inline void MakeGrey(In *pixels, int count) {
  for (In *pixel = pixels; pixel < pixels + 3 * count; pixel += 3)
    pixel[0] = pixel[1] = pixel[2] = Luminance(pixel[0], pixel[1], pixel[2]);
}

}  // namespace fastfgssl
