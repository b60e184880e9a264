// Products with a matrix that is packed into slivers as wide as a register tile. Included once for each instruction set
// (see variant.h), inside its namespace.
//
// A sliver holds two vectors of columns, [depth][2 vectors], the last one a single vector where there are no more; columns
// are padded to a multiple of kPad. A block of kDepth rows of a sliver stays in the caches while the rows of a pass by.

template <typename T>
constexpr int64_t kSliver = 2 * kLanes<T>;

// How wide the sliver is that begins at a column.
template <typename T>
WFKERNELS_INLINE int64_t sliver_width(int64_t columns, int64_t column) {
  return columns - column < kSliver<T> ? columns - column : kSliver<T>;
}

// A register tile whose sum begins at zero and is added to c only then. Sums of thousands of terms are several times more
// exact so than in one chain.
template <typename T, int kRows, int kVectors, bool kAdd>
WFKERNELS_INLINE void fresh_tile(
    int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, T* c, int64_t c_row) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  if (!kAdd) return register_tile<T, kRows, kVectors, false>(depth, a, a_row, a_depth, b, kWidth, c, c_row);
  T sums[kRows * kWidth];
  register_tile<T, kRows, kVectors, false>(depth, a, a_row, a_depth, b, kWidth, sums, kWidth);
  for (int i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < kWidth; j += kLanes<T>)
      store(c + i * c_row + j, load(c + i * c_row + j) + load(sums + i * kWidth + j));
}

template <typename T, int kVectors, bool kAdd>
WFKERNELS_INLINE void sliver_product(
    int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, T* c, int64_t c_row) {
  int64_t i = 0;
  for (; i + kTall <= rows; i += kTall)
    fresh_tile<T, kTall, kVectors, kAdd>(depth, a + i * a_row, a_row, a_depth, b, c + i * c_row, c_row);
  for (; i + 4 <= rows; i += 4)
    fresh_tile<T, 4, kVectors, kAdd>(depth, a + i * a_row, a_row, a_depth, b, c + i * c_row, c_row);
  for (; i < rows; ++i) fresh_tile<T, 1, kVectors, kAdd>(depth, a + i * a_row, a_row, a_depth, b, c + i * c_row, c_row);
}

// c[m, n] = sum over `depth` k from `first` on of a[m, k - first] b[k, n], added to what is there with kAdd. b is packed,
// `whole` rows deep; `columns` is a multiple of the lanes.
template <typename T, bool kAdd>
WFKERNELS_FUNCTION void packed_product(
    int64_t rows, int64_t columns, int64_t first, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b,
    int64_t whole, T* c, int64_t c_row) {
  for (int64_t j = 0; j < columns; j += kSliver<T>) {
    const int64_t width = sliver_width<T>(columns, j);
    const T* sliver = b + j * whole + first * width;
    if (width == kSliver<T>)
      sliver_product<T, 2, kAdd>(rows, depth, a, a_row, a_depth, sliver, c + j, c_row);
    else
      sliver_product<T, 1, kAdd>(rows, depth, a, a_row, a_depth, sliver, c + j, c_row);
  }
}

// Returns elements where they lie, if they are of the kernels' own type, else in `scratch`.
template <typename T>
WFKERNELS_INLINE const T* in_place_or(const Elements& from, int64_t first, int64_t count, T* scratch) {
  if (from.type == kOwn<T>) return reinterpret_cast<const T*>(from.data) + first;
  read(from, first, 1, count, scratch);
  return scratch;
}

// The same for whole vectors, with zeros behind the elements.
template <typename T>
WFKERNELS_INLINE const T* padded_row(const Elements& from, int64_t first, int64_t count, T* scratch) {
  if (count % kLanes<T> == 0) return in_place_or(from, first, count, scratch);
  read(from, first, 1, count, scratch);
  for (int64_t j = count; j < padded(count); ++j) scratch[j] = T(0);
  return scratch;
}

// Where to put elements in whole vectors: their place, or `scratch`, from which `written` brings them there.
template <typename T>
WFKERNELS_INLINE T* place_or(const Elements& to, int64_t first, int64_t count, T* scratch) {
  return to.type == kOwn<T> && count % kLanes<T> == 0 ? reinterpret_cast<T*>(to.data) + first : scratch;
}

template <typename T>
WFKERNELS_INLINE void written(const T* from, int64_t count, const Elements& to, int64_t first) {
  if (to.type != kOwn<T> || reinterpret_cast<const T*>(to.data) + first != from) write(from, count, to, first);
}

// Writes rows [first, first + count) of a matrix, `whole` rows deep, into its slivers: zeros behind the columns. Element
// (k, n) stands at place + k * row + n * column.
template <typename T>
WFKERNELS_FUNCTION void pack_slivers(
    const Elements& from, int64_t place, int64_t row, int64_t column, int64_t first, int64_t count, int64_t whole,
    int64_t columns, T* to) {
  constexpr int64_t kTogether = 16;
  T line[kTogether];
  const int64_t all = padded(columns);
  // What lies side by side is read together, in squares where there are some.
  if (row == 1 && column != 1) {
    const int64_t whole_columns = from.type == kOwn<T> ? columns / kLanes<T> * kLanes<T> : 0;
    const int64_t squared = first + count / kLanes<T> * kLanes<T>;
    for (int64_t j = 0; j < whole_columns; j += kLanes<T>) {
      const int64_t start = j / kSliver<T> * kSliver<T>, width = sliver_width<T>(all, start);
      const T* source = reinterpret_cast<const T*>(from.data) + place + j * column;
      T* target = to + start * whole + j - start;
      for (int64_t k = first; k < squared; k += kLanes<T>)
        transpose_square(source + k, column, kLanes<T>, target + k * width, width);
    }
    for (int64_t j = 0; j < all; ++j) {
      const int64_t start = j / kSliver<T> * kSliver<T>, width = sliver_width<T>(all, start);
      T* target = to + start * whole + j - start;
      for (int64_t k = j < whole_columns ? squared : first; k < first + count; k += kTogether) {
        const int64_t together = smaller(kTogether, first + count - k);
        if (j < columns)
          read(from, place + k + j * column, 1, together, line);
        else
          memset(line, 0, sizeof(line));
        for (int64_t i = 0; i < together; ++i) target[(k + i) * width] = line[i];
      }
    }
    return;
  }
  for (int64_t k = first; k < first + count; ++k) {
    for (int64_t j = 0; j < all; j += kSliver<T>) {
      const int64_t width = sliver_width<T>(all, j), have = larger(0, smaller(width, columns - j));
      T* target = to + j * whole + k * width;
      read(from, place + k * row + j * column, column, have, target);
      for (int64_t i = have; i < width; ++i) target[i] = T(0);
    }
  }
}

// Adds a row to sums; both are padded.
template <typename T>
WFKERNELS_INLINE void add_row(const T* row, int64_t width, T* sums) {
  for (int64_t j = 0; j < width; j += kLanes<T>) store(sums + j, load(sums + j) + load(row + j));
}
