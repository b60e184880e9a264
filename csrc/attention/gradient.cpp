// The backward call: which work belongs together so that every sum has one owner, and the sums over what is left.
//
// Sequences that share a bias or gate whose gradient is wanted form a group. A group's rows are cut into chunks that
// depend on the shapes alone; an item is one chunk with all the sequences of the group and one key head. Where heads share
// the gradient, an item does one head after another, as many at a time as memory allows. So the gradient of every entry
// of a dense term is added up by one item at a time, in a fixed order. Gradients of tables are added up in bins, runs of
// items in a fixed order; those of keys and values per chunk. No result depends on the number of threads.

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <set>

#include "attention/call.h"
#include "simd/kernels.h"
#include "simd/parallel.h"

namespace wfkernels::attention {

namespace {

constexpr double kWantedItems = 16;
constexpr int64_t kMostChunks = 8;
constexpr int64_t kMostBins = 16;
// Bytes of the sums of keys and values up to which heads that share a gradient need not be done one after another.
constexpr double kMostSums = 4 * 1024 * 1024;

int64_t size_from_end(const Tensor& tensor, int64_t from_end) {
  return tensor.dim() < from_end ? 1 : tensor.size(tensor.dim() - from_end);
}

// Strides of a contiguous tensor of the same shape, from the last dimension on; 0 where a dimension has one element.
std::vector<int64_t> strides_from_end(const Tensor& tensor) {
  std::vector<int64_t> strides;
  int64_t next = 1;
  for (int64_t d = 1; d <= std::max<int64_t>(3, tensor.dim()); ++d) {
    const int64_t size = size_from_end(tensor, d);
    strides.push_back(size == 1 ? 0 : next);
    next *= size;
  }
  return strides;
}

std::vector<int64_t> shape_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

double cost_of(const Sequence& s) { return 1 + static_cast<double>(s.queries) * static_cast<double>(s.keys); }

}  // namespace

// Finds the strides of a term's gradient and the first element of every sequence in it.
void Call::place_gradient(const Table& table, bool need, TermGradient& gradient, int64_t Sequence::*first) {
  if (!need || table.term.kind != TermKind::kDense) return;
  if (table.given.lookup) {  // written out; all sequences share it
    gradient.head = table.term.head;
    gradient.row = table.term.row;
    gradient.column = 1;
    gradient.padded = true;
    return;
  }
  const std::vector<int64_t> strides = strides_from_end(*table.given.tensor);
  gradient.column = strides[0];
  gradient.row = strides[1];
  gradient.head = strides[2];
  int64_t repeat = 1;
  for (size_t d = 0; d < batch_.size(); ++d) {
    const int64_t size = batch_[batch_.size() - 1 - d];
    const int64_t stride = 3 + d < strides.size() ? strides[3 + d] : 0;
    for (size_t i = 0; i < sequences_.size(); ++i)
      sequences_[i].*first += static_cast<int64_t>(i) / repeat % size * stride;
    repeat *= size;
  }
}

// Sorts the sequences into groups that share no entry of a dense gradient; returns where each group begins, and the end.
std::vector<int64_t> Call::group_sequences(bool by_bias, bool by_gate) {
  std::vector<int64_t> begins;
  const int64_t count = static_cast<int64_t>(sequences_.size());
  if (by_bias && by_gate) {
    // Groups of both at once exist where each place of a bias goes with one place of a gate; else all are one group.
    std::set<std::pair<int64_t, int64_t>> both;
    std::set<int64_t> biases, gates;
    for (const Sequence& s : sequences_) {
      both.insert({s.bias_gradient, s.gate_gradient});
      biases.insert(s.bias_gradient);
      gates.insert(s.gate_gradient);
    }
    if (both.size() != biases.size() || both.size() != gates.size()) return {0, count};
  }
  if (!by_bias && !by_gate) {
    for (int64_t i = 0; i <= count; ++i) begins.push_back(i);
    return begins;
  }
  const auto place = by_bias ? &Sequence::bias_gradient : &Sequence::gate_gradient;
  std::stable_sort(sequences_.begin(), sequences_.end(), [&](const Sequence& a, const Sequence& b) {
    return a.*place < b.*place;
  });
  for (int64_t i = 0; i < count; ++i)
    if (i == 0 || sequences_[i].*place != sequences_[i - 1].*place) begins.push_back(i);
  begins.push_back(count);
  return begins;
}

// Of how many key heads the sums fit into memory at a time; a divisor of their number.
int64_t Call::heads_at_once() const {
  const Problem& p = problem_;
  double keys = 0;
  for (const Sequence& s : sequences_) keys += static_cast<double>(s.padded_keys);
  const int64_t widths = p.padded_width + p.padded_value_width;
  const double bytes = keys * static_cast<double>(kMostChunks * widths * (wide() ? sizeof(double) : sizeof(float)));
  int64_t heads = p.key_heads;
  while (heads > 1 && (p.key_heads % heads || bytes * static_cast<double>(heads) > kMostSums)) --heads;
  return heads;
}

// Cuts the work into items.
std::vector<Item> Call::divide(bool by_bias, bool by_gate) {
  Problem& p = problem_;
  const bool all_heads = (by_bias && p.bias_gradient.head == 0) || (by_gate && p.gate_gradient.head == 0);
  // A gradient without rows of its own would be shared by chunks.
  const bool all_rows = (by_bias && p.bias_gradient.row == 0) || (by_gate && p.gate_gradient.row == 0);
  const int64_t sharing = p.heads / p.key_heads;
  p.sum_heads = all_heads ? heads_at_once() : p.key_heads;
  const int64_t phase = p.sum_heads * sharing, together = all_heads ? phase : sharing;  // heads of a phase, of an item
  const std::vector<int64_t> begins = group_sequences(by_bias, by_gate);
  double total = 0;
  for (const Sequence& s : sequences_) total += cost_of(s);

  std::vector<Item> items;
  p.sum_rows = 0;
  for (size_t g = 0; g + 1 < begins.size(); ++g) {
    const int64_t first = begins[g], count = begins[g + 1] - begins[g];
    int64_t low = INT64_MAX, high = 0;
    double cost = 0;
    for (int64_t s = first; s < first + count; ++s) {
      low = std::min(low, sequences_[s].item_row);
      high = std::max(high, sequences_[s].item_row + sequences_[s].queries);
      cost += cost_of(sequences_[s]);
    }
    const int64_t wanted = static_cast<int64_t>(cost / total * kWantedItems * double(together) / double(phase));
    const int64_t chunks = all_rows ? 1 : std::clamp<int64_t>(wanted, 1, kMostChunks);
    const int64_t rows = std::max(kTileRows, (high - low + chunks * kTileRows - 1) / (chunks * kTileRows) * kTileRows);
    for (int64_t s = first; s < first + count; ++s) {
      Sequence& sequence = sequences_[s];
      const int64_t from = sequence.item_row - low;
      sequence.first_chunk = from / rows;
      sequence.chunks = sequence.queries ? (from + sequence.queries - 1) / rows - sequence.first_chunk + 1 : 0;
      sequence.first_sum = p.sum_rows;
      p.sum_rows += sequence.chunks * p.sum_heads * sequence.padded_keys;
    }
    for (int64_t head = 0; head < phase; head += together)
      for (int64_t chunk = 0; low + chunk * rows < high; ++chunk)
        items.push_back({first, count, low + chunk * rows, low + (chunk + 1) * rows, head, head + together, chunk, 0});
  }
  return items;
}

// Is every sequence one chunk, and do its sums need no cast and no padding?
bool Call::sums_in_place() const {
  const Problem& p = problem_;
  const Number own = wide() ? Number::kDouble : Number::kFloat;
  const auto fits = [&](const Tokens& grad, int64_t width, bool need) {
    return !need || (grad.type == own && width % kPad == 0);
  };
  return fits(p.grad_key, p.width, p.need_key) && fits(p.grad_value, p.value_width, p.need_value) &&
      std::all_of(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return s.chunks == 1; });
}

