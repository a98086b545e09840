// Implements torch.ops.metazoo.* by the kernels; the schemas are in metazoo/kernels/*.py.
//
// It uses the LibTorch stable ABI of torch 2.11, so one library serves that version and later ones. It
// needs no CUDA header and also compiles with a torch without CUDA.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "launchers.h"

#ifndef METAZOO_EMULATED
#include <dlfcn.h>
#endif

namespace {

using metazoo::Buffer;
using metazoo::Matrix;
using metazoo::Piece;
using metazoo::Place;
using metazoo::Points;
using metazoo::Shape;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

metazoo::Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return metazoo::FLOAT;
    case ScalarType::Double: return metazoo::DOUBLE;
    case ScalarType::Half: return metazoo::HALF;
    case ScalarType::BFloat16: return metazoo::BFLOAT16;
    default: STD_TORCH_CHECK(false, "metazoo's kernels take float32, float64, float16 and bfloat16");
  }
}

// The type to sum in.
ScalarType sum_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_alike(const Tensor& a, const Tensor& b, ScalarType type) {
  STD_TORCH_CHECK(
      a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(),
      "metazoo's kernels take tensors on one device");
  STD_TORCH_CHECK(b.scalar_type() == type, "metazoo's kernels take tensors of one type");
}

void check_shape(const Tensor& t, const std::vector<int64_t>& shape) {
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(d) == shape[d];
  STD_TORCH_CHECK(fits, "the shapes of a metazoo kernel's arguments do not fit together");
}

Place place_of(const Tensor& t) {
#ifdef METAZOO_EMULATED
  return {t.get_device_index(), nullptr};
#else
  // Looked up at run time, because a library linked to it would not load with a torch without CUDA.
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const auto current_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    STD_TORCH_CHECK(found, "this torch has no CUDA streams");
    return reinterpret_cast<CurrentStream>(found);
  }();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(current_stream(t.get_device_index(), &stream));
  return {t.get_device_index(), stream};
#endif
}

int64_t stride_of(const Tensor& t, int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); }

// t itself if the elements of its vectors are contiguous, else a copy. Other strides do not matter.
Tensor side_by_side(const Tensor& t) {
  return t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

Points points_of(const Tensor& t) { return {t.const_data_ptr(), stride_of(t, 0), stride_of(t, 1), t.size(1)}; }

Matrix matrix_of(const Tensor& t) {
  return {t.const_data_ptr(), stride_of(t, 0), stride_of(t, 1), t.dim() > 2 ? stride_of(t, 2) : 0};
}

// ---- distances ---------------------------------------------------------------------------------------------------------

void check_points(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 3, "a metazoo kernel takes points as (B, Q, D) and (B, N, D)");
  check_alike(x, y, x.scalar_type());
  check_shape(y, {x.size(0), y.dim() == 3 ? y.size(1) : 0, x.size(2)});
}

Tensor sqdist(const Tensor& x, const Tensor& y) {
  check_points(x, y);
  const Tensor a = side_by_side(x), b = side_by_side(y);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), y.size(1)});
  metazoo::sqdist(place_of(x), type_of(x), points_of(a), points_of(b), out.mutable_data_ptr(), Shape{x.size(0), x.size(2)});
  return out;
}

std::tuple<Tensor, Tensor> sqdist_backward(const Tensor& g, const Tensor& x, const Tensor& y) {
  check_points(x, y);
  check_alike(x, g, x.scalar_type());
  check_shape(g, {x.size(0), x.size(1), y.size(1)});
  const Tensor a = side_by_side(x), b = side_by_side(y);
  Tensor gx = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  Tensor gy = torch::stable::new_empty(y, {y.size(0), y.size(1), y.size(2)});
  metazoo::sqdist_backward(
      place_of(x), type_of(x), matrix_of(g), points_of(a), points_of(b), gx.mutable_data_ptr(), gy.mutable_data_ptr(),
      Shape{x.size(0), x.size(2)});
  return {gx, gy};
}

// ---- the loss of Prototypical Networks ---------------------------------------------------------------

Tensor checked_target(const Tensor& query, const Tensor& target) {
  check_alike(query, target, ScalarType::Long);
  check_shape(target, {query.size(0), query.size(1)});
  return torch::stable::contiguous(target);
}

