// The compiled implementations of wfkernels/projection/ops.py on the CPU: which work there is, and the small sums at the
// end.
//
// Panels of units and blocks of columns follow from the shapes alone, so that no result depends on the number of threads.

#include "projection/projection.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "attention/call.h"
#include "projection/problem.h"
#include "simd/kernels.h"
#include "simd/memory.h"
#include "simd/parallel.h"

namespace wfkernels {

using attention::elements_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kItemUnits = 1024;  // for which a block of a weight is packed once
constexpr int64_t kRunUnits = 4096;  // what one partial sum of a weight's gradient covers at most
constexpr int64_t kInputRows = 32;

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

Elements given_elements(const std::optional<Tensor>& tensor) { return tensor ? elements_of(*tensor) : Elements{}; }

struct Arguments {
  Tensor tokens;  // [tokens read, d]
  std::vector<Tensor> weights;  // one [d, r] per projection group
  Tensor biases;  // [sum of r], of all projection groups
  Tensor strength;  // [layers]
  Tensor shift, scale;  // [column_numel]
  std::optional<Tensor> rows;  // [sum(teachers) * row_numel]
  std::optional<Tensor> base, prior;  // [row_numel]
  std::optional<Tensor> blend;  // [layers]
  std::optional<Tensor> gate_weight;  // [projection groups, padded d], zeros behind d
  std::optional<Tensor> gate_bias;  // [projection groups]
  std::vector<int64_t> row_counts, parameter_widths, parameter_counts, projections, teachers;
  bool read_mean;
  int64_t output;
  int64_t isa;
};

class Call {
 public:
  explicit Call(Arguments arguments);
  Call(const Call&) = delete;

  Tensor forward(ScalarType dtype);
  std::vector<Tensor> backward(const Tensor& grad, bool inputs);

 private:
  bool wide() const { return type_ == ScalarType::Double; }
  const ProjectionKernels& kernels() const { return kernels_of(static_cast<Isa>(given_.isa)).projection[wide()]; }
  double at(const void* data, int64_t i) const {
    return wide() ? static_cast<const double*>(data)[i] : static_cast<const float*>(data)[i];
  }
  Tensor zeros(std::vector<int64_t> shape) const { return torch::stable::new_zeros(given_.shift, shape, ScalarType::Double); }
  Tensor nothing() const { return torch::stable::new_empty(given_.shift, {0}); }
  void* memory(int64_t elements);
  int64_t scratch_bytes() const;
  std::vector<ProjectionPanel> panels(int64_t most, bool of_rows) const;
  void prepare(bool gates);
  void pack();
  void token_gradients(Tensor& gate_weight, Tensor& gate_bias);
  void weight_gradients(std::vector<Tensor>& gradients, bool inputs);
  void fold_columns(const ProjectionWeightItem& item, std::vector<Tensor>& gradients, bool inputs) const;
  void input_gradients(Tensor& blend);

