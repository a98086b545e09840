// Code shared by the kernels of squared distances and of the prototypical loss.
//
// Distances are sums of squared differences. |x|^2 + |y|^2 - 2xy would be faster for many points,
// but wrong for close points of large norm. A warp processes ROWS rows of x and TILE points of y at a
// time. Its lanes divide the elements of a vector, so that loads are contiguous, and each lane keeps
// ROWS * TILE sums in registers. The warps of a block read the same points from shared memory. With
// few points, the time is that of reading x once.
#pragma once

#include "launchers.h"
#include "portable.h"

namespace metazoo {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 8;
constexpr int CHUNK = 512;

// The vectors of one task.
template <typename T>
struct Rows {
  const T* first;
  int64_t stride;
  int64_t count;

  __device__ Rows(const Points& points, int64_t task)
      : first(static_cast<const T*>(points.data) + task * points.task_stride), stride(points.row_stride), count(points.rows) {}
  __device__ const T* operator[](int64_t row) const { return first + row * stride; }
};

// Adds this lane's part of the squared distance between row `row + r` and point `point + p` to
// sums[r * TILE + p]. All threads of the block must call it with the same points. Rows beyond the
// last one repeat it.
template <typename T, int V, int ROWS>
__device__ __forceinline__ void add_squares(
    const Rows<T>& x, int64_t row, const Rows<T>& y, int64_t point, int points, int64_t size, Acc<T> (&sums)[ROWS * TILE]) {
  using A = Acc<T>;
  using Chunk = A[CHUNK];
  MZ_SHARED(Chunk, tile, TILE);
  const int lane = threadIdx.x % WARP;
  const T* rows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) rows[r] = x[row + r < x.count ? row + r : x.count - 1];

  for (int64_t start = 0; start < size; start += CHUNK) {
    const int width = static_cast<int>(size - start < CHUNK ? size - start : CHUNK);
    __syncthreads();  // all threads are done with the previous chunk
    const int packs = width / V;
    for (int i = threadIdx.x; i < points * packs; i += THREADS) {
      const int p = i / packs, d = i % packs * V;
      A value[V];
      load<T, V>(y[point + p] + start + d, value);
#pragma unroll
      for (int v = 0; v < V; ++v) tile[p][d + v] = value[v];
    }
    __syncthreads();
    for (int d = lane * V; d < width; d += WARP * V) {
      A a[ROWS][V];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) load<T, V>(rows[r] + start + d, a[r]);
#pragma unroll
      for (int p = 0; p < TILE; ++p) {
        if (p < points) {
          A b[V];
          load<A, V>(&tile[p][d], b);
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
              const A difference = a[r][v] - b[v];
              sums[r * TILE + p] += difference * difference;
            }
          }
        }
      }
    }
  }
}

// Sums values[0], ..., values[COUNT - 1] over the lanes of a warp; lane l gets the sum of value
// l / (WARP / COUNT) in values[0]. Each step halves the number of a lane's values and doubles the
// number of lanes summed, so COUNT sums take COUNT - 1 shuffles instead of 5 * COUNT. It is recursive
// because the compiler keeps values in registers only if every index is known.
template <int COUNT, int STEP = WARP / 2, int SIZE, typename A>
__device__ __forceinline__ void sum_over_lanes(A (&values)[SIZE]) {
  if constexpr (COUNT > 1) {
    const bool upper = threadIdx.x & STEP;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      const A theirs = upper ? values[i] : values[i + COUNT / 2];
      const A mine = upper ? values[i + COUNT / 2] : values[i];
      values[i] = mine + __shfl_xor_sync(ALL_LANES, theirs, STEP);
    }
    sum_over_lanes<COUNT / 2, STEP / 2>(values);
  } else if constexpr (STEP > 0) {
    values[0] += __shfl_xor_sync(ALL_LANES, values[0], STEP);
    sum_over_lanes<1, STEP / 2>(values);
  }
}

// Rows of a warp: four if that keeps every multiprocessor busy, else one.
inline int rows_at_once(int64_t rows, int64_t tiles) { return rows * tiles >= 8 * 1024 ? 4 : 1; }

// Elements of one load: 16 bytes of float or double, 8 of half types, if every vector is aligned to
// that and all lanes of a warp have work.
template <typename T>
int pack_size(int64_t size, std::initializer_list<Points> all) {
  constexpr int wide = sizeof(T) == 8 ? 2 : 4;
  if (size % wide || size < WARP * wide) return 1;
  for (const Points& points : all)
    if (points.row_stride % wide || points.task_stride % wide || reinterpret_cast<uintptr_t>(points.data) % (wide * sizeof(T)))
      return 1;
  return wide;
}

// ---- derivatives -----------------------------------------------------------------------------------------------------

constexpr int GRADIENT_THREADS = 128;
constexpr int GRADIENT_ROWS = 8;
constexpr int GRADIENT_POINTS = 32;

