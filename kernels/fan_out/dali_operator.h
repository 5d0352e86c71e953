// FastfgsslViews: anchor, puzzle view and every puzzle of an image in one pass, as a DALI operator.
//
// reference.py is the specification; dali_operator.cc and dali_operator.cu run it on the CPU and on the GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "dali/pipeline/operator/arg_helper.h"
#include "dali/pipeline/operator/operator.h"

#include "arithmetic.h"

namespace fastfgssl {

constexpr float kMaxSigma = 1000;

// What the outputs are, in their order, of an operator with that many grids.
inline std::vector<int> RolesOf(const dali::OpSpec &spec, int num_grids) {
  std::vector<int> roles;
  if (spec.GetArgument<bool>("anchor")) roles.push_back(kAnchor);
  if (spec.GetArgument<bool>("view")) roles.push_back(kView);
  for (int g = 0; g < num_grids; g++) roles.push_back(kPuzzle + g);
  return roles;
}

template <typename Backend>
class Views : public dali::Operator<Backend> {
 public:
  explicit Views(const dali::OpSpec &spec)
      : dali::Operator<Backend>(spec),
        grids_(spec.GetRepeatedArgument<int>("grids")),
        mean_(spec.GetRepeatedArgument<float>("mean")),
        std_(spec.GetRepeatedArgument<float>("std")),
        dtype_(spec.GetArgument<dali::DALIDataType>("dtype")),
        puzzle_flags_("puzzle_flags", spec),
        anchor_flags_("anchor_flags", spec),
        puzzle_sigma_("puzzle_sigma", spec),
        anchor_sigma_("anchor_sigma", spec),
        permutations_("permutations", spec),
        roles_(RolesOf(spec, static_cast<int>(grids_.size()))) {
    DALI_ENFORCE(!roles_.empty(), "anchor, view, grids: nothing is asked for");
    DALI_ENFORCE(dtype_ == DALI_FLOAT || dtype_ == DALI_FLOAT16,
                 dali::make_string("dtype: must be FLOAT or FLOAT16, got ", dtype_));
    DALI_ENFORCE(grids_.size() <= kMaxGrids, dali::make_string("grids: at most ", kMaxGrids, ", got ", grids_.size()));
    for (int grid : grids_) {
      DALI_ENFORCE(grid >= 1 && grid <= 64, dali::make_string("grids: must be 1 to 64, got ", grid));
      num_tiles_ += grid * grid;
    }
    DALI_ENFORCE(num_tiles_ > 0 || !permutations_.HasExplicitValue(), "permutations: given without grids");
    for (float mean : mean_) DALI_ENFORCE(std::isfinite(mean), dali::make_string("mean: must be finite, got ", mean));
    for (float std : std_)
      DALI_ENFORCE(std::isfinite(std) && std > 0, dali::make_string("std: must be greater than 0, got ", std));
    if constexpr (std::is_same_v<Backend, dali::GPUBackend>)
      for (const auto *sigma : {&puzzle_sigma_, &anchor_sigma_})
        DALI_ENFORCE(!sigma->HasExplicitValue(), "puzzle_sigma, anchor_sigma: the CPU backend blurs; use gaussian_blur on a GPU");
  }

  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const dali::Workspace &ws) override {
    const auto &puzzle = ws.template Input<Backend>(0);
    const auto &anchor = ws.template Input<Backend>(ws.NumInput() - 1);
    const int batch = puzzle.num_samples();
    const bool has_anchor = roles_[0] == kAnchor;
    DALI_ENFORCE(ws.NumInput() == 1 + has_anchor, dali::make_string("inputs: must be ", 1 + has_anchor, ", the sources of "
                 "the views that are made, got ", ws.NumInput()));
    DALI_ENFORCE(puzzle.type() == anchor.type() && (puzzle.type() == DALI_UINT8 || puzzle.type() == DALI_UINT16),
                 dali::make_string("images: must both be UINT8 or both UINT16, got ", puzzle.type(), " and ", anchor.type()));
    const auto &shapes = puzzle.shape();
    DALI_ENFORCE(shapes.sample_dim() == 3 && is_uniform(shapes) && shapes == anchor.shape(),
                 dali::make_string("images: all of a batch must have one shape, height x width x channels, the same in both "
                                   "inputs, got ", shapes, " and ", anchor.shape()));
    height_ = shapes.tensor_shape_span(0)[0];
    width_ = shapes.tensor_shape_span(0)[1];
    channels_ = shapes.tensor_shape_span(0)[2];
    DALI_ENFORCE(volume(shapes.tensor_shape_span(0)) < (int64_t{1} << 31), "images: must have fewer than 2^31 numbers");
    DALI_ENFORCE(height_ > 0 && width_ > 0, dali::make_string("images: must not be empty, got ", height_, " x ", width_));
    DALI_ENFORCE(channels_ == 1 || channels_ == 3, dali::make_string("images: must have 1 or 3 channels, got ", channels_));
    for (int grid : grids_)
      DALI_ENFORCE(height_ % grid == 0 && width_ % grid == 0,
                   dali::make_string("grid = ", grid, ": must divide the images' height ", height_, " and width ", width_));
    ReadNormalisation(puzzle.type() == DALI_UINT8 ? 255.0 : 65535.0);
    ReadArguments(ws, batch);
    outputs.assign(roles_.size(), dali::OutputDesc{shapes, dtype_});
    return true;
  }