  Arguments given_;
  ScalarType type_;  // of the sums
  int64_t units_ = 0, gates_ = 0;
  std::vector<ProjectionLayer> layers_;
  std::vector<ProjectionWeight> weights_;
  std::vector<ProjectionPiece> pieces_;
  std::vector<int64_t> first_copy_;
  std::vector<ProjectionPanel> chunks_;
  std::vector<Tensor> memory_;
  ProjectionProblem problem_{};
};

Call::Call(Arguments arguments) : given_(std::move(arguments)), type_(given_.shift.scalar_type()) {
  ProjectionProblem& p = problem_;
  p.width = given_.tokens.size(1);
  p.padded_width = padded(p.width, kPad);
  p.groups = static_cast<int64_t>(given_.teachers.size());
  for (const int64_t teachers : given_.teachers) {
    first_copy_.push_back(p.copies);
    p.copies += teachers;
    p.most_teachers = std::max(p.most_teachers, teachers);
  }
  p.read_mean = given_.read_mean;
  p.output = static_cast<Output>(given_.output);

  int64_t row = 0, base = 0, column = 0, token = 0;
  size_t parameter = 0;
  for (size_t l = 0; l < given_.row_counts.size(); ++l) {
    ProjectionLayer layer{};
    layer.rows = given_.row_counts[l];
    layer.group = given_.projections[l];
    layer.first_piece = static_cast<int64_t>(pieces_.size());
    layer.pieces = given_.parameter_counts[l];
    for (int64_t i = 0; i < layer.pieces; ++i, ++parameter) {
      const int64_t width = given_.parameter_widths[parameter];
      pieces_.push_back({layer.width, width, p.numel});
      layer.width += width;
      p.numel += padded(layer.rows * width, 8);
    }
    layer.stride = padded(layer.width, 8);
    layer.first_row = row;
    layer.first_base = base;
    layer.first_column = column;
    layer.first_token = token;
    layer.first_unit = units_;
    layer.first_gate = gates_;
    layer.strength = at(given_.strength.const_data_ptr(), static_cast<int64_t>(l));
    if (given_.blend) layer.blend = at(given_.blend->const_data_ptr(), static_cast<int64_t>(l));
    layers_.push_back(layer);
    row += p.copies * layer.rows * layer.stride;
    base += layer.rows * layer.stride;
    column += layer.stride;
    token += (p.read_mean ? p.copies : p.groups) * layer.rows;
    units_ += p.groups * layer.rows;
    gates_ += p.copies * layer.rows;
  }
  int64_t packed = 0, bias = 0;
  for (const Tensor& weight : given_.weights) {
    const int64_t width = weight.size(1);
    weights_.push_back({width, elements_of(weight), {}, weight.stride(0), weight.stride(1), packed, bias});
    packed += width * p.padded_width;
    bias += width;
  }
  p.layers = layers_.data();
  p.weights = weights_.data();
  p.pieces = pieces_.data();
  p.teachers = given_.teachers.data();
  p.first_copy = first_copy_.data();
  p.tokens = elements_of(given_.tokens);
  p.rows = given_elements(given_.rows);
  p.base = given_elements(given_.base);
  p.prior = given_elements(given_.prior);
  p.biases = given_.biases.const_data_ptr();
  p.shift = given_.shift.const_data_ptr();
  p.scale = given_.scale.const_data_ptr();
  p.gate_weight = data_of(given_.gate_weight);
  p.gate_bias = data_of(given_.gate_bias);
}

void* Call::memory(int64_t elements) {
  memory_.push_back(in_large_pages(torch::stable::new_empty(given_.shift, {elements})));
  return memory_.back().mutable_data_ptr();
}

int64_t Call::scratch_bytes() const {
  const ProjectionProblem& p = problem_;
  const int64_t of_forward = kBlockColumns * (p.width + kPanelRows + 7);
  const int64_t of_tokens = kPanelRows * (kDepth + p.padded_width) + 2 * kDepth + 2 * p.padded_width;
  const int64_t of_weights = kBlockColumns * (2 * p.width + kDepth + 8);
  const int64_t of_inputs = 11 * kBlockColumns;
  const int64_t elements = std::max({of_forward, of_tokens, of_weights, of_inputs}) + 8 * kPad;
  const int64_t doubles = kPanelRows * p.most_teachers + kPad;
  return elements * static_cast<int64_t>(wide() ? sizeof(double) : sizeof(float)) +
      doubles * static_cast<int64_t>(sizeof(double));
}

// Cuts the units of every layer (or the rows, which all groups have) into panels.
std::vector<ProjectionPanel> Call::panels(int64_t most, bool of_rows) const {
  std::vector<ProjectionPanel> result;
  for (size_t l = 0; l < layers_.size(); ++l)
    for (int64_t first = 0, units = layers_[l].rows * (of_rows ? 1 : problem_.groups); first < units; first += most)
      result.push_back(
          {static_cast<int64_t>(l), first, std::min(most, units - first), static_cast<int64_t>(result.size())});
  return result;
}

void Call::prepare(bool gates) {
  ProjectionProblem& p = problem_;
  const bool in_place = given_.tokens.scalar_type() == type_ && (!p.read_mean || p.copies == p.groups);
  p.mean_row = in_place ? p.width : p.padded_width;
  p.written_means = in_place ? nullptr : memory(units_ * p.padded_width);
  p.means = in_place ? given_.tokens.const_data_ptr() : p.written_means;
  p.gates = gates ? memory(gates_) : nullptr;
  if (in_place && !gates) return;
  const std::vector<ProjectionPanel> work = panels(kPanelRows, false);
  for_each_free(static_cast<int64_t>(work.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().prepare(p, work[i], scratch);
  });
}

Tensor Call::forward(ScalarType dtype) {
  ProjectionProblem& p = problem_;
  Tensor out = in_large_pages(torch::stable::new_empty(given_.shift, {p.groups, p.numel}, dtype));
  p.out = elements_of(out);
  const int64_t item = static_cast<int64_t>(out.element_size());
  for (const ProjectionLayer& layer : layers_) {
    for (int64_t i = layer.first_piece; i < layer.first_piece + layer.pieces; ++i) {
      const int64_t used = layer.rows * pieces_[i].width, unused = padded(used, 8) - used;
      for (int64_t group = 0; group < p.groups && unused > 0; ++group)
        std::memset(p.out.data + (group * p.numel + pieces_[i].offset + used) * item, 0, unused * item);
    }
  }
  prepare(p.output == Output::kGated);
  std::vector<ProjectionItem> work;
  for (const ProjectionPanel& panel : panels(kItemUnits, false))
    for (int64_t column = 0; column < layers_[panel.layer].width; column += kBlockColumns)
      work.push_back({panel, column, std::min(kBlockColumns, layers_[panel.layer].width - column)});
  // The longest first, so that no thread is left alone with one at the end.
  std::stable_sort(work.begin(), work.end(), [](const ProjectionItem& a, const ProjectionItem& b) {
    return a.panel.count * a.columns > b.panel.count * b.columns;
  });
  for_each_free(static_cast<int64_t>(work.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().forward(p, work[i], scratch);
  });
  return out;
}

// Writes the transposed weights as slivers.
void Call::pack() {
  struct Stretch {
    int64_t weight, first, count;
  };
  int64_t packed = 0;
  std::vector<Stretch> work;
  for (size_t w = 0; w < weights_.size(); ++w) {
    packed += weights_[w].width;
    for (int64_t first = 0; first < weights_[w].width; first += kDepth)
      work.push_back({static_cast<int64_t>(w), first, std::min(kDepth, weights_[w].width - first)});
  }
  problem_.packed = memory(packed * problem_.padded_width);
  for_each_free(static_cast<int64_t>(work.size()), 0, [&](int64_t i, void*) {
    kernels().pack(problem_, work[i].weight, work[i].first, work[i].count);
  });
}

void Call::token_gradients(Tensor& gate_weight, Tensor& gate_bias) {
  ProjectionProblem& p = problem_;
  const bool gated = p.output == Output::kGated;
  std::vector<ProjectionPanel> work = panels(kPanelRows, false);
  const int64_t count = static_cast<int64_t>(work.size()), sums = p.padded_width + 1;
  Tensor gate_sums = zeros({gated ? count * sums : 0});
  p.gate_sums = static_cast<double*>(gate_sums.mutable_data_ptr());
  std::stable_sort(work.begin(), work.end(), [&](const ProjectionPanel& a, const ProjectionPanel& b) {
    return a.count * layers_[a.layer].width > b.count * layers_[b.layer].width;
  });
  for_each_free(count, scratch_bytes(), [&](int64_t i, void* scratch) { kernels().tokens(p, work[i], scratch); });
  if (!gated) return;
  double* weights = static_cast<double*>(gate_weight.mutable_data_ptr());
  double* biases = static_cast<double*>(gate_bias.mutable_data_ptr());
  for (const ProjectionPanel& panel : work) {
    const int64_t group = layers_[panel.layer].group;
    const double* from = p.gate_sums + panel.slot * sums;
    for (int64_t j = 0; j < p.padded_width; ++j) weights[group * p.padded_width + j] += from[j];
    biases[group] += from[p.padded_width];
  }
}

void Call::weight_gradients(std::vector<Tensor>& gradients, bool inputs) {
  ProjectionProblem& p = problem_;
  struct Fold {
    ProjectionWeightItem first;
    int64_t count;
  };
  const std::vector<ProjectionPanel> all = panels(kRunUnits, false);
  std::vector<ProjectionWeightItem> items;
  std::vector<Fold> folds;
  int64_t slots = 0, partials = 0;
  for (size_t w = 0; w < weights_.size(); ++w) {
    // Runs of panels of this weight's layers.
    std::vector<int64_t> begins;
    int64_t units = kRunUnits + 1;
    for (const ProjectionPanel& panel : all) {
      if (layers_[panel.layer].group != static_cast<int64_t>(w)) continue;
      units += panel.count;
      if (units > kRunUnits) {
        begins.push_back(static_cast<int64_t>(chunks_.size()));
        units = panel.count;
      }
      chunks_.push_back(panel);
    }
    if (begins.empty()) begins.push_back(static_cast<int64_t>(chunks_.size()));
    const int64_t runs = static_cast<int64_t>(begins.size());
    begins.push_back(static_cast<int64_t>(chunks_.size()));
    for (int64_t column = 0; column < weights_[w].width; column += kBlockColumns) {
      const int64_t columns = std::min(kBlockColumns, weights_[w].width - column);
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t count = begins[run + 1] - begins[run];
        items.push_back(
            {static_cast<int64_t>(w), column, columns, begins[run], count, slots, runs > 1 ? partials : -1});
        if (runs > 1 && run == 0) folds.push_back({items.back(), runs});
        slots += count;
        if (runs > 1) partials += p.width * padded(columns, kPad);
      }
    }
  }
  p.chunks = chunks_.data();
  p.partial_weights = memory(partials);
  Tensor sums = zeros({slots, 3, kBlockColumns});
  p.column_sums = static_cast<double*>(sums.mutable_data_ptr());
  for_each_free(static_cast<int64_t>(items.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().weights(p, items[i], scratch);
  });
  for_each_free(static_cast<int64_t>(folds.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().fold_weights(p, folds[i].first, folds[i].count, scratch);
  });
  for (const ProjectionWeightItem& item : items) fold_columns(item, gradients, inputs);
}

