#if defined(__x86_64__)
#define WFKERNELS_ISA avx512
#define WFKERNELS_VECTOR_BYTES 64
#define WFKERNELS_TARGET "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"
#include "simd/variant.h"
#endif
