#include "isa.h"

#include "kernels.h"

namespace wfkernels {

Isa best() {
  static const Isa found = runs(Isa::kAvx512) ? Isa::kAvx512 : runs(Isa::kAvx2) ? Isa::kAvx2 : Isa::kPortable;
  return found;
}

const Kernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  const Isa chosen = isa == Isa::kBest ? best() : isa;
  if (chosen == Isa::kAvx512) return avx512::kernels;
  if (chosen == Isa::kAvx2) return avx2::kernels;
#endif
  return portable::kernels;
}

}  // namespace wfkernels