// Adds an item's sums by columns to the gradients of strength, shift, scale and biases.
void Call::fold_columns(const ProjectionWeightItem& item, std::vector<Tensor>& gradients, bool inputs) const {
  const auto sums_of = [&](size_t gradient) { return static_cast<double*>(gradients[gradient].mutable_data_ptr()); };
  double *strengths = sums_of(1), *shifts = sums_of(6), *scales = sums_of(7), *biases = sums_of(10);
  for (int64_t number = 0; number < item.panels; ++number) {
    const int64_t index = chunks_[item.first_panel + number].layer;
    const ProjectionLayer& layer = layers_[index];
    const double* sums = problem_.column_sums + (item.first_slot + number) * 3 * kBlockColumns;
    const double* along = sums;
    const double* level = sums + kBlockColumns;
    const double* along_prior = sums + 2 * kBlockColumns;
    const double rest = problem_.output == Output::kPrior ? 1 - layer.blend : problem_.output == Output::kPlain;
    for (int64_t j = 0; j < item.columns; ++j) {
      const int64_t column = layer.first_column + item.column + j;
      const double scale = at(problem_.scale, column);
      strengths[index] += scale * along[j];
      biases[weights_[item.weight].first_bias + item.column + j] += layer.strength * scale * level[j];
      if (!inputs) continue;
      shifts[column] += rest * level[j];
      scales[column] += layer.strength * along[j] + rest * along_prior[j];
    }
  }
}

