// The fan-out of tensors on a GPU: a small kernel writes down where each sample is, the other one makes the views.

#include <numeric>
#include <vector>

#include "launch.cuh"
#include "tensors.h"

namespace fastfgssl::device {
namespace {

// A block a sample: its pointers, and its permutations one after the other as int32.
template <typename In, typename Out>
__global__ void Describe(const __grid_constant__ FastfgsslFanOut call, Sample<In, Out> *samples, int32_t *tiles, int num_tiles) {
  const int64_t i = blockIdx.x;
  const int64_t size = static_cast<int64_t>(call.height) * call.width * call.channels;
  int32_t *own = tiles + i * num_tiles;
  if (threadIdx.x == 0) {
    Sample<In, Out> &sample = samples[i];
    sample.puzzle = static_cast<const In *>(call.puzzle) + i * size;
    sample.anchor = static_cast<const In *>(call.anchor) + i * size;
    for (int o = 0; o < 2 + call.num_grids; o++) sample.outputs[o] = static_cast<Out *>(call.outputs[o]) + i * size;
    sample.tiles = own;
    sample.puzzle_flags = call.puzzle_flags[i];
    sample.anchor_flags = call.anchor_flags[i];
  }
  for (int g = 0; g < call.num_grids; g++) {
    const int count = call.grids[g] * call.grids[g];
    for (int t = threadIdx.x; t < count; t += blockDim.x) own[t] = static_cast<int32_t>(call.permutations[g][i * count + t]);
    own += count;
  }
}

int NumTiles(const FastfgsslFanOut &call) {
  int tiles = 0;
  for (int g = 0; g < call.num_grids; g++) tiles += call.grids[g] * call.grids[g];
  return tiles;
}

template <typename In, typename Out>
cudaError_t Run(const FastfgsslFanOut &call, cudaStream_t stream) {
  auto *samples = static_cast<Sample<In, Out> *>(call.workspace);
  auto *tiles = reinterpret_cast<int32_t *>(samples + call.batch);
  FASTFGSSL_LAUNCH(Describe, call.batch, 128, stream, call, samples, tiles, NumTiles(call));
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const std::vector<int> grids(call.grids, call.grids + call.num_grids);
  std::vector<int> roles(2 + call.num_grids);
  std::iota(roles.begin(), roles.end(), 0);
  const Format format = MakeFormat(call.height, call.width, call.channels, grids, roles, call.mean, call.inverse_std);
  return LaunchFanOut(samples, call.batch, 2 + call.num_grids, call.channels, format, stream);
}

}  // namespace
}  // namespace fastfgssl::device

// Bytes of the workspace that a call needs.
extern "C" int64_t fastfgssl_fan_out_workspace(const FastfgsslFanOut *call) {
  using namespace fastfgssl::device;
  return call->batch * (sizeof(Sample<uint8_t, float>) + sizeof(int32_t) * int64_t{NumTiles(*call)});
}

// Returns nullptr, or what CUDA says is wrong.
extern "C" const char *fastfgssl_fan_out_cuda(const FastfgsslFanOut *call, int device, cudaStream_t stream) {
  using namespace fastfgssl::device;
  cudaError_t error = cudaSetDevice(device);
  const bool half = call->output_bits == 16;
  if (error == cudaSuccess && call->source_bits == 8)
    error = half ? Run<uint8_t, __half>(*call, stream) : Run<uint8_t, float>(*call, stream);
  else if (error == cudaSuccess)
    error = half ? Run<uint16_t, __half>(*call, stream) : Run<uint16_t, float>(*call, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
