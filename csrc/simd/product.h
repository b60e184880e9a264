// Small matrix products on tiles that lie in the caches. Included once for each instruction set (see variant.h), inside
// its namespace.
//
// A register tile is kTall rows times two vectors: its sums stay in registers while the depth is walked, every step loads
// two vectors of b and broadcasts kTall numbers of a. a may lie in any order, so that no product needs a transposed copy
// of it.

// 8 x 2 of 32 registers with AVX-512, measured as fast as 12 x 2 and 8 x 3; 6 x 2 of 16 registers.
constexpr int kTall = kVectorBytes == 64 ? 8 : 6;

template <typename T, int kRows, int kVectors, bool kAdd>
WFKERNELS_INLINE void register_tile(
    int64_t depth,
    const T* a,  // a[m * a_row + k * a_depth]
    int64_t a_row,
    int64_t a_depth,
    const T* b,  // b[k * b_depth + n], n contiguous
    int64_t b_depth,
    T* c,  // c[m * c_row + n], n contiguous
    int64_t c_row) {
  Vector<T> sums[kRows][kVectors];
  WFKERNELS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    WFKERNELS_UNROLL
    for (int j = 0; j < kVectors; ++j) sums[i][j] = kAdd ? load(c + i * c_row + j * kLanes<T>) : Vector<T>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> columns[kVectors];
    WFKERNELS_UNROLL
    for (int j = 0; j < kVectors; ++j) columns[j] = load(b + k * b_depth + j * kLanes<T>);
    WFKERNELS_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vector<T> row = broadcast(a[i * a_row + k * a_depth]);
      WFKERNELS_UNROLL
      for (int j = 0; j < kVectors; ++j) sums[i][j] += row * columns[j];
    }
  }
  WFKERNELS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    WFKERNELS_UNROLL
    for (int j = 0; j < kVectors; ++j) store(c + i * c_row + j * kLanes<T>, sums[i][j]);
  }
}

template <typename T, int kVectors, bool kAdd>
WFKERNELS_INLINE void column_panel(
    int64_t rows,
    int64_t depth,
    const T* a,
    int64_t a_row,
    int64_t a_depth,
    const T* b,
    int64_t b_depth,
    T* c,
    int64_t c_row) {
  int64_t i = 0;
  for (; i + kTall <= rows; i += kTall)
    register_tile<T, kTall, kVectors, kAdd>(depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row);
  for (; i + 2 <= rows; i += 2)
    register_tile<T, 2, kVectors, kAdd>(depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row);
  if (i < rows)
    register_tile<T, 1, kVectors, kAdd>(depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row);
}

// c[m, n] = sum_k a[m, k] b[k, n], added to what is there with kAdd. `columns` is a multiple of the lanes.
template <typename T, bool kAdd>
void product(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const T* a,
    int64_t a_row,
    int64_t a_depth,
    const T* b,
    int64_t b_depth,
    T* c,
    int64_t c_row) {
  constexpr int64_t kLane = kLanes<T>;
  int64_t j = 0;
  for (; j + 2 * kLane <= columns; j += 2 * kLane)
    column_panel<T, 2, kAdd>(rows, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row);
  if (j < columns) column_panel<T, 1, kAdd>(rows, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row);
}
