// A thin stand-in for CUDA, so that g++ compiles device code as it stands and the processor runs it.
//
// A launch is a loop over blocks. The threads of a block take turns at __syncwarp: each has a stack of its own.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  uint32_t x, y, z;
  dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline dim3 blockIdx, threadIdx, blockDim;

using cudaStream_t = void *;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "none"; }

template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
T __ldg(const T *from) {
  return *from;
}
template <typename T>
void __stcs(T *to, T value) {
  if (reinterpret_cast<uintptr_t>(to) % alignof(T)) std::abort();  // a GPU faults, too
  *to = value;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline uint32_t __funnelshift_lc(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) << min(shift, 32u) >> 32);
}

namespace stand_in {

constexpr int kWarp = 32, kStack = 1 << 16;

// The warp that runs: a thread that synchronises gives way to the next, and all of them have come that far when it is
// its turn again.
struct Warp {
  ucontext_t scheduler, threads[kWarp];
  std::vector<char> stacks = std::vector<char>(kWarp * kStack);
  bool done[kWarp];
  int current;
  std::function<void()> kernel;

  static Warp &Running() {
    static Warp warp;
    return warp;
  }
  static void Enter() {
    Warp &warp = Running();
    warp.kernel();
    warp.done[warp.current] = true;
    swapcontext(&warp.threads[warp.current], &warp.scheduler);
  }
  void Run(uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
      getcontext(&threads[i]);
      threads[i].uc_stack.ss_sp = stacks.data() + i * kStack;
      threads[i].uc_stack.ss_size = kStack;
      threads[i].uc_link = &scheduler;
      makecontext(&threads[i], Enter, 0);
      done[i] = false;
    }
    for (bool at_work = true; at_work;) {
      at_work = false;
      for (uint32_t i = 0; i < count; i++) {
        if (done[i]) continue;
        current = i;
        threadIdx = dim3(first + i, 0, 0);
        swapcontext(&scheduler, &threads[i]);
        at_work = true;
      }
    }
  }
};

template <typename Kernel>
void Launch(dim3 blocks, uint32_t threads, Kernel kernel) {
  Warp &warp = Warp::Running();
  warp.kernel = kernel;
  blockDim = dim3(threads);
  for (uint32_t z = 0; z < blocks.z; z++)
    for (uint32_t y = 0; y < blocks.y; y++)
      for (uint32_t x = 0; x < blocks.x; x++) {
        blockIdx = dim3(x, y, z);
        for (uint32_t first = 0; first < threads; first += kWarp) warp.Run(first, min<uint32_t>(kWarp, threads - first));
      }
}

}  // namespace stand_in

inline void __syncwarp() {
  auto &warp = stand_in::Warp::Running();
  const dim3 own = threadIdx;
  swapcontext(&warp.threads[warp.current], &warp.scheduler);
  threadIdx = own;
}

#define FASTFGSSL_LAUNCH(kernel, blocks, threads, stream, ...) \
  stand_in::Launch(blocks, threads, [&] { kernel(__VA_ARGS__); })
