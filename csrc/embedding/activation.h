// The activations and their derivatives. Included once for each instruction set (see simd/variant.h), inside its namespace.
//
// gelu(x) = x F(x) with the normal distribution F. F(-|x|) = exp(-x^2 / 2) m(|x|), where Mills' ratio m falls from 1/2 to 0
// so smoothly that it is a polynomial in (|x| - c) / (|x| + c): interpolated at Chebyshev points on |x| <= 14 (38), where
// exp underflows. Its relative error is 2e-8 (6e-18).

template <typename T>
struct Mills;

template <>
struct Mills<float> {
  static constexpr float kCentre = 4, kFar = 14;
  static constexpr float kCoefficients[] = {
      6.549820065e-6f, -5.770047126e-5f, -0.0001747874797f, 0.0006494598215f, 0.0005054061087f, -0.008494946019f,
      0.03086489525f,  -0.07170712215f,  0.1243792573f,     -0.1703977294f,   0.09441064128f};
};

template <>
struct Mills<double> {
  static constexpr double kCentre = 5, kFar = 38;
  static constexpr double kCoefficients[] = {
      -2.32016752490889205e-10, -5.69618475871484535e-10, 1.82629523946549535e-9,  5.68800703895191843e-9,
      -1.09959864765205517e-8,  -3.91647569330063022e-8,  7.71085557897641883e-8,  2.4334286145130122e-7,
      -6.75079711344167389e-7,  -1.27007325560276222e-6,  6.64442185628145264e-6,  9.61305164616827018e-7,
      -0.000060427483012984812, 0.000134276843546795326,  0.000219550737667539286, -0.00237884435670618065,
      0.00899137055058478416,   -0.0234139004876913211,   0.0478553522841703146,   -0.080883877264127442,
      0.116068811886003288,     -0.143457555264011972,    0.0769193049750062959};
};

// F(x), given power = exp(-x^2 / 2).
template <typename T>
WFKERNELS_INLINE Vector<T> normal_distribution(Vector<T> x, Vector<T> power) {
  using M = Mills<T>;
  Vector<T> size = x < T(0) ? -x : x;
  size = size > M::kFar ? broadcast<T>(M::kFar) : size;
  const Vector<T> t = (size - M::kCentre) / (size + M::kCentre);
  constexpr int kCount = sizeof(M::kCoefficients) / sizeof(T);
  Vector<T> sum = broadcast<T>(M::kCoefficients[0]);
  WFKERNELS_UNROLL
  for (int i = 1; i < kCount; ++i) sum = sum * t + M::kCoefficients[i];
  const Vector<T> tail = power * sum;
  return x < T(0) ? tail : T(1) - tail;
}

template <typename T>
WFKERNELS_INLINE Vector<T> activate(Vector<T> x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return x < T(0) ? Vector<T>{} : x;
    case Activation::kGelu:
      return x * normal_distribution<T>(x, exponential<T>(x * x * T(-0.5)));
    default:
      return x;
  }
}

template <typename T>
WFKERNELS_INLINE Vector<T> activate_backward(Vector<T> grad, Vector<T> x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return x > T(0) ? grad : Vector<T>{};
    case Activation::kGelu: {
      const Vector<T> power = exponential<T>(x * x * T(-0.5));
      return grad * (normal_distribution<T>(x, power) + x * power * T(0.39894228040143267794));
    }
    default:
      return grad;
  }
}
