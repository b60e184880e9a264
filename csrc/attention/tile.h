// What the forward and the backward share: rows read into the kernels' own type, bias and gate of a row of a tile, and
// which tiles can be left out. Included once for each instruction set (see simd/variant.h), inside its namespace.

template <typename T>
constexpr T kMinusInfinity = -T(INFINITY);

WFKERNELS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
WFKERNELS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
WFKERNELS_INLINE int64_t padded(int64_t n, int64_t to = kPad) { return (n + to - 1) / to * to; }

WFKERNELS_INLINE float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof(value));
  return value;
}

// To the nearest, ties to even; NaN stays NaN.
WFKERNELS_INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  if (value != value) return 0x7FC0;
  return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Hands out pieces of a thread's scratch.
template <typename T>
struct Scratch {
  T* next;
  T* take(int64_t count) {
    T* taken = next;
    next += padded(count);
    return taken;
  }
};

template <typename T>
constexpr Number kOwn = sizeof(T) == sizeof(float) ? Number::kFloat : Number::kDouble;

template <typename T>
WFKERNELS_FUNCTION void read(const Elements& from, int64_t first, int64_t stride, int64_t count, T* to) {
  if (from.type == kOwn<T> && stride == 1) {
    memcpy(to, reinterpret_cast<const T*>(from.data) + first, count * sizeof(T));
    return;
  }
  switch (from.type) {
    case Number::kFloat: {
      const float* source = reinterpret_cast<const float*>(from.data) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = T(source[i * stride]);
      break;
    }
    case Number::kDouble: {
      const double* source = reinterpret_cast<const double*>(from.data) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = T(source[i * stride]);
      break;
    }
    case Number::kBFloat16: {
      const uint16_t* source = reinterpret_cast<const uint16_t*>(from.data) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = T(from_bfloat16(source[i * stride]));
      break;
    }
  }
}

// Writes count contiguous elements.
template <typename T>
WFKERNELS_FUNCTION void write(const T* from, int64_t count, const Elements& to, int64_t first) {
  if (to.type == kOwn<T>) {
    memcpy(reinterpret_cast<T*>(to.data) + first, from, count * sizeof(T));
    return;
  }
  switch (to.type) {
    case Number::kFloat: {
      float* target = reinterpret_cast<float*>(to.data) + first;
      for (int64_t i = 0; i < count; ++i) target[i] = float(from[i]);
      break;
    }
    case Number::kDouble: {
      double* target = reinterpret_cast<double*>(to.data) + first;
      for (int64_t i = 0; i < count; ++i) target[i] = double(from[i]);
      break;
    }
    case Number::kBFloat16: {
      uint16_t* target = reinterpret_cast<uint16_t*>(to.data) + first;
      for (int64_t i = 0; i < count; ++i) target[i] = to_bfloat16(float(from[i]));
      break;
    }
  }
}

// Reads a row of tokens times `factor`, with zeros up to `padded_width`.
template <typename T>
WFKERNELS_INLINE void read_token(
    const Tokens& tokens, int64_t first, int64_t head, int64_t token, int64_t width, int64_t padded_width, T factor,
    T* to) {
  read(tokens, first + head * tokens.head + token * tokens.token, tokens.column, width, to);
  if (factor != T(1))
    for (int64_t i = 0; i < width; ++i) to[i] *= factor;
  for (int64_t i = width; i < padded_width; ++i) to[i] = T(0);
}

// A bucketed term's place of a pair of tokens: everything but the difference of positions.
struct Query {
  int64_t head;  // of the term
  int64_t index;  // of the query in its sequence
  int64_t row;  // index + the sequence's first row
};

WFKERNELS_INLINE Query query_of(const Term& term, const Sequence& sequence, int64_t head, int64_t index) {
  return {term.heads == 1 ? 0 : head, index, sequence.row + index};
}

WFKERNELS_INLINE int64_t position_of(const Term& term, const Sequence& sequence, int64_t row) {
  return term.position ? term.position[sequence.first_token + row] : row;
}

WFKERNELS_INLINE int64_t cell_of(const Term& term, const Sequence& sequence, int64_t row, int64_t column) {
  int64_t cell = 0;
  if (term.group)
    cell = term.group[sequence.first_token + row] * term.groups + term.group[sequence.first_token + column];
  if (term.segment)
    cell = cell * 2 + (term.segment[sequence.first_token + row] == term.segment[sequence.first_token + column]);
  return cell;
}

