#pragma once

// One linear call in plain numbers and pointers: what the kernels of every instruction set read.

#include <cstdint>

#include "attention/problem.h"
#include "embedding/problem.h"

namespace wfkernels {

// Tensors are in the kernels' own type, and contiguous but for the weight.
struct LinearProblem {
  int64_t rows, inputs, outputs;
  int64_t weight_output, weight_input;  // strides
  Activation activation;  // of the inputs
  Elements x, weight, bias, out;  // [rows, inputs], [outputs, inputs], [outputs] or null, [rows, outputs]
  void* packed;  // the weight as slivers
};

// Some rows and outputs.
struct LinearBlock {
  int64_t row, rows, column, columns;
};

struct LinearKernels {
  void (*pack)(const LinearProblem&, int64_t first_input, int64_t count);
  void (*forward)(const LinearProblem&, const LinearBlock&, void* scratch);
};

}  // namespace wfkernels