void Call::input_gradients(Tensor& blend) {
  ProjectionProblem& p = problem_;
  const std::vector<ProjectionPanel> work = panels(kInputRows, true);
  Tensor sums = zeros({static_cast<int64_t>(work.size())});
  p.blend_sums = static_cast<double*>(sums.mutable_data_ptr());
  for_each_free(static_cast<int64_t>(work.size()), scratch_bytes(), [&](int64_t i, void* scratch) {
    kernels().inputs(p, work[i], scratch);
  });
  if (p.output != Output::kPrior) return;
  for (const ProjectionPanel& panel : work)
    static_cast<double*>(blend.mutable_data_ptr())[panel.layer] += p.blend_sums[panel.slot];
}

std::vector<Tensor> Call::backward(const Tensor& grad, bool inputs) {
  ProjectionProblem& p = problem_;
  const bool prior = p.output == Output::kPrior, gated = p.output == Output::kGated;
  const bool of_rows = inputs && given_.rows && p.output != Output::kPlain;
  const bool of_base = inputs && given_.base && (prior || gated || p.output == Output::kPlain);
  // Written by a kernel, or zero.
  const auto network = [&](const std::optional<Tensor>& like, bool wanted, bool written) {
    if (!like) return nothing();
    if (!wanted) return torch::stable::new_empty(*like, {0});
    const std::vector<int64_t> shape(like->sizes().begin(), like->sizes().end());
    return written ? in_large_pages(torch::stable::new_empty(*like, shape)) : torch::stable::new_zeros(*like, shape);
  };
  const auto sums = [&](const std::optional<Tensor>& like, bool wanted) {
    return like && wanted ? zeros({like->sizes().begin(), like->sizes().end()}) : nothing();
  };
  std::vector<Tensor> gradients{
      in_large_pages(torch::stable::empty_like(given_.tokens)), sums(given_.strength, true),  network(given_.prior, true, prior),
      sums(given_.blend, true),                 sums(given_.gate_weight, true), sums(given_.gate_bias, true),
      sums(given_.shift, inputs),               sums(given_.scale, inputs),   network(given_.rows, inputs, of_rows),
      network(given_.base, inputs, of_base),    sums(given_.biases, true)};
  for (size_t w = 0; w < weights_.size(); ++w) {
    gradients.push_back(in_large_pages(torch::stable::new_empty(given_.weights[w], {p.width, weights_[w].width})));
    weights_[w].grad_weight = elements_of(gradients.back());
  }
  p.grad = elements_of(grad);
  p.grad_tokens = elements_of(gradients[0]);
  if (prior) p.grad_prior = elements_of(gradients[2]);
  if (of_rows) p.grad_rows = elements_of(gradients[8]);
  if (of_base) p.grad_base = elements_of(gradients[9]);

  prepare(gated && inputs);
  pack();
  token_gradients(gradients[4], gradients[5]);
  weight_gradients(gradients, inputs);
  if (prior || of_rows || of_base) input_gradients(gradients[3]);
  return gradients;
}

}  // namespace

