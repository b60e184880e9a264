#if defined(__x86_64__)
#define WFKERNELS_ISA avx2
#define WFKERNELS_VECTOR_BYTES 32
#define WFKERNELS_TARGET "avx2,fma"
#include "simd/variant.h"
#endif
