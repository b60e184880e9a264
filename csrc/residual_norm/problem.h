#pragma once

// One residual_norm call in plain numbers and pointers: what the kernels of every instruction set read.

#include <cstdint>

#include "attention/problem.h"

namespace wfkernels {

// Tensors are contiguous [rows, width]; those behind a void pointer are of the kernels' own type.
struct NormProblem {
  int64_t rows, width;
  double eps;
  double dropout_p;
  uint64_t threshold;  // an element is kept where its random word is at least this
  int64_t seed, site;
  Elements x, residual, h, y;
  Elements grad_h, grad_y, grad_x, grad_residual;  // of the first two the data may be null
  void *mean, *rstd;  // [rows]
  const void *weight, *bias;  // [padded width], zeros behind the width
  void* sums;  // [panels, 2, padded width]: gradients of weight and bias, panel by panel
};

struct NormKernels {
  // Rows from panel * kNormRows on.
  void (*forward)(const NormProblem&, int64_t panel, void* scratch);
  void (*backward)(const NormProblem&, int64_t panel, void* scratch);
};

constexpr int64_t kNormRows = 64;

}  // namespace wfkernels
