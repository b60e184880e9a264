// The gradients of projection. Included once for each instruction set (see simd/variant.h), inside its namespace.
//
// With d the gradient of a student and z what was multiplied, G = z^T d is one product for three gradients: of the weight,
// strength * G * scale by columns; of strength, the sum of Q * G * scale (and of bias * scale * d), because d times the
// correction z Q, summed over units, is Q times G summed over d; of scale, the same column by column.

// Reads columns of the gradient of a unit, with zeros behind them.
template <typename T>
WFKERNELS_INLINE void read_unit(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t unit, int64_t column, int64_t columns, T* to) {
  for_pieces(p, layer, unit, column, columns, [&](int64_t place, int64_t from, int64_t some) {
    read(p.grad, place, 1, some, to + from);
  });
  for (int64_t j = columns; j < padded(columns); ++j) to[j] = T(0);
}

template <typename T>
WFKERNELS_FUNCTION void pack_transposed(const ProjectionProblem& p, int64_t number, int64_t first, int64_t count) {
  const ProjectionWeight& weight = p.weights[number];
  pack_slivers(
      weight.weight, 0, weight.column, weight.row, first, count, weight.width, p.width,
      static_cast<T*>(p.packed) + weight.first_packed);
}

// The gradient of what the teachers of a unit count: sums of d (row - base) over some columns are added to `over`.
template <typename T>
WFKERNELS_INLINE void differentiate_gates(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t unit, int64_t column, int64_t columns, const T* grad,
    T* scratch, double* over) {
  const int64_t group = unit / layer.rows, row = unit % layer.rows;
  const T* base = padded_row(
      p.base, layer.first_base + row * layer.stride + column, columns, scratch);
  for (int64_t t = 0; t < p.teachers[group]; ++t) {
    const int64_t place = row_place(layer, p.first_copy[group] + t, row) + column;
    const T* x = padded_row(p.rows, place, columns, scratch + kDepth);
    Vector<T> sum{};
    for (int64_t j = 0; j < columns; j += kLanes<T>) sum += load(grad + j) * (load(x + j) - load(base + j));
    over[t] += double(sum_of<T>(sum));
  }
}

// The gradients of the tokens of some units of one group, and of the gates.
template <typename T>
void projection_tokens(const ProjectionProblem& p, const ProjectionPanel& panel, void* memory) {
  Scratch<double> doubles{static_cast<double*>(memory)};
  double* over = doubles.take(kPanelRows * p.most_teachers);
  Scratch<T> scratch{reinterpret_cast<T*>(doubles.next)};
  T* block = scratch.take(kPanelRows * kDepth);
  T* sums = scratch.take(kPanelRows * p.padded_width);
  T* of_rows = scratch.take(2 * kDepth);
  T* row = scratch.take(p.padded_width);
  T* token = scratch.take(p.padded_width);
  const ProjectionLayer& layer = p.layers[panel.layer];
  const ProjectionWeight& weight = p.weights[layer.group];
  const T* packed = own<T>(p.packed, weight.first_packed);
  const bool gated = p.output == Output::kGated;
  const T strength = T(layer.strength);
  memset(sums, 0, panel.count * p.padded_width * sizeof(T));
  memset(over, 0, panel.count * p.most_teachers * sizeof(double));
  for (int64_t column = 0; column < layer.width; column += kDepth) {
    const int64_t columns = smaller(kDepth, layer.width - column);
    const T* scale = own<T>(p.scale, layer.first_column + column);
    for (int64_t i = 0; i < panel.count; ++i) {
      T* grad = block + i * kDepth;
      read_unit(p, layer, panel.first + i, column, columns, grad);
      if (gated)
        differentiate_gates(p, layer, panel.first + i, column, columns, grad, of_rows, over + i * p.most_teachers);
      for (int64_t j = 0; j < columns; ++j) grad[j] = grad[j] * scale[j] * strength;
    }
    packed_product<T, true>(
        panel.count, p.padded_width, column, columns, block, kDepth, 1, packed, layer.width, sums, p.padded_width);
  }

  const T* gate_weight = gated ? own<T>(p.gate_weight, layer.group * p.padded_width) : nullptr;
  double* gate_sums = gated ? p.gate_sums + panel.slot * (p.padded_width + 1) : nullptr;
  if (gated) memset(gate_sums, 0, (p.padded_width + 1) * sizeof(double));
  for (int64_t i = 0; i < panel.count; ++i) {
    const int64_t unit = panel.first + i, group = unit / layer.rows, index = unit % layer.rows;
    const int64_t teachers = p.read_mean ? p.teachers[group] : 1;
    const T average = T(1.0 / double(teachers));
    const T* grad = sums + i * p.padded_width;
    for (int64_t t = 0; t < teachers; ++t) {
      const int64_t place = token_place(p, layer, group, t, index);
      const T gate = gated ? T(over[i * p.most_teachers + t]) : T(0);
      for (int64_t j = 0; j < p.padded_width; j += kLanes<T>) {
        Vector<T> value = load(grad + j) * average;
        if (gated) value += load(gate_weight + j) * gate;
        store(row + j, value);
      }
      write(row, p.width, p.grad_tokens, place);
      if (!gated) continue;
      read(p.tokens, place, 1, p.width, token);
      for (int64_t j = 0; j < p.width; ++j) gate_sums[j] += double(token[j] * gate);
      gate_sums[p.padded_width] += double(gate);
    }
  }
}

