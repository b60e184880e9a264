// act(x) W^T + bias, a block of rows and outputs at a time. Included once for each instruction set (see simd/variant.h),
// inside its namespace.

template <typename T>
void pack_linear(const LinearProblem& p, int64_t first, int64_t count) {
  pack_slivers(
      p.weight, 0, p.weight_input, p.weight_output, first, count, p.inputs, p.outputs, static_cast<T*>(p.packed));
}

// Returns the rows of a block after their activation: where they lie, or in `scratch`.
template <typename T>
WFKERNELS_FUNCTION const T* activated_rows(const LinearProblem& p, const LinearBlock& block, T* scratch) {
  const T* rows = own<T>(p.x.data, block.row * p.inputs);
  if (p.activation == Activation::kNone) return rows;
  const int64_t count = block.rows * p.inputs;
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(scratch + i, activate<T>(load(rows + i), p.activation));
  T rest[kLanes<T>]{};
  memcpy(rest, rows + i, (count - i) * sizeof(T));
  store(rest, activate<T>(load(rest), p.activation));
  memcpy(scratch + i, rest, (count - i) * sizeof(T));
  return scratch;
}

template <typename T>
void linear_forward(const LinearProblem& p, const LinearBlock& block, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  T* sums = scratch.take(kPanelRows * kBlockColumns);
  const T* rows = activated_rows(p, block, scratch.take(kPanelRows * p.inputs));
  const T* packed = static_cast<const T*>(p.packed);
  for (int64_t column = block.column; column < block.column + block.columns; column += kBlockColumns) {
    const int64_t columns = smaller(kBlockColumns, block.column + block.columns - column);
    for (int64_t first = 0; first < p.inputs; first += kDepth) {
      const int64_t depth = smaller(kDepth, p.inputs - first);
      const auto multiply = first == 0 ? packed_product<T, false> : packed_product<T, true>;
      multiply(
          block.rows, padded(columns), first, depth, rows + first, p.inputs, 1, packed + column * p.inputs, p.inputs,
          sums, kBlockColumns);
    }
    const T* bias = p.bias.data ? own<T>(p.bias.data, column) : nullptr;
    for (int64_t i = 0; i < block.rows; ++i) {
      const T* row = sums + i * kBlockColumns;
      T* to = reinterpret_cast<T*>(p.out.data) + (block.row + i) * p.outputs + column;
      int64_t j = 0;
      for (; j + kLanes<T> <= columns; j += kLanes<T>)
        store(to + j, bias ? load(row + j) + load(bias + j) : load(row + j));
      for (; j < columns; ++j) to[j] = bias ? row[j] + bias[j] : row[j];
    }
  }
}
