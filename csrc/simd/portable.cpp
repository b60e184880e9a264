// What every machine runs: 16 bytes are a register of x86-64's baseline and of 64-bit Arm.
#define WFKERNELS_ISA portable
#define WFKERNELS_VECTOR_BYTES 16
#include "simd/variant.h"
