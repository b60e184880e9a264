// Attention backward of some rows, all keys and one or more heads: gradients of queries, of bias and gate, and sums of the
// gradients of keys and values, to be added up chunk by chunk. Included once for each instruction set (see
// simd/variant.h), inside its namespace.

// The rows of one head whose queries and gradients stay in a cache while the keys pass by.
template <typename T>
struct Rows {
  int64_t begin, count;  // queries of the sequence
  T *query, *grad_out, *grad_query;  // [count, padded widths]; query times scale
  T *norm, *delta;  // [count] log-sum-exp (+inf where nothing was open), rowsum(dO o O) - dlse
};

template <typename T>
WFKERNELS_FUNCTION void read_rows(const Problem& p, const Sequence& sequence, int64_t head, Rows<T>& rows, T* row) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t index = rows.begin + i;
    T* grad_out = rows.grad_out + i * p.padded_value_width;
    read_token(
        p.query, sequence.query, head, index, p.width, p.padded_width, T(p.scale), rows.query + i * p.padded_width);
    read_token(p.grad_out, sequence.grad_out, head, index, p.value_width, p.padded_value_width, T(1), grad_out);
    read_token(p.out, sequence.out, head, index, p.value_width, p.padded_value_width, T(1), row);
    const int64_t place = sequence.lse + head * p.lse_head + index * p.lse_token;
    read(p.lse, place, 1, 1, rows.norm + i);
    T delta = T(0);
    if (rows.norm[i] == kMinusInfinity<T>) {
      rows.norm[i] = T(INFINITY);
      memset(grad_out, 0, p.padded_value_width * sizeof(T));
    } else {
      Vector<T> sum{};
      for (int64_t j = 0; j < p.padded_value_width; j += kLanes<T>) sum += load(grad_out + j) * load(row + j);
      delta = sum_of<T>(sum);
      if (p.grad_lse.data) {
        T grad;
        read(p.grad_lse, place, 1, 1, &grad);
        delta -= grad;
      }
    }
    rows.delta[i] = delta;
  }
  memset(rows.grad_query, 0, rows.count * p.padded_width * sizeof(T));
}

// Where the gradient of a dense term begins for one head and query.
WFKERNELS_INLINE int64_t place_of(
    const Term& term, const TermGradient& gradient, int64_t first, const Query& query, int64_t column) {
  if (term.kind != TermKind::kDense) return 0;
  const int64_t row = term.from_table_row ? query.row : query.index;
  return first + query.head * gradient.head + row * gradient.row + column * gradient.column;
}

// Asks for a row of the gradient of a dense term.
template <typename T>
WFKERNELS_INLINE void prefetch_gradient(
    const Term& term, const TermGradient& gradient, int64_t first, const Sequence& sequence, int64_t head,
    const Tile& tile, int64_t i) {
  if (!gradient.data || term.kind != TermKind::kDense || gradient.column != 1 || i >= tile.rows) return;
  const Query query = query_of(term, sequence, head, tile.index + i);
  prefetch<T>(gradient.data, place_of(term, gradient, first, query, tile.column), tile.columns);
}

// Asks for all that row i of a tile reads and writes of bias and gate.
template <typename T>
WFKERNELS_INLINE void prefetch_all(
    const Problem& p, const Sequence& sequence, int64_t head, const Tile& tile, int64_t i) {
  prefetch_terms<T>(p, sequence, head, tile, i);
  prefetch_gradient<T>(p.bias, p.bias_gradient, sequence.bias_gradient, sequence, head, tile, i);
  prefetch_gradient<T>(p.gate, p.gate_gradient, sequence.gate_gradient, sequence, head, tile, i);
}

