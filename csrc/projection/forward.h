// Tokens into rows of the students: a block of columns of some units at a time, multiplied, finished and written where it
// belongs. Included once for each instruction set (see simd/variant.h), inside its namespace.

template <typename T>
WFKERNELS_INLINE void copy_padded(const T* from, int64_t count, T* to) {
  memcpy(to, from, count * sizeof(T));
  for (int64_t j = count; j < padded(count); ++j) to[j] = T(0);
}

// First element of a row of a teacher in the buffer of rows.
WFKERNELS_INLINE int64_t row_place(const ProjectionLayer& layer, int64_t copy, int64_t row) {
  return layer.first_row + (copy * layer.rows + row) * layer.stride;
}

// First element of a token that is read; `teacher` counts within the group.
WFKERNELS_INLINE int64_t token_place(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t group, int64_t teacher, int64_t row) {
  const int64_t copy = p.read_mean ? p.first_copy[group] + teacher : group;
  return (layer.first_token + copy * layer.rows + row) * p.width;
}

// Averages the tokens of every unit, and opens the gates.
template <typename T>
void projection_prepare(const ProjectionProblem& p, const ProjectionPanel& panel, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* row = scratch.take(p.padded_width);
  T* sums = scratch.take(p.padded_width);
  const ProjectionLayer& layer = p.layers[panel.layer];
  const T* gate_weight = p.gates ? own<T>(p.gate_weight, layer.group * p.padded_width) : nullptr;
  for (int64_t unit = panel.first; unit < panel.first + panel.count; ++unit) {
    const int64_t group = unit / layer.rows, index = unit % layer.rows;
    const int64_t teachers = p.read_mean ? p.teachers[group] : 1;
    const T average = T(1.0 / double(teachers));
    memset(sums, 0, p.padded_width * sizeof(T));
    for (int64_t t = 0; t < teachers; ++t) {
      const T* token = padded_row(p.tokens, token_place(p, layer, group, t, index), p.width, row);
      Vector<T> dot{};
      for (int64_t j = 0; j < p.width; j += kLanes<T>) {
        store(sums + j, load(sums + j) + load(token + j) * average);
        if (gate_weight) dot += load(token + j) * load(gate_weight + j);
      }
      if (gate_weight) {
        const int64_t place = layer.first_gate + (p.first_copy[group] + t) * layer.rows + index;
        static_cast<T*>(p.gates)[place] = average + (sum_of<T>(dot) + own<T>(p.gate_bias, layer.group)[0]);
      }
    }
    if (p.written_means)
      memcpy(
          static_cast<T*>(p.written_means) + (layer.first_unit + unit) * p.mean_row, sums, p.mean_row * sizeof(T));
  }
}

// Calls work(place, first, count) for every stretch of columns [column, column + columns) of a unit that lies in one
// parameter: `place` in the students, `first` counted from `column`.
template <typename Work>
WFKERNELS_INLINE void for_pieces(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t unit, int64_t column, int64_t columns, Work work) {
  const int64_t group = unit / layer.rows, row = unit % layer.rows;
  for (int64_t i = layer.first_piece; i < layer.first_piece + layer.pieces; ++i) {
    const ProjectionPiece& piece = p.pieces[i];
    const int64_t from = larger(column, piece.start), to = smaller(column + columns, piece.start + piece.width);
    if (from >= to) continue;
    work(group * p.numel + piece.offset + row * piece.width + from - piece.start, from - column, to - from);
  }
}

// A block of columns of a layer, padded with zeros.
template <typename T>
struct Columns {
  int64_t first = 0, count = 0;
  T *bias, *shift, *scale;

  explicit Columns(Scratch<T>& scratch)
      : bias(scratch.take(kBlockColumns)), shift(scratch.take(kBlockColumns)), scale(scratch.take(kBlockColumns)) {}

  void read(const ProjectionProblem& p, const ProjectionLayer& layer, int64_t column, int64_t columns) {
    first = column;
    count = columns;
    copy_padded(own<T>(p.biases, p.weights[layer.group].first_bias + first), count, bias);
    copy_padded(own<T>(p.shift, layer.first_column + first), count, shift);
    copy_padded(own<T>(p.scale, layer.first_column + first), count, scale);
  }
};

