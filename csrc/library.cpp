// Registration only: schemas, fakes and gradients are Python's, so that they exist without compiled parts.

#include <torch/csrc/stable/library.h>

#include "rows/rows.h"

STABLE_TORCH_LIBRARY_IMPL(wfkernels_cpp, CPU, library) {
  library.impl("rows_pack", TORCH_BOX(&wfkernels::rows_pack));
}