// Cuts the keys of every sequence into blocks whose sums over the chunks are added up.
std::vector<Item> Call::key_blocks() const {
  std::vector<Item> blocks;
  for (int64_t s = 0; s < static_cast<int64_t>(sequences_.size()); ++s)
    for (int64_t key = 0; key < sequences_[s].keys; key += kFinishedKeys)
      blocks.push_back({s, 1, key, key + kFinishedKeys, 0, 0, 0, 0});
  return blocks;
}

// Gives runs of items of about equal cost a bin each; returns where each run begins, and the end.
std::vector<int64_t> Call::fill_bins(std::vector<Item>& items) const {
  const auto cost = [&](const Item& item) {
    double keys = 0;
    for (int64_t s = item.first_sequence; s < item.first_sequence + item.sequences; ++s)
      keys += 1 + static_cast<double>(sequences_[s].keys);
    return keys * static_cast<double>(item.row_end - item.row_begin) * static_cast<double>(item.head_end - item.head_begin);
  };
  double total = 0, before = 0;
  for (const Item& item : items) total += cost(item);
  std::vector<int64_t> begins;
  for (size_t i = 0; i < items.size(); ++i) {
    const int64_t bin = static_cast<int64_t>(before / total * kMostBins);
    if (i == 0 || bin != items[i - 1].bin) begins.push_back(static_cast<int64_t>(i));
    items[i].bin = bin;
    before += cost(items[i]);
  }
  begins.push_back(static_cast<int64_t>(items.size()));
  return begins;
}

