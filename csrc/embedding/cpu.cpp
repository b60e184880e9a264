// The compiled implementations of wfkernels/embedding/ops.py on the CPU: which work there is, and the small sums at the end.
//
// Panels of units and stretches of weights follow from the shapes alone, so that no result depends on the number of
// threads.

#include "embedding/embedding.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "attention/call.h"
#include "embedding/problem.h"
#include "simd/kernels.h"
#include "simd/memory.h"
#include "simd/parallel.h"

namespace wfkernels {

using attention::elements_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kRunPanels = 16;  // of kDepth units: what one partial sum of a weight's gradient covers at most
constexpr int64_t kInputRows = 1024;

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

struct Arguments {
  Tensor rows;  // [sum(teachers) * row_numel]
  std::vector<Tensor> weights;  // one [r, d] per projection group
  Tensor biases;  // [projection groups, padded d]
  std::optional<Tensor> base;  // [row_numel]
  Tensor shift, scale;  // [column_numel]
  Tensor position;  // [positions, padded d]
  std::optional<Tensor> teacher, layer;  // [teacher ids or layers, padded d]
  std::optional<Tensor> cross;  // [sequences, c, padded d]
  Tensor gamma, beta;  // [padded d]
  std::vector<int64_t> row_counts, widths, projections, positions, teachers;
  int64_t activation;
  double eps;
  int64_t width;  // d
  int64_t isa;
};

class Call {
 public:
  explicit Call(Arguments arguments);
  Call(const Call&) = delete;

  Tensor forward(ScalarType dtype);
  std::vector<Tensor> backward(const Tensor& grad, bool inputs);

 private:
  // A sum of slots [first, first + count), which are cross tokens of a layer or a copy of it.
  struct Slot {
    int64_t layer, copy;  // copy -1: cross tokens
  };
  bool wide() const { return type_ == ScalarType::Double; }
  const EmbeddingKernels& kernels() const { return kernels_of(static_cast<Isa>(given_.isa)).embedding[wide()]; }
  Tensor zeros(std::vector<int64_t> shape) const { return torch::stable::new_zeros(given_.gamma, shape, ScalarType::Double); }
  Tensor nothing() const { return torch::stable::new_empty(given_.gamma, {0}); }
  void* memory(int64_t elements);
  int64_t bytes(int64_t elements) const { return elements * static_cast<int64_t>(wide() ? sizeof(double) : sizeof(float)); }
  int64_t scratch_bytes() const;
  void pack();
  std::vector<EmbeddingPanel> panels(int64_t most) const;
  void backward_tokens();
  void weight_gradients();
  void input_gradients(std::vector<Tensor>& gradients);
  template <typename T>
  void fold_slots(std::vector<Tensor>& gradients) const;

