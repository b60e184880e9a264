#pragma once

// The inner pieces of the kernels of one instruction set as functions of plain arrays, one by one.

#include <cstdint>

namespace wfkernels {

template <typename T>
struct FloatPieces {
  // count is a multiple of the lanes.
  void (*exponential)(int64_t count, const T* from, T* to);
  // As `product` of simd/product.h: stored, and added.
  void (*product[2])(
      int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b,
      int64_t b_depth, T* c, int64_t c_row);
};

struct Pieces {
  int64_t vector_bytes;
  FloatPieces<float> of_float;
  FloatPieces<double> of_double;
  // As `keep_row` of simd/philox.h.
  void (*keep_row)(
      uint64_t seed, int64_t site, uint32_t sequence, uint32_t head, uint32_t row, int64_t column, int64_t count,
      uint64_t threshold, uint8_t* keep);
};

namespace portable {
extern const Pieces pieces;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Pieces pieces;
}
namespace avx512 {
extern const Pieces pieces;
}
#endif

}  // namespace wfkernels
