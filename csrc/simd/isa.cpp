#include "isa.h"

#include "kernels.h"

namespace wfkernels {

#if defined(__x86_64__)
bool runs(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (isa) {
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    case Isa::kAvx2:
      return avx2;
    default:
      return true;
  }
}
#else
bool runs(Isa isa) { return isa == Isa::kBest || isa == Isa::kPortable; }
#endif

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
