// The compiled implementation of wfkernels/linear/ops.py on the CPU.

#include "linear/linear.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "attention/call.h"
#include "linear/problem.h"
#include "simd/kernels.h"
#include "simd/memory.h"
#include "simd/parallel.h"

namespace wfkernels {

using attention::elements_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// Blocks to cut a call into, where it has the outputs for it: enough for many threads.
constexpr int64_t kWantedBlocks = 32;
constexpr int64_t kPackedInputs = 64;

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

std::vector<LinearBlock> blocks_of(const LinearProblem& p) {
  const int64_t panels = (p.rows + kPanelRows - 1) / kPanelRows;
  const int64_t parts = std::max<int64_t>(1, (kWantedBlocks + panels - 1) / std::max<int64_t>(1, panels));
  const int64_t columns = rounded_up((p.outputs + parts - 1) / parts, kBlockColumns);
  std::vector<LinearBlock> blocks;
  for (int64_t row = 0; row < p.rows; row += kPanelRows)
    for (int64_t column = 0; column < p.outputs; column += columns)
      blocks.push_back(
          {row, std::min(kPanelRows, p.rows - row), column, std::min(columns, p.outputs - column)});
  return blocks;
}

}  // namespace

Tensor linear(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t activation, int64_t isa) {
  LinearProblem p{};
  p.rows = x.size(0);
  p.inputs = x.size(1);
  p.outputs = weight.size(0);
  p.weight_output = weight.stride(0);
  p.weight_input = weight.stride(1);
  p.activation = static_cast<Activation>(activation);
  Tensor out = in_large_pages(torch::stable::new_empty(x, {p.rows, p.outputs}));
  Tensor packed = in_large_pages(torch::stable::new_empty(x, {rounded_up(p.outputs, kPad) * p.inputs}));
  p.x = elements_of(x);
  p.weight = elements_of(weight);
  if (bias) p.bias = elements_of(*bias);
  p.out = elements_of(out);
  p.packed = packed.mutable_data_ptr();
  const LinearKernels& kernels = kernels_of(static_cast<Isa>(isa)).linear[x.scalar_type() == ScalarType::Double];
  for_each_free((p.inputs + kPackedInputs - 1) / kPackedInputs, 0, [&](int64_t i, void*) {
    kernels.pack(p, i * kPackedInputs, std::min(kPackedInputs, p.inputs - i * kPackedInputs));
  });
  const std::vector<LinearBlock> blocks = blocks_of(p);
  const int64_t bytes = kPanelRows * (kBlockColumns + p.inputs + kPad) * static_cast<int64_t>(x.element_size());
  for_each_free(static_cast<int64_t>(blocks.size()), bytes, [&](int64_t i, void* scratch) {
    kernels.forward(p, blocks[i], scratch);
  });
  return out;
}

}  // namespace wfkernels
