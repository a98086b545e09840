// Batched pairwise squared Euclidean distances, and their gradient.
#include "distance.cuh"

namespace metazoo {

template <typename T, int V, int ROWS>
__global__ void __launch_bounds__(THREADS) sqdist_kernel(Points x, Points y, T* out, Shape shape) {
  using A = Acc<T>;
  constexpr int SUMS = ROWS * TILE, LANES_EACH = WARP / SUMS;
  const int64_t row_tiles = (x.rows + WARPS * ROWS - 1) / (WARPS * ROWS), point_tiles = (y.rows + TILE - 1) / TILE;
  for (int64_t job = blockIdx.x; job < shape.tasks * row_tiles * point_tiles; job += gridDim.x) {
    const int64_t point = job % point_tiles * TILE;
    const int64_t row = (job / point_tiles % row_tiles * WARPS + threadIdx.x / WARP) * ROWS;
    const int64_t task = job / point_tiles / row_tiles;
    const int points = static_cast<int>(y.rows - point < TILE ? y.rows - point : TILE);
    A sums[SUMS] = {};
    add_squares<T, V, ROWS>(Rows<T>(x, task), row, Rows<T>(y, task), point, points, shape.size, sums);
    sum_over_lanes<SUMS>(sums);
    const int lane = threadIdx.x % WARP, r = lane / LANES_EACH / TILE, p = lane / LANES_EACH % TILE;
    if (lane % LANES_EACH == 0 && row + r < x.rows && p < points)
      out[(task * x.rows + row + r) * y.rows + point + p] = static_cast<T>(sums[0]);
  }
}

template <typename T, int V, int ROWS>
void launch_sqdist(Place place, Points x, Points y, void* out, Shape shape) {
  const int64_t jobs = shape.tasks * pieces_of(x.rows, WARPS * ROWS) * pieces_of(y.rows, TILE);
  if (jobs == 0) return;
  const auto kernel = sqdist_kernel<T, V, ROWS>;
  MZ_LAUNCH(kernel, grid(jobs), THREADS, place, x, y, static_cast<T*>(out), shape);
}

void sqdist(Place place, Type type, Points x, Points y, void* out, Shape shape) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDE = sizeof(T) == 8 ? 2 : 4;
    const bool wide = pack_size<T>(shape.size, {x, y}) == WIDE;
    const bool many = rows_at_once(shape.tasks * x.rows, pieces_of(y.rows, TILE)) == 4;
    const auto launch = wide ? (many ? launch_sqdist<T, WIDE, 4> : launch_sqdist<T, WIDE, 1>)
                             : (many ? launch_sqdist<T, 1, 4> : launch_sqdist<T, 1, 1>);
    launch(place, x, y, out, shape);
  });
}

template <typename T>
struct GivenWeights {
  Matrix matrix;

  __device__ Acc<T> operator()(int64_t task, int64_t q, int64_t n) const {
    const int64_t place = task * matrix.task_stride + q * matrix.row_stride + n * matrix.column_stride;
    return static_cast<Acc<T>>(static_cast<const T*>(matrix.data)[place]);
  }
};

void sqdist_backward(Place place, Type type, Matrix weights, Points x, Points y, void* gx, void* gy, Shape shape) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDE = sizeof(T) == 8 ? 2 : 4;
    const bool wide = gradient_pack_size<T>(shape.size, x, y, gx, gy) == WIDE;
    const auto launch = wide ? launch_gradient<T, WIDE, GivenWeights<T>> : launch_gradient<T, 1, GivenWeights<T>>;
    launch(place, GivenWeights<T>{weights}, x, y, gx, gy, shape);
  });
}

#ifndef METAZOO_EMULATED
int cuda_version() { return CUDART_VERSION; }
#endif

}  // namespace metazoo
