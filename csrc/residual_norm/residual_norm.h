#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace wfkernels {

// wfkernels/residual_norm/reference.py defines the results. Everything is contiguous; weight and bias are in the dtype of
// the sums, with zeros up to a multiple of kPad. `isa` is an Isa.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> residual_norm(
    torch::stable::Tensor x,  // [rows, d]
    torch::stable::Tensor residual,  // [rows, d]
    torch::stable::Tensor weight,  // [padded d]
    torch::stable::Tensor bias,  // [padded d]
    double eps, double dropout_p, std::optional<torch::stable::Tensor> seed, int64_t site, int64_t isa);

// The gradients of x and residual, and of weight and bias as float64 [padded d]. Not both gradients are absent.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
residual_norm_backward(
    std::optional<torch::stable::Tensor> grad_h,  // [rows, d]
    std::optional<torch::stable::Tensor> grad_y,  // [rows, d]
    torch::stable::Tensor h,  // [rows, d]
    torch::stable::Tensor mean,  // [rows]
    torch::stable::Tensor rstd,  // [rows]
    torch::stable::Tensor weight,  // [padded d]
    double dropout_p, std::optional<torch::stable::Tensor> seed, int64_t site, int64_t isa);

}  // namespace wfkernels
