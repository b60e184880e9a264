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

// Takes the gradients of the tensors that need one out of that of the buffer, bit by bit.
std::vector<torch::stable::Tensor> rows_pack_backward(  // of every tensor [n, width], or [0] where it is not needed
    torch::stable::Tensor grad,  // [teachers * sum_l rows[l] * stride[l]], contiguous
    int64_t teachers, const std::vector<int64_t>& rows, const std::vector<int64_t>& parameters,
    const std::vector<int64_t>& widths,
    const std::vector<int64_t>& needed);  // [teachers * parameters], 0 or 1

}  // namespace wfkernels
