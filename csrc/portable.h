// The parts of CUDA that the kernels use, under names that the emulator has too.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>

#ifdef METAZOO_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

// g++ cannot parse `<<< >>>`, and shared memory needs storage on a CPU. All else is as in CUDA.
#define MZ_ALIGNED(pointer, bytes)
#define MZ_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define MZ_LAUNCH(kernel, blocks, threads, place, ...)                        \
  do {                                                                        \
    metazoo::OnDevice guard((place).device);                                  \
    kernel<<<blocks, threads, 0, (cudaStream_t)(place).stream>>>(__VA_ARGS__); \
    metazoo::check(cudaGetLastError());                                       \
  } while (0)

namespace metazoo {

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("a metazoo kernel failed: ") + cudaGetErrorString(error));
}

// Makes a device current during its lifetime. This is needed because torch uses another CUDA runtime
// than this library.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    if (before_ != device) check(cudaSetDevice(device));
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace metazoo
#endif

namespace metazoo {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// The type to sum values of a type in.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using Acc = typename Accumulator<T>::type;

// V adjacent elements that one instruction loads or stores.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <typename T, int V>
__device__ __forceinline__ void load(const T* from, Acc<T> (&to)[V]) {
  MZ_ALIGNED(from, sizeof(Pack<T, V>));
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = static_cast<Acc<T>>(pack.at[v]);
}

template <typename T, int V>
__device__ __forceinline__ void store(T* to, const Acc<T> (&from)[V]) {
  MZ_ALIGNED(to, sizeof(Pack<T, V>));
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.at[v] = static_cast<T>(from[v]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// The number of blocks for `jobs` jobs. Beyond the largest grid, each block takes several jobs.
inline unsigned grid(int64_t jobs) {
#ifdef METAZOO_EMULATED
  constexpr int64_t most = 7;  // so that in tests blocks take a second job
#else
  constexpr int64_t most = int64_t(1) << 30;
#endif
  return static_cast<unsigned>(jobs < most ? jobs : most);
}

inline int64_t pieces_of(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Calls `work` with a value of the type that `type` names.
template <typename Work>
void with_type(int type, const Work& work) {
  switch (type) {
    case 0: return work(float{});
    case 1: return work(double{});
    case 2: return work(Half{});
    default: return work(BFloat16{});
  }
}

}  // namespace metazoo
