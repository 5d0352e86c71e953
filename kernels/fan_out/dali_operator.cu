// The DALI operator's CUDA backend: one launch a batch.

#include "dali_operator.h"
#include "launch.cuh"

#include "dali/core/cuda_error.h"
#include "dali/kernels/dynamic_scratchpad.h"

namespace fastfgssl {

template <>
void Views<dali::GPUBackend>::RunImpl(dali::Workspace &ws) {
  const auto &puzzle_source = ws.Input<dali::GPUBackend>(0);
  const auto &anchor_source = ws.Input<dali::GPUBackend>(ws.NumInput() - 1);
  const int batch = puzzle_source.num_samples();
  const int num_outputs = static_cast<int>(roles_.size());
  for (int o = 0; o < num_outputs; o++) ws.Output<dali::GPUBackend>(o).SetLayout("HWC");
  const device::Format format = device::MakeFormat(static_cast<int>(height_), static_cast<int>(width_), static_cast<int>(channels_), grids_,
                                                   roles_, scaled_mean_.data(), inverse_std_.data());

  dali::kernels::DynamicScratchpad scratchpad(ws.stream());
  const int32_t *tiles = num_tiles_ ? scratchpad.ToGPU(ws.stream(), tiles_) : nullptr;

  auto run = [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    std::vector<device::Sample<In, Out>> samples(batch);
    for (int i = 0; i < batch; i++) {
      auto &sample = samples[i];
      sample.puzzle = static_cast<const In *>(puzzle_source.raw_tensor(i));
      sample.anchor = static_cast<const In *>(anchor_source.raw_tensor(i));
      for (int o = 0; o < num_outputs; o++)
        sample.outputs[o] = static_cast<Out *>(ws.Output<dali::GPUBackend>(o).raw_mutable_tensor(i));
      sample.tiles = tiles + static_cast<size_t>(i) * num_tiles_;
      sample.puzzle_flags = puzzle_flags_[i].data[0];
      sample.anchor_flags = anchor_flags_[i].data[0];
    }
    CUDA_CALL(device::LaunchFanOut(scratchpad.ToGPU(ws.stream(), samples), batch, num_outputs,
                                   static_cast<int>(channels_), format, ws.stream()));
  };
  const bool half = dtype_ == DALI_FLOAT16;
  if (puzzle_source.type() == DALI_UINT8)
    half ? run(uint8_t{}, __half{}) : run(uint8_t{}, float{});
  else
    half ? run(uint16_t{}, __half{}) : run(uint16_t{}, float{});
}

}  // namespace fastfgssl

DALI_REGISTER_OPERATOR(FastfgsslViews, fastfgssl::Views<dali::GPUBackend>, dali::GPU);
