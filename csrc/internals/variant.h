// The pieces of one instruction set. pieces.cpp includes this once for each, with WFKERNELS_ISA (a namespace),
// WFKERNELS_VECTOR_BYTES and WFKERNELS_TARGET set; all are unset again at the end.

#ifdef WFKERNELS_TARGET
WFKERNELS_TARGET_BEGIN(WFKERNELS_TARGET)
#endif

namespace wfkernels::WFKERNELS_ISA {

#include "simd/vector.h"
#include "simd/exponential.h"
#include "simd/product.h"
#include "simd/philox.h"

template <typename T>
void exponentials(int64_t count, const T* from, T* to) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(to + i, exponential<T>(load(from + i)));
}

extern const Pieces pieces = {
    kVectorBytes,
    {exponentials<float>, {product<float, false>, product<float, true>}},
    {exponentials<double>, {product<double, false>, product<double, true>}},
    keep_row,
};

}  // namespace wfkernels::WFKERNELS_ISA

#ifdef WFKERNELS_TARGET
WFKERNELS_TARGET_END
#undef WFKERNELS_TARGET
#endif
#undef WFKERNELS_ISA
#undef WFKERNELS_VECTOR_BYTES