// The end of the run of keys that begins at `column`, at most `end`.
WFKERNELS_INLINE int64_t run_end(const Term& term, const Sequence& sequence, int64_t column, int64_t end) {
  return term.run_end ? smaller(end, term.run_end[sequence.first_token + column] - sequence.first_token) : end;
}

// Where the entries of a run of keys begin in the expanded table of all heads.
WFKERNELS_INLINE int64_t run_place(const Term& term, const Sequence& sequence, const Query& query, int64_t column) {
  const int64_t difference =
      position_of(term, sequence, column) - position_of(term, sequence, query.row) + term.range;
  return (query.head * term.cells + cell_of(term, sequence, query.row, column)) * term.span + difference;
}

// The entry of one pair in the table of all heads.
WFKERNELS_INLINE int64_t entry_of(const Term& term, const Sequence& sequence, const Query& query, int64_t column) {
  int64_t difference = position_of(term, sequence, query.row) - position_of(term, sequence, column);
  difference = larger(-term.reach, smaller(term.reach, difference));
  const int64_t cell = query.head * term.cells + cell_of(term, sequence, query.row, column);
  return cell * term.entries + term.lookup[difference + term.reach];
}

WFKERNELS_INLINE bool on_diagonal(const Term& term, const Query& query, int64_t column, int64_t count) {
  return term.diagonal_open && query.row >= column && query.row < column + count;
}

// Returns the values of a bias or gate for `count` keys from `column` on, and anything up to `width`: where they lie, or
// in `scratch`. `neutral` is what an open diagonal has.
template <typename T>
WFKERNELS_INLINE const T* term_row(
    const Term& term, int64_t first, const Sequence& sequence, const Query& query, int64_t column, int64_t count,
    int64_t width, T neutral, T* scratch) {
  const bool whole = count == width;
  if (term.kind == TermKind::kDense) {
    const int64_t row = term.from_table_row ? query.row : query.index;
    const int64_t place = first + query.head * term.head + row * term.row + column * term.column;
    // Whatever lies behind the row is masked like all keys that are not there.
    if (term.type == kOwn<T> && term.column == 1 && place + width <= term.end)
      return reinterpret_cast<const T*>(term.data) + place;
    read(term, place, term.column, count, scratch);
  } else if (!term.expanded) {
    const T* table = static_cast<const T*>(term.table);
    for (int64_t j = 0; j < count; ++j) scratch[j] = table[entry_of(term, sequence, query, column + j)];
  } else {
    const T* expanded = static_cast<const T*>(term.expanded);
    const int64_t end = column + count;
    if (whole && run_end(term, sequence, column, end) == end && !on_diagonal(term, query, column, count))
      return expanded + run_place(term, sequence, query, column);
    for (int64_t j = column; j < end;) {
      const int64_t stop = run_end(term, sequence, j, end);
      memcpy(scratch + j - column, expanded + run_place(term, sequence, query, j), (stop - j) * sizeof(T));
      j = stop;
    }
  }
  if (on_diagonal(term, query, column, count)) scratch[query.row - column] = neutral;
  for (int64_t j = count; j < width; ++j) scratch[j] = neutral;
  return scratch;
}

// Rows of a tile, ahead of the one at hand, whose bias, gate and gradients are asked for: what a processor foresees itself
// are neighbouring addresses, and the next row is far away.
constexpr int64_t kRowsAhead = 4;

template <typename T>
WFKERNELS_INLINE void prefetch(const void* data, int64_t place, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(static_cast<const T*>(data) + place + j);
}

// A tile: `rows` queries from `index` on, `columns` keys from `column` on.
struct Tile {
  int64_t index, rows, column, columns;
  int64_t width;  // columns and the padding behind them
};

// Asks for a row of a dense bias or gate that will be read where it lies.
template <typename T>
WFKERNELS_INLINE void prefetch_term(
    const Term& term, int64_t first, const Sequence& sequence, int64_t head, const Tile& tile, int64_t i) {
  if (term.kind != TermKind::kDense || term.type != kOwn<T> || term.column != 1 || i >= tile.rows) return;
  const Query query = query_of(term, sequence, head, tile.index + i);
  const int64_t row = term.from_table_row ? query.row : query.index;
  prefetch<T>(term.data, first + query.head * term.head + row * term.row + tile.column, tile.columns);
}

template <typename T>
WFKERNELS_INLINE void prefetch_terms(
    const Problem& p, const Sequence& sequence, int64_t head, const Tile& tile, int64_t i) {
  prefetch_term<T>(p.bias, sequence.bias, sequence, head, tile, i);
  prefetch_term<T>(p.gate, sequence.gate, sequence, head, tile, i);
}

