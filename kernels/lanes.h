// Sixteen 16-bit numbers that are computed with at once: an AVX2 register, or plain code that gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fastfgssl {

// A product in Q15, rounded: what one AVX2 instruction computes for sixteen pairs.
inline int16_t MultiplyRound(int16_t a, int16_t b) {
  return static_cast<int16_t>((static_cast<int32_t>(a) * b + (1 << 14)) >> 15);
}

// An integer from a number with `fraction` bits after the point, rounded, clamped to 0..255.
template <int fraction>
inline uint8_t RoundToByte(int16_t x) {
  const int rounded = static_cast<int16_t>(x + (1 << (fraction - 1))) >> fraction;
  return static_cast<uint8_t>(rounded < 0 ? 0 : rounded > 255 ? 255 : rounded);
}

struct Lanes {
  static constexpr int kCount = 16;

#ifdef __AVX2__
  __m256i v;

  static Lanes Fill(int16_t x) { return {_mm256_set1_epi16(x)}; }
  static Lanes Load(const int16_t *from) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))}; }
  // bytes, each times 2^shift
  template <int shift>
  static Lanes Load(const uint8_t *from) {
    return {_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))), shift)};
  }
  // four numbers, each four times
  static Lanes LoadRepeated(const int16_t *from) {
    int64_t four;
    std::memcpy(&four, from, sizeof(four));
    const __m256i repeat = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,  //
                                            4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
    return {_mm256_shuffle_epi8(_mm256_set1_epi64x(four), repeat)};
  }
  template <int shift>
  Lanes ShiftLeft() const { return {_mm256_slli_epi16(v, shift)}; }
  void Store(int16_t *to) const { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), v); }
  template <int fraction>
  void StoreBytes(uint8_t *to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), Bytes<fraction>());
  }
  // the first three of each four numbers; 16 bytes are written, 12 of them meant
  template <int fraction>
  void StoreBytesThreeOfFour(uint8_t *to) const {
    const __m128i drop = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_shuffle_epi8(Bytes<fraction>(), drop));
  }
  friend Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_epi16(a.v, b.v)}; }
  friend Lanes MultiplyRound(Lanes a, Lanes b) { return {_mm256_mulhrs_epi16(a.v, b.v)}; }
  // numbers 4 p + c of the result: the sum of numbers c, 4 + c, 8 + c and 12 + c of the p-th argument
  static Lanes SumsOfFours(Lanes a, Lanes b, Lanes c, Lanes d) {
    const __m256i low = _mm256_add_epi16(_mm256_unpacklo_epi64(a.v, b.v), _mm256_unpackhi_epi64(a.v, b.v));
    const __m256i high = _mm256_add_epi16(_mm256_unpacklo_epi64(c.v, d.v), _mm256_unpackhi_epi64(c.v, d.v));
    return {_mm256_add_epi16(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31))};
  }
  // number i of the result: the sum of all numbers of the i-th of 16
  static Lanes SumsOfSixteens(const Lanes *of) {
    const auto eight = [](const Lanes *from) {
      __m256i sums[8];
      for (int i = 0; i < 8; i++) sums[i] = from[i].v;
      for (int left = 4; left > 0; left /= 2)  // neighbours of each half are added, three times
        for (int i = 0; i < left; i++) sums[i] = _mm256_hadd_epi16(sums[2 * i], sums[2 * i + 1]);
      return _mm_add_epi16(_mm256_castsi256_si128(sums[0]), _mm256_extracti128_si256(sums[0], 1));
    };
    return {_mm256_inserti128_si256(_mm256_castsi128_si256(eight(of)), eight(of + 8), 1)};
  }
  // four pixels of 3 numbers as four of 4, the fourth 0; reads two numbers beyond them
  static Lanes LoadThreeAsFour(const int16_t *from) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 6));
    const __m256i spread = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, -1, -1, 6, 7, 8, 9, 10, 11, -1, -1));
    return {_mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), spread)};
  }

 private:
  template <int fraction>
  __m128i Bytes() const {
    const __m256i rounded = _mm256_srai_epi16(_mm256_add_epi16(v, _mm256_set1_epi16(1 << (fraction - 1))), fraction);
    return _mm_packus_epi16(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  }

#else
  int16_t v[kCount];

  template <typename Value>
  static Lanes Make(Value value) {
    Lanes lanes;
    for (int i = 0; i < kCount; i++) lanes.v[i] = static_cast<int16_t>(value(i));
    return lanes;
  }
  static Lanes Fill(int16_t x) { return Make([=](int) { return x; }); }
  static Lanes Load(const int16_t *from) { return Make([=](int i) { return from[i]; }); }
  template <int shift>
  static Lanes Load(const uint8_t *from) { return Make([=](int i) { return from[i] << shift; }); }
  static Lanes LoadRepeated(const int16_t *from) { return Make([=](int i) { return from[i / 4]; }); }
  template <int shift>
  Lanes ShiftLeft() const { return Make([this](int i) { return v[i] << shift; }); }
  void Store(int16_t *to) const { std::memcpy(to, v, sizeof(v)); }
  template <int fraction>
  void StoreBytes(uint8_t *to) const {
    for (int i = 0; i < kCount; i++) to[i] = RoundToByte<fraction>(v[i]);
  }
  template <int fraction>
  void StoreBytesThreeOfFour(uint8_t *to) const {
    for (int i = 0; i < kCount; i++)
      if (i % 4 < 3) to[i / 4 * 3 + i % 4] = RoundToByte<fraction>(v[i]);
  }
  friend Lanes operator+(Lanes a, Lanes b) { return Make([&](int i) { return a.v[i] + b.v[i]; }); }
  friend Lanes MultiplyRound(Lanes a, Lanes b) { return Make([&](int i) { return MultiplyRound(a.v[i], b.v[i]); }); }
  static Lanes SumsOfFours(Lanes a, Lanes b, Lanes c, Lanes d) {
    const Lanes *all[4] = {&a, &b, &c, &d};
    return Make([&](int i) {
      const int16_t *u = all[i / 4]->v + i % 4;
      return u[0] + u[4] + u[8] + u[12];
    });
  }
  static Lanes SumsOfSixteens(const Lanes *of) {
    return Make([=](int i) {
      int sum = 0;
      for (int k = 0; k < kCount; k++) sum += of[i].v[k];
      return sum;
    });
  }
  static Lanes LoadThreeAsFour(const int16_t *from) {
    return Make([=](int i) { return i % 4 == 3 ? 0 : from[i / 4 * 3 + i % 4]; });
  }
#endif
};

// Calls block(i) so that the blocks of kCount numbers that begin at each i cover 0..count - 1. The last may overlap the one
// before; count >= kCount.
template <typename Block>
inline void ForLanes(int count, Block &&block) {
  int i = 0;
  for (; i + Lanes::kCount <= count; i += Lanes::kCount) block(i);
  if (i < count) block(count - Lanes::kCount);
}

}  // namespace fastfgssl