  Arguments given_;
  ScalarType type_;  // of the sums
  int64_t tokens_ = 0;
  std::vector<EmbeddingLayer> layers_;
  std::vector<EmbeddingGroup> groups_;
  std::vector<int64_t> group_of_copy_, code_of_copy_, first_copy_;
  std::vector<EmbeddingPanel> chunks_;
  std::vector<Slot> slots_;
  std::vector<Tensor> memory_;
  EmbeddingProblem problem_{};
};

Call::Call(Arguments arguments) : given_(std::move(arguments)), type_(given_.gamma.scalar_type()) {
  EmbeddingProblem& p = problem_;
  p.width = given_.width;
  p.padded_width = given_.gamma.size(0);
  p.groups = static_cast<int64_t>(given_.teachers.size());
  for (int64_t group = 0; group < p.groups; ++group) {
    first_copy_.push_back(p.copies);
    for (int64_t t = 0; t < given_.teachers[group]; ++t) {
      group_of_copy_.push_back(group);
      code_of_copy_.push_back(t + 1);
    }
    p.copies += given_.teachers[group];
  }
  p.cross = given_.cross ? given_.cross->size(1) : 0;
  p.positions = given_.position.size(0);
  p.layer_count = static_cast<int64_t>(given_.row_counts.size());

  int64_t row = 0, base = 0, column = 0, unit = 0;
  for (int64_t l = 0; l < p.layer_count; ++l) {
    const int64_t rows = given_.row_counts[l], width = given_.widths[l], stride = padded(width, 8);
    layers_.push_back(
        {rows, width, stride, given_.projections[l], row, base, column, given_.positions[l], tokens_, unit});
    row += p.copies * rows * stride;
    base += rows * stride;
    column += stride;
    unit += p.copies * rows;
    tokens_ += p.copies * rows + p.groups * p.cross;
  }
  int64_t packed = 0;
  for (const Tensor& weight : given_.weights) {
    groups_.push_back({weight.size(0), elements_of(weight), {}, weight.stride(0), weight.stride(1), packed});
    packed += weight.size(0) * p.padded_width;
  }
  p.activation = static_cast<Activation>(given_.activation);
  p.eps = given_.eps;
  p.layers = layers_.data();
  p.weights = groups_.data();
  p.group_of_copy = group_of_copy_.data();
  p.code_of_copy = code_of_copy_.data();
  p.first_copy = first_copy_.data();
  p.rows = elements_of(given_.rows);
  if (given_.base) p.base = elements_of(*given_.base);
  p.shift = given_.shift.const_data_ptr();
  p.scale = given_.scale.const_data_ptr();
  p.biases = given_.biases.const_data_ptr();
  p.position = given_.position.const_data_ptr();
  p.teacher = data_of(given_.teacher);
  p.layer = data_of(given_.layer);
  p.cross_tokens = data_of(given_.cross);
  p.gamma = given_.gamma.const_data_ptr();
  p.beta = given_.beta.const_data_ptr();
}

void* Call::memory(int64_t elements) {
  memory_.push_back(in_large_pages(torch::stable::new_empty(given_.gamma, {elements})));
  return memory_.back().mutable_data_ptr();
}

int64_t Call::scratch_bytes() const {
  const int64_t width = problem_.padded_width;
  const int64_t of_panels = kPanelRows * (kDepth + width) + 2 * width;
  const int64_t of_weights = kBlockColumns * (kDepth + width);
  const int64_t of_inputs = kBlockColumns * (width + 2 * kPanelRows + 4);
  return bytes(std::max({of_panels, of_weights, of_inputs}) + 8 * kPad);
}

void Call::pack() {
  int64_t packed = 0;
  std::vector<EmbeddingStretch> stretches;
  for (size_t g = 0; g < groups_.size(); ++g) {
    packed += groups_[g].width;
    for (int64_t first = 0; first < groups_[g].width; first += kDepth)
      stretches.push_back({static_cast<int64_t>(g), first, std::min(kDepth, groups_[g].width - first)});
  }
  problem_.packed = memory(packed * problem_.padded_width);
  for_each_free(static_cast<int64_t>(stretches.size()), 0, [&](int64_t i, void*) {
    kernels().pack(problem_, stretches[i]);
  });
}

std::vector<EmbeddingPanel> Call::panels(int64_t most) const {
  std::vector<EmbeddingPanel> result;
  for (int64_t l = 0; l < problem_.layer_count; ++l)
    for (int64_t first = 0, units = problem_.copies * layers_[l].rows; first < units; first += most)
      result.push_back({l, first, std::min(most, units - first), 0});
  return result;
}

// Sorts work so that the longest comes first and no thread is left alone with it at the end.
void longest_first(std::vector<EmbeddingPanel>& panels, const std::vector<EmbeddingLayer>& layers) {
  std::stable_sort(panels.begin(), panels.end(), [&](const EmbeddingPanel& a, const EmbeddingPanel& b) {
    return a.count * layers[a.layer].width > b.count * layers[b.layer].width;
  });
}

Tensor Call::forward(ScalarType dtype) {
  Tensor out = in_large_pages(torch::stable::new_empty(given_.gamma, {tokens_, problem_.width}, dtype));
  problem_.out = elements_of(out);
  pack();
  std::vector<EmbeddingPanel> work = panels(kPanelRows);
  longest_first(work, layers_);
  const int64_t cross = problem_.cross ? problem_.layer_count : 0, count = static_cast<int64_t>(work.size());
  for_each_free(count + cross, scratch_bytes(), [&](int64_t i, void* scratch) {
    if (i < count)
      kernels().forward(problem_, work[i], scratch);
    else
      kernels().forward_cross(problem_, i - count, scratch);
  });
  return out;
}

// Runs the forward again and leaves the gradients of tokens and of sums, and the slots.
void Call::backward_tokens() {
  std::vector<EmbeddingPanel> work = panels(kPanelRows);
  int64_t units = 0;
  for (EmbeddingPanel& panel : work) {
    const int64_t rows = layers_[panel.layer].rows;
    panel.first_slot = static_cast<int64_t>(slots_.size());
    for (int64_t copy = panel.first / rows; copy * rows < panel.first + panel.count; ++copy)
      slots_.push_back({panel.layer, copy});
    units += panel.count;
  }
  longest_first(work, layers_);
  const int64_t cross = problem_.cross ? problem_.layer_count : 0, count = static_cast<int64_t>(work.size());
  const int64_t first_cross = static_cast<int64_t>(slots_.size());
  for (int64_t l = 0; l < cross; ++l) slots_.push_back({l, -1});
  problem_.sums = memory(static_cast<int64_t>(slots_.size()) * kSums * problem_.padded_width);
  problem_.grad_tokens = memory(tokens_ * problem_.padded_width);
  problem_.grad_sums = memory(units * problem_.padded_width);
  for_each_free(count + cross, scratch_bytes(), [&](int64_t i, void* scratch) {
    if (i < count)
      kernels().backward(problem_, work[i], scratch);
    else
      kernels().backward_cross(problem_, i - count, first_cross + i - count, scratch);
  });
}

void Call::weight_gradients() {
  struct Fold {
    EmbeddingStretch stretch;
    int64_t partial, count;
  };
  const std::vector<EmbeddingPanel> all = panels(kDepth);
  std::vector<EmbeddingWeightItem> items;
  std::vector<Fold> folds;
  int64_t partials = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int64_t begin = static_cast<int64_t>(chunks_.size());
    for (const EmbeddingPanel& panel : all)
      if (layers_[panel.layer].group == static_cast<int64_t>(g)) chunks_.push_back(panel);
    const int64_t count = static_cast<int64_t>(chunks_.size()) - begin;
    const int64_t runs = std::max<int64_t>(1, (count + kRunPanels - 1) / kRunPanels);
    for (int64_t first = 0; first < groups_[g].width; first += kBlockColumns) {
      const EmbeddingStretch stretch{
          static_cast<int64_t>(g), first, std::min(kBlockColumns, groups_[g].width - first)};
      if (runs > 1) folds.push_back({stretch, partials, runs});
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t from = begin + run * kRunPanels, most = begin + count - from;
        items.push_back({stretch, from, std::min(kRunPanels, most), runs > 1 ? partials : -1});
        if (runs > 1) partials += stretch.count;
      }
    }
  }
  problem_.chunks = chunks_.data();
  problem_.partial_weights = memory(partials * problem_.padded_width);
  std::stable_sort(items.begin(), items.end(), [](const EmbeddingWeightItem& a, const EmbeddingWeightItem& b) {
    return a.panels * a.stretch.count > b.panels * b.stretch.count;
  });
  for_each_free(static_cast<int64_t>(items.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().weights(problem_, items[i], scratch);
  });
  for_each_free(static_cast<int64_t>(folds.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().fold_weights(problem_, folds[i].stretch, folds[i].partial, folds[i].count, scratch);
  });
}

