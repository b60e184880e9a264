// From tensors to the plain numbers of a Problem: strides, sequences, and bucketed terms as tables by difference.

#include "attention/call.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "simd/kernels.h"
#include "simd/parallel.h"

namespace wfkernels::attention {

namespace {

// Entries of an expanded table, beyond which positions lie too far apart for one.
constexpr int64_t kMostExpanded = int64_t(1) << 21;
// Entries of a table that is written out by pairs of tokens: what a cache of some MB holds.
constexpr int64_t kMostWrittenOut = int64_t(1) << 20;

// Sequences times heads from which on they are enough items for many threads.
constexpr int64_t kItemsThatPack = 16;

Number number_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Number::kFloat;
    case ScalarType::Double:
      return Number::kDouble;
    case ScalarType::BFloat16:
      return Number::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "attention: cannot read ", torch::headeronly::toString(type));
  }
}

const int64_t* integers(const OptionalTensor& tensor) {
  return tensor ? static_cast<const int64_t*>(tensor->const_data_ptr()) : nullptr;
}

int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Size and stride of a dimension counted from the last one; 1 and 0 where it is missing or broadcast.
std::pair<int64_t, int64_t> dimension(const Tensor& tensor, int64_t from_end) {
  const int64_t d = tensor.dim() - from_end;
  if (d < 0 || tensor.size(d) == 1) return {1, 0};
  return {tensor.size(d), tensor.stride(d)};
}

}  // namespace

Elements elements_of(const Tensor& tensor) {
  return {static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())), number_of(tensor.scalar_type())};
}

int64_t entry_at(const Term& term, int64_t t) {
  return term.lookup[std::clamp(term.range - t, -term.reach, term.reach) + term.reach];
}

Buffer::Buffer(const Tensor& like, int64_t elements, ScalarType type)
    : tensor_(torch::stable::new_empty(like, {elements}, type)) {}

Call::Call(
    Tensor query, Tensor key, Tensor value, GivenTerm bias, GivenTerm gate, GivenLengths lengths, Options options)
    : query_(std::move(query)), key_(std::move(key)), value_(std::move(value)), options_(std::move(options)) {
  type_ = query_.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  ragged_ = lengths.offsets.has_value();
  Problem& p = problem_;
  const int64_t head = ragged_ ? 1 : query_.dim() - 3;
  p.heads = query_.size(head);
  p.key_heads = key_.size(head);
  p.width = query_.size(query_.dim() - 1);
  p.value_width = value_.size(value_.dim() - 1);
  p.padded_width = padded(p.width);
  p.padded_value_width = padded(p.value_width);
  p.is_causal = options_.is_causal;
  p.scale = options_.scale;
  p.dropout_p = options_.dropout_p;
  p.threshold = static_cast<uint64_t>(std::nearbyint(std::ldexp(options_.dropout_p, 32)));
  p.seed = options_.seed ? *integers(options_.seed) : 0;
  p.site = options_.site;

  read_lengths(lengths);
  p.sequences = sequences_.data();
  place(query_, p.query, &Sequence::query, false);
  place(key_, p.key, &Sequence::key, true);
  place(value_, p.value, &Sequence::value, true);
  read_term(bias, bias_, &Sequence::bias);
  read_term(gate, gate_, &Sequence::gate);
  p.bias = bias_.term;
  p.gate = gate_.term;
}

void Call::read_lengths(const GivenLengths& lengths) {
  const int64_t* start = integers(lengths.query_start);
  const auto add = [&](int64_t queries, int64_t keys, int64_t first_query, int64_t first_token) {
    Sequence s{};
    s.number = static_cast<int64_t>(sequences_.size());
    s.queries = queries;
    s.keys = keys;
    if (start) s.row = start[lengths.query_start->numel() == 1 ? 0 : s.number];
    s.item_row = ragged_ ? s.row : 0;
    s.padded_keys = padded(keys);
    s.first_packed = packed_keys_;
    s.first_query = first_query;
    s.first_token = first_token;
    packed_keys_ += s.padded_keys;
    sequences_.push_back(s);
  };
  if (ragged_) {
    const int64_t* queries = integers(lengths.offsets);
    const int64_t* keys = lengths.key_offsets ? integers(lengths.key_offsets) : queries;
    for (int64_t i = 0; i + 1 < lengths.offsets->numel(); ++i)
      add(queries[i + 1] - queries[i], keys[i + 1] - keys[i], queries[i], keys[i]);
  } else {
    int64_t count = 1;
    for (int64_t d = 0; d < query_.dim() - 3; ++d) {
      batch_.push_back(query_.size(d));
      count *= query_.size(d);
    }
    for (int64_t i = 0; i < count; ++i) add(query_.size(query_.dim() - 2), key_.size(key_.dim() - 2), 0, 0);
  }
}