// Makes zeroed memory for the gradient of a term.
void Call::open_gradient(const Table& table, bool need, TermGradient& gradient, OptionalTensor& sums) const {
  if (!need) return;
  const Term& term = table.term;
  if (term.kind == TermKind::kBucket) {
    gradient.bin = term.heads * term.cells * (term.expanded ? term.span : term.entries);
    sums = torch::stable::new_zeros(query_, {kMostBins * gradient.bin}, ScalarType::Double);
  } else {
    sums = torch::stable::new_zeros(
        query_, table.given.lookup ? std::vector<int64_t>{term.end} : shape_of(*table.given.tensor), type_);
  }
  gradient.data = sums->mutable_data_ptr();
}

// Adds up the bins of a table's gradient.
Tensor Call::fold(const Table& table, const Tensor& sums) const {
  const Term& term = table.term;
  const int64_t size = term.heads * term.cells * (term.expanded ? term.span : term.entries);
  std::vector<double> total(size, 0.0);
  const double* from = static_cast<const double*>(sums.const_data_ptr());
  for (int64_t bin = 0; bin < kMostBins; ++bin)
    for (int64_t i = 0; i < size; ++i) total[i] += from[bin * size + i];
  return by_entry(table, term, total);
}

// Adds up the gradient of a table that was written out by pairs of tokens.
template <typename T>
Tensor Call::fold_pairs(const Table& table, const Tensor& sums) const {
  const Sequence& any = sequences_.front();
  const Term& term = table.pairs;
  std::vector<double> total(term.heads * term.cells * term.span, 0.0);
  const T* from = static_cast<const T*>(sums.const_data_ptr());
  for_each_free(term.heads, 0, [&](int64_t head, void*) {
    const T* row = from + head * any.queries * any.padded_keys;
    for (int64_t i = 0; i < any.queries; ++i, row += any.padded_keys)
      for_each_run(term, head, i, any.keys, [&](int64_t first, int64_t end, int64_t place) {
        for (int64_t j = first; j < end; ++j)
          if (!term.diagonal_open || j != i) total[place + j - first] += static_cast<double>(row[j]);
      });
  });
  return by_entry(table, term, total);
}

// Adds up sums by difference of positions, or by entry already, to the entries of a table.
Tensor Call::by_entry(const Table& table, const Term& term, const std::vector<double>& sums) const {
  Tensor result = torch::stable::new_zeros(query_, shape_of(*table.given.tensor), ScalarType::Double);
  double* entries = static_cast<double*>(result.mutable_data_ptr());
  const int64_t width = term.expanded ? term.span : term.entries;
  for (int64_t i = 0; i < static_cast<int64_t>(sums.size()); ++i)
    entries[i / width * term.entries + (term.expanded ? entry_at(term, i % width) : i % width)] += sums[i];
  return result;
}

