// The operator's schema and its CPU backend: a sample a task.

#include "dali_operator.h"

#include "cpu.h"

namespace fastfgssl {

template <>
void Views<dali::CPUBackend>::RunImpl(dali::Workspace &ws) {
  const auto &puzzle_source = ws.Input<dali::CPUBackend>(0);
  const auto &anchor_source = ws.Input<dali::CPUBackend>(ws.NumInput() - 1);
  const int batch = puzzle_source.num_samples();
  const int num_outputs = static_cast<int>(roles_.size());
  for (int o = 0; o < num_outputs; o++) ws.Output<dali::CPUBackend>(o).SetLayout("HWC");

  FanOutFormat format{static_cast<int>(height_), static_cast<int>(width_), static_cast<int>(channels_), grids_};
  for (int64_t x = 0; x < width_; x++) {
    format.mean.insert(format.mean.end(), scaled_mean_.begin(), scaled_mean_.end());
    format.inverse_std.insert(format.inverse_std.end(), inverse_std_.begin(), inverse_std_.end());
  }

  auto run = [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    auto &threads = ws.GetThreadPool();
    std::vector<FanOut<In, Out>> fan_outs(threads.NumThreads());
    for (int i = 0; i < batch; i++) {
      threads.AddWork([&, i](int thread) {
        std::vector<Out *> outputs(kPuzzle + grids_.size());  // null: not made
        for (int o = 0; o < num_outputs; o++)
          outputs[roles_[o]] = static_cast<Out *>(ws.Output<dali::CPUBackend>(o).raw_mutable_tensor(i));
        fan_outs[thread].Run(format, static_cast<const In *>(puzzle_source.raw_tensor(i)),
                             {puzzle_flags_[i].data[0], puzzle_sigma_[i].data[0]},
                             static_cast<const In *>(anchor_source.raw_tensor(i)),
                             {anchor_flags_[i].data[0], anchor_sigma_[i].data[0]},
                             tiles_.data() + static_cast<size_t>(i) * num_tiles_, outputs.data());
      });
    }
    threads.RunAll();
  };
  const bool half = dtype_ == DALI_FLOAT16;
  if (puzzle_source.type() == DALI_UINT8)
    half ? run(uint8_t{}, Half{}) : run(uint8_t{}, float{});
  else
    half ? run(uint16_t{}, Half{}) : run(uint16_t{}, float{});
}

}  // namespace fastfgssl

DALI_SCHEMA(FastfgsslViews)
    .DocStr("Makes anchor, puzzle view and every jigsaw puzzle of images, normalised, in one pass.\n\n"
            "Inputs: the source of the puzzle view and, with an anchor, that of the anchor (HWC, uint8 or uint16, 1 or 3 "
            "channels). Outputs: anchor, puzzle view, and a puzzle for each grid (HWC), of those that are asked for.")
    .NumInput(1, 2)
    .InputLayout(0, {"HWC"})
    .InputLayout(1, {"HWC"})
    .OutputFn([](const dali::OpSpec &spec) {
      return static_cast<int>(fastfgssl::RolesOf(spec, static_cast<int>(spec.GetRepeatedArgument<int>("grids").size())).size());
    })
    .AddOptionalArg("anchor", "Whether the anchor is made.", true)
    .AddOptionalArg("view", "Whether the puzzle view is made as a whole.", true)
    .AddOptionalArg("grids", "Tiles a side of each puzzle.", std::vector<int>{})
    .AddOptionalArg("permutations",
                    "The permutations of all grids, one after the other: tile t of a puzzle is tile [t] of the puzzle view, "
                    "row-major.",
                    std::vector<int>{}, true)
    .AddOptionalArg("puzzle_flags",
                    "Of the puzzle view: 1 flip + 2 grayscale + 4 solarise + 8 vertical flip + 16 transpose; the last of square "
                    "images, before the flips.",
                    0, true)
    .AddOptionalArg("anchor_flags", "Of the anchor, as `puzzle_flags`.", 0, true)
    .AddOptionalArg("puzzle_sigma", "Of the puzzle view's Gaussian blur, pixels; 0: none. CPU backend only.", 0.0f, true)
    .AddOptionalArg("anchor_sigma", "Of the anchor's Gaussian blur, pixels; 0: none. CPU backend only.", 0.0f, true)
    .AddOptionalArg("mean", "Mean of each channel, where white is 1.", std::vector<float>{0.0f})
    .AddOptionalArg("std", "Standard deviation of each channel, where white is 1.", std::vector<float>{1.0f})
    .AddOptionalTypeArg("dtype", "FLOAT or FLOAT16.", DALI_FLOAT);

DALI_REGISTER_OPERATOR(FastfgsslViews, fastfgssl::Views<dali::CPUBackend>, dali::CPU);