// Returns the first element of every sequence: a tensor's leading dimensions, broadcast against those of the call.
std::vector<int64_t> Call::first_elements(const Tensor& tensor, int64_t trailing) const {
  std::vector<int64_t> firsts(sequences_.size(), 0);
  int64_t repeat = 1;
  for (int64_t d = static_cast<int64_t>(batch_.size()) - 1; d >= 0; --d) {
    const int64_t stride = dimension(tensor, trailing + static_cast<int64_t>(batch_.size()) - d).second;
    if (stride != 0)
      for (size_t i = 0; i < firsts.size(); ++i) firsts[i] += static_cast<int64_t>(i) / repeat % batch_[d] * stride;
    repeat *= batch_[d];
  }
  return firsts;
}

// Finds the strides of a tensor over tokens and the first element of every sequence in it.
void Call::place(const Tensor& tensor, Tokens& tokens, int64_t Sequence::*first, bool of_keys) {
  static_cast<Elements&>(tokens) = elements_of(tensor);
  const int64_t last = tensor.dim() - 1;
  tokens.column = tensor.stride(last);
  tokens.head = tensor.stride(ragged_ ? 1 : last - 2);
  tokens.token = tensor.stride(ragged_ ? 0 : last - 1);
  const std::vector<int64_t> firsts = first_elements(tensor, 3);
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& s = sequences_[i];
    s.*first = ragged_ ? (of_keys ? s.first_token : s.first_query) * tokens.token : firsts[i];
  }
}

void Call::place_lse(const Tensor& lse) {
  problem_.lse = elements_of(lse);
  problem_.lse_head = lse.stride(ragged_ ? 1 : lse.dim() - 2);
  problem_.lse_token = lse.stride(ragged_ ? 0 : lse.dim() - 1);
  const std::vector<int64_t> firsts = first_elements(lse, 2);
  for (size_t i = 0; i < sequences_.size(); ++i)
    sequences_[i].lse = ragged_ ? sequences_[i].first_query * problem_.lse_token : firsts[i];
}

void Call::read_term(const GivenTerm& given, Table& table, int64_t Sequence::*first) {
  table.given = given;
  if (!given.tensor) return;
  const Tensor& tensor = *given.tensor;
  Term& term = table.term;
  static_cast<Elements&>(term) = elements_of(tensor);
  if (!given.lookup) {
    term.kind = TermKind::kDense;
    term.heads = problem_.heads;
    term.head = dimension(tensor, 3).second;
    term.row = dimension(tensor, 2).second;
    term.column = dimension(tensor, 1).second;
    term.from_table_row = ragged_;
    term.end = 1;
    for (int64_t d = 0; d < tensor.dim(); ++d) term.end += (tensor.size(d) - 1) * tensor.stride(d);
    const std::vector<int64_t> firsts = first_elements(tensor, 3);
    for (size_t i = 0; i < sequences_.size(); ++i) sequences_[i].*first = firsts[i];
    return;
  }
  term.kind = TermKind::kBucket;
  term.heads = tensor.size(0);
  term.groups = tensor.size(1);
  term.segments = tensor.size(3);
  term.entries = tensor.size(4);
  term.cells = term.groups * term.groups * term.segments;
  term.lookup = integers(given.lookup);
  term.reach = given.lookup->numel() / 2;
  term.group = integers(given.group);
  term.segment = integers(given.segment);
  term.position = integers(given.position);
  term.diagonal_open = given.diagonal_open;
  wide() ? expand<double>(table) : expand<float>(table);
  const double diagonal = first == &Sequence::gate ? 1 : 0;
  const double pairs = static_cast<double>(term.heads) * static_cast<double>(query_.size(query_.dim() - 2)) *
      static_cast<double>(key_.size(key_.dim() - 2));
  const bool from_first = std::all_of(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return s.row == 0; });
  const bool shared = term.expanded && !ragged_ && sequences_.size() > 1 && from_first;
  if (shared && pairs <= static_cast<double>(kMostWrittenOut))
    wide() ? write_out<double>(table, diagonal) : write_out<float>(table, static_cast<float>(diagonal));
}

