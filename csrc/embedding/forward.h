// Rows into tokens, a panel of them at a time: normalised, multiplied, and finished while the sums are in the caches.
// Included once for each instruction set (see simd/variant.h), inside its namespace.

template <typename T>
WFKERNELS_INLINE const T* own(const void* data, int64_t first) {
  return static_cast<const T*>(data) + first;
}

WFKERNELS_INLINE int64_t token_of(const EmbeddingProblem& p, const EmbeddingLayer& layer, int64_t unit) {
  return layer.first_token + (p.group_of_copy[unit / layer.rows] + 1) * p.cross + unit;
}

// Writes (row - base - shift) / scale for `count` columns of a unit.
template <typename T>
WFKERNELS_FUNCTION void normalise_unit(
    const EmbeddingProblem& p, const EmbeddingLayer& layer, int64_t unit, int64_t column, int64_t count, T* to) {
  T of_base[kDepth];
  const T* row = in_place_or(p.rows, layer.first_row + unit * layer.stride + column, count, to);
  const T* shift = own<T>(p.shift, layer.first_column + column);
  const T* scale = own<T>(p.scale, layer.first_column + column);
  const T* base = nullptr;
  if (p.base.data)
    base = in_place_or(p.base, layer.first_base + unit % layer.rows * layer.stride + column, count, of_base);
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) {
    Vector<T> value = load(row + j);
    if (base) value -= load(base + j);
    store(to + j, (value - load(shift + j)) / load(scale + j));
  }
  for (; j < count; ++j) to[j] = ((base ? row[j] - base[j] : row[j]) - shift[j]) / scale[j];
}

template <typename T>
WFKERNELS_FUNCTION void pack_weight(const EmbeddingProblem& p, const EmbeddingStretch& stretch) {
  const EmbeddingGroup& group = p.weights[stretch.group];
  pack_slivers(
      group.weight, 0, group.row, group.column, stretch.first, stretch.count, group.width, p.width,
      static_cast<T*>(p.packed) + group.first_packed);
}

// The product of a panel with its weight, and the bias: [count, padded d].
template <typename T>
WFKERNELS_FUNCTION void multiply_panel(const EmbeddingProblem& p, const EmbeddingPanel& panel, T* block, T* sums) {
  const EmbeddingLayer& layer = p.layers[panel.layer];
  const EmbeddingGroup& group = p.weights[layer.group];
  const T* packed = own<T>(p.packed, group.first_packed);
  const T* bias = own<T>(p.biases, layer.group * p.padded_width);
  for (int64_t i = 0; i < panel.count; ++i) memcpy(sums + i * p.padded_width, bias, p.padded_width * sizeof(T));
  for (int64_t column = 0; column < layer.width; column += kDepth) {
    const int64_t depth = smaller(kDepth, layer.width - column);
    for (int64_t i = 0; i < panel.count; ++i)
      normalise_unit(p, layer, panel.first + i, column, depth, block + i * kDepth);
    packed_product<T, true>(
        panel.count, p.padded_width, column, depth, block, kDepth, 1, packed, group.width, sums, p.padded_width);
  }
}

// A token of a row before LayerNorm.
template <typename T>
WFKERNELS_INLINE void add_codes(const EmbeddingProblem& p, int64_t number, int64_t unit, const T* sums, T* to) {
  const EmbeddingLayer& layer = p.layers[number];
  const int64_t copy = unit / layer.rows;
  const T* position = own<T>(p.position, (layer.first_position + unit % layer.rows) * p.padded_width);
  const T* teacher = p.teacher ? own<T>(p.teacher, p.code_of_copy[copy] * p.padded_width) : nullptr;
  const T* code = p.layer ? own<T>(p.layer, number * p.padded_width) : nullptr;
  for (int64_t j = 0; j < p.padded_width; j += kLanes<T>) {
    Vector<T> value = activate<T>(load(sums + j), p.activation) + load(position + j);
    if (teacher) value += load(teacher + j);
    if (code) value += load(code + j);
    store(to + j, value);
  }
}

// Cross token number `index` of a sequence before LayerNorm.
template <typename T>
WFKERNELS_INLINE void add_cross_codes(
    const EmbeddingProblem& p, int64_t number, int64_t sequence, int64_t index, T* to) {
  const T* cross = own<T>(p.cross_tokens, (sequence * p.cross + index) * p.padded_width);
  const T* code = p.layer ? own<T>(p.layer, number * p.padded_width) : nullptr;
  for (int64_t j = 0; j < p.padded_width; j += kLanes<T>) {
    Vector<T> value = load(cross + j);
    if (p.teacher) value += load(own<T>(p.teacher, j));
    if (code) value += load(code + j);
    store(to + j, value);
  }
}

WFKERNELS_INLINE int64_t cross_token_of(const EmbeddingProblem& p, const EmbeddingLayer& layer, int64_t group) {
  return layer.first_token + group * p.cross + p.first_copy[group] * layer.rows;
}

template <typename T>
WFKERNELS_INLINE void write_token(const EmbeddingProblem& p, const T* row, int64_t token, T* scratch) {
  T* out = place_or(p.out, token * p.width, p.width, scratch);
  normalise_row(row, p.width, statistics_of(row, p.width, p.eps), own<T>(p.gamma, 0), own<T>(p.beta, 0), out);
  written(out, p.width, p.out, token * p.width);
}

template <typename T>
void embedding_forward(const EmbeddingProblem& p, const EmbeddingPanel& panel, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* block = scratch.take(kPanelRows * kDepth);
  T* sums = scratch.take(kPanelRows * p.padded_width);
  T* row = scratch.take(p.padded_width);
  T* out = scratch.take(p.padded_width);
  const EmbeddingLayer& layer = p.layers[panel.layer];
  multiply_panel(p, panel, block, sums);
  for (int64_t i = 0; i < panel.count; ++i) {
    add_codes(p, panel.layer, panel.first + i, sums + i * p.padded_width, row);
    write_token(p, row, token_of(p, layer, panel.first + i), out);
  }
}

template <typename T>
void embedding_forward_cross(const EmbeddingProblem& p, int64_t number, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* row = scratch.take(p.padded_width);
  T* out = scratch.take(p.padded_width);
  for (int64_t group = 0; group < p.groups; ++group) {
    for (int64_t index = 0; index < p.cross; ++index) {
      add_cross_codes(p, number, number * p.groups + group, index, row);
      write_token(p, row, cross_token_of(p, p.layers[number], group) + index, out);
    }
  }
}
