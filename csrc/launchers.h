// The kernels as plain C++ functions, without CUDA or torch.
#pragma once

#include <cstdint>
#include <vector>

namespace metazoo {

enum Type { FLOAT = 0, DOUBLE = 1, HALF = 2, BFLOAT16 = 3 };

struct Place {
  int device;
  void* stream;
};

// Vectors (tasks, rows, size) with contiguous elements; strides are in elements, 0 in a broadcast
// dimension.
struct Points {
  const void* data;
  int64_t task_stride;
  int64_t row_stride;
  int64_t rows;
};

// A matrix (tasks, rows, columns) with any strides.
struct Matrix {
  const void* data;
  int64_t task_stride;
  int64_t row_stride;
  int64_t column_stride;
};

struct Shape {
  int64_t tasks;
  int64_t size;
};

// out (tasks, x.rows, y.rows): squared distances.
void sqdist(Place, Type, Points x, Points y, void* out, Shape);

// gx (tasks, x.rows, size), gy (tasks, y.rows, size): the gradient by x and y. weights (tasks, x.rows,
// y.rows) is the gradient by the squared distances.
void sqdist_backward(Place, Type, Matrix weights, Points x, Points y, void* gx, void* gy, Shape);

// nll (tasks, query.rows), prob (tasks, query.rows, prototypes.rows), both float for half types; target
// (tasks, query.rows). For a target out of range nll is NaN.
void prototypical_nll(Place, Type, Points query, Points prototypes, const int64_t* target, void* nll, void* prob, Shape);

// The gradient of prototypical_nll; g (tasks, query.rows) is the gradient by nll and has its type.
void prototypical_nll_backward(
    Place, Type, Matrix g, const void* prob, const int64_t* target, Points query, Points prototypes, void* gx, void* gy, Shape);

// One tensor of a list, (tasks, size) with stride `task_stride` between tasks.
struct Piece {
  const void* data;
  int64_t task_stride;
  int64_t size;
};

// A buffer (tasks, size), or one that broadcasts against that; null if there is none.
struct Buffer {
  const void* data;
  int64_t task_stride;
  int64_t stride;
};

struct Step {
  double factor;
  double momentum;
  double weight_decay;
};

// h = scale * gradient + weight_decay * params;  v = momentum * velocity + h;  out = params - factor * lr * v,
// where the gradient is the concatenation of the pieces. lr has the parameters' type; scale (tasks,) is
// float for half types. velocity_out may be null; out may be params, and velocity_out may be velocity.
void sgd_update(
    Place, Type, Buffer params, const std::vector<Piece>& gradient, Buffer lr, Buffer velocity, const void* scale, void* out,
    void* velocity_out, Shape, Step);

// The number of partial sums of a task in square_norm.
int64_t square_norm_partials(const std::vector<Piece>&);

// out (tasks,), float for half types: each task's sum of squares over all pieces; partials (tasks,
// square_norm_partials) is scratch memory.
void square_norm(Place, Type, const std::vector<Piece>&, void* partials, void* out, int64_t tasks);

#ifndef METAZOO_EMULATED
int cuda_version();
#endif

}  // namespace metazoo
