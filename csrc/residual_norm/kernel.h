// LayerNorm(residual + dropout(x)) and its backward, a panel of rows at a time. Included once for each instruction set (see
// simd/variant.h), inside its namespace.

template <typename T>
struct Statistics {
  T mean, rstd;
};

// Of a row with zeros behind its width.
template <typename T>
WFKERNELS_INLINE Statistics<T> statistics_of(const T* row, int64_t width, double eps) {
  // Two sums each: one alone would wait for its last addition.
  Vector<T> sums[2]{}, squares[2]{};
  for (int64_t j = 0; j < width; j += 2 * kLanes<T>) {
    sums[0] += load(row + j);
    if (j + kLanes<T> < width) sums[1] += load(row + j + kLanes<T>);
  }
  const T mean = sum_of<T>(sums[0] + sums[1]) / T(width);
  const auto square = [&](int64_t j) {
    Vector<T> centred = load(row + j) - mean;
    if (j + kLanes<T> > width) centred = first_lanes<T>(width - j) ? centred : Vector<T>{};
    return centred * centred;
  };
  for (int64_t j = 0; j < width; j += 2 * kLanes<T>) {
    squares[0] += square(j);
    if (j + kLanes<T> < width) squares[1] += square(j + kLanes<T>);
  }
  return {mean, T(1) / T(sqrt(sum_of<T>(squares[0] + squares[1]) / T(width) + T(eps)))};
}

// Writes (row - mean) * rstd * weight + bias; all are padded.
template <typename T>
WFKERNELS_INLINE void normalise_row(
    const T* row, int64_t width, Statistics<T> statistics, const T* weight, const T* bias, T* to) {
  for (int64_t j = 0; j < width; j += kLanes<T>)
    store(to + j, (load(row + j) - statistics.mean) * statistics.rstd * load(weight + j) + load(bias + j));
}

// Writes the gradient of a row from that of its LayerNorm (with zeros behind the width), and adds to those of weight and
// bias. Behind the width `to` holds anything.
template <typename T>
WFKERNELS_INLINE void normalise_row_backward(
    const T* grad, const T* row, int64_t width, Statistics<T> statistics, const T* weight, T* grad_weight, T* grad_bias,
    T* to) {
  Vector<T> along{}, level{};
  for (int64_t j = 0; j < width; j += kLanes<T>) {
    const Vector<T> g = load(grad + j), x = (load(row + j) - statistics.mean) * statistics.rstd;
    const Vector<T> through = g * load(weight + j);
    along += through * x;
    level += through;
    store(grad_weight + j, load(grad_weight + j) + g * x);
    store(grad_bias + j, load(grad_bias + j) + g);
  }
  const T slope = sum_of<T>(along) / T(width), mean = sum_of<T>(level) / T(width);
  for (int64_t j = 0; j < width; j += kLanes<T>) {
    const Vector<T> x = (load(row + j) - statistics.mean) * statistics.rstd;
    store(to + j, (load(grad + j) * load(weight + j) - mean - x * slope) * statistics.rstd);
  }
}

// Drops entries of a row by the mask of its place and scales the others.
template <typename T>
WFKERNELS_INLINE void drop_row(const NormProblem& p, int64_t row, uint8_t* keep, const T* from, T* to) {
  keep_row(uint64_t(p.seed), p.site, 0, 0, uint32_t(row), 0, p.width, p.threshold, keep);
  const T kept = T(1 - p.dropout_p);
  for (int64_t j = 0; j < p.width; ++j) to[j] = keep[j] ? from[j] / kept : T(0);
  for (int64_t j = p.width; j < padded(p.width); ++j) to[j] = T(0);
}

template <typename T>
void norm_forward(const NormProblem& p, int64_t panel, void* memory) {
  const int64_t width = padded(p.width), end = smaller(p.rows, (panel + 1) * kNormRows);
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* of_x = scratch.take(width);
  T* of_residual = scratch.take(width);
  T* of_sum = scratch.take(width);
  uint8_t* keep = reinterpret_cast<uint8_t*>(scratch.take(width));
  for (int64_t row = panel * kNormRows; row < end; ++row) {
    const int64_t place = row * p.width;
    const T* x = padded_row(p.x, place, p.width, of_x);
    const T* residual = padded_row(p.residual, place, p.width, of_residual);
    if (p.dropout_p > 0) {
      drop_row(p, row, keep, x, of_x);
      x = of_x;
    }
    T* sum = place_or(p.h, place, p.width, of_sum);
    for (int64_t j = 0; j < p.width; j += kLanes<T>) store(sum + j, load(x + j) + load(residual + j));
    written(sum, p.width, p.h, place);
    // y is that of h as it was rounded.
    const T* h = p.h.type == kOwn<T> ? sum : padded_row(p.h, place, p.width, of_sum);
    const Statistics<T> statistics = statistics_of(h, p.width, p.eps);
    static_cast<T*>(p.mean)[row] = statistics.mean;
    static_cast<T*>(p.rstd)[row] = statistics.rstd;
    T* y = place_or(p.y, place, p.width, of_x);
    normalise_row(h, p.width, statistics, static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), y);
    written(y, p.width, p.y, place);
  }
}

template <typename T>
void norm_backward(const NormProblem& p, int64_t panel, void* memory) {
  const int64_t width = padded(p.width), end = smaller(p.rows, (panel + 1) * kNormRows);
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* of_h = scratch.take(width);
  T* of_grad = scratch.take(width);
  T* of_total = scratch.take(width);
  uint8_t* keep = reinterpret_cast<uint8_t*>(scratch.take(width));
  T* grad_weight = static_cast<T*>(p.sums) + panel * 2 * width;
  memset(grad_weight, 0, 2 * width * sizeof(T));
  for (int64_t row = panel * kNormRows; row < end; ++row) {
    const int64_t place = row * p.width;
    T* total = place_or(p.grad_residual, place, p.width, of_total);
    if (p.grad_y.data) {
      const Statistics<T> statistics{static_cast<const T*>(p.mean)[row], static_cast<const T*>(p.rstd)[row]};
      const T* h = padded_row(p.h, place, p.width, of_h);
      const T* grad = padded_row(p.grad_y, place, p.width, of_grad);
      normalise_row_backward(
          grad, h, p.width, statistics, static_cast<const T*>(p.weight), grad_weight, grad_weight + width, total);
    }
    if (p.grad_h.data) {
      const T* grad = padded_row(p.grad_h, place, p.width, of_grad);
      for (int64_t j = 0; j < p.width; j += kLanes<T>)
        store(total + j, p.grad_y.data ? load(total + j) + load(grad + j) : load(grad + j));
    }
    written(total, p.width, p.grad_residual, place);
    const T* branch = total;
    if (p.dropout_p > 0) {
      drop_row(p, row, keep, total, of_h);
      branch = of_h;
    }
    write(branch, p.width, p.grad_x, place);
  }
}

template <typename T>
constexpr NormKernels kNormKernels = {norm_forward<T>, norm_backward<T>};
