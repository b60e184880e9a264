#pragma once

// One attention call in plain numbers and pointers: what the kernels of every instruction set read.

#include <cstdint>

namespace wfkernels {

enum class Number : int8_t { kFloat, kDouble, kBFloat16 };

// Elements somewhere in memory; all strides are counted in elements.
struct Elements {
  char* data = nullptr;
  Number type = Number::kFloat;
};

// A tensor over tokens: element (sequence, head, token, column) stands at `first` of the sequence plus the strides.
struct Tokens : Elements {
  int64_t head = 0;
  int64_t token = 0;
  int64_t column = 1;
};

enum class TermKind : int8_t { kNone, kDense, kBucket };

// A bias or a gate.
struct Term : Elements {
  TermKind kind = TermKind::kNone;
  // Dense: strides, 0 where it is broadcast. A ragged call counts rows from the table's first, a dense one from query 0.
  int64_t head = 0, row = 0, column = 0;
  bool from_table_row = false;
  int64_t end = 0;  // behind the last element: up to there, what lies behind a row may be read

  // Bucketed. `expanded` [heads, cells, span] holds, in the kernels' own type, the entry of every difference of positions
  // key - query from -range to range, so that neighbouring keys find neighbouring entries; cell = (group of query, group
  // of key, same segment). Where positions lie so far apart that it would be huge it is null, and entries are looked up.
  const void* expanded = nullptr;
  const void* table = nullptr;  // [heads, cells, entries]
  const int64_t* lookup = nullptr;  // [2 reach + 1]
  const int64_t* group = nullptr;  // per token
  const int64_t* segment = nullptr;
  const int64_t* position = nullptr;
  const int64_t* run_end = nullptr;  // first token behind the run of equal group and segment, positions rising by 1
  int64_t heads = 1, groups = 1, segments = 1, cells = 1, entries = 1, reach = 0, range = 0, span = 1;
  bool diagonal_open = false;
};

// Where the gradient of a term is added up: a dense one in the kernels' own type, that of a table, whose entries
// are sums over very many pairs, in double.
struct TermGradient {
  void* data = nullptr;  // null: not needed
  int64_t bin = 0;  // elements between the sums of two bins; 0 where every entry belongs to one item
  // Dense: strides, 0 where it is broadcast.
  int64_t head = 0, row = 0, column = 0;
  bool padded = false;  // rows have room for the padding of a tile
};

struct Sequence {
  int64_t number;  // for dropout
  int64_t queries, keys;
  int64_t row;  // which row query 0 is
  int64_t item_row;  // the same as items count rows: those of the bias or gate that sequences may share
  int64_t padded_keys;  // keys and zeros behind them
  int64_t first_packed;  // padded keys of the sequences before
  int64_t first_query, first_token;  // in a ragged call: first token of the queries, of the keys
  // First elements of its part of every tensor.
  int64_t query, key, value, out, grad_out, lse, bias, gate, bias_gradient, gate_gradient;
  int64_t grad_query, grad_key, grad_value;
  // Sums of the gradients of keys and values: first row of Problem.sums, number of its first chunk, chunks.
  int64_t first_sum, first_chunk, chunks;
  int64_t first_state;  // of its tiles among Problem.states
};

struct Problem {
  int64_t heads, key_heads, width, value_width;
  int64_t padded_width, padded_value_width;
  bool is_causal;
  double scale;
  double dropout_p;
  uint64_t threshold;  // an element is kept where its random word is at least this
  int64_t seed, site;
  Tokens query, key, value, out, grad_out, grad_query, grad_key, grad_value;
  Elements lse, grad_lse;  // grad_lse.data may be null
  int64_t lse_head, lse_token;
  Term bias, gate;
  TermGradient bias_gradient, gate_gradient;
  bool need_query, need_key, need_value;
  const Sequence* sequences;
  // [sequence, tile of rows, tile of columns] the TileState of every tile where all heads agree on it, else null.
  uint8_t* states;
  // Keys and values of all sequences in the kernels' own type: as tiles of columns, and as rows. Null: rows are read where
  // they lie, and columns packed by the item that reads them.
  void *key_columns, *key_rows, *value_columns, *value_rows;
  // Gradients of keys and values for some key heads at a time, so that memory does not grow with the heads.
  int64_t sum_rows, sum_heads, first_sum_head;
  bool sums_in_place;  // every sequence is one chunk, whose sums are the gradients
  void* sums;  // [sum_rows, both widths] = of every sequence [chunk of a sequence, key head], of keys, then of values
};

// What one thread works on at a time. Forward: queries of one sequence and head. Backward: rows of all the sequences that
// share a gradient, or of one.
struct Item {
  int64_t first_sequence, sequences;  // a range of Problem.sequences
  int64_t row_begin, row_end;
  int64_t head_begin, head_end;
  int64_t chunk;
  int64_t bin;  // which of the partial sums of a term's gradient are its own
};

// Tiles of the scores.
constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 128;
// Rows whose queries and gradients stay in a cache while all keys pass by.
constexpr int64_t kCachedRows = 512;
// Up to so many keys, columns are packed by the item that reads them: then they never leave its caches.
constexpr int64_t kKeysOfItem = 512;
// Keys whose sums one thread adds up at a time.
constexpr int64_t kFinishedKeys = 128;
// Keys and widths are padded to this many elements, a multiple of every vector.
constexpr int64_t kPad = 16;

}  // namespace wfkernels
