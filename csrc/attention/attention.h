#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace wfkernels {

using OptionalTensor = std::optional<torch::stable::Tensor>;

// wfkernels/attention/reference.py defines the results. Dense calls have query, key and value [..., H, S, D] with equal
// leading dimensions, ragged ones [tokens, H, D] and offsets; integers are int64. `isa` is an Isa.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> attention_forward(
    torch::stable::Tensor query, torch::stable::Tensor key, torch::stable::Tensor value,
    OptionalTensor bias, OptionalTensor bias_lookup, OptionalTensor bias_group, OptionalTensor bias_segment,
    OptionalTensor bias_position, bool bias_diagonal_open,
    OptionalTensor gate, OptionalTensor gate_lookup, OptionalTensor gate_group, OptionalTensor gate_segment,
    OptionalTensor gate_position, bool gate_diagonal_open,
    OptionalTensor offsets, OptionalTensor key_offsets, OptionalTensor query_start, OptionalTensor seed,
    bool is_causal, double scale, double dropout_p, int64_t site, int64_t isa);

// Gradients of query, key, value, bias and gate; 0 elements where the bit of `needs` (1, 2, 4, 8, 16) is not set.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
           torch::stable::Tensor>
attention_backward(
    torch::stable::Tensor grad_out, OptionalTensor grad_lse, int64_t needs,
    torch::stable::Tensor query, torch::stable::Tensor key, torch::stable::Tensor value,
    torch::stable::Tensor out, torch::stable::Tensor lse,
    OptionalTensor bias, OptionalTensor bias_lookup, OptionalTensor bias_group, OptionalTensor bias_segment,
    OptionalTensor bias_position, bool bias_diagonal_open,
    OptionalTensor gate, OptionalTensor gate_lookup, OptionalTensor gate_group, OptionalTensor gate_segment,
    OptionalTensor gate_position, bool gate_diagonal_open,
    OptionalTensor offsets, OptionalTensor key_offsets, OptionalTensor query_start, OptionalTensor seed,
    bool is_causal, double scale, double dropout_p, int64_t site, int64_t isa);

}  // namespace wfkernels