std::tuple<Tensor, Tensor> prototypical_nll(const Tensor& query, const Tensor& prototypes, const Tensor& target) {
  check_points(query, prototypes);
  const Tensor a = side_by_side(query), b = side_by_side(prototypes), labels = checked_target(query, target);
  Tensor nll = torch::stable::new_empty(query, {query.size(0), query.size(1)}, sum_type(query));
  Tensor prob = torch::stable::new_empty(query, {query.size(0), query.size(1), prototypes.size(1)}, sum_type(query));
  metazoo::prototypical_nll(
      place_of(query), type_of(query), points_of(a), points_of(b), static_cast<const int64_t*>(labels.const_data_ptr()),
      nll.mutable_data_ptr(), prob.mutable_data_ptr(), Shape{query.size(0), query.size(2)});
  return {nll, prob};
}

std::tuple<Tensor, Tensor> prototypical_nll_backward(
    const Tensor& g, const Tensor& prob, const Tensor& query, const Tensor& prototypes, const Tensor& target) {
  check_points(query, prototypes);
  const int64_t tasks = query.size(0), queries = query.size(1), ways = prototypes.size(1), size = query.size(2);
  check_alike(query, g, sum_type(query));
  check_shape(g, {tasks, queries});
  check_alike(query, prob, sum_type(query));
  check_shape(prob, {tasks, queries, ways});
  const Tensor a = side_by_side(query), b = side_by_side(prototypes), labels = checked_target(query, target);
  const Tensor p = torch::stable::contiguous(prob);
  Tensor gx = torch::stable::new_empty(query, {tasks, queries, size});
  Tensor gy = torch::stable::new_empty(prototypes, {tasks, ways, size});
  metazoo::prototypical_nll_backward(
      place_of(query), type_of(query), matrix_of(g), p.const_data_ptr(), static_cast<const int64_t*>(labels.const_data_ptr()),
      points_of(a), points_of(b), gx.mutable_data_ptr(), gy.mutable_data_ptr(), Shape{tasks, size});
  return {gx, gy};
}

// ---- inner-loop steps ----------------------------------------------------------------------------------------------------

// The tensors of a gradient, each (tasks, *), as pieces. `kept` holds the copies of tensors whose tasks
// are not contiguous.
std::vector<Piece> pieces_of(const std::vector<Tensor>& gradient, std::vector<Tensor>& kept) {
  std::vector<Piece> pieces;
  for (const Tensor& given : gradient) {
    STD_TORCH_CHECK(given.dim() >= 1, "a metazoo kernel takes gradients as (tasks, *)");
    check_alike(gradient[0], given, gradient[0].scalar_type());
    STD_TORCH_CHECK(given.size(0) == gradient[0].size(0), "the gradients of a metazoo kernel are of different numbers of tasks");
    int64_t size = 1;
    bool contiguous = true;
    for (int64_t d = given.dim() - 1; d >= 1; --d) {
      contiguous = contiguous && (given.size(d) == 1 || given.stride(d) == size);
      size *= given.size(d);
    }
    kept.push_back(contiguous ? given : torch::stable::contiguous(given));
    pieces.push_back({kept.back().const_data_ptr(), stride_of(kept.back(), 0), size});
  }
  return pieces;
}

Buffer buffer_of(const Tensor& params, const std::optional<Tensor>& t) {
  if (!t) return {nullptr, 0, 0};
  check_alike(params, *t, params.scalar_type());
  STD_TORCH_CHECK(t->dim() == 2, "a metazoo kernel takes (tasks, parameters)");
  for (int64_t d = 0; d < 2; ++d)
    STD_TORCH_CHECK(t->size(d) == 1 || t->size(d) == params.size(d), "the shapes of a metazoo kernel's arguments do not fit together");
  return {t->const_data_ptr(), stride_of(*t, 0), stride_of(*t, 1)};
}

