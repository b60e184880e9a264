#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace wfkernels {

// wfkernels/projection/reference.py defines the results. All but tokens, rows, base, prior and weights is in the dtype of
// the sums; all but the weights is contiguous. `output` is an Output, `isa` an Isa.
torch::stable::Tensor projection(  // [groups, numel]
    torch::stable::Tensor tokens, std::vector<torch::stable::Tensor> weights, torch::stable::Tensor biases,
    torch::stable::Tensor strength, torch::stable::Tensor shift, torch::stable::Tensor scale,
    std::optional<torch::stable::Tensor> rows, std::optional<torch::stable::Tensor> base,
    std::optional<torch::stable::Tensor> prior, std::optional<torch::stable::Tensor> blend,
    std::optional<torch::stable::Tensor> gate_weight, std::optional<torch::stable::Tensor> gate_bias,
    std::vector<int64_t> row_counts, std::vector<int64_t> parameter_widths, std::vector<int64_t> parameter_counts,
    std::vector<int64_t> projections, std::vector<int64_t> teachers, bool read_mean, int64_t output, int64_t isa,
    torch::headeronly::ScalarType dtype);

// The gradients of tokens, strength, prior, blend, gate_weight, gate_bias, shift, scale, rows, base, of all biases and of
// every weight. Those of tokens, prior, rows, base and weights are in the dtypes of these, the others in float64 and padded
// as they came. shift, scale, rows and base have 0 elements unless `inputs`, as has all that was not given.
std::vector<torch::stable::Tensor> projection_backward(
    torch::stable::Tensor grad,  // [groups, numel]
    torch::stable::Tensor tokens, std::vector<torch::stable::Tensor> weights, torch::stable::Tensor biases,
    torch::stable::Tensor strength, torch::stable::Tensor shift, torch::stable::Tensor scale,
    std::optional<torch::stable::Tensor> rows, std::optional<torch::stable::Tensor> base,
    std::optional<torch::stable::Tensor> prior, std::optional<torch::stable::Tensor> blend,
    std::optional<torch::stable::Tensor> gate_weight, std::optional<torch::stable::Tensor> gate_bias,
    std::vector<int64_t> row_counts, std::vector<int64_t> parameter_widths, std::vector<int64_t> parameter_counts,
    std::vector<int64_t> projections, std::vector<int64_t> teachers, bool read_mean, int64_t output, int64_t isa,
    bool inputs);

}  // namespace wfkernels
