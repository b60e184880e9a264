// Registration only: schemas, fakes and gradients are Python's, so that they exist without compiled parts.

#include <torch/csrc/stable/library.h>

#include "attention/attention.h"
#include "embedding/embedding.h"
#include "linear/linear.h"
#include "projection/projection.h"
#include "residual_norm/residual_norm.h"
#include "rows/rows.h"
#include "simd/isa.h"

namespace {

// Takes a tensor because an implementation is found by its arguments' device.
bool runs_isa(int64_t isa, torch::stable::Tensor) { return wfkernels::runs(static_cast<wfkernels::Isa>(isa)); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wfkernels_cpp, CPU, library) {
  library.impl("runs_isa", TORCH_BOX(&runs_isa));
  library.impl("rows_pack", TORCH_BOX(&wfkernels::rows_pack));
  library.impl("rows_pack_backward", TORCH_BOX(&wfkernels::rows_pack_backward));
  library.impl("embedding", TORCH_BOX(&wfkernels::embedding));
  library.impl("embedding_backward", TORCH_BOX(&wfkernels::embedding_backward));
  library.impl("attention_forward", TORCH_BOX(&wfkernels::attention_forward));
  library.impl("attention_backward", TORCH_BOX(&wfkernels::attention_backward));
  library.impl("residual_norm", TORCH_BOX(&wfkernels::residual_norm));
  library.impl("residual_norm_backward", TORCH_BOX(&wfkernels::residual_norm_backward));
  library.impl("linear", TORCH_BOX(&wfkernels::linear));
  library.impl("projection", TORCH_BOX(&wfkernels::projection));
  library.impl("projection_backward", TORCH_BOX(&wfkernels::projection_backward));
}
