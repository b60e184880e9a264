#pragma once

// What one attention call needs beside the kernels: its sequences, its terms as tables, and memory.

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "attention/attention.h"
#include "attention/problem.h"
#include "simd/isa.h"

namespace wfkernels::attention {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A bias or gate as it came: dense, or a table with its lookup and integers per token.
struct GivenTerm {
  OptionalTensor tensor, lookup, group, segment, position;
  bool diagonal_open;
};

struct GivenLengths {
  OptionalTensor offsets, key_offsets, query_start;
};

struct Options {
  bool is_causal;
  double scale, dropout_p;
  OptionalTensor seed;
  int64_t site;
  Isa isa;
};

// Memory of the kernels' own type, given back to torch's allocator at the end.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Tensor& like, int64_t elements, ScalarType type);
  void* data() const { return tensor_ ? tensor_->mutable_data_ptr() : nullptr; }

 private:
  OptionalTensor tensor_;
};

// The elements of a tensor.
Elements elements_of(const Tensor& tensor);

// Which entry of a table an expanded one has at place t.
int64_t entry_at(const Term& term, int64_t t);

// Calls f(from, end, place) for all runs of keys of a query of a dense call: where their entries begin in the expanded
// table.
template <typename Function>
void for_each_run(const Term& term, int64_t head, int64_t query, int64_t keys, const Function& f) {
  const auto position = [&](int64_t token) { return term.position ? term.position[token] : token; };
  for (int64_t from = 0; from < keys;) {
    const int64_t end = term.run_end && term.run_end[from] < keys ? term.run_end[from] : keys;
    int64_t cell = head;
    cell = cell * term.groups * term.groups + (term.group ? term.group[query] * term.groups + term.group[from] : 0);
    cell = cell * term.segments + (term.segment ? term.segment[query] == term.segment[from] : 0);
    f(from, end, cell * term.span + position(from) - position(query) + term.range);
    from = end;
  }
}

class Call {
 public:
  Call(Tensor query, Tensor key, Tensor value, GivenTerm bias, GivenTerm gate, GivenLengths lengths, Options options);
  Call(const Call&) = delete;

  std::tuple<Tensor, Tensor> forward();
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad_out, const OptionalTensor& grad_lse, int64_t needs, const Tensor& out, const Tensor& lse);

 private:
  // A term with the memory that its Term points to.
  struct Table {
    GivenTerm given;
    Term term;
    Term pairs;  // the same by pairs of tokens, where `term` was written out as dense
    Buffer table, expanded, dense;
    std::vector<int64_t> run_end;
  };
  bool wide() const { return type_ == ScalarType::Double; }
  Buffer buffer(int64_t elements) const { return Buffer(query_, elements, type_); }
  std::vector<int64_t> first_elements(const Tensor& tensor, int64_t trailing) const;
  void read_lengths(const GivenLengths& lengths);
  void read_term(const GivenTerm& given, Table& table, int64_t Sequence::*first);
  template <typename T>
  void expand(Table& table);
  template <typename T>
  void write_out(Table& table, T diagonal);
  void place(const Tensor& tensor, Tokens& tokens, int64_t Sequence::*first, bool of_keys);
  void place_lse(const Tensor& lse);
  void pack(bool for_backward);
  int64_t scratch_bytes(bool for_backward) const;
  bool items_may_pack(bool for_backward) const;
  std::vector<Item> row_tiles(int64_t heads, int64_t height) const;
  void look_at_tiles();
  void place_gradient(const Table& table, bool need, TermGradient& gradient, int64_t Sequence::*first);
  std::vector<int64_t> group_sequences(bool by_bias, bool by_gate);
  int64_t heads_at_once() const;
  std::vector<Item> divide(bool by_bias, bool by_gate);
  std::vector<Item> key_blocks() const;
  bool sums_in_place() const;
  std::vector<int64_t> fill_bins(std::vector<Item>& items) const;
  void open_gradient(const Table& table, bool need, TermGradient& gradient, OptionalTensor& sums) const;
  Tensor fold(const Table& table, const Tensor& sums) const;
  template <typename T>
  Tensor fold_pairs(const Table& table, const Tensor& sums) const;
  Tensor by_entry(const Table& table, const Term& term, const std::vector<double>& sums) const;
  Tensor close_gradient(const Table& table, const OptionalTensor& sums) const;

  Tensor query_, key_, value_;
  Options options_;
  ScalarType type_;  // the kernels' own
  bool ragged_;
  std::vector<int64_t> batch_;  // leading dimensions of a dense call
  std::vector<Sequence> sequences_;
  int64_t packed_keys_ = 0;
  Table bias_, gate_;
  bool items_pack_ = false;
  Buffer key_columns_, key_rows_, value_columns_, value_rows_;
  std::vector<uint8_t> states_;
  Problem problem_{};
};

}  // namespace wfkernels::attention