Tensor Call::close_gradient(const Table& table, const OptionalTensor& sums) const {
  if (!sums) return torch::stable::new_empty(query_, {0});
  const ScalarType type = table.given.tensor->scalar_type();
  if (table.term.kind == TermKind::kDense && table.given.lookup)
    return torch::stable::to(wide() ? fold_pairs<double>(table, *sums) : fold_pairs<float>(table, *sums), type);
  if (table.term.kind == TermKind::kDense) return sums->scalar_type() == type ? *sums : torch::stable::to(*sums, type);
  return torch::stable::to(fold(table, *sums), type);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> Call::backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, int64_t needs, const Tensor& out, const Tensor& lse) {
  Problem& p = problem_;
  const auto need = [&](int i) { return (needs >> i & 1) != 0; };
  const auto gradient = [&](int i, const Tensor& like, Tokens& tokens, int64_t Sequence::*first) {
    if (!need(i)) return torch::stable::new_empty(like, {0});
    Tensor result = torch::stable::new_empty(like, shape_of(like));
    place(result, tokens, first, i > 0);
    return result;
  };
  p.need_query = need(0);
  p.need_key = need(1);
  p.need_value = need(2);
  place(grad_out, p.grad_out, &Sequence::grad_out, false);
  place(out, p.out, &Sequence::out, false);
  place_lse(lse);
  if (grad_lse) p.grad_lse = elements_of(*grad_lse);
  Tensor grad_query = gradient(0, query_, p.grad_query, &Sequence::grad_query);
  Tensor grad_key = gradient(1, key_, p.grad_key, &Sequence::grad_key);
  Tensor grad_value = gradient(2, value_, p.grad_value, &Sequence::grad_value);

  const bool bias = need(3), gate = need(4);
  const auto dense = [](const Table& table) { return table.term.kind == TermKind::kDense; };
  place_gradient(bias_, bias, p.bias_gradient, &Sequence::bias_gradient);
  place_gradient(gate_, gate, p.gate_gradient, &Sequence::gate_gradient);
  std::vector<Item> items = divide(bias && dense(bias_), gate && dense(gate_));
  pack(true);
  OptionalTensor bias_sums, gate_sums;
  open_gradient(bias_, bias, p.bias_gradient, bias_sums);
  open_gradient(gate_, gate, p.gate_gradient, gate_sums);
  std::vector<int64_t> runs;
  if (p.bias_gradient.bin || p.gate_gradient.bin) {
    runs = fill_bins(items);
  } else {
    for (size_t i = 0; i <= items.size(); ++i) runs.push_back(static_cast<int64_t>(i));
  }
  look_at_tiles();
  p.sums_in_place = sums_in_place();
  if (p.sums_in_place) p.sum_rows = 0;
  const Buffer sums = buffer(p.sum_rows * (p.padded_width + p.padded_value_width));
  p.sums = sums.data();

  const Kernels& kernels = kernels_of(options_.isa);
  const int64_t bytes = scratch_bytes(true);
  const std::vector<Item> keys = key_blocks();
  for (p.first_sum_head = 0; p.first_sum_head < p.key_heads; p.first_sum_head += p.sum_heads) {
    for_each_free(static_cast<int64_t>(runs.size()) - 1, bytes, [&](int64_t run, void* scratch) {
      for (int64_t i = runs[run]; i < runs[run + 1]; ++i) {
        Item item = items[i];
        item.head_begin += p.first_sum_head * (p.heads / p.key_heads);
        item.head_end += p.first_sum_head * (p.heads / p.key_heads);
        kernels.attention_backward[wide()](p, item, scratch);
      }
    });
    if ((p.need_key || p.need_value) && !p.sums_in_place)
      for_each_free(static_cast<int64_t>(keys.size()) * p.sum_heads, bytes, [&](int64_t i, void* scratch) {
        const Item& block = keys[i / p.sum_heads];
        const int64_t key_head = p.first_sum_head + i % p.sum_heads;
        kernels.attention_finish[wide()](p, block.first_sequence, key_head, block.row_begin, scratch);
      });
  }
  return {grad_query, grad_key, grad_value, close_gradient(bias_, bias_sums), close_gradient(gate_, gate_sums)};
}

}  // namespace wfkernels::attention
