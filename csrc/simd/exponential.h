// exp of every lane. Included once for each instruction set (see variant.h), inside its namespace.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2: Cody and Waite's reduction and the Taylor polynomial, whose
// first left-out term is below half a unit in the last place. What would be subnormal is 0; NaN stays NaN.

template <typename T>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr int kDegree = 7;
  static constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;  // ln 2, kHigh short enough to be exact times n
  static constexpr float kSmallest = -87.33654f, kLargest = 88.72283f;
  static constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int32_t kMantissa = 23;
};

template <>
struct Exponential<double> {
  static constexpr int kDegree = 13;
  static constexpr double kHigh = 0.693147180369123816490, kLow = 1.90821492927058770002e-10;
  static constexpr double kSmallest = -708.3964185322641, kLargest = 709.782712893384;
  static constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int64_t kMantissa = 52;
};

// 1 / n!. A table: of a constexpr function GCC left calls in the kernels.
constexpr double kInverseFactorials[] = {
    1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800,
    1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

template <typename T>
WFKERNELS_INLINE Vector<T> exponential(Vector<T> x) {
  using E = Exponential<T>;
  const Vector<T> shifted = x * T(1.44269504088896340736) + E::kShift;
  const Vector<T> n = shifted - E::kShift;
  const Vector<T> r = (x - n * E::kHigh) - n * E::kLow;
  Vector<T> p = broadcast<T>(T(kInverseFactorials[E::kDegree]));
  WFKERNELS_UNROLL
  for (int k = E::kDegree - 1; k >= 0; --k) p = p * r + T(kInverseFactorials[k]);
  // n stands in the low bits of the shifted number, those of kShift are 0: moved up it is added to p's exponent. 2^n alone
  // may be Inf.
  const Bits<T> exponent = reinterpret_cast<Bits<T>>(shifted) << E::kMantissa;
  const Vector<T> scaled = reinterpret_cast<Vector<T>>(reinterpret_cast<Bits<T>>(p) + exponent);
  // Outside of the range all of the above means nothing.
  const Vector<T> finite = x < E::kSmallest ? Vector<T>{} : scaled;
  return x <= E::kLargest ? finite : x + T(INFINITY);  // NaN stays NaN
}
