#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace wfkernels {

// Writes the rows of all teachers into one layer-major buffer; wfkernels/rows/reference.py defines the result.
torch::stable::Tensor rows_pack(  // [teachers * sum_l rows[l] * stride[l]]
    const std::vector<torch::stable::Tensor>& tensors,  // [teachers * parameters], teacher by teacher, any strides
    const std::vector<int64_t>& rows,  // [layers]
    const std::vector<int64_t>& parameters,  // [layers], how many parameters stand side by side in a row
    const std::vector<int64_t>& widths,  // [parameters]
    torch::headeronly::ScalarType dtype);

}  // namespace wfkernels