// Where the gradient of a row of a tile is added up: in its place, or in zeroed `scratch` that `commit` adds there.
template <typename T>
WFKERNELS_INLINE T* gradient_row(
    const Term& term, const TermGradient& gradient, int64_t place, const Query& query, const Tile& tile, T* scratch) {
  const bool direct =
      term.kind == TermKind::kDense && gradient.column == 1 && (tile.columns == tile.width || gradient.padded);
  if (direct) return static_cast<T*>(gradient.data) + place;
  for (int64_t j = 0; j < tile.width; ++j) scratch[j] = T(0);
  return scratch;
}

template <typename T>
WFKERNELS_INLINE void commit(
    const Term& term, const TermGradient& gradient, int64_t place, int64_t bin, const Sequence& sequence,
    const Query& query, const Tile& tile, T* scratch) {
  if (term.kind == TermKind::kDense) {
    T* sums = static_cast<T*>(gradient.data) + place;
    for (int64_t j = 0; j < tile.columns; ++j) sums[j * gradient.column] += scratch[j];
    return;
  }
  double* sums = static_cast<double*>(gradient.data) + bin * gradient.bin;
  if (on_diagonal(term, query, tile.column, tile.columns)) scratch[query.row - tile.column] = T(0);
  if (!term.expanded) {
    for (int64_t j = 0; j < tile.columns; ++j) sums[entry_of(term, sequence, query, tile.column + j)] += scratch[j];
    return;
  }
  for (int64_t j = 0; j < tile.columns;) {
    const int64_t stop = run_end(term, sequence, tile.column + j, tile.column + tile.columns) - tile.column;
    double* to = sums + run_place(term, sequence, query, tile.column + j);
    for (int64_t k = j; k < stop; ++k) to[k - j] += double(scratch[k]);
    j = stop;
  }
}

enum class TileState { kSkipped, kClosed, kOpen };

template <typename T>
WFKERNELS_INLINE bool all_are(const T* values, int64_t count, T value) {
  if (count > 0 && values[0] != value) return false;
  Integers<T> others{};
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) others |= load(values + j) != value;
  bool same = true;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) same &= others[lane] == 0;
  for (; j < count; ++j) same &= values[j] == value;
  return same;
}

// Whether a term is one value on a whole tile. Mostly the first entry tells that it is not.
template <typename T>
WFKERNELS_INLINE bool tile_is(
    const Term& term, int64_t first, const Sequence& sequence, int64_t head, const Tile& tile, T value, T neutral,
    T* scratch) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const Query query = query_of(term, sequence, head, tile.index + i);
    const T* row =
        term_row(term, first, sequence, query, tile.column, tile.columns, tile.columns, neutral, scratch);
    if (!all_are(row, tile.columns, value)) return false;
  }
  return true;
}

// Looks whether a tile is wholly forbidden, or wholly closed by its gate.
template <typename T>
WFKERNELS_FUNCTION TileState look_at(
    const Problem& p, const Sequence& sequence, int64_t head, const Tile& tile, T* scratch) {
  if (p.is_causal && tile.column > sequence.row + tile.index + tile.rows - 1) return TileState::kSkipped;
  if (p.bias.kind != TermKind::kNone &&
      tile_is(p.bias, sequence.bias, sequence, head, tile, kMinusInfinity<T>, T(0), scratch))
    return TileState::kSkipped;
  if (p.gate.kind != TermKind::kNone && tile_is(p.gate, sequence.gate, sequence, head, tile, T(0), T(1), scratch))
    return TileState::kClosed;
  return TileState::kOpen;
}

WFKERNELS_INLINE int64_t place_of_state(const Sequence& sequence, int64_t index, int64_t column) {
  const int64_t across = (sequence.keys + kTileColumns - 1) / kTileColumns;
  return sequence.first_state + index / kTileRows * across + column / kTileColumns;
}

// Says what to do with a tile; closed ones matter to the gradient of the gate alone.
template <typename T>
WFKERNELS_INLINE TileState state_of(
    const Problem& p, const Sequence& sequence, int64_t head, const Tile& tile, T* scratch) {
  const TileState state = p.states
      ? static_cast<TileState>(p.states[place_of_state(sequence, tile.index, tile.column)])
      : look_at(p, sequence, head, tile, scratch);
  return state == TileState::kClosed && !p.gate_gradient.data ? TileState::kSkipped : state;
}

