// Attention forward of some queries of one sequence and head, the keys in tiles, with an online softmax. Included once for
// each instruction set (see simd/variant.h), inside its namespace.

// A score with its bias: -inf where the pair is forbidden, whatever the score was. `allowed` keys from the tile's first on
// may be seen.
template <typename T>
WFKERNELS_INLINE Vector<T> biased(Vector<T> score, const T* bias, int64_t j, int64_t allowed) {
  if (bias) {
    const Vector<T> value = load(bias + j);
    score = value == kMinusInfinity<T> ? value : score + value;
  }
  if (j + kLanes<T> > allowed) score = first_lanes<T>(allowed - j) ? score : broadcast(kMinusInfinity<T>);
  return score;
}

// How many keys of a tile a query may see, by causality and because there are no more.
WFKERNELS_INLINE int64_t allowed_keys(const Problem& p, const Tile& tile, int64_t row) {
  return p.is_causal ? larger(0, smaller(tile.columns, row + 1 - tile.column)) : tile.columns;
}

template <typename T>
WFKERNELS_INLINE Vector<T> widened(const uint8_t* keep) {
  Vector<T> value;
  for (int64_t i = 0; i < kLanes<T>; ++i) value[i] = T(keep[i]);
  return value;
}

WFKERNELS_INLINE void keep_of(
    const Problem& p, const Sequence& sequence, int64_t head, int64_t row, const Tile& tile, uint8_t* keep) {
  keep_row(
      uint64_t(p.seed), p.site, uint32_t(sequence.number), uint32_t(head), uint32_t(row), tile.column, tile.width,
      p.threshold, keep);
}

// A tile of rows of an item, all keys.
template <typename T>
WFKERNELS_FUNCTION void forward_rows(const Problem& p, const Item& item, const T* key_columns, Scratch<T> scratch) {
  const Sequence& sequence = p.sequences[item.first_sequence];
  const int64_t head = item.head_begin, rows = item.row_end - item.row_begin;
  const int64_t key_head = head / (p.heads / p.key_heads);
  const int64_t place = sequence.first_packed * p.key_heads + key_head * sequence.padded_keys;
  const RowsOf<T> values = rows_of<T>(p.value, sequence.value, key_head, p.value_rows, place, p.padded_value_width);

  T* scores = scratch.take(kTileRows * kTileColumns);
  T* query = scratch.take(kTileRows * p.padded_width);
  T* out = scratch.take(kTileRows * p.padded_value_width);
  T* bias_scratch = scratch.take(kTileColumns);
  T* gate_scratch = scratch.take(kTileColumns);
  T* largest = scratch.take(kTileRows);
  T* total = scratch.take(kTileRows);
  uint8_t keep[kTileColumns];

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t index = item.row_begin + i;
    read_token(p.query, sequence.query, head, index, p.width, p.padded_width, T(p.scale), query + i * p.padded_width);
    largest[i] = kMinusInfinity<T>;
    total[i] = T(0);
  }
  memset(out, 0, rows * p.padded_value_width * sizeof(T));

  for (int64_t column = 0; column < sequence.keys; column += kTileColumns) {
    const int64_t columns = smaller(kTileColumns, sequence.keys - column);
    const Tile tile{item.row_begin, rows, column, columns, smaller(kTileColumns, sequence.padded_keys - column)};
    if (p.is_causal && column > sequence.row + item.row_begin + rows - 1) break;
    if (state_of(p, sequence, head, tile, bias_scratch) != TileState::kOpen) continue;
    for (int64_t i = 0; i < kRowsAhead; ++i) prefetch_terms<T>(p, sequence, head, tile, i);
    product<T, false>(
        rows, tile.width, p.width, query, p.padded_width, 1, key_columns + column * p.width, tile.width, scores,
        tile.width);

    for (int64_t i = 0; i < rows; ++i) {
      T* row = scores + i * tile.width;
      prefetch_terms<T>(p, sequence, head, tile, i + kRowsAhead);
      const Query at_bias = query_of(p.bias, sequence, head, tile.index + i);
      const Query at_gate = query_of(p.gate, sequence, head, tile.index + i);
      const int64_t allowed = allowed_keys(p, tile, at_bias.row);
      const T* bias = p.bias.kind == TermKind::kNone
          ? nullptr
          : term_row(p.bias, sequence.bias, sequence, at_bias, column, columns, tile.width, T(0), bias_scratch);
      const T* gate = p.gate.kind == TermKind::kNone
          ? nullptr
          : term_row(p.gate, sequence.gate, sequence, at_gate, column, columns, tile.width, T(1), gate_scratch);

      Vector<T> most = broadcast(largest[i]);
      for (int64_t j = 0; j < tile.width; j += kLanes<T>) {
        Vector<T> score = biased(load(row + j), bias, j, allowed);
        if (gate) score = load(gate + j) == T(0) ? broadcast(kMinusInfinity<T>) : score;
        most = score > most ? score : most;
        store(row + j, score);
      }
      const T now = largest_of<T>(most);
      const T origin = now == kMinusInfinity<T> ? T(0) : now;
      Vector<T> sum{};
      for (int64_t j = 0; j < tile.width; j += kLanes<T>) {
        const Vector<T> score = load(row + j);
        Vector<T> share = exponential<T>(score - origin);
        // What is forbidden or closed has -inf here: whatever stands in its gate does not matter.
        if (gate) share = score == kMinusInfinity<T> ? Vector<T>{} : share * load(gate + j);
        sum += share;
        store(row + j, share);
      }
      if (now > largest[i]) {
        const T factor = exp(largest[i] - origin);
        total[i] *= factor;
        T* sums = out + i * p.padded_value_width;
        for (int64_t j = 0; j < p.padded_value_width; j += kLanes<T>) store(sums + j, load(sums + j) * factor);
        largest[i] = now;
      }
      total[i] += sum_of<T>(sum);
      if (p.dropout_p > 0) {
        keep_of(p, sequence, head, at_bias.row, tile, keep);
        for (int64_t j = 0; j < tile.width; j += kLanes<T>) store(row + j, load(row + j) * widened<T>(keep + j));
      }
    }
    product<T, true>(
        rows, p.padded_value_width, columns, scores, tile.width, 1, values.first + column * values.stride, values.stride,
        out, p.padded_value_width);
  }

  for (int64_t i = 0; i < rows; ++i) {
    T* sums = out + i * p.padded_value_width;
    const T kept = total[i] * T(1 - p.dropout_p);
    const T divisor = kept == T(0) ? T(1) : kept;
    for (int64_t j = 0; j < p.padded_value_width; j += kLanes<T>) store(sums + j, load(sums + j) / divisor);
    const int64_t index = item.row_begin + i;
    write(sums, p.value_width, p.out, sequence.out + head * p.out.head + index * p.out.token);
    const T norm = largest[i] + T(log(total[i]));
    write(&norm, 1, p.lse, sequence.lse + head * p.lse_head + index * p.lse_token);
  }
}

template <typename T>
void forward_item(const Problem& p, const Item& item, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  const Sequence& sequence = p.sequences[item.first_sequence];
  const int64_t key_head = item.head_begin / (p.heads / p.key_heads);
  const int64_t place = sequence.first_packed * p.key_heads + key_head * sequence.padded_keys;
  const T* key_columns = columns_of(p.key, sequence.key, sequence, key_head, p.key_columns, place, p.width, scratch);
  for (Item part = item; part.row_begin < item.row_end; part.row_begin += kTileRows) {
    part.row_end = smaller(part.row_begin + kTileRows, item.row_end);
    forward_rows(p, part, key_columns, scratch);
  }
}