// Turns the scores and dP of a tile into the factors of the products that follow: P (with dropout) and dS. Adds the
// gradients of bias and gate.
template <typename T>
WFKERNELS_FUNCTION void differentiate_tile(
    const Problem& p, const Item& item, const Sequence& sequence, int64_t head, const Tile& tile, const T* norm,
    const T* delta, T* scores, T* differences, T* scratch) {
  T* bias_scratch = scratch;
  T* gate_scratch = scratch + kTileColumns;
  T* bias_sum_scratch = scratch + 2 * kTileColumns;
  T* gate_sum_scratch = scratch + 3 * kTileColumns;
  uint8_t keep[kTileColumns];
  const T kept = T(1 / (1 - p.dropout_p));
  // exp(30), above which a closed gate's gradient is cut: LARGEST_EXPONENT of wfkernels/attention/reference.py.
  const T cut = T(exp(30.0));

  for (int64_t i = 0; i < tile.rows; ++i) {
    T* row = scores + i * tile.width;
    T* difference = differences + i * tile.width;
    prefetch_all<T>(p, sequence, head, tile, i + kRowsAhead);
    const Query at_bias = query_of(p.bias, sequence, head, tile.index + i);
    const Query at_gate = query_of(p.gate, sequence, head, tile.index + i);
    const int64_t allowed = allowed_keys(p, tile, at_bias.row);
    const T *bias = nullptr, *gate = nullptr;
    T *bias_sum = nullptr, *gate_sum = nullptr;
    const int64_t bias_place = place_of(p.bias, p.bias_gradient, sequence.bias_gradient, at_bias, tile.column);
    const int64_t gate_place = place_of(p.gate, p.gate_gradient, sequence.gate_gradient, at_gate, tile.column);
    if (p.bias.kind != TermKind::kNone)
      bias = term_row(
          p.bias, sequence.bias, sequence, at_bias, tile.column, tile.columns, tile.width, T(0), bias_scratch);
    if (p.gate.kind != TermKind::kNone)
      gate = term_row(
          p.gate, sequence.gate, sequence, at_gate, tile.column, tile.columns, tile.width, T(1), gate_scratch);
    if (p.bias_gradient.data)
      bias_sum = gradient_row(p.bias, p.bias_gradient, bias_place, at_bias, tile, bias_sum_scratch);
    if (p.gate_gradient.data)
      gate_sum = gradient_row(p.gate, p.gate_gradient, gate_place, at_gate, tile, gate_sum_scratch);
    if (p.dropout_p > 0) keep_of(p, sequence, head, at_bias.row, tile, keep);

    const T row_norm = norm[i], row_delta = delta[i];
    for (int64_t j = 0; j < tile.width; j += kLanes<T>) {
      const Vector<T> score = biased(load(row + j), bias, j, allowed);
      Vector<T> power = exponential<T>(score - row_norm);
      Vector<T> share = power, change = load(difference + j), dropped;
      if (gate) {
        const Vector<T> value = load(gate + j);
        share = value == T(0) ? Vector<T>{} : power * value;
        share = score == kMinusInfinity<T> ? Vector<T>{} : share;
      }
      dropped = share;
      if (p.dropout_p > 0) {
        const Vector<T> factor = widened<T>(keep + j) * kept;
        dropped = share * factor;
        change *= factor;
      }
      change -= row_delta;
      if (gate_sum) {
        power = power > cut ? broadcast(cut) : power;
        store(gate_sum + j, load(gate_sum + j) + power * change);
      }
      const Vector<T> slope = share * change;
      if (bias_sum) store(bias_sum + j, load(bias_sum + j) + slope);
      store(row + j, dropped);
      store(difference + j, slope);
    }
    if (bias_sum == bias_sum_scratch)
      commit(p.bias, p.bias_gradient, bias_place, item.bin, sequence, at_bias, tile, bias_sum);
    if (gate_sum == gate_sum_scratch)
      commit(p.gate, p.gate_gradient, gate_place, item.bin, sequence, at_gate, tile, gate_sum);
  }
}

// Where the gradients of the keys or values of one head are added up.
template <typename T>
struct Sums {
  T* data;
  int64_t row, width;
};

template <typename T>
WFKERNELS_INLINE Sums<T> sums_in_place(const Tokens& grad, int64_t first, int64_t head, int64_t width) {
  return {reinterpret_cast<T*>(grad.data) + first + head * grad.head, grad.token, width};
}

// Adds a product to sums, or writes it there where they are `fresh`: nothing was written yet.
template <typename T>
WFKERNELS_INLINE void add_product(
    bool fresh, int64_t rows, int64_t depth, const T* a, int64_t a_depth, const T* b, const Sums<T>& sums, int64_t first) {
  T* to = sums.data + first * sums.row;
  if (fresh)
    product<T, false>(rows, sums.width, depth, a, 1, a_depth, b, sums.width, to, sums.row);
  else
    product<T, true>(rows, sums.width, depth, a, 1, a_depth, b, sums.width, to, sums.row);
}

