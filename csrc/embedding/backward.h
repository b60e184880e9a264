// The gradients of embedding. The forward of a panel runs again; what it leaves is the gradient of every token before
// LayerNorm and, packed for the products that follow, before the activation. Included once for each instruction set (see
// simd/variant.h), inside its namespace.

// Where the gradient before the activation of a unit lies: its panel of kDepth units, and what follows from the layer's.
template <typename T>
struct PackedUnit {
  T* panel;
  int64_t count, index;  // units of the panel, number of this one

  // Its part of the sliver that begins at a column.
  T* sliver(int64_t column, int64_t width) const { return panel + column * count + index * width; }
};

template <typename T>
WFKERNELS_INLINE PackedUnit<T> packed_unit(const EmbeddingProblem& p, const EmbeddingLayer& layer, int64_t unit) {
  const int64_t first = unit / kDepth * kDepth, units = p.copies * layer.rows;
  T* panel = static_cast<T*>(p.grad_sums) + (layer.first_unit + first) * p.padded_width;
  return {panel, smaller(kDepth, units - first), unit - first};
}

// The gradient of a token before LayerNorm. Adds those of gamma and beta to the slot's sums.
template <typename T>
WFKERNELS_INLINE void differentiate_token(
    const EmbeddingProblem& p, const T* row, int64_t token, T* slot, T* scratch, T* to) {
  normalise_row_backward(
      padded_row(p.grad, token * p.width, p.width, scratch), row, p.width, statistics_of(row, p.width, p.eps),
      own<T>(p.gamma, 0), slot + 2 * p.padded_width, slot + 3 * p.padded_width, to);
  add_row(to, p.padded_width, slot);
}

template <typename T>
void embedding_backward(const EmbeddingProblem& p, const EmbeddingPanel& panel, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* block = scratch.take(kPanelRows * kDepth);
  T* sums = scratch.take(kPanelRows * p.padded_width);
  T* row = scratch.take(p.padded_width);
  T* grad = scratch.take(p.padded_width);
  const EmbeddingLayer& layer = p.layers[panel.layer];
  const int64_t size = kSums * p.padded_width, first_copy = panel.first / layer.rows;
  const int64_t slots = (panel.first + panel.count - 1) / layer.rows - first_copy + 1;
  T* const first_slot = static_cast<T*>(p.sums) + panel.first_slot * size;
  memset(first_slot, 0, slots * size * sizeof(T));
  multiply_panel(p, panel, block, sums);
  for (int64_t i = 0; i < panel.count; ++i) {
    const int64_t unit = panel.first + i, token = token_of(p, layer, unit);
    T* slot = first_slot + (unit / layer.rows - first_copy) * size;
    const T* before = sums + i * p.padded_width;
    T* to = static_cast<T*>(p.grad_tokens) + token * p.padded_width;
    add_codes(p, panel.layer, unit, before, row);
    differentiate_token(p, row, token, slot, grad, to);
    const PackedUnit<T> packed = packed_unit<T>(p, layer, unit);
    for (int64_t j = 0; j < p.padded_width; j += kSliver<T>) {
      const int64_t width = sliver_width<T>(p.padded_width, j);
      T* target = packed.sliver(j, width);
      for (int64_t k = 0; k < width; k += kLanes<T>)
        store(target + k, activate_backward<T>(load(to + j + k), load(before + j + k), p.activation));
      add_row(target, width, slot + p.padded_width + j);
    }
  }
}

template <typename T>
void embedding_backward_cross(const EmbeddingProblem& p, int64_t number, int64_t slot, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* row = scratch.take(p.padded_width);
  T* grad = scratch.take(p.padded_width);
  T* sums = static_cast<T*>(p.sums) + slot * kSums * p.padded_width;
  memset(sums, 0, kSums * p.padded_width * sizeof(T));
  for (int64_t group = 0; group < p.groups; ++group) {
    for (int64_t index = 0; index < p.cross; ++index) {
      const int64_t sequence = number * p.groups + group;
      add_cross_codes(p, number, sequence, index, row);
      differentiate_token(
          p, row, cross_token_of(p, p.layers[number], group) + index, sums, grad,
          static_cast<T*>(p.grad_cross) + (sequence * p.cross + index) * p.padded_width);
    }
  }
}

