#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace wfkernels {

// wfkernels/linear/reference.py defines the result. Everything is of one dtype, float32 or float64, and contiguous but for
// the weight; `activation` is an Activation, `isa` an Isa.
torch::stable::Tensor linear(
    torch::stable::Tensor x,  // [rows, inputs]
    torch::stable::Tensor weight,  // [outputs, inputs]
    std::optional<torch::stable::Tensor> bias,  // [outputs]
    int64_t activation, int64_t isa);

}  // namespace wfkernels
