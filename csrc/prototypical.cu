// The loss of Prototypical Networks (Snell et al. 2017, arXiv:1703.05175, equation 2) in one kernel:
// squared distances to the prototypes, the softmax of their negatives, and the negative log-likelihood
// of the target.
#include "distance.cuh"

namespace metazoo {

// A warp has ROWS queries and processes TILE prototypes at a time with a running maximum and sum, so
// their number is not limited. prob holds the logits until the sum is known.
template <typename T, int V, int ROWS>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 1 : 2) prototypical_nll_kernel(
    Points query, Points prototypes, const int64_t* target, Acc<T>* nll, Acc<T>* prob, Shape shape) {
  using A = Acc<T>;
  constexpr int SUMS = ROWS * TILE, LANES_EACH = WARP / SUMS;
  const int lane = threadIdx.x % WARP, r = lane / LANES_EACH / TILE, p = lane / LANES_EACH % TILE;
  const int64_t ways = prototypes.rows, row_tiles = (query.rows + WARPS * ROWS - 1) / (WARPS * ROWS);

  for (int64_t job = blockIdx.x; job < shape.tasks * row_tiles; job += gridDim.x) {
    const int64_t task = job / row_tiles;
    const int64_t first = (job % row_tiles * WARPS + threadIdx.x / WARP) * ROWS;
    const bool there = first + r < query.rows;
    const int64_t row = task * query.rows + (there ? first + r : query.rows - 1);
    const int64_t label = target[row];
    A peak = -INFINITY, mass = 0, picked = 0;

    for (int64_t point = 0; point < ways; point += TILE) {
      const int points = static_cast<int>(ways - point < TILE ? ways - point : TILE);
      A sums[SUMS] = {};
      add_squares<T, V, ROWS>(Rows<T>(query, task), first, Rows<T>(prototypes, task), point, points, shape.size, sums);
      sum_over_lanes<SUMS>(sums);
      const A logit = p < points ? -sums[0] : -static_cast<A>(INFINITY);
      if (there && p < points && lane % LANES_EACH == 0) prob[row * ways + point + p] = logit;

      A tile_peak = logit;
#pragma unroll
      for (int step = SUMS / ROWS / 2 * LANES_EACH; step >= LANES_EACH; step /= 2) {
        const A other = __shfl_xor_sync(ALL_LANES, tile_peak, step);
        tile_peak = other > tile_peak ? other : tile_peak;
      }
      const A higher = tile_peak > peak ? tile_peak : peak;
      // The distances of the prototypes so far may all be infinite.
      const A base = higher == -static_cast<A>(INFINITY) ? A(0) : higher;
      A tile_mass = exponential(logit - base);
      A tile_picked = p < points && point + p == label ? logit : A(0);
#pragma unroll
      for (int step = SUMS / ROWS / 2 * LANES_EACH; step >= LANES_EACH; step /= 2) {
        tile_mass += __shfl_xor_sync(ALL_LANES, tile_mass, step);
        tile_picked += __shfl_xor_sync(ALL_LANES, tile_picked, step);
      }
      mass = mass * exponential(peak - base) + tile_mass;
      peak = higher;
      picked += tile_picked;
    }
    const A total = peak + logarithm(mass);
    if (there && p == 0 && lane % LANES_EACH == 0) {
      const bool known = label >= 0 && label < ways;
      nll[row] = known ? total - picked : static_cast<A>(NAN);
    }
    __syncwarp();  // prob is read after other lanes wrote to it
    if (there) {
      const int mine = lane % (LANES_EACH * TILE);
      for (int64_t n = mine; n < ways; n += LANES_EACH * TILE) prob[row * ways + n] = exponential(prob[row * ways + n] - total);
    }
  }
}

template <typename T, int V, int ROWS>
void launch_nll(
    Place place, Points query, Points prototypes, const int64_t* target, void* nll, void* prob, Shape shape) {
  const int64_t jobs = shape.tasks * pieces_of(query.rows, WARPS * ROWS);
  if (jobs == 0) return;
  const auto kernel = prototypical_nll_kernel<T, V, ROWS>;
  MZ_LAUNCH(kernel, grid(jobs), THREADS, place, query, prototypes, target, static_cast<Acc<T>*>(nll), static_cast<Acc<T>*>(prob), shape);
}

void prototypical_nll(
    Place place, Type type, Points query, Points prototypes, const int64_t* target, void* nll, void* prob, Shape shape) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDE = sizeof(T) == 8 ? 2 : 4;
    const bool wide = pack_size<T>(shape.size, {query, prototypes}) == WIDE;
    const bool many = rows_at_once(shape.tasks * query.rows, 1) == 4;
    const auto launch =
        wide ? (many ? launch_nll<T, WIDE, 4> : launch_nll<T, WIDE, 1>) : (many ? launch_nll<T, 1, 4> : launch_nll<T, 1, 1>);
    launch(place, query, prototypes, target, nll, prob, shape);
  });
}

// The gradient by the squared distances: g (1[n = target] - prob).
template <typename T>
struct LikelihoodWeights {
  Matrix g;
  const Acc<T>* prob;
  const int64_t* target;
  int64_t queries, ways;

  __device__ Acc<T> operator()(int64_t task, int64_t q, int64_t n) const {
    const int64_t row = task * queries + q;
    const Acc<T> above = static_cast<const Acc<T>*>(g.data)[task * g.task_stride + q * g.row_stride];
    return above * ((n == target[row] ? Acc<T>(1) : Acc<T>(0)) - prob[row * ways + n]);
  }
};

void prototypical_nll_backward(
    Place place, Type type, Matrix g, const void* prob, const int64_t* target, Points query, Points prototypes, void* gx,
    void* gy, Shape shape) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using W = LikelihoodWeights<T>;
    constexpr int WIDE = sizeof(T) == 8 ? 2 : 4;
    const bool wide = gradient_pack_size<T>(shape.size, query, prototypes, gx, gy) == WIDE;
    const auto launch = wide ? launch_gradient<T, WIDE, W> : launch_gradient<T, 1, W>;
    const W weights{g, static_cast<const Acc<T>*>(prob), target, query.rows, prototypes.rows};
    launch(place, weights, query, prototypes, gx, gy, shape);
  });
}

}  // namespace metazoo
