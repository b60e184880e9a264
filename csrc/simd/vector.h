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

template <typename T>
WFKERNELS_INLINE T sum_of(Vector<T> value) {
  T sum = value[0];
  WFKERNELS_UNROLL
  for (int64_t i = 1; i < kLanes<T>; ++i) sum += value[i];
  return sum;
}

template <typename T>
WFKERNELS_INLINE T largest_of(Vector<T> value) {
  T largest = value[0];
  WFKERNELS_UNROLL
  for (int64_t i = 1; i < kLanes<T>; ++i) largest = value[i] > largest ? value[i] : largest;
  return largest;
}