// Fills in the gradients of rows, base, shift and scale.
void Call::input_gradients(std::vector<Tensor>& gradients) {
  problem_.grad_rows = elements_of(gradients[0]);
  if (given_.base) problem_.grad_base = elements_of(gradients[1]);
  std::vector<EmbeddingInputItem> items;
  for (int64_t l = 0; l < problem_.layer_count; ++l)
    for (int64_t column = 0; column < layers_[l].width; column += kBlockColumns)
      for (int64_t first = 0; first < layers_[l].rows; first += kInputRows)
        items.push_back(
            {l, column, std::min(kBlockColumns, layers_[l].width - column), first,
             std::min(kInputRows, layers_[l].rows - first), static_cast<int64_t>(items.size())});
  Tensor sums = zeros({static_cast<int64_t>(items.size()), 2, kBlockColumns});
  problem_.column_sums = static_cast<double*>(sums.mutable_data_ptr());
  for_each_free(static_cast<int64_t>(items.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().inputs(problem_, items[i], scratch);
  });
  for (const EmbeddingInputItem& item : items) {
    for (int64_t kind = 0; kind < 2; ++kind) {
      double* total = static_cast<double*>(gradients[2 + kind].mutable_data_ptr());
      const double* from = problem_.column_sums + (2 * item.slot + kind) * kBlockColumns;
      for (int64_t j = 0; j < item.columns; ++j) total[layers_[item.layer].first_column + item.column + j] -= from[j];
    }
  }
}