// Adds a row to totals and empties it.
template <typename T>
WFKERNELS_INLINE void flush(T* row, int64_t count, double* totals) {
  for (int64_t j = 0; j < count; ++j) {
    totals[j] += double(row[j]);
    row[j] = T(0);
  }
}

// Few terms are added up in float before they go to doubles.
constexpr int64_t kTogether = 32;

// Copies the gradients of a chunk of units into slivers, and adds up its columns and their products with the prior.
template <typename T>
WFKERNELS_FUNCTION void pack_units(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t first, int64_t count, const Columns<T>& columns,
    T* scratch, T* packed, double* totals) {
  T *row = scratch, *of_prior = scratch + kBlockColumns, *level = scratch + 2 * kBlockColumns;
  T* along_prior = scratch + 3 * kBlockColumns;
  const int64_t width = padded(columns.count);
  memset(level, 0, 2 * kBlockColumns * sizeof(T));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t unit = first + i;
    read_unit(p, layer, unit, columns.first, columns.count, row);
    add_row(row, width, level);
    if (p.output == Output::kPrior) {
      const int64_t place = layer.first_base + unit % layer.rows * layer.stride + columns.first;
      const T* prior = padded_row(p.prior, place, columns.count, of_prior);
      for (int64_t j = 0; j < columns.count; j += kLanes<T>)
        store(along_prior + j, load(along_prior + j) + load(row + j) * load(prior + j));
    }
    for (int64_t j = 0; j < width; j += kSliver<T>) {
      const int64_t part = sliver_width<T>(width, j);
      memcpy(packed + j * count + i * part, row + j, part * sizeof(T));
    }
    if (i % kTogether != kTogether - 1 && i + 1 < count) continue;
    flush(level, columns.count, totals);
    flush(along_prior, columns.count, totals + kBlockColumns);
  }
}

