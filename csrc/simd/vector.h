// Vectors as wide as the registers of one instruction set. Included once for each (see variant.h), inside its namespace:
// no include guard, no include of its own.

constexpr int64_t kVectorBytes = WFKERNELS_VECTOR_BYTES;

template <typename T>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(float)), may_alias));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(double)), may_alias));
  typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
using Integers = typename VectorOf<T>::Integers;
template <typename T>
using Bits = typename VectorOf<T>::Bits;

template <typename T>
constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(T));

template <typename T>
WFKERNELS_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(from);
}

template <typename T>
WFKERNELS_INLINE void store(T* to, Vector<T> value) {
  *reinterpret_cast<typename VectorOf<T>::Unaligned*>(to) = value;
}

template <typename T>
WFKERNELS_INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// 0, 1, 2, ...
template <typename T>
WFKERNELS_INLINE Integers<T> lane_numbers() {
  Integers<T> numbers;
  WFKERNELS_UNROLL
  for (int64_t i = 0; i < kLanes<T>; ++i) numbers[i] = i;
  return numbers;
}

// All ones in the lanes below `count`.
template <typename T>
WFKERNELS_INLINE Integers<T> first_lanes(int64_t count) {
  using Index = decltype(lane_numbers<T>()[0] + 0);
  return lane_numbers<T>() < static_cast<Index>(count < kLanes<T> ? count : kLanes<T>);
}

// Takes lanes[i] as lane i: those of a, and behind them those of b.
template <typename T, int64_t... lanes>
WFKERNELS_INLINE Vector<T> shuffled(Vector<T> a, Vector<T> b, std::integer_sequence<int64_t, lanes...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, lanes...);
#else
  return __builtin_shuffle(a, b, Integers<T>{lanes...});
#endif
}

// Lane i ^ step at lane i.
template <typename T, int64_t step, int64_t... i>
WFKERNELS_INLINE Vector<T> swapped(Vector<T> value, std::integer_sequence<int64_t, i...>) {
  return shuffled<T>(value, value, std::integer_sequence<int64_t, (i ^ step)...>{});
}

// Lanes of a and b by turns, from lane `first` on: a0 b0 a1 b1 ...
template <typename T, int64_t first, int64_t... i>
WFKERNELS_INLINE Vector<T> mingled(Vector<T> a, Vector<T> b, std::integer_sequence<int64_t, i...>) {
  return shuffled<T>(a, b, std::integer_sequence<int64_t, (first + i / 2 + i % 2 * kLanes<T>)...>{});
}

template <typename T>
using Lanes = std::make_integer_sequence<int64_t, kLanes<T>>;

// By halves: x0 + x8, x1 + x9, ... and so on, down to one.
template <typename T, int64_t step = kLanes<T> / 2>
WFKERNELS_INLINE T sum_of(Vector<T> value) {
  if constexpr (step == 0)
    return value[0];
  else
    return sum_of<T, step / 2>(value + swapped<T, step>(value, Lanes<T>{}));
}

template <typename T, int64_t step = kLanes<T> / 2>
WFKERNELS_INLINE T largest_of(Vector<T> value) {
  if constexpr (step == 0) {
    return value[0];
  } else {
    const Vector<T> other = swapped<T, step>(value, Lanes<T>{});
    return largest_of<T, step / 2>(other > value ? other : value);
  }
}

// Transposes a square of lanes: mingling the rows of both halves turns the bits of a place round, one at a time.
template <typename T>
WFKERNELS_INLINE void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int64_t kHalf = kLanes<T> / 2;
  WFKERNELS_UNROLL
  for (int64_t done = 1; done < kLanes<T>; done *= 2) {
    Vector<T> mixed[kLanes<T>];
    WFKERNELS_UNROLL
    for (int64_t i = 0; i < kHalf; ++i) {
      mixed[2 * i] = mingled<T, 0>(rows[i], rows[i + kHalf], Lanes<T>{});
      mixed[2 * i + 1] = mingled<T, kHalf>(rows[i], rows[i + kHalf], Lanes<T>{});
    }
    WFKERNELS_UNROLL
    for (int64_t i = 0; i < kLanes<T>; ++i) rows[i] = mixed[i];
  }
}

// Writes the first `count` columns of a square of lanes in memory as rows.
template <typename T>
WFKERNELS_INLINE void transpose_square(const T* from, int64_t stride, int64_t count, T* to, int64_t to_stride) {
  Vector<T> square[kLanes<T>];
  WFKERNELS_UNROLL
  for (int64_t i = 0; i < kLanes<T>; ++i) square[i] = load(from + i * stride);
  transpose<T>(square);
  WFKERNELS_UNROLL
  for (int64_t i = 0; i < kLanes<T>; ++i)
    if (i < count) store(to + i * to_stride, square[i]);
}
