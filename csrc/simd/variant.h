// The kernels of every room, compiled for one instruction set. avx512.cpp, avx2.cpp and portable.cpp include this once
// each, with WFKERNELS_ISA (a namespace), WFKERNELS_VECTOR_BYTES and WFKERNELS_TARGET set.

#include "attention/problem.h"
#include "simd/kernels.h"
#include "simd/target.h"

#ifdef WFKERNELS_TARGET
WFKERNELS_TARGET_BEGIN(WFKERNELS_TARGET)
#endif

namespace wfkernels::WFKERNELS_ISA {

#include "simd/vector.h"
#include "simd/exponential.h"
#include "simd/product.h"
#include "simd/philox.h"

#include "attention/tile.h"
#include "attention/forward.h"
#include "attention/backward.h"

#include "simd/gemm.h"
#include "residual_norm/kernel.h"
#include "embedding/activation.h"
#include "embedding/forward.h"
#include "embedding/backward.h"
#include "linear/kernel.h"
#include "projection/forward.h"
#include "projection/backward.h"

extern const Kernels kernels = {
    {pack<float>, pack<double>},
    {look_at_rows<float>, look_at_rows<double>},
    {forward_item<float>, forward_item<double>},
    {backward_item<float>, backward_item<double>},
    {finish_keys<float>, finish_keys<double>},
    {kNormKernels<float>, kNormKernels<double>},
    {kEmbeddingKernels<float>, kEmbeddingKernels<double>},
    {{pack_linear<float>, linear_forward<float>}, {pack_linear<double>, linear_forward<double>}},
    {kProjectionKernels<float>, kProjectionKernels<double>},
};

}  // namespace wfkernels::WFKERNELS_ISA

#ifdef WFKERNELS_TARGET
WFKERNELS_TARGET_END
#endif
