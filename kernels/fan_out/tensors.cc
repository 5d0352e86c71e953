// The fan-out of tensors on the CPU.

#include "tensors.h"

#include <atomic>
#include <thread>

#include "cpu.h"

namespace fastfgssl {
namespace {

template <typename In, typename Out>
void Run(const FastfgsslFanOut &call, int num_threads) {
  const int num_outputs = 2 + call.num_grids;
  FanOutFormat format{call.height, call.width, call.channels, {call.grids, call.grids + call.num_grids}};
  for (int x = 0; x < call.width; x++) {
    format.mean.insert(format.mean.end(), call.mean, call.mean + call.channels);
    format.inverse_std.insert(format.inverse_std.end(), call.inverse_std, call.inverse_std + call.channels);
  }
  const int64_t size = int64_t{call.height} * call.width * call.channels;
  std::atomic<int> next = 0;
  auto work = [&] {
    FanOut<In, Out> fan_out;
    std::vector<int32_t> tiles;
    std::vector<Out *> outputs(num_outputs);
    for (int i; (i = next++) < call.batch;) {
      tiles.clear();
      for (int g = 0; g < call.num_grids; g++) {
        const int count = call.grids[g] * call.grids[g];
        const int64_t *permutation = call.permutations[g] + int64_t{i} * count;
        tiles.insert(tiles.end(), permutation, permutation + count);
      }
      for (int o = 0; o < num_outputs; o++) outputs[o] = static_cast<Out *>(call.outputs[o]) + i * size;
      fan_out.Run(format, static_cast<const In *>(call.puzzle) + i * size, {call.puzzle_flags[i], 0},
                  static_cast<const In *>(call.anchor) + i * size, {call.anchor_flags[i], 0}, tiles.data(), outputs.data());
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < std::min(num_threads, call.batch); i++) others.emplace_back(work);
  work();
  for (auto &thread : others) thread.join();
}

}  // namespace
}  // namespace fastfgssl

extern "C" void fastfgssl_fan_out_cpu(const FastfgsslFanOut *call, int num_threads) {
  using fastfgssl::Half;
  const bool half = call->output_bits == 16;
  if (call->source_bits == 8)
    half ? fastfgssl::Run<uint8_t, Half>(*call, num_threads) : fastfgssl::Run<uint8_t, float>(*call, num_threads);
  else
    half ? fastfgssl::Run<uint16_t, Half>(*call, num_threads) : fastfgssl::Run<uint16_t, float>(*call, num_threads);
}