// Adds the slots to the gradients of biases, codes, gamma and beta.
template <typename T>
void Call::fold_slots(std::vector<Tensor>& gradients) const {
  const int64_t width = problem_.padded_width;
  const auto add = [&](size_t gradient, int64_t row, size_t slot, int64_t kind) {
    double* total = static_cast<double*>(gradients[gradient].mutable_data_ptr()) + row * width;
    const T* from = static_cast<const T*>(problem_.sums) + (static_cast<int64_t>(slot) * kSums + kind) * width;
    for (int64_t j = 0; j < width; ++j) total[j] += static_cast<double>(from[j]);
  };
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.copy >= 0) add(4, layers_[slot.layer].group, i, 1);
    if (given_.teacher) add(6, slot.copy < 0 ? 0 : code_of_copy_[slot.copy], i, 0);
    if (given_.layer) add(7, slot.layer, i, 0);
    add(9, 0, i, 2);
    add(10, 0, i, 3);
  }
}

std::vector<Tensor> Call::backward(const Tensor& grad, bool inputs) {
  const auto empty = [&](const std::optional<Tensor>& like, bool wanted) {
    if (!like) return nothing();
    return wanted ? in_large_pages(torch::stable::empty_like(*like)) : torch::stable::new_empty(*like, {0});
  };
  const auto sums = [&](const std::optional<Tensor>& like, bool wanted) {
    return like && wanted ? zeros({like->sizes().begin(), like->sizes().end()}) : nothing();
  };
  std::vector<Tensor> gradients{
      empty(given_.rows, inputs),  empty(given_.base, inputs),  sums(given_.shift, inputs), sums(given_.scale, inputs),
      sums(given_.biases, true),   empty(given_.position, true), sums(given_.teacher, true), sums(given_.layer, true),
      empty(given_.cross, true),   sums(given_.gamma, true),    sums(given_.beta, true)};
  for (size_t g = 0; g < groups_.size(); ++g) {
    gradients.push_back(in_large_pages(torch::stable::new_empty(given_.weights[g], {groups_[g].width, problem_.width})));
    groups_[g].grad_weight = elements_of(gradients.back());
  }
  problem_.grad = elements_of(grad);
  problem_.grad_position = gradients[5].mutable_data_ptr();
  if (given_.cross) problem_.grad_cross = gradients[8].mutable_data_ptr();

  pack();
  backward_tokens();
  for_each_free((problem_.positions + kPositionRows - 1) / kPositionRows, 0, [&](int64_t block, void*) {
    kernels().positions(problem_, block);
  });
  weight_gradients();
  if (inputs) input_gradients(gradients);
  wide() ? fold_slots<double>(gradients) : fold_slots<float>(gradients);
  return gradients;
}

}  // namespace

Tensor embedding(
    Tensor rows, std::vector<Tensor> weights, Tensor biases, std::optional<Tensor> base, Tensor shift, Tensor scale,
    Tensor position, std::optional<Tensor> teacher, std::optional<Tensor> layer, std::optional<Tensor> cross,
    Tensor gamma, Tensor beta, std::vector<int64_t> row_counts, std::vector<int64_t> widths,
    std::vector<int64_t> projections, std::vector<int64_t> positions, std::vector<int64_t> teachers,
    int64_t activation, double eps, int64_t width, int64_t isa, ScalarType dtype) {
  Call call({rows, weights, biases, base, shift, scale, position, teacher, layer, cross, gamma, beta, row_counts, widths,
             projections, positions, teachers, activation, eps, width, isa});
  return call.forward(dtype);
}

std::vector<Tensor> embedding_backward(
    Tensor grad, Tensor rows, std::vector<Tensor> weights, Tensor biases, std::optional<Tensor> base, Tensor shift,
    Tensor scale, Tensor position, std::optional<Tensor> teacher, std::optional<Tensor> layer,
    std::optional<Tensor> cross, Tensor gamma, Tensor beta, std::vector<int64_t> row_counts,
    std::vector<int64_t> widths, std::vector<int64_t> projections, std::vector<int64_t> positions,
    std::vector<int64_t> teachers, int64_t activation, double eps, int64_t width, int64_t isa, bool inputs) {
  Call call({rows, weights, biases, base, shift, scale, position, teacher, layer, cross, gamma, beta, row_counts, widths,
             projections, positions, teachers, activation, eps, width, isa});
  return call.backward(grad, inputs);
}

}  // namespace wfkernels