// All keys against some rows of one head; grad_key and grad_value are sums of the item's chunk, `begun` by rows before.
template <typename T>
WFKERNELS_FUNCTION void backward_rows(
    const Problem& p, const Item& item, const Sequence& sequence, int64_t head, const T* key_columns,
    const T* value_columns, Rows<T>& rows, const Sums<T>& grad_key, const Sums<T>& grad_value, bool begun,
    Scratch<T> scratch) {
  const int64_t key_head = head / (p.heads / p.key_heads);
  const int64_t place = sequence.first_packed * p.key_heads + key_head * sequence.padded_keys;
  const RowsOf<T> keys = rows_of<T>(p.key, sequence.key, key_head, p.key_rows, place, p.padded_width);
  T* scores = scratch.take(kTileRows * kTileColumns);
  T* differences = scratch.take(kTileRows * kTileColumns);
  T* of_rows = scratch.take(4 * kTileColumns);
  const bool need_slopes = p.need_query || p.need_key || p.bias_gradient.data || p.gate_gradient.data;

  const auto zero = [&](int64_t column, int64_t columns) {
    for (int64_t j = column; j < column + columns; ++j) {
      if (p.need_key) memset(grad_key.data + j * grad_key.row, 0, grad_key.width * sizeof(T));
      if (p.need_value) memset(grad_value.data + j * grad_value.row, 0, grad_value.width * sizeof(T));
    }
  };

  const int64_t last = sequence.row + rows.begin + rows.count - 1;
  for (int64_t column = 0; column < sequence.keys; column += kTileColumns) {
    bool fresh = !begun;
    if (p.is_causal && column > last) {
      if (fresh) zero(column, sequence.keys - column);
      break;
    }
    const int64_t columns = smaller(kTileColumns, sequence.keys - column);
    const int64_t width = smaller(kTileColumns, sequence.padded_keys - column);
    // Tiles begin at multiples of their height, whatever row the item begins at.
    for (int64_t first = 0, count; first < rows.count; first += count) {
      count = smaller(kTileRows - (rows.begin + first) % kTileRows, rows.count - first);
      const Tile tile{rows.begin + first, count, column, columns, width};
      const TileState state = state_of(p, sequence, head, tile, of_rows);
      if (state == TileState::kSkipped) continue;
      for (int64_t i = 0; i < kRowsAhead; ++i) prefetch_all<T>(p, sequence, head, tile, i);
      const T* query = rows.query + first * p.padded_width;
      const T* grad_out = rows.grad_out + first * p.padded_value_width;
      product<T, false>(
          tile.rows, width, p.width, query, p.padded_width, 1, key_columns + column * p.width, width, scores, width);
      if (need_slopes)
        product<T, false>(
            tile.rows, width, p.value_width, grad_out, p.padded_value_width, 1,
            value_columns + column * p.value_width, width, differences, width);
      differentiate_tile(
          p, item, sequence, head, tile, rows.norm + first, rows.delta + first, scores, differences, of_rows);
      if (state == TileState::kClosed) continue;
      if (p.need_value) add_product(fresh, columns, tile.rows, scores, width, grad_out, grad_value, column);
      if (p.need_key) add_product(fresh, columns, tile.rows, differences, width, query, grad_key, column);
      fresh = false;
      if (p.need_query)
        product<T, true>(
            tile.rows, p.padded_width, columns, differences, width, 1, keys.first + column * keys.stride, keys.stride,
            rows.grad_query + first * p.padded_width, p.padded_width);
    }
    if (fresh) zero(column, columns);
  }
}