// Takes down the states of all tiles of some rows.
template <typename T>
void look_at_rows(const Problem& p, const Item& item, void* memory) {
  const Sequence& sequence = p.sequences[item.first_sequence];
  for (int64_t column = 0; column < sequence.keys; column += kTileColumns) {
    const int64_t columns = smaller(kTileColumns, sequence.keys - column);
    const Tile tile{item.row_begin, item.row_end - item.row_begin, column, columns, columns};
    p.states[place_of_state(sequence, tile.index, column)] =
        static_cast<uint8_t>(look_at(p, sequence, 0, tile, static_cast<T*>(memory)));
  }
}

// Writes the first `count` columns of a block of kPad rows as rows.
template <typename T>
WFKERNELS_INLINE void transpose_block(const T* from, int64_t stride, int64_t count, T* to, int64_t to_stride) {
  for (int64_t i = 0; i < kPad; i += kLanes<T>)
    for (int64_t j = 0; j < count; j += kLanes<T>)
      transpose_square(from + i * stride + j, stride, smaller(kLanes<T>, count - j), to + j * to_stride + i, to_stride);
}

// Packs the keys or values of one sequence and head: `columns` [tile][width][keys of the tile], `rows` [keys][width].
template <typename T>
WFKERNELS_FUNCTION void pack_tokens(
    const Tokens& tokens, int64_t first, const Sequence& sequence, int64_t head, int64_t width, int64_t padded_width,
    T* columns, T* rows) {
  if (!columns && !rows) return;
  T block[kPad][kPad];
  for (int64_t token = 0; token < sequence.padded_keys; token += kPad) {
    const int64_t tile = token / kTileColumns * kTileColumns;
    const int64_t tile_width = smaller(kTileColumns, sequence.padded_keys - tile);
    const int64_t have = smaller(kPad, sequence.keys - token);
    for (int64_t part = 0; part < padded_width; part += kPad) {
      const int64_t count = smaller(kPad, width - part);
      const int64_t place = first + head * tokens.head + token * tokens.token + part * tokens.column;
      const T* from = block[0];
      int64_t stride = kPad;
      if (tokens.type == kOwn<T> && tokens.column == 1 && count == kPad && have == kPad) {
        from = reinterpret_cast<const T*>(tokens.data) + place;
        stride = tokens.token;
      } else {
        memset(block, 0, sizeof(block));
        for (int64_t i = 0; i < have; ++i) read(tokens, place + i * tokens.token, tokens.column, count, block[i]);
      }
      if (rows)
        for (int64_t i = 0; i < kPad; ++i)
          memcpy(rows + (token + i) * padded_width + part, from + i * stride, sizeof(block[0]));
      if (columns)
        transpose_block(from, stride, count, columns + tile * width + part * tile_width + token - tile, tile_width);
    }
  }
}

template <typename T>
struct RowsOf {
  const T* first;
  int64_t stride;
};

// The rows of keys or values: where they lie, or those that were packed.
template <typename T>
WFKERNELS_INLINE RowsOf<T> rows_of(
    const Tokens& tokens, int64_t first, int64_t head, const void* packed, int64_t place, int64_t padded_width) {
  if (packed) return {static_cast<const T*>(packed) + place * padded_width, padded_width};
  return {reinterpret_cast<const T*>(tokens.data) + first + head * tokens.head, tokens.token};
}

// The columns of the keys or values of one head: those that were packed, or packed now into `scratch`.
template <typename T>
WFKERNELS_INLINE const T* columns_of(
    const Tokens& tokens, int64_t first, const Sequence& sequence, int64_t head, const void* packed, int64_t place,
    int64_t width, Scratch<T>& scratch) {
  if (packed) return static_cast<const T*>(packed) + place * width;
  T* columns = scratch.take(sequence.padded_keys * width);
  pack_tokens<T>(tokens, first, sequence, head, width, padded(width), columns, nullptr);
  return columns;
}

template <typename T>
void pack(const Problem& p, int64_t number, int64_t key_head) {
  const Sequence& sequence = p.sequences[number];
  const int64_t place = sequence.first_packed * p.key_heads + key_head * sequence.padded_keys;
  const auto at = [&](void* buffer, int64_t width) {
    return buffer ? static_cast<T*>(buffer) + place * width : nullptr;
  };
  pack_tokens<T>(
      p.key, sequence.key, sequence, key_head, p.width, p.padded_width, at(p.key_columns, p.width),
      at(p.key_rows, p.padded_width));
  pack_tokens<T>(
      p.value, sequence.value, sequence, key_head, p.value_width, p.padded_value_width,
      at(p.value_columns, p.value_width), at(p.value_rows, p.padded_value_width));
}
