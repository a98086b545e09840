// Inner-loop steps of gradient descent for many tasks at once, on a flat buffer (tasks, parameters).
//
// The gradient is a list of tensors, which the kernel gathers. A block takes SPAN elements of one tensor
// for one task.
#include <algorithm>

#include "launchers.h"
#include "portable.h"

namespace metazoo {

constexpr int SGD_THREADS = 256;
constexpr int SPAN = 8 * SGD_THREADS;
// Pieces of one launch, whose arguments hold them; more pieces take several launches.
constexpr int MOST_PIECES = 64;

struct Pieces {
  const void* data[MOST_PIECES];
  int64_t task_stride[MOST_PIECES];
  int64_t begin[MOST_PIECES + 1];  // offset of each piece in a task's parameters, and the end of the last
  int block[MOST_PIECES + 1];      // first block of each piece, and the number of blocks
  int count;
};

struct Span {
  int piece;
  int64_t from, to;  // within the piece
};

__device__ inline Span find_span(const Pieces& pieces, int block) {
  int low = 0, high = pieces.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (pieces.block[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t size = pieces.begin[low + 1] - pieces.begin[low];
  const int64_t from = static_cast<int64_t>(block - pieces.block[low]) * SPAN;
  return {low, from, from + SPAN < size ? from + SPAN : size};
}

template <typename T>
__global__ void __launch_bounds__(SGD_THREADS) sgd_kernel(
    Buffer params, Pieces pieces, Buffer lr, Buffer velocity, const Acc<T>* scale, T* out, T* velocity_out, Shape shape,
    Step step) {
  using A = Acc<T>;
  const A factor = static_cast<A>(step.factor), momentum = static_cast<A>(step.momentum),
          weight_decay = static_cast<A>(step.weight_decay);
  const int64_t blocks = pieces.block[pieces.count];
  for (int64_t job = blockIdx.x; job < shape.tasks * blocks; job += gridDim.x) {
    const int64_t task = job / blocks;
    const Span span = find_span(pieces, static_cast<int>(job % blocks));
    const T* gradient = static_cast<const T*>(pieces.data[span.piece]) + task * pieces.task_stride[span.piece];
    const A scaled = scale ? scale[task] : A(1);
#pragma unroll 4
    for (int64_t i = span.from + threadIdx.x; i < span.to; i += SGD_THREADS) {
      const int64_t at = pieces.begin[span.piece] + i;
      const auto of = [&](const Buffer& buffer) {
        return static_cast<A>(static_cast<const T*>(buffer.data)[task * buffer.task_stride + at * buffer.stride]);
      };
      const A before = of(params);
      A change = scaled * static_cast<A>(gradient[i]) + weight_decay * before;
      if (velocity.data) change += momentum * of(velocity);
      if (velocity_out) velocity_out[task * shape.size + at] = static_cast<T>(change);
      out[task * shape.size + at] = static_cast<T>(before - factor * (lr.data ? of(lr) : A(1)) * change);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(SGD_THREADS) partial_squares_kernel(
    Pieces pieces, Acc<T>* partials, int64_t stride, int64_t offset, int64_t tasks) {
  using A = Acc<T>;
  constexpr int WARPS = SGD_THREADS / WARP;
  MZ_SHARED(A, sums, WARPS);
  const int64_t blocks = pieces.block[pieces.count];
  for (int64_t job = blockIdx.x; job < tasks * blocks; job += gridDim.x) {
    const int64_t task = job / blocks;
    const Span span = find_span(pieces, static_cast<int>(job % blocks));
    const T* gradient = static_cast<const T*>(pieces.data[span.piece]) + task * pieces.task_stride[span.piece];
    A sum = 0;
#pragma unroll 4
    for (int64_t i = span.from + threadIdx.x; i < span.to; i += SGD_THREADS) {
      const A value = static_cast<A>(gradient[i]);
      sum += value * value;
    }
    for (int step = WARP / 2; step >= 1; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    __syncthreads();  // all threads have read the previous sums
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < WARPS; ++warp) sum += sums[warp];
      partials[task * stride + offset + job % blocks] = sum;
    }
  }
}

// One warp per task adds its partial sums, in an order that does not depend on the launch.
template <typename A>
__global__ void __launch_bounds__(WARP) sum_kernel(const A* partials, int64_t stride, A* out, int64_t tasks) {
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    A sum = 0;
    for (int64_t i = threadIdx.x; i < stride; i += WARP) sum += partials[task * stride + i];
    for (int step = WARP / 2; step >= 1; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (threadIdx.x == 0) out[task] = sum;
  }
}

// Calls `work` with MOST_PIECES pieces at a time.
template <typename Work>
void in_groups(const std::vector<Piece>& all, const Work& work) {
  int64_t begin = 0;
  for (size_t first = 0; first < all.size(); first += MOST_PIECES) {
    Pieces pieces{};
    pieces.count = static_cast<int>(std::min(all.size() - first, size_t(MOST_PIECES)));
    pieces.begin[0] = begin;
    for (int i = 0; i < pieces.count; ++i) {
      const Piece& piece = all[first + i];
      pieces.data[i] = piece.data;
      pieces.task_stride[i] = piece.task_stride;
      pieces.begin[i + 1] = pieces.begin[i] + piece.size;
      pieces.block[i + 1] = pieces.block[i] + static_cast<int>(pieces_of(piece.size, SPAN));
    }
    begin = pieces.begin[pieces.count];
    if (pieces.block[pieces.count]) work(pieces);
  }
}

void sgd_update(
    Place place, Type type, Buffer params, const std::vector<Piece>& gradient, Buffer lr, Buffer velocity, const void* scale,
    void* out, void* velocity_out, Shape shape, Step step) {
  if (shape.tasks == 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = sgd_kernel<T>;
    in_groups(gradient, [&](const Pieces& pieces) {
      MZ_LAUNCH(
          kernel, grid(shape.tasks * pieces.block[pieces.count]), SGD_THREADS, place, params, pieces, lr, velocity,
          static_cast<const Acc<T>*>(scale), static_cast<T*>(out), static_cast<T*>(velocity_out), shape, step);
    });
  });
}

int64_t square_norm_partials(const std::vector<Piece>& gradient) {
  int64_t count = 0;
  for (const Piece& piece : gradient) count += pieces_of(piece.size, SPAN);
  return count;
}

void square_norm(Place place, Type type, const std::vector<Piece>& gradient, void* partials, void* out, int64_t tasks) {
  if (tasks == 0) return;
  with_type(type, [&](auto zero) {
    using A = Acc<decltype(zero)>;
    const int64_t stride = square_norm_partials(gradient);
    const auto kernel = partial_squares_kernel<decltype(zero)>;
    int64_t offset = 0;
    in_groups(gradient, [&](const Pieces& pieces) {
      const int64_t blocks = pieces.block[pieces.count];
      MZ_LAUNCH(kernel, grid(tasks * blocks), SGD_THREADS, place, pieces, static_cast<A*>(partials), stride, offset, tasks);
      offset += blocks;
    });
    const auto add = sum_kernel<A>;
    MZ_LAUNCH(add, grid(tasks), WARP, place, static_cast<const A*>(partials), stride, static_cast<A*>(out), tasks);
  });
}

}  // namespace metazoo
