// The arithmetic of the fan-out, shared by all backends so that their float32 outputs are equal bit for bit.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTFGSSL_HOST_DEV __host__ __device__
#else
#define FASTFGSSL_HOST_DEV
#endif

namespace fastfgssl {

constexpr int kMaxGrids = 16;  // of one call

// What an output is; a puzzle's number is kPuzzle + that of its grid.
enum Role : int { kAnchor, kView, kPuzzle };

// What is done to a view's source image, as bits of `puzzle_flags` and `anchor_flags`. First of all rows and columns are
// exchanged, then the image is mirrored: kTranspose, kFlip and kVerticalFlip together are the eight symmetries of a
// square. What is not square cannot be transposed.
enum ViewFlag : int { kFlip = 1, kGrayscale = 2, kSolarise = 4, kVerticalFlip = 8, kTranspose = 16 };
constexpr int kAllFlags = 31;

// The luminance of ITU-R 601-2 in 16-bit fixed point, as Pillow computes it; 16-bit input just fits in 32 bits.
template <typename In>
FASTFGSSL_HOST_DEV inline In Luminance(In red, In green, In blue) {
  return static_cast<In>((19595u * red + 38470u * green + 7471u * blue + 32768u) >> 16);
}

// Inverts what is at least half as bright as white.
template <typename In>
FASTFGSSL_HOST_DEV inline In Solarise(In value) {
  constexpr In white = static_cast<In>(~In{0});
  return value > white / 2 ? static_cast<In>(white - value) : value;
}

// A subtraction, then a multiplication: nothing that a compiler may fuse, so that every backend rounds alike.
FASTFGSSL_HOST_DEV inline float Normalise(float value, float mean, float inverse_std) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(__fsub_rn(value, mean), inverse_std);
#else
  return (value - mean) * inverse_std;
#endif
}

}  // namespace fastfgssl