void step(
    const Tensor& params, const std::vector<Tensor>& gradient, const std::optional<Tensor>& lr,
    const std::optional<Tensor>& velocity, const std::optional<Tensor>& scale, double factor, double momentum,
    double weight_decay, void* out, void* velocity_out) {
  STD_TORCH_CHECK(params.dim() == 2 && !gradient.empty(), "a metazoo kernel takes (tasks, parameters) and their gradient");
  check_alike(params, gradient[0], params.scalar_type());
  STD_TORCH_CHECK(gradient[0].size(0) == params.size(0), "the gradients of a metazoo kernel are of another number of tasks");
  std::vector<Tensor> kept;
  const std::vector<Piece> pieces = pieces_of(gradient, kept);
  int64_t size = 0;
  for (const Piece& piece : pieces) size += piece.size;
  STD_TORCH_CHECK(size == params.size(1), "the gradients of a metazoo kernel are not as many numbers as the parameters");
  std::optional<Tensor> scales;
  if (scale) {
    check_alike(params, *scale, sum_type(params));
    check_shape(*scale, {params.size(0)});
    scales = torch::stable::contiguous(*scale);
  }
  metazoo::sgd_update(
      place_of(params), type_of(params), buffer_of(params, params), pieces, buffer_of(params, lr), buffer_of(params, velocity),
      scales ? scales->const_data_ptr() : nullptr, out, velocity_out, Shape{params.size(0), params.size(1)},
      metazoo::Step{factor, momentum, weight_decay});
}

std::tuple<Tensor, Tensor> sgd_update(
    const Tensor& params, const std::vector<Tensor>& gradient, const std::optional<Tensor>& lr,
    const std::optional<Tensor>& velocity, const std::optional<Tensor>& scale, double factor, double momentum,
    double weight_decay) {
  STD_TORCH_CHECK(params.dim() == 2, "a metazoo kernel takes (tasks, parameters)");
  Tensor out = torch::stable::new_empty(params, {params.size(0), params.size(1)});
  Tensor velocity_out = torch::stable::new_empty(params, {velocity ? params.size(0) : 0, params.size(1)});
  step(
      params, gradient, lr, velocity, scale, factor, momentum, weight_decay, out.mutable_data_ptr(),
      velocity ? velocity_out.mutable_data_ptr() : nullptr);
  return {out, velocity_out};
}

void* in_place(const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), "a metazoo kernel changes only contiguous buffers");
  return t.mutable_data_ptr();
}

void sgd_update_(
    const Tensor& params, const std::vector<Tensor>& gradient, const std::optional<Tensor>& lr,
    const std::optional<Tensor>& velocity, const std::optional<Tensor>& scale, double factor, double momentum,
    double weight_decay) {
  step(
      params, gradient, lr, velocity, scale, factor, momentum, weight_decay, in_place(params),
      velocity ? in_place(*velocity) : nullptr);
}

Tensor square_norm(const std::vector<Tensor>& gradient) {
  STD_TORCH_CHECK(!gradient.empty(), "a metazoo kernel takes a gradient of at least one tensor");
  std::vector<Tensor> kept;
  const std::vector<Piece> pieces = pieces_of(gradient, kept);
  const int64_t tasks = gradient[0].size(0);
  Tensor out = torch::stable::new_empty(gradient[0], {tasks}, sum_type(gradient[0]));
  Tensor partials =
      torch::stable::new_empty(gradient[0], {tasks, metazoo::square_norm_partials(pieces)}, sum_type(gradient[0]));
  metazoo::square_norm(
      place_of(out), type_of(gradient[0]), pieces, partials.mutable_data_ptr(), out.mutable_data_ptr(), tasks);
  return out;
}

}  // namespace

#ifdef METAZOO_EMULATED
STABLE_TORCH_LIBRARY_IMPL(metazoo, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(metazoo, CUDA, m) {
#endif
  m.impl("sqdist", TORCH_BOX(&sqdist));
  m.impl("sqdist_backward", TORCH_BOX(&sqdist_backward));
  m.impl("prototypical_nll", TORCH_BOX(&prototypical_nll));
  m.impl("prototypical_nll_backward", TORCH_BOX(&prototypical_nll_backward));
  m.impl("sgd_update", TORCH_BOX(&sgd_update));
  m.impl("sgd_update_", TORCH_BOX(&sgd_update_));
  m.impl("square_norm", TORCH_BOX(&square_norm));
}
