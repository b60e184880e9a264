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
  static constexpr int32_t kBias = 127, kMantissa = 23;
};

template <>
struct Exponential<double> {
  static constexpr int kDegree = 13;
  static constexpr double kHigh = 0.693147180369123816490, kLow = 1.90821492927058770002e-10;
  static constexpr double kSmallest = -708.3964185322641, kLargest = 709.782712893384;
  static constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int64_t kBias = 1023, kMantissa = 52;
};

constexpr double inverse_factorial(int n) { return n < 2 ? 1.0 : inverse_factorial(n - 1) / n; }

template <typename T>
WFKERNELS_INLINE Vector<T> exponential(Vector<T> x) {
  using E = Exponential<T>;
  const Vector<T> shift = broadcast<T>(E::kShift);
  // Clamped first, so that n is a small integer; NaN passes both comparisons unchanged.
  Vector<T> y = x < E::kSmallest ? broadcast<T>(E::kSmallest) : x;
  y = y > E::kLargest ? broadcast<T>(E::kLargest) : y;
  const Vector<T> shifted = y * T(1.44269504088896340736) + shift;
  const Vector<T> n = shifted - shift;
  const Vector<T> r = (y - n * E::kHigh) - n * E::kLow;
  Vector<T> p = broadcast<T>(T(inverse_factorial(E::kDegree)));
  WFKERNELS_UNROLL
  for (int k = E::kDegree - 1; k >= 0; --k) p = p * r + T(inverse_factorial(k));
  // The integer stands in the low bits of the shifted number. n = kBias + 1 would be Inf: 2^(n - 1) is doubled after.
  const Integers<T> exponent = reinterpret_cast<Integers<T>>(shifted) - reinterpret_cast<Integers<T>>(shift);
  const Vector<T> half = reinterpret_cast<Vector<T>>((exponent + (E::kBias - 1)) << E::kMantissa);
  const Vector<T> scaled = p * half * T(2);
  return x < E::kSmallest ? Vector<T>{} : (x > E::kLargest ? broadcast<T>(T(INFINITY)) : scaled);
}
