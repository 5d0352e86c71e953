// float16 of the stand-in for CUDA: the compiler's own, rounded to nearest even.
#pragma once

using __half = _Float16;
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