// Writes out a small table by pairs of tokens, which many sequences of a dense call share.
template <typename T>
void Call::write_out(Table& table, T diagonal) {
  const Sequence& any = sequences_.front();
  Term& term = table.term;
  table.pairs = term;
  table.dense = buffer(term.heads * any.queries * any.padded_keys);
  T* const entries = static_cast<T*>(table.dense.data());
  const T* expanded = static_cast<const T*>(term.expanded);
  for_each_free(term.heads * any.queries, 0, [&](int64_t row, void*) {
    const int64_t head = row / any.queries, i = row % any.queries;
    T* to = entries + row * any.padded_keys;
    for_each_run(term, head, i, any.keys, [&](int64_t from, int64_t end, int64_t place) {
      std::copy_n(expanded + place, end - from, to + from);
    });
    std::fill(to + any.keys, to + any.padded_keys, diagonal);
    if (term.diagonal_open && i < any.keys) to[i] = diagonal;
  });
  Term dense;
  dense.kind = TermKind::kDense;
  dense.data = static_cast<char*>(table.dense.data());
  dense.type = wide() ? Number::kDouble : Number::kFloat;
  dense.heads = problem_.heads;
  dense.head = term.heads == 1 ? 0 : any.queries * any.padded_keys;
  dense.row = any.padded_keys;
  dense.column = 1;
  dense.end = term.heads * any.queries * any.padded_keys;
  term = dense;
}

// Writes out a table by the difference of positions, and where runs of neighbouring keys end.
template <typename T>
void Call::expand(Table& table) {
  Term& term = table.term;
  const int64_t size = term.heads * term.cells * term.entries;
  table.table = buffer(size);
  T* entries = static_cast<T*>(table.table.data());
  const Tensor& given = *table.given.tensor;
  for (int64_t i = 0; i < size; ++i) {
    switch (term.type) {
      case Number::kFloat:
        entries[i] = static_cast<const float*>(given.const_data_ptr())[i];
        break;
      case Number::kDouble:
        entries[i] = static_cast<T>(static_cast<const double*>(given.const_data_ptr())[i]);
        break;
      case Number::kBFloat16:
        entries[i] = static_cast<float>(static_cast<const torch::headeronly::BFloat16*>(given.const_data_ptr())[i]);
        break;
    }
  }
  term.table = entries;

  double range = 0;
  if (term.position) {
    const int64_t tokens = table.given.position->numel();
    const auto [low, high] = std::minmax_element(term.position, term.position + tokens);
    if (tokens > 0) range = static_cast<double>(*high) - static_cast<double>(*low);
  } else {
    for (const Sequence& s : sequences_)
      range = std::max({range, static_cast<double>(s.row) + static_cast<double>(s.queries), double(s.keys)});
  }
  if (range * 2 * static_cast<double>(term.heads * term.cells) > static_cast<double>(kMostExpanded)) return;

  term.range = static_cast<int64_t>(range);
  term.span = 2 * term.range + 1;
  table.expanded = buffer(term.heads * term.cells * term.span);
  T* expanded = static_cast<T*>(table.expanded.data());
  for (int64_t cell = 0; cell < term.heads * term.cells; ++cell)
    for (int64_t t = 0; t < term.span; ++t)
      expanded[cell * term.span + t] = entries[cell * term.entries + entry_at(term, t)];
  term.expanded = expanded;

  const OptionalTensor& any = table.given.group ? table.given.group
      : table.given.segment                     ? table.given.segment
                                                : table.given.position;
  if (!any) return;
  std::vector<int64_t>& ends = table.run_end;
  ends.resize(any->numel());
  for (int64_t i = static_cast<int64_t>(ends.size()) - 1; i >= 0; --i) {
    const bool goes_on = i + 1 < static_cast<int64_t>(ends.size()) &&
        (!term.group || term.group[i] == term.group[i + 1]) &&
        (!term.segment || term.segment[i] == term.segment[i + 1]) &&
        (!term.position || term.position[i] + 1 == term.position[i + 1]);
    ends[i] = goes_on ? ends[i + 1] : i + 1;
  }
  term.run_end = ends.data();
}