// The gradients of kPositionRows position codes: sums over the layers that use one, and over their copies.
template <typename T>
void embedding_positions(const EmbeddingProblem& p, int64_t block) {
  const int64_t end = smaller(p.positions, (block + 1) * kPositionRows);
  for (int64_t position = block * kPositionRows; position < end; ++position) {
    T* sums = static_cast<T*>(p.grad_position) + position * p.padded_width;
    memset(sums, 0, p.padded_width * sizeof(T));
    for (int64_t number = 0; number < p.layer_count; ++number) {
      const EmbeddingLayer& layer = p.layers[number];
      const int64_t row = position - layer.first_position;
      if (row < 0 || row >= layer.rows) continue;
      for (int64_t copy = 0; copy < p.copies; ++copy)
        add_row(
            own<T>(p.grad_tokens, token_of(p, layer, copy * layer.rows + row) * p.padded_width), p.padded_width, sums);
    }
  }
}

// The gradient of a stretch of a weight, or a part of it: normalised rows, transposed, times gradients.
template <typename T>
void embedding_weights(const EmbeddingProblem& p, const EmbeddingWeightItem& item, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* block = scratch.take(kDepth * kBlockColumns);
  T* sums = scratch.take(kBlockColumns * p.padded_width);
  const EmbeddingStretch& stretch = item.stretch;
  memset(sums, 0, stretch.count * p.padded_width * sizeof(T));
  for (int64_t number = item.first_panel; number < item.first_panel + item.panels; ++number) {
    const EmbeddingPanel& panel = p.chunks[number];
    const EmbeddingLayer& layer = p.layers[panel.layer];
    for (int64_t i = 0; i < panel.count; ++i)
      normalise_unit(p, layer, panel.first + i, stretch.first, stretch.count, block + i * kBlockColumns);
    packed_product<T, true>(
        stretch.count, p.padded_width, 0, panel.count, block, 1, kBlockColumns,
        packed_unit<T>(p, layer, panel.first).panel, panel.count, sums, p.padded_width);
  }
  const int64_t size = stretch.count * p.padded_width;
  if (item.partial >= 0) {
    memcpy(static_cast<T*>(p.partial_weights) + item.partial * p.padded_width, sums, size * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < stretch.count; ++i)
    write(sums + i * p.padded_width, p.width, p.weights[stretch.group].grad_weight, (stretch.first + i) * p.width);
}

// Adds up `count` partial sums of a stretch of a weight.
template <typename T>
void embedding_fold_weights(
    const EmbeddingProblem& p, const EmbeddingStretch& stretch, int64_t partial, int64_t count, void* memory) {
  T* row = static_cast<T*>(memory);
  for (int64_t i = 0; i < stretch.count; ++i) {
    memset(row, 0, p.padded_width * sizeof(T));
    for (int64_t part = 0; part < count; ++part)
      add_row(
          own<T>(p.partial_weights, (partial + part * stretch.count + i) * p.padded_width), p.padded_width, row);
    write(row, p.width, p.weights[stretch.group].grad_weight, (stretch.first + i) * p.width);
  }
}

// Gradients of some columns of some rows of a layer, of all teachers, before the division by scale: [count, columns].
template <typename T>
WFKERNELS_FUNCTION void multiply_gradients(
    const EmbeddingProblem& p, const EmbeddingLayer& layer, int64_t first, int64_t count, int64_t columns, const T* packed,
    T* out) {
  for (int64_t done = 0; done < count;) {
    const PackedUnit<T> unit = packed_unit<T>(p, layer, first + done);
    const int64_t rows = smaller(count - done, unit.count - unit.index);
    T* to = out + done * columns;
    for (int64_t j = 0; j < p.width; j += kSliver<T>) {
      const int64_t width = sliver_width<T>(p.padded_width, j), depth = smaller(width, p.width - j);
      const T* a = unit.sliver(j, width);
      if (j == 0)
        packed_product<T, false>(rows, columns, j, depth, a, width, 1, packed, p.width, to, columns);
      else
        packed_product<T, true>(rows, columns, j, depth, a, width, 1, packed, p.width, to, columns);
    }
    done += rows;
  }
}

template <typename T>
WFKERNELS_INLINE void write_zeros(const Elements& to, int64_t first, int64_t count) {
  const T zeros[kPad] = {};
  write(zeros, count, to, first);
}

template <typename T>
void embedding_inputs(const EmbeddingProblem& p, const EmbeddingInputItem& item, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  const EmbeddingLayer& layer = p.layers[item.layer];
  const EmbeddingGroup& group = p.weights[layer.group];
  const int64_t columns = padded(item.columns);
  T* packed = scratch.take(p.width * kBlockColumns);
  T* grads = scratch.take(kPanelRows * kBlockColumns);
  T* of_base = scratch.take(kPanelRows * kBlockColumns);
  T* values = scratch.take(kBlockColumns);
  T* scale = scratch.take(kBlockColumns);
  T* shift_sums = scratch.take(kBlockColumns);
  T* scale_sums = scratch.take(kBlockColumns);
  pack_slivers(
      group.weight, item.column * group.row, group.column, group.row, 0, p.width, p.width, item.columns, packed);
  for (int64_t j = 0; j < columns; ++j) {
    scale[j] = j < item.columns ? own<T>(p.scale, layer.first_column + item.column)[j] : T(1);
    values[j] = T(0);
  }
  double* totals = p.column_sums + item.slot * 2 * kBlockColumns;
  for (int64_t j = 0; j < 2 * kBlockColumns; ++j) totals[j] = 0;
  const bool last = item.column + item.columns == layer.width;

  for (int64_t row = item.first; row < item.first + item.count; row += kPanelRows) {
    const int64_t count = smaller(kPanelRows, item.first + item.count - row);
    memset(of_base, 0, count * columns * sizeof(T));
    for (int64_t copy = 0; copy < p.copies; ++copy) {
      const int64_t first = copy * layer.rows + row;
      multiply_gradients(p, layer, first, count, columns, packed, grads);
      memset(shift_sums, 0, columns * sizeof(T));
      memset(scale_sums, 0, columns * sizeof(T));
      for (int64_t i = 0; i < count; ++i) {
        T* grad = grads + i * columns;
        normalise_unit(p, layer, first + i, item.column, item.columns, values);
        for (int64_t j = 0; j < columns; j += kLanes<T>) {
          const Vector<T> g = load(grad + j) / load(scale + j);
          store(grad + j, g);
          store(shift_sums + j, load(shift_sums + j) + g);
          store(scale_sums + j, load(scale_sums + j) + g * load(values + j));
          store(of_base + i * columns + j, load(of_base + i * columns + j) - g);
        }
        const int64_t place = layer.first_row + (first + i) * layer.stride;
        write(grad, item.columns, p.grad_rows, place + item.column);
        if (last) write_zeros<T>(p.grad_rows, place + layer.width, layer.stride - layer.width);
      }
      for (int64_t j = 0; j < item.columns; ++j) {
        totals[j] += double(shift_sums[j]);
        totals[kBlockColumns + j] += double(scale_sums[j]);
      }
    }
    if (!p.base.data) continue;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = layer.first_base + (row + i) * layer.stride;
      write(of_base + i * columns, item.columns, p.grad_base, place + item.column);
      if (last) write_zeros<T>(p.grad_base, place + layer.width, layer.stride - layer.width);
    }
  }
}

template <typename T>
constexpr EmbeddingKernels kEmbeddingKernels = {
    pack_weight<T>,         embedding_forward<T>,   embedding_forward_cross<T>, embedding_backward<T>,
    embedding_backward_cross<T>, embedding_positions<T>, embedding_weights<T>,       embedding_fold_weights<T>,
    embedding_inputs<T>,
};
