#pragma once

// One projection call in plain numbers and pointers: what the kernels of every instruction set read.
//
// A *unit* is a row of one layer of one student: unit = group * rows + row, groups being those of teachers.

#include <cstdint>

#include "attention/problem.h"

namespace wfkernels {

enum class Output : int8_t { kPlain, kAnchor, kMean, kPrior, kGated };

// A parameter: columns [start, start + width) of a layer's rows, and where it begins in a student.
struct ProjectionPiece {
  int64_t start, width, offset;
};

struct ProjectionLayer {
  int64_t rows, width, stride;
  int64_t group;  // of layers that share a weight
  int64_t first_row, first_base, first_column;  // first element of the buffers of rows, of base and prior, of columns
  int64_t first_token;  // of the tokens that are read
  int64_t first_unit;  // units of the layers before
  int64_t first_gate;  // rows of all teachers in the layers before
  int64_t first_piece, pieces;
  double strength, blend;
};

struct ProjectionWeight {
  int64_t width;
  Elements weight, grad_weight;  // [d, width]
  int64_t row, column;  // strides of weight; its gradient is contiguous
  int64_t first_packed;  // of the transposed weight
  int64_t first_bias;  // of biases
};

// Units [first, first + count) of a layer.
struct ProjectionPanel {
  int64_t layer, first, count, slot;
};

// Columns [column, column + columns) of some units.
struct ProjectionItem {
  ProjectionPanel panel;
  int64_t column, columns;
};

// The gradient of columns of a weight from some panels. Where there are several items for the same columns, each leaves a
// partial sum.
struct ProjectionWeightItem {
  int64_t weight, column, columns;
  int64_t first_panel, panels;  // of Problem.chunks
  int64_t first_slot;  // one for each panel
  int64_t partial;  // first element in the partial sums, -1 for the only one
};

// What is behind a void pointer is of the kernels' own type.
struct ProjectionProblem {
  int64_t width, padded_width;  // d
  int64_t groups, copies, most_teachers;
  int64_t numel;  // of one student
  bool read_mean;  // all tokens are there, not the anchor's only
  Output output;
  const ProjectionLayer* layers;
  const ProjectionWeight* weights;
  const ProjectionPiece* pieces;
  const int64_t* teachers;  // [groups]
  const int64_t* first_copy;  // [groups]
  Elements tokens;  // [tokens read, d]
  Elements rows, base, prior;  // data may be null
  const void *biases, *shift, *scale;
  const void *gate_weight, *gate_bias;  // [weights, padded d], [weights]
  const void* means;  // [units, mean_row]: the tokens, or their mean over the teachers
  int64_t mean_row;
  void* written_means;  // the same, null where they are the tokens as they lie
  void* gates;  // [copies * rows], layer by layer, what every teacher's row counts
  Elements out;  // [groups, numel]

  // The backward.
  Elements grad;  // [groups, numel]
  void* packed;  // the transposed weights as slivers
  Elements grad_tokens;
  double* gate_sums;  // [slots, padded d + 1]: gradients of the weight and the bias of gates
  const ProjectionPanel* chunks;  // of at most kRunUnits units, weight by weight
  void* partial_weights;
  double* column_sums;  // [slots, 3, kBlockColumns]: sums of grad times correction, of grad, of grad times prior
  Elements grad_rows, grad_base, grad_prior;  // data is null where there is nothing to write
  double* blend_sums;  // [slots]
};

struct ProjectionKernels {
  void (*prepare)(const ProjectionProblem&, const ProjectionPanel&, void* scratch);
  void (*forward)(const ProjectionProblem&, const ProjectionItem&, void* scratch);
  void (*pack)(const ProjectionProblem&, int64_t weight, int64_t first, int64_t count);
  void (*tokens)(const ProjectionProblem&, const ProjectionPanel&, void* scratch);
  void (*weights)(const ProjectionProblem&, const ProjectionWeightItem&, void* scratch);
  void (*fold_weights)(const ProjectionProblem&, const ProjectionWeightItem&, int64_t count, void* scratch);
  void (*inputs)(const ProjectionProblem&, const ProjectionPanel&, void* scratch);
};

}  // namespace wfkernels