template <typename T>
void backward_item(const Problem& p, const Item& item, void* memory) {
  Scratch<T> scratch{static_cast<T*>(memory)};
  Rows<T> rows;
  rows.query = scratch.take(kCachedRows * p.padded_width);
  rows.grad_out = scratch.take(kCachedRows * p.padded_value_width);
  rows.grad_query = scratch.take(kCachedRows * p.padded_width);
  rows.norm = scratch.take(kCachedRows);
  rows.delta = scratch.take(kCachedRows);
  T* row = scratch.take(p.padded_value_width);

  const int64_t sharing = p.heads / p.key_heads;
  for (int64_t s = item.first_sequence; s < item.first_sequence + item.sequences; ++s) {
    const Sequence& sequence = p.sequences[s];
    const int64_t begin = larger(0, item.row_begin - sequence.item_row);
    const int64_t end = smaller(sequence.queries, item.row_end - sequence.item_row);
    if (begin >= end) continue;
    const int64_t size = sequence.padded_keys * (p.padded_width + p.padded_value_width);
    for (int64_t head = item.head_begin; head < item.head_end; ++head) {
      const int64_t key_head = head / sharing;
      Sums<T> grad_key, grad_value;
      if (p.sums_in_place) {
        grad_key = sums_in_place<T>(p.grad_key, sequence.grad_key, key_head, p.width);
        grad_value = sums_in_place<T>(p.grad_value, sequence.grad_value, key_head, p.value_width);
      } else {
        T* sums = static_cast<T*>(p.sums) + sequence.first_sum * (p.padded_width + p.padded_value_width) +
            ((item.chunk - sequence.first_chunk) * p.sum_heads + key_head - p.first_sum_head) * size;
        grad_key = {sums, p.padded_width, p.padded_width};
        grad_value = {sums + sequence.padded_keys * p.padded_width, p.padded_value_width, p.padded_value_width};
      }
      bool begun = head % sharing != 0;
      Scratch<T> rest = scratch;
      const int64_t place = sequence.first_packed * p.key_heads + key_head * sequence.padded_keys;
      const T* keys = columns_of(p.key, sequence.key, sequence, key_head, p.key_columns, place, p.width, rest);
      const T* values =
          columns_of(p.value, sequence.value, sequence, key_head, p.value_columns, place, p.value_width, rest);
      for (rows.begin = begin; rows.begin < end; rows.begin += kCachedRows) {
        rows.count = smaller(kCachedRows, end - rows.begin);
        read_rows(p, sequence, head, rows, row);
        backward_rows(p, item, sequence, head, keys, values, rows, grad_key, grad_value, begun, rest);
        begun = true;
        if (!p.need_query) continue;
        for (int64_t i = 0; i < rows.count; ++i) {
          T* grad = rows.grad_query + i * p.padded_width;
          for (int64_t j = 0; j < p.padded_width; j += kLanes<T>) store(grad + j, load(grad + j) * T(p.scale));
          write(
              grad, p.width, p.grad_query,
              sequence.grad_query + head * p.grad_query.head + (rows.begin + i) * p.grad_query.token);
        }
      }
    }
  }
}

// Adds the chunks' sums of some keys of one key head and writes their gradients and those of their values.
template <typename T>
void finish_keys(const Problem& p, int64_t number, int64_t key_head, int64_t first_key, void* memory) {
  const Sequence& sequence = p.sequences[number];
  const int64_t both = p.padded_width + p.padded_value_width;
  const int64_t size = sequence.padded_keys * both;
  const T* sums = static_cast<const T*>(p.sums) + sequence.first_sum * both + (key_head - p.first_sum_head) * size;
  T* total = static_cast<T*>(memory);
  const auto finish = [&](int64_t width, int64_t padded_width, int64_t offset, const Tokens& to, int64_t first) {
    for (int64_t key = first_key; key < smaller(first_key + kFinishedKeys, sequence.keys); ++key) {
      for (int64_t j = 0; j < padded_width; j += kLanes<T>) {
        Vector<T> sum{};
        for (int64_t chunk = 0; chunk < sequence.chunks; ++chunk)
          sum += load(sums + chunk * p.sum_heads * size + offset + key * padded_width + j);
        store(total + j, sum);
      }
      write(total, width, to, first + key_head * to.head + key * to.token);
    }
  };
  if (p.need_key) finish(p.width, p.padded_width, 0, p.grad_key, sequence.grad_key);
  if (p.need_value)
    finish(
        p.value_width, p.padded_value_width, sequence.padded_keys * p.padded_width, p.grad_value, sequence.grad_value);
}