// Turns G of one layer into its part of the weight's gradient, and returns the sums of Q * G over d.
template <typename T>
WFKERNELS_FUNCTION void fold_layer(
    const ProjectionProblem& p, const ProjectionLayer& layer, const Columns<T>& columns, bool add, T* scratch,
    const T* product, T* sums, double* along) {
  T *factor = scratch, *row = scratch + kBlockColumns, *part = scratch + 2 * kBlockColumns;
  const ProjectionWeight& weight = p.weights[layer.group];
  const int64_t width = padded(columns.count);
  for (int64_t j = 0; j < width; j += kLanes<T>) store(factor + j, load(columns.scale + j) * T(layer.strength));
  for (int64_t j = columns.count; j < width; ++j) row[j] = T(0);
  memset(part, 0, width * sizeof(T));
  for (int64_t first = 0; first < p.width; first += kTogether) {
    for (int64_t k = first; k < smaller(p.width, first + kTogether); ++k) {
      read(weight.weight, k * weight.row + columns.first * weight.column, weight.column, columns.count, row);
      for (int64_t j = 0; j < width; j += kLanes<T>) {
        const Vector<T> value = load(product + k * width + j);
        store(part + j, load(part + j) + value * load(row + j));
        const Vector<T> scaled = value * load(factor + j);
        store(sums + k * width + j, add ? load(sums + k * width + j) + scaled : scaled);
      }
    }
    flush(part, columns.count, along);
  }
}

template <typename T>
void projection_weights(const ProjectionProblem& p, const ProjectionWeightItem& item, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  const int64_t width = padded(item.columns);
  T* product = scratch.take(p.width * kBlockColumns);
  T* sums = scratch.take(p.width * kBlockColumns);
  T* packed = scratch.take(kDepth * kBlockColumns);
  T* of_rows = scratch.take(4 * kBlockColumns);
  Columns<T> columns(scratch);
  if (item.panels == 0) memset(sums, 0, p.width * width * sizeof(T));
  for (int64_t number = 0; number < item.panels; ++number) {
    const ProjectionPanel& panel = p.chunks[item.first_panel + number];
    const ProjectionLayer& layer = p.layers[panel.layer];
    columns.read(p, layer, item.column, item.columns);
    double* along = p.column_sums + (item.first_slot + number) * 3 * kBlockColumns;
    memset(along, 0, 3 * kBlockColumns * sizeof(double));
    memset(product, 0, p.width * width * sizeof(T));
    for (int64_t first = panel.first; first < panel.first + panel.count; first += kDepth) {
      const int64_t count = smaller(kDepth, panel.first + panel.count - first);
      pack_units(p, layer, first, count, columns, of_rows, packed, along + kBlockColumns);
      packed_product<T, true>(
          p.width, width, 0, count, own<T>(p.means, (layer.first_unit + first) * p.mean_row), 1, p.mean_row, packed,
          count, product, width);
    }
    fold_layer(p, layer, columns, number > 0, of_rows, product, sums, along);
    for (int64_t j = 0; j < item.columns; ++j) along[j] += double(columns.bias[j]) * along[kBlockColumns + j];
  }
  if (item.partial >= 0) {
    memcpy(static_cast<T*>(p.partial_weights) + item.partial, sums, p.width * width * sizeof(T));
    return;
  }
  const ProjectionWeight& weight = p.weights[item.weight];
  for (int64_t k = 0; k < p.width; ++k)
    write(sums + k * width, item.columns, weight.grad_weight, k * weight.width + item.column);
}

// Adds up `count` partial sums of some columns of a weight.
template <typename T>
void projection_fold_weights(
    const ProjectionProblem& p, const ProjectionWeightItem& item, int64_t count, void* memory) {
  T* row = static_cast<T*>(memory);
  const int64_t width = padded(item.columns);
  const ProjectionWeight& weight = p.weights[item.weight];
  for (int64_t k = 0; k < p.width; ++k) {
    memset(row, 0, width * sizeof(T));
    for (int64_t part = 0; part < count; ++part)
      add_row(own<T>(p.partial_weights, item.partial + (part * p.width + k) * width), width, row);
    write(row, item.columns, weight.grad_weight, k * weight.width + item.column);
  }
}

// What the teachers' rows get of the gradient of their unit.
template <typename T>
WFKERNELS_INLINE T share_of(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t group, int64_t teacher, int64_t row) {
  switch (p.output) {
    case Output::kAnchor:
      return T(teacher == 0);
    case Output::kGated:
      return own<T>(p.gates, layer.first_gate + (p.first_copy[group] + teacher) * layer.rows + row)[0];
    case Output::kPrior:
      return T(1.0 / double(p.teachers[group])) * T(layer.blend);
    default:
      return T(1.0 / double(p.teachers[group]));
  }
}

