#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace wfkernels {

// wfkernels/embedding/reference.py defines the results. All but rows, base and weights is in the dtype of the sums, codes
// with zeros up to a multiple of kPad columns; all but the weights is contiguous. `activation` is an Activation, `isa` an
// Isa.
torch::stable::Tensor embedding(  // [tokens, d]
    torch::stable::Tensor rows, std::vector<torch::stable::Tensor> weights, torch::stable::Tensor biases,
    std::optional<torch::stable::Tensor> base, torch::stable::Tensor shift, torch::stable::Tensor scale,
    torch::stable::Tensor position, std::optional<torch::stable::Tensor> teacher,
    std::optional<torch::stable::Tensor> layer, std::optional<torch::stable::Tensor> cross,
    torch::stable::Tensor gamma, torch::stable::Tensor beta, std::vector<int64_t> row_counts,
    std::vector<int64_t> widths, std::vector<int64_t> projections, std::vector<int64_t> positions,
    std::vector<int64_t> teachers, int64_t activation, double eps, int64_t width, int64_t isa,
    torch::headeronly::ScalarType dtype);

// The gradients of rows and base, in their dtypes; of shift, scale, biases, position, teacher, layer, cross, gamma and
// beta, in float64 or the dtype of the sums and padded as they came; then of every weight, contiguous. The first four have
// 0 elements unless `inputs`, all of what was not given.
std::vector<torch::stable::Tensor> embedding_backward(
    torch::stable::Tensor grad,  // [tokens, d]
    torch::stable::Tensor rows, std::vector<torch::stable::Tensor> weights, torch::stable::Tensor biases,
    std::optional<torch::stable::Tensor> base, torch::stable::Tensor shift, torch::stable::Tensor scale,
    torch::stable::Tensor position, std::optional<torch::stable::Tensor> teacher,
    std::optional<torch::stable::Tensor> layer, std::optional<torch::stable::Tensor> cross,
    torch::stable::Tensor gamma, torch::stable::Tensor beta, std::vector<int64_t> row_counts,
    std::vector<int64_t> widths, std::vector<int64_t> projections, std::vector<int64_t> positions,
    std::vector<int64_t> teachers, int64_t activation, double eps, int64_t width, int64_t isa, bool inputs);

}  // namespace wfkernels
