// The compiled implementations of wfkernels/attention/ops.py on the CPU.

#include "attention/call.h"

namespace wfkernels {

using attention::Call;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> attention_forward(
    Tensor query, Tensor key, Tensor value,
    OptionalTensor bias, OptionalTensor bias_lookup, OptionalTensor bias_group, OptionalTensor bias_segment,
    OptionalTensor bias_position, bool bias_diagonal_open,
    OptionalTensor gate, OptionalTensor gate_lookup, OptionalTensor gate_group, OptionalTensor gate_segment,
    OptionalTensor gate_position, bool gate_diagonal_open,
    OptionalTensor offsets, OptionalTensor key_offsets, OptionalTensor query_start, OptionalTensor seed,
    bool is_causal, double scale, double dropout_p, int64_t site, int64_t isa) {
  Call call(
      query, key, value, {bias, bias_lookup, bias_group, bias_segment, bias_position, bias_diagonal_open},
      {gate, gate_lookup, gate_group, gate_segment, gate_position, gate_diagonal_open},
      {offsets, key_offsets, query_start}, {is_causal, scale, dropout_p, seed, site, static_cast<Isa>(isa)});
  return call.forward();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_out, OptionalTensor grad_lse, int64_t needs, Tensor query, Tensor key, Tensor value, Tensor out,
    Tensor lse,
    OptionalTensor bias, OptionalTensor bias_lookup, OptionalTensor bias_group, OptionalTensor bias_segment,
    OptionalTensor bias_position, bool bias_diagonal_open,
    OptionalTensor gate, OptionalTensor gate_lookup, OptionalTensor gate_group, OptionalTensor gate_segment,
    OptionalTensor gate_position, bool gate_diagonal_open,
    OptionalTensor offsets, OptionalTensor key_offsets, OptionalTensor query_start, OptionalTensor seed,
    bool is_causal, double scale, double dropout_p, int64_t site, int64_t isa) {
  Call call(
      query, key, value, {bias, bias_lookup, bias_group, bias_segment, bias_position, bias_diagonal_open},
      {gate, gate_lookup, gate_group, gate_segment, gate_position, gate_diagonal_open},
      {offsets, key_offsets, query_start}, {is_causal, scale, dropout_p, seed, site, static_cast<Isa>(isa)});
  return call.backward(grad_out, grad_lse, needs, out, lse);
}

}  // namespace wfkernels
