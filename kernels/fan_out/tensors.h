// The fan-out of batches that are tensors: what `op.py` fills in, and calls through C.
#pragma once

#include <cstdint>

#include "arithmetic.h"

// One call. Images are contiguous, height x width x channels; pointers are to the memory of the device that works.
struct FastfgsslFanOut {
  const void *puzzle, *anchor;                      // a batch of images of `source_bits`
  void *outputs[2 + fastfgssl::kMaxGrids];          // anchor, puzzle view, puzzles: images of `output_bits`
  const int32_t *puzzle_flags, *anchor_flags;       // [batch]
  const int64_t *permutations[fastfgssl::kMaxGrids];  // [batch, grid * grid] each
  void *workspace;                                  // of a GPU: fastfgssl_fan_out_workspace bytes
  int32_t batch, height, width, channels;
  int32_t num_grids, grids[fastfgssl::kMaxGrids];
  int32_t source_bits, output_bits;                 // 8 or 16; 16 or 32
  float mean[3], inverse_std[3];                    // of each channel, on the scale of the source
};
