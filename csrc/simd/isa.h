#pragma once

#include <cstdint>

namespace wfkernels {

// Instruction sets the kernels are compiled for. The numbers are those of CPU_ISA in wfkernels/env.py.
enum class Isa : int64_t { kBest = 0, kPortable = 1, kAvx2 = 2, kAvx512 = 3 };

// Says whether this machine runs code of an instruction set; kBest always does. In the header, because both extension
// modules ask.
inline bool runs(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
  return isa == Isa::kBest || isa == Isa::kPortable;
}

// The instruction set that kBest means here.
Isa best();

}  // namespace wfkernels