// Gradients of the rows of all networks, for some rows of a layer, and of the blend.
template <typename T>
void projection_inputs(const ProjectionProblem& p, const ProjectionPanel& panel, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* grad = scratch.take(kBlockColumns);
  T* share = scratch.take(kBlockColumns);
  T* of_base = scratch.take(kBlockColumns);
  T* of_prior = scratch.take(kBlockColumns);
  T* of_rows = scratch.take(4 * kBlockColumns);
  T *base_row = of_rows, *prior_row = of_rows + kBlockColumns, *sums = of_rows + 2 * kBlockColumns;
  Columns<T> columns(scratch);
  const ProjectionLayer& layer = p.layers[panel.layer];
  const bool prior = p.output == Output::kPrior;
  const T rest = T(1) - T(layer.blend);
  double blend = 0;
  for (int64_t column = 0; column < layer.width; column += kBlockColumns) {
    const int64_t count = smaller(kBlockColumns, layer.width - column);
    // The padding behind a row has a gradient of zero.
    const int64_t tail = column + count == layer.width ? layer.stride - layer.width : 0;
    columns.read(p, layer, column, count);
    for (int64_t row = panel.first; row < panel.first + panel.count; ++row) {
      const int64_t place = layer.first_base + row * layer.stride + column;
      memset(of_base, 0, kBlockColumns * sizeof(T));
      memset(of_prior, 0, kBlockColumns * sizeof(T));
      for (int64_t group = 0; group < p.groups; ++group) {
        const int64_t unit = group * layer.rows + row;
        read_unit(p, layer, unit, column, count, grad);
        T left = prior ? rest : T(1);
        for (int64_t t = 0; t < p.teachers[group]; ++t) {
          if (p.output == Output::kPlain) break;
          const T factor = share_of<T>(p, layer, group, t, row);
          if (p.output == Output::kGated) left -= factor;
          if (!p.grad_rows.data) continue;
          for (int64_t j = 0; j < count; j += kLanes<T>) store(share + j, load(grad + j) * factor);
          const int64_t to = row_place(layer, p.first_copy[group] + t, row) + column;
          write(share, count, p.grad_rows, to);
          write_zeros<T>(p.grad_rows, to + count, tail);
        }
        for (int64_t j = 0; j < count; j += kLanes<T>) {
          store(of_base + j, load(of_base + j) + load(grad + j) * left);
          store(of_prior + j, load(of_prior + j) + load(grad + j) * load(columns.scale + j) * rest);
        }
        if (!prior) continue;
        const T* base = p.base.data ? padded_row(p.base, place, count, base_row) : nullptr;
        const T* learned = padded_row(p.prior, place, count, prior_row);
        sum_teachers(p, layer, unit, columns, base, of_rows + 3 * kBlockColumns, sums);
        Vector<T> slope{};
        for (int64_t j = 0; j < count; j += kLanes<T>) {
          Vector<T> origin = load(columns.shift + j);
          if (base) origin += load(base + j);
          slope += load(grad + j) * ((load(sums + j) - origin) - load(columns.scale + j) * load(learned + j));
        }
        blend += double(sum_of<T>(slope));
      }
      if (p.grad_base.data) {
        write(of_base, count, p.grad_base, place);
        write_zeros<T>(p.grad_base, place + count, tail);
      }
      if (p.grad_prior.data) {
        write(of_prior, count, p.grad_prior, place);
        write_zeros<T>(p.grad_prior, place + count, tail);
      }
    }
  }
  if (prior) p.blend_sums[panel.slot] = blend;
}

template <typename T>
constexpr ProjectionKernels kProjectionKernels = {
    projection_prepare<T>, projection_forward<T>,      pack_transposed<T>,   projection_tokens<T>,
    projection_weights<T>, projection_fold_weights<T>, projection_inputs<T>,
};