// What the teachers' rows contribute to a unit: the anchor, the mean, or the gated sum of differences from `base`.
template <typename T>
WFKERNELS_INLINE void sum_teachers(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t unit, const Columns<T>& columns, const T* base,
    T* scratch, T* sums) {
  const int64_t group = unit / layer.rows, row = unit % layer.rows;
  const int64_t teachers = p.output == Output::kAnchor ? 1 : p.teachers[group];
  const T average = T(1.0 / double(teachers));
  for (int64_t t = 0; t < teachers; ++t) {
    const int64_t copy = p.first_copy[group] + t;
    const T* x = padded_row(p.rows, row_place(layer, copy, row) + columns.first, columns.count, scratch);
    T factor = average;
    if (p.output == Output::kGated) factor = own<T>(p.gates, layer.first_gate + copy * layer.rows + row)[0];
    for (int64_t j = 0; j < columns.count; j += kLanes<T>) {
      Vector<T> value = load(x + j);
      if (p.output == Output::kGated) value -= load(base + j);
      value *= factor;
      store(sums + j, t == 0 ? value : load(sums + j) + value);
    }
  }
}

// a + weight (b - a), as torch.lerp rounds it.
template <typename T>
WFKERNELS_INLINE Vector<T> interpolated(Vector<T> a, Vector<T> b, T weight) {
  return weight < T(0.5) ? a + (b - a) * weight : b - (b - a) * (T(1) - weight);
}

// Turns a product of a unit into values of the student.
template <typename T>
WFKERNELS_INLINE void finish_unit(
    const ProjectionProblem& p, const ProjectionLayer& layer, int64_t unit, const Columns<T>& columns, T* scratch,
    T* values) {
  T *of_base = scratch, *of_prior = scratch + kBlockColumns, *sums = scratch + 2 * kBlockColumns;
  const int64_t place = layer.first_base + unit % layer.rows * layer.stride + columns.first;
  const T strength = T(layer.strength), blend = T(layer.blend);
  const T *base = nullptr, *prior = nullptr;
  const bool reads_base = p.output == Output::kPlain || p.output == Output::kPrior || p.output == Output::kGated;
  if (p.base.data && reads_base) base = padded_row(p.base, place, columns.count, of_base);
  if (p.output == Output::kPrior) prior = padded_row(p.prior, place, columns.count, of_prior);
  if (p.output != Output::kPlain)
    sum_teachers(p, layer, unit, columns, base, scratch + 3 * kBlockColumns, sums);
  for (int64_t j = 0; j < columns.count; j += kLanes<T>) {
    Vector<T> correction = (load(values + j) + load(columns.bias + j)) * strength, value;
    Vector<T> origin = load(columns.shift + j);
    if (base) origin += load(base + j);
    switch (p.output) {
      case Output::kPlain:
        value = origin;
        break;
      case Output::kGated:
        value = load(base + j) + load(sums + j);
        break;
      case Output::kPrior:
        value = interpolated<T>(origin, load(sums + j), blend);
        correction += load(prior + j) * (T(1) - blend);
        break;
      default:
        value = load(sums + j);
    }
    store(values + j, value + load(columns.scale + j) * correction);
  }
}

template <typename T>
void projection_forward(const ProjectionProblem& p, const ProjectionItem& item, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  const ProjectionLayer& layer = p.layers[item.panel.layer];
  const ProjectionWeight& weight = p.weights[layer.group];
  const int64_t width = padded(item.columns), end = item.panel.first + item.panel.count;
  T* packed = scratch.take(p.width * kBlockColumns);
  T* block = scratch.take(kPanelRows * kBlockColumns);
  Columns<T> columns(scratch);
  columns.read(p, layer, item.column, item.columns);
  T* of_rows = scratch.take(4 * kBlockColumns);
  pack_slivers(
      weight.weight, item.column * weight.column, weight.row, weight.column, 0, p.width, p.width, item.columns, packed);
  for (int64_t first = item.panel.first; first < end; first += kPanelRows) {
    const int64_t count = smaller(kPanelRows, end - first);
    const T* means = own<T>(p.means, (layer.first_unit + first) * p.mean_row);
    memset(block, 0, count * width * sizeof(T));
    for (int64_t k = 0; k < p.width; k += kDepth)
      packed_product<T, true>(
          count, width, k, smaller(kDepth, p.width - k), means + k, p.mean_row, 1, packed, p.width, block, width);
    for (int64_t i = 0; i < count; ++i) {
      T* values = block + i * width;
      finish_unit(p, layer, first + i, columns, of_rows, values);
      for_pieces(p, layer, first + i, item.column, item.columns, [&](int64_t place, int64_t from, int64_t some) {
        write(values + from, some, p.out, place);
      });
    }
  }
}
