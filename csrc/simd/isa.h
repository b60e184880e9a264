#pragma once

#include <cstdint>

namespace wfkernels {

// Instruction sets the kernels are compiled for. The numbers are those of CPU_ISA in wfkernels/env.py.
enum class Isa : int64_t { kBest = 0, kPortable = 1, kAvx2 = 2, kAvx512 = 3 };

// Says whether this machine runs code of an instruction set; kBest always does.
bool runs(Isa isa);

// The instruction set that kBest means here.
Isa best();

}  // namespace wfkernels
