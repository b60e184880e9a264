// LayerNorm(residual + dropout(x)) and its backward, a panel of rows at a time. Included once for each instruction set (see
// simd/variant.h), inside its namespace.

template <typename T>
struct Statistics {
  T mean, rstd;
};

// Of a row with zeros behind its width.
template <typename T>
WFKERNELS_INLINE Statistics<T> statistics_of(const T* row, int64_t width, double eps) {
  Vector<T> sum{}, squares{};
  for (int64_t j = 0; j < width; j += kLanes<T>) sum += load(row + j);
  const T mean = sum_of<T>(sum) / T(width);
  for (int64_t j = 0; j < width; j += kLanes<T>) {
    Vector<T> centred = load(row + j) - mean;
    if (j + kLanes<T> > width) centred = first_lanes<T>(width - j) ? centred : Vector<T>{};
    squares += centred * centred;
  }
  return {mean, T(1) / T(sqrt(sum_of<T>(squares) / T(width) + T(eps)))};
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
WFKERNELS_INLINE void drop_row(const NormProblem& p, int64_t row, uint8_t* keep, T* values) {
  keep_row(uint64_t(p.seed), p.site, 0, 0, uint32_t(row), 0, p.width, p.threshold, keep);
  const T kept = T(1 - p.dropout_p);
  for (int64_t j = 0; j < p.width; ++j) values[j] = keep[j] ? values[j] / kept : T(0);
}

template <typename T>
WFKERNELS_INLINE void read_row(const Elements& from, int64_t row, int64_t width, T* to) {
  read(from, row * width, 1, width, to);
  for (int64_t j = width; j < padded(width); ++j) to[j] = T(0);
}

template <typename T>
void norm_forward(const NormProblem& p, int64_t panel, void* memory) {
  const int64_t width = padded(p.width), end = smaller(p.rows, (panel + 1) * kNormRows);
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* branch = scratch.take(width);
  T* sum = scratch.take(width);
  uint8_t* keep = reinterpret_cast<uint8_t*>(scratch.take(width));
  for (int64_t row = panel * kNormRows; row < end; ++row) {
    read_row(p.x, row, p.width, branch);
    read_row(p.residual, row, p.width, sum);
    if (p.dropout_p > 0) drop_row(p, row, keep, branch);
    for (int64_t j = 0; j < width; j += kLanes<T>) store(sum + j, load(sum + j) + load(branch + j));
    write(sum, p.width, p.h, row * p.width);
    // y is that of h as it was rounded.
    if (p.h.type == Number::kBFloat16) read_row(p.h, row, p.width, sum);
    const Statistics<T> statistics = statistics_of(sum, p.width, p.eps);
    static_cast<T*>(p.mean)[row] = statistics.mean;
    static_cast<T*>(p.rstd)[row] = statistics.rstd;
    normalise_row(
        sum, p.width, statistics, static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), branch);
    write(branch, p.width, p.y, row * p.width);
  }
}

template <typename T>
void norm_backward(const NormProblem& p, int64_t panel, void* memory) {
  const int64_t width = padded(p.width), end = smaller(p.rows, (panel + 1) * kNormRows);
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* h = scratch.take(width);
  T* grad = scratch.take(width);
  T* total = scratch.take(width);
  uint8_t* keep = reinterpret_cast<uint8_t*>(scratch.take(width));
  T* grad_weight = static_cast<T*>(p.sums) + panel * 2 * width;
  memset(grad_weight, 0, 2 * width * sizeof(T));
  for (int64_t row = panel * kNormRows; row < end; ++row) {
    if (p.grad_y.data) {
      read_row(p.h, row, p.width, h);
      read_row(p.grad_y, row, p.width, grad);
      const Statistics<T> statistics{static_cast<const T*>(p.mean)[row], static_cast<const T*>(p.rstd)[row]};
      normalise_row_backward(
          grad, h, p.width, statistics, static_cast<const T*>(p.weight), grad_weight, grad_weight + width, total);
    }
    if (p.grad_h.data) {
      read_row(p.grad_h, row, p.width, p.grad_y.data ? grad : total);
      if (p.grad_y.data)
        for (int64_t j = 0; j < p.width; j += kLanes<T>) store(total + j, load(total + j) + load(grad + j));
    }
    write(total, p.width, p.grad_residual, row * p.width);
    if (p.dropout_p > 0) drop_row(p, row, keep, total);
    write(total, p.width, p.grad_x, row * p.width);
  }
}

template <typename T>
constexpr NormKernels kNormKernels = {norm_forward<T>, norm_backward<T>};
