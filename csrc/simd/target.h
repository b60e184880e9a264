#pragma once

// The macros of code that is compiled once for each instruction set.
//
// Code for a larger instruction set must not leak into functions that other files share: the linker keeps one copy of an
// inline function, and it may be this one. So standard headers are included before the target is set, and the kernels use
// no functions of the standard library that are templates. tests/simd/test_leaks.py looks for it in what was built.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

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
