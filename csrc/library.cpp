// Registration only: schemas, fakes and gradients are Python's, so that they exist without compiled parts.

#include <torch/csrc/stable/library.h>

#include "attention/attention.h"
#include "rows/rows.h"
#include "simd/isa.h"

namespace {

// Takes a tensor because an implementation is found by its arguments' device.
bool runs_isa(int64_t isa, torch::stable::Tensor) { return wfkernels::runs(static_cast<wfkernels::Isa>(isa)); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wfkernels_cpp, CPU, library) {
  library.impl("runs_isa", TORCH_BOX(&runs_isa));
  library.impl("rows_pack", TORCH_BOX(&wfkernels::rows_pack));
  library.impl("attention_forward", TORCH_BOX(&wfkernels::attention_forward));
  library.impl("attention_backward", TORCH_BOX(&wfkernels::attention_backward));
}