  void RunImpl(dali::Workspace &ws) override;

 private:
  // Mean and inverse deviation on the scale of the input, a pair for each channel.
  void ReadNormalisation(double white) {
    for (const auto *values : {&mean_, &std_})
      DALI_ENFORCE(static_cast<int>(values->size()) == channels_ || values->size() == 1,
                   dali::make_string("mean, std: must have one value or one a channel (", channels_, "), got ", values->size()));
    scaled_mean_.resize(channels_);
    inverse_std_.resize(channels_);
    for (int c = 0; c < channels_; c++) {
      scaled_mean_[c] = static_cast<float>(white * mean_[mean_.size() > 1 ? c : 0]);
      inverse_std_[c] = static_cast<float>(1.0 / (white * std_[std_.size() > 1 ? c : 0]));
    }
  }

  void ReadArguments(const dali::Workspace &ws, int batch) {
    const auto &spec = this->spec_;
    puzzle_flags_.Acquire(spec, ws, batch);
    anchor_flags_.Acquire(spec, ws, batch);
    for (auto *sigma : {&puzzle_sigma_, &anchor_sigma_}) {
      sigma->Acquire(spec, ws, batch);
      for (int i = 0; i < batch; i++)
        DALI_ENFORCE((*sigma)[i].data[0] >= 0 && (*sigma)[i].data[0] <= kMaxSigma,
                     dali::make_string("puzzle_sigma, anchor_sigma: must be 0 to ", kMaxSigma, ", got ", (*sigma)[i].data[0]));
    }
    for (const auto *flags : {&puzzle_flags_, &anchor_flags_})
      for (int i = 0; i < batch; i++)
        DALI_ENFORCE((*flags)[i].data[0] >= 0 && (*flags)[i].data[0] <= kAllFlags,
                     dali::make_string("puzzle_flags, anchor_flags: must be 0 to ", kAllFlags, ", got ", (*flags)[i].data[0]));
    if (height_ != width_)
      for (const auto *flags : {&puzzle_flags_, &anchor_flags_})
        for (int i = 0; i < batch; i++)
          DALI_ENFORCE(!((*flags)[i].data[0] & kTranspose),
                       dali::make_string("puzzle_flags, anchor_flags: only square images can be transposed, these are ", height_,
                                         " x ", width_));
    tiles_.resize(static_cast<size_t>(batch) * num_tiles_);
    if (num_tiles_ == 0) return;
    permutations_.Acquire(spec, ws, batch, dali::uniform_list_shape(batch, dali::TensorShape<1>{num_tiles_}));
    std::vector<char> seen;
    for (int i = 0; i < batch; i++) {
      const int *permutation = permutations_[i].data;
      int32_t *tiles = tiles_.data() + static_cast<size_t>(i) * num_tiles_;
      for (int grid : grids_) {
        const int count = grid * grid;
        seen.assign(count, 0);
        for (int t = 0; t < count; t++) {
          const int source = permutation[t];
          DALI_ENFORCE(source >= 0 && source < count && !seen[source],
                       dali::make_string("permutations: grid ", grid, ", row ", i, " is not a permutation of 0..", count - 1));
          seen[source] = 1;
          tiles[t] = source;
        }
        permutation += count;
        tiles += count;
      }
    }
  }

  std::vector<int> grids_;
  std::vector<float> mean_, std_;
  dali::DALIDataType dtype_;
  dali::ArgValue<int> puzzle_flags_, anchor_flags_;
  dali::ArgValue<float> puzzle_sigma_, anchor_sigma_;
  dali::ArgValue<int, 1> permutations_;

  std::vector<int> roles_;
  int num_tiles_ = 0;                             // sum of grid^2
  int64_t height_ = 0, width_ = 0, channels_ = 0;
  std::vector<float> scaled_mean_, inverse_std_;  // a value for each channel
  std::vector<int32_t> tiles_;                    // the batch's permutations, checked: sample, grid, tile
};

}  // namespace fastfgssl