// Copies keys and values into the kernels' own type: as columns for products with queries, as rows for sums over keys.
void Call::pack(bool for_backward) {
  Problem& p = problem_;
  const int64_t keys = packed_keys_ * p.key_heads;
  // Rows in the kernels' own type that need no padding are read where they lie.
  const auto lies_so = [&](const Tokens& tokens, int64_t width) {
    return tokens.type == (wide() ? Number::kDouble : Number::kFloat) && tokens.column == 1 && width % kPad == 0;
  };
  const bool in_place = for_backward ? lies_so(p.key, p.width) : lies_so(p.value, p.value_width);
  items_pack_ = in_place && items_may_pack(for_backward);
  if (items_pack_) return;
  key_columns_ = buffer(keys * p.width);
  p.key_columns = key_columns_.data();
  if (for_backward) {
    if (!in_place) key_rows_ = buffer(keys * p.padded_width);
    value_columns_ = buffer(keys * p.value_width);
    p.key_rows = key_rows_.data();
    p.value_columns = value_columns_.data();
  } else {
    if (!in_place) value_rows_ = buffer(keys * p.padded_value_width);
    p.value_rows = value_rows_.data();
  }
  const auto pack = kernels_of(options_.isa).attention_pack[wide()];
  for_each_free(static_cast<int64_t>(sequences_.size()) * p.key_heads, 0, [&](int64_t i, void*) {
    pack(p, i / p.key_heads, i % p.key_heads);
  });
}

// Are sequences so short, and so many, that an item may pack the columns it reads: nobody else reads them?
bool Call::items_may_pack(bool for_backward) const {
  const Problem& p = problem_;
  return p.heads == p.key_heads && static_cast<int64_t>(sequences_.size()) * p.heads >= kItemsThatPack &&
      std::all_of(sequences_.begin(), sequences_.end(), [&](const Sequence& s) {
        return s.keys <= kKeysOfItem && s.queries <= kKeysOfItem && (!for_backward || s.chunks <= 1);
      });
}

int64_t Call::scratch_bytes(bool for_backward) const {
  const Problem& p = problem_;
  const int64_t columns = items_pack_ ? (kKeysOfItem + kPad) * (p.padded_width + p.padded_value_width) : 0;
  const int64_t of_rows = for_backward ? kCachedRows : kTileRows;
  const int64_t elements = columns + 2 * kTileRows * kTileColumns + 4 * kTileColumns +
      of_rows * (2 * p.padded_width + p.padded_value_width + 2) + p.padded_value_width + 16 * kPad;
  return elements * (wide() ? sizeof(double) : sizeof(float));
}

// Returns every tile of `height` rows of every head, those with the most keys first: no thread is left alone with one at
// the end.
std::vector<Item> Call::row_tiles(int64_t heads, int64_t height) const {
  std::vector<Item> items;
  for (int64_t s = 0; s < static_cast<int64_t>(sequences_.size()); ++s)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t row = 0; row < sequences_[s].queries; row += height)
        items.push_back({s, 1, row, std::min(row + height, sequences_[s].queries), head, head + 1, 0, 0});
  std::stable_sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
    return sequences_[a.first_sequence].keys > sequences_[b.first_sequence].keys;
  });
  return items;
}

// Finds the tiles that can be left out, once for all heads where bias and gate are the same for all.
void Call::look_at_tiles() {
  Problem& p = problem_;
  const auto alike = [](const Term& term) {
    return term.kind == TermKind::kNone || (term.kind == TermKind::kDense ? term.head == 0 : term.heads == 1);
  };
  if (!alike(p.bias) || !alike(p.gate) || (p.bias.kind == TermKind::kNone && p.gate.kind == TermKind::kNone)) return;
  int64_t count = 0;
  for (Sequence& s : sequences_) {
    s.first_state = count;
    count += (s.queries + kTileRows - 1) / kTileRows * ((s.keys + kTileColumns - 1) / kTileColumns);
  }
  states_.resize(count);
  p.states = states_.data();
  const std::vector<Item> items = row_tiles(1, kTileRows);
  const auto look = kernels_of(options_.isa).attention_look[wide()];
  for_each_free(static_cast<int64_t>(items.size()), scratch_bytes(false), [&](int64_t i, void* scratch) {
    look(p, items[i], scratch);
  });
}

std::tuple<Tensor, Tensor> Call::forward() {
  Problem& p = problem_;
  std::vector<int64_t> shape(query_.sizes().begin(), query_.sizes().end() - 1);
  Tensor lse = torch::stable::new_empty(query_, shape, type_);
  shape.push_back(p.value_width);
  Tensor out = torch::stable::new_empty(query_, shape);
  place(out, p.out, &Sequence::out, false);
  place_lse(lse);
  pack(false);
  look_at_tiles();

  const std::vector<Item> items = row_tiles(p.heads, items_pack_ ? kKeysOfItem : kTileRows);
  const auto run = kernels_of(options_.isa).attention_forward[wide()];
  for_each_free(static_cast<int64_t>(items.size()), scratch_bytes(false), [&](int64_t i, void* scratch) {
    run(p, items[i], scratch);
  });
  return {out, lse};
}

}  // namespace wfkernels::attention
