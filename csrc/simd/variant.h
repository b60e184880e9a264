// The kernels of every room, compiled for one instruction set. avx512.cpp, avx2.cpp and portable.cpp include this once
// each, with WFKERNELS_ISA (a namespace), WFKERNELS_VECTOR_BYTES and WFKERNELS_TARGET set.
//
// Code for a larger instruction set must not leak into functions that other files share: the linker keeps one copy of an
// inline function, and it may be this one. So standard headers are included before the target is set, and the kernels use
// no templates of the standard library.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention/problem.h"
#include "simd/kernels.h"

#define WFKERNELS_INLINE inline __attribute__((always_inline))
#define WFKERNELS_FUNCTION static
#define WFKERNELS_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define WFKERNELS_UNROLL _Pragma("clang loop unroll(full)")
#define WFKERNELS_TARGET_BEGIN(isa) \
  WFKERNELS_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define WFKERNELS_TARGET_END _Pragma("clang attribute pop")
#else
#define WFKERNELS_UNROLL _Pragma("GCC unroll 32")
#define WFKERNELS_TARGET_BEGIN(isa) _Pragma("GCC push_options") WFKERNELS_PRAGMA(GCC target(isa))
#define WFKERNELS_TARGET_END _Pragma("GCC pop_options")
#endif

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

extern const Kernels kernels = {
    {pack<float>, pack<double>},
    {forward_item<float>, forward_item<double>},
    {backward_item<float>, backward_item<double>},
    {finish_keys<float>, finish_keys<double>},
};

}  // namespace wfkernels::WFKERNELS_ISA

#ifdef WFKERNELS_TARGET
WFKERNELS_TARGET_END
#endif