// gx[q] = 2 sum_n w[q, n] (x[q] - y[n]) and gy[n] = 2 sum_q w[q, n] (y[n] - x[q]) in one launch. The
// first jobs are rows of x, the others rows of y. A thread has V elements of GRADIENT_ROWS rows in
// registers; weights come through shared memory.
template <typename T, int V, typename Weights>
__global__ void __launch_bounds__(GRADIENT_THREADS) gradient_kernel(Weights weights, Points x, Points y, T* gx, T* gy, Shape shape) {
  using A = Acc<T>;
  MZ_SHARED(A, staged, GRADIENT_ROWS * GRADIENT_POINTS);
  const int64_t chunks = (shape.size + blockDim.x * V - 1) / (blockDim.x * V);
  const int64_t x_jobs = shape.tasks * chunks * ((x.rows + GRADIENT_ROWS - 1) / GRADIENT_ROWS);
  const int64_t y_jobs = shape.tasks * chunks * ((y.rows + GRADIENT_ROWS - 1) / GRADIENT_ROWS);

  for (int64_t job = blockIdx.x; job < x_jobs + y_jobs; job += gridDim.x) {
    const bool of_x = job < x_jobs;
    const int64_t mine = of_x ? job : job - x_jobs;
    const int64_t chunk = mine % chunks;
    const int64_t tiles = ((of_x ? x.rows : y.rows) + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
    const int64_t first = mine / chunks % tiles * GRADIENT_ROWS;
    const int64_t task = mine / chunks / tiles;
    const Rows<T> rows(of_x ? x : y, task), points(of_x ? y : x, task);
    const int64_t d = (chunk * blockDim.x + threadIdx.x) * V;
    const bool active = d < shape.size;

    A own[GRADIENT_ROWS][V], sums[GRADIENT_ROWS][V] = {};
#pragma unroll
    for (int r = 0; r < GRADIENT_ROWS; ++r)
      if (active) load<T, V>(rows[first + r < rows.count ? first + r : rows.count - 1] + d, own[r]);

    for (int64_t start = 0; start < points.count; start += GRADIENT_POINTS) {
      const int width = static_cast<int>(points.count - start < GRADIENT_POINTS ? points.count - start : GRADIENT_POINTS);
      __syncthreads();  // all threads are done with the previous weights
#pragma unroll 1
      for (int i = threadIdx.x; i < GRADIENT_ROWS * GRADIENT_POINTS; i += blockDim.x) {
        const int64_t row = first + i / GRADIENT_POINTS;
        const int64_t point = start + i % GRADIENT_POINTS;
        const bool there = row < rows.count && point < points.count;
        staged[i] = !there ? A(0) : of_x ? weights(task, row, point) : weights(task, point, row);
      }
      __syncthreads();
      if (active) {
#pragma unroll(V == 1 ? 2 : 4)
        for (int p = 0; p < width; ++p) {
          A other[V];
          load<T, V>(points[start + p] + d, other);
#pragma unroll
          for (int r = 0; r < GRADIENT_ROWS; ++r) {
#pragma unroll
            for (int v = 0; v < V; ++v) sums[r][v] += staged[r * GRADIENT_POINTS + p] * (own[r][v] - other[v]);
          }
        }
      }
    }
    T* const out = (of_x ? gx : gy) + task * rows.count * shape.size;
#pragma unroll
    for (int r = 0; r < GRADIENT_ROWS; ++r) {
      if (active && first + r < rows.count) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[r][v] *= 2;
        store<T, V>(out + (first + r) * shape.size + d, sums[r]);
      }
    }
  }
}

template <typename T, int V, typename Weights>
void launch_gradient(Place place, Weights weights, Points x, Points y, void* gx, void* gy, Shape shape) {
  if (shape.size == 0) return;
  const int64_t lanes = pieces_of(pieces_of(shape.size, V), WARP) * WARP;
  const unsigned threads = static_cast<unsigned>(lanes < GRADIENT_THREADS ? lanes : GRADIENT_THREADS);
  const int64_t chunks = pieces_of(shape.size, threads * V);
  const int64_t jobs = shape.tasks * chunks * (pieces_of(x.rows, GRADIENT_ROWS) + pieces_of(y.rows, GRADIENT_ROWS));
  if (jobs == 0) return;
  const auto kernel = gradient_kernel<T, V, Weights>;
  MZ_LAUNCH(kernel, grid(jobs), threads, place, weights, x, y, static_cast<T*>(gx), static_cast<T*>(gy), shape);
}

// The outputs of the gradient kernel are contiguous, but may have any alignment.
template <typename T>
int gradient_pack_size(int64_t size, Points x, Points y, void* gx, void* gy) {
  return pack_size<T>(size, {x, y, Points{gx, 0, size, 0}, Points{gy, 0, size, 0}});
}

}  // namespace metazoo
