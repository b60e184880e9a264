// The compiled implementations of wfkernels/residual_norm/ops.py on the CPU.

#include "residual_norm/residual_norm.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "attention/call.h"
#include "residual_norm/problem.h"
#include "simd/kernels.h"
#include "simd/memory.h"
#include "simd/parallel.h"

namespace wfkernels {

using attention::elements_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kScratchRows = 4;

NormProblem problem_of(
    const Tensor& like, const Tensor& weight, double dropout_p, const std::optional<Tensor>& seed, int64_t site) {
  NormProblem p{};
  p.rows = like.size(0);
  p.width = like.size(1);
  p.dropout_p = dropout_p;
  p.threshold = static_cast<uint64_t>(std::nearbyint(std::ldexp(dropout_p, 32)));
  p.seed = seed ? *static_cast<const int64_t*>(seed->const_data_ptr()) : 0;
  p.site = site;
  p.weight = weight.const_data_ptr();
  return p;
}

int64_t panels_of(const NormProblem& p) { return (p.rows + kNormRows - 1) / kNormRows; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_norm(
    Tensor x, Tensor residual, Tensor weight, Tensor bias, double eps, double dropout_p, std::optional<Tensor> seed,
    int64_t site, int64_t isa) {
  NormProblem p = problem_of(x, weight, dropout_p, seed, site);
  Tensor h = in_large_pages(torch::stable::empty_like(x)), y = in_large_pages(torch::stable::empty_like(x));
  Tensor mean = torch::stable::new_empty(weight, {p.rows}), rstd = torch::stable::new_empty(weight, {p.rows});
  p.eps = eps;
  p.x = elements_of(x);
  p.residual = elements_of(residual);
  p.h = elements_of(h);
  p.y = elements_of(y);
  p.mean = mean.mutable_data_ptr();
  p.rstd = rstd.mutable_data_ptr();
  p.bias = bias.const_data_ptr();
  const int64_t bytes = kScratchRows * weight.size(0) * static_cast<int64_t>(weight.element_size());
  const NormKernels& kernels =
      kernels_of(static_cast<Isa>(isa)).residual_norm[weight.scalar_type() == ScalarType::Double];
  for_each_free(panels_of(p), bytes, [&](int64_t panel, void* scratch) { kernels.forward(p, panel, scratch); });
  return {h, y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_norm_backward(
    std::optional<Tensor> grad_h, std::optional<Tensor> grad_y, Tensor h, Tensor mean, Tensor rstd, Tensor weight,
    double dropout_p, std::optional<Tensor> seed, int64_t site, int64_t isa) {
  NormProblem p = problem_of(h, weight, dropout_p, seed, site);
  const int64_t panels = panels_of(p), width = weight.size(0);
  Tensor grad_x = in_large_pages(torch::stable::empty_like(h));
  Tensor grad_residual = in_large_pages(torch::stable::empty_like(h));
  Tensor sums = torch::stable::new_empty(weight, {panels, 2, width});
  p.h = elements_of(h);
  if (grad_h) p.grad_h = elements_of(*grad_h);
  if (grad_y) p.grad_y = elements_of(*grad_y);
  p.grad_x = elements_of(grad_x);
  p.grad_residual = elements_of(grad_residual);
  p.mean = const_cast<void*>(mean.const_data_ptr());
  p.rstd = const_cast<void*>(rstd.const_data_ptr());
  p.sums = sums.mutable_data_ptr();
  const bool wide = weight.scalar_type() == ScalarType::Double;
  const NormKernels& kernels = kernels_of(static_cast<Isa>(isa)).residual_norm[wide];
  const int64_t bytes = kScratchRows * width * static_cast<int64_t>(weight.element_size());
  for_each_free(panels, bytes, [&](int64_t panel, void* scratch) { kernels.backward(p, panel, scratch); });

  const std::array<Tensor, 2> totals = {
      torch::stable::new_zeros(weight, {width}, ScalarType::Double),
      torch::stable::new_zeros(weight, {width}, ScalarType::Double)};
  for (int64_t kind = 0; kind < 2; ++kind) {
    double* total = static_cast<double*>(totals[kind].mutable_data_ptr());
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = (2 * panel + kind) * width;
      if (wide)
        for (int64_t j = 0; j < width; ++j) total[j] += static_cast<const double*>(p.sums)[first + j];
      else
        for (int64_t j = 0; j < width; ++j) total[j] += static_cast<const float*>(p.sums)[first + j];
    }
  }
  return {grad_x, grad_residual, totals[0], totals[1]};
}

}  // namespace wfkernels
