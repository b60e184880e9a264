#include "internals/pieces.h"

#include "simd/target.h"

#define WFKERNELS_ISA portable
#define WFKERNELS_VECTOR_BYTES 16
#include "internals/variant.h"

#if defined(__x86_64__)
#define WFKERNELS_ISA avx2
#define WFKERNELS_VECTOR_BYTES 32
#define WFKERNELS_TARGET "avx2,fma"
#include "internals/variant.h"

#define WFKERNELS_ISA avx512
#define WFKERNELS_VECTOR_BYTES 64
#define WFKERNELS_TARGET "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"
#include "internals/variant.h"
#endif