Tensor projection(
    Tensor tokens, std::vector<Tensor> weights, Tensor biases, Tensor strength, Tensor shift, Tensor scale,
    std::optional<Tensor> rows, std::optional<Tensor> base, std::optional<Tensor> prior, std::optional<Tensor> blend,
    std::optional<Tensor> gate_weight, std::optional<Tensor> gate_bias, std::vector<int64_t> row_counts,
    std::vector<int64_t> parameter_widths, std::vector<int64_t> parameter_counts, std::vector<int64_t> projections,
    std::vector<int64_t> teachers, bool read_mean, int64_t output, int64_t isa, ScalarType dtype) {
  Call call({tokens, weights, biases, strength, shift, scale, rows, base, prior, blend, gate_weight, gate_bias, row_counts,
             parameter_widths, parameter_counts, projections, teachers, read_mean, output, isa});
  return call.forward(dtype);
}

std::vector<Tensor> projection_backward(
    Tensor grad, Tensor tokens, std::vector<Tensor> weights, Tensor biases, Tensor strength, Tensor shift, Tensor scale,
    std::optional<Tensor> rows, std::optional<Tensor> base, std::optional<Tensor> prior, std::optional<Tensor> blend,
    std::optional<Tensor> gate_weight, std::optional<Tensor> gate_bias, std::vector<int64_t> row_counts,
    std::vector<int64_t> parameter_widths, std::vector<int64_t> parameter_counts, std::vector<int64_t> projections,
    std::vector<int64_t> teachers, bool read_mean, int64_t output, int64_t isa, bool inputs) {
  Call call({tokens, weights, biases, strength, shift, scale, rows, base, prior, blend, gate_weight, gate_bias, row_counts,
             parameter_widths, parameter_counts, projections, teachers, read_mean, output, isa});
  return call.backward(grad, inputs);
}

}  // namespace wfkernels
