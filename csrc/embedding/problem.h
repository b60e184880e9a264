#pragma once

// One embedding call in plain numbers and pointers: what the kernels of every instruction set read.
//
// A *unit* is a row of one layer of all teachers: unit = copy * rows + row, copies counted group by group.

#include <cstdint>

#include "attention/problem.h"

namespace wfkernels {

enum class Activation : int8_t { kNone, kRelu, kGelu };

struct EmbeddingLayer {
  int64_t rows, width, stride;
  int64_t group;  // of layers that share a weight
  int64_t first_row, first_base, first_column;  // first element of the buffers of rows, of base, of columns
  int64_t first_position;
  int64_t first_token;  // of its first sequence
  int64_t first_unit;  // units of the layers before
};

struct EmbeddingGroup {
  int64_t width;
  Elements weight, grad_weight;  // [width, d]
  int64_t row, column;  // strides of weight; its gradient is contiguous
  int64_t first_packed;
};

// Rows [first, first + count) of a group's weight.
struct EmbeddingStretch {
  int64_t group, first, count;
};

// Units [first, first + count) of a layer. In the backward there is a slot of sums for every copy they belong to.
struct EmbeddingPanel {
  int64_t layer, first, count, first_slot;
};

// The gradient of a stretch of a weight from some panels of kDepth units. Where there are several items for a stretch,
// each leaves a partial sum.
struct EmbeddingWeightItem {
  EmbeddingStretch stretch;
  int64_t first_panel, panels;  // of Problem.chunks
  int64_t partial;  // first row in the partial sums, -1 for the only one
};

// Gradients of columns [column, column + columns) of rows [first, first + count) of a layer, for all copies.
struct EmbeddingInputItem {
  int64_t layer, column, columns, first, count, slot;
};

// Codes, shift, scale and gradients behind a void pointer are of the kernels' own type. Codes are padded to a multiple of
// kPad with zeros.
struct EmbeddingProblem {
  int64_t width, padded_width;  // d
  int64_t copies, groups, cross, positions;
  int64_t layer_count;
  Activation activation;
  double eps;
  const EmbeddingLayer* layers;
  const EmbeddingGroup* weights;
  const int64_t* group_of_copy;  // [copies]
  const int64_t* code_of_copy;  // [copies], which teacher code
  const int64_t* first_copy;  // [groups]
  Elements rows, base;  // base.data may be null
  const void *shift, *scale;
  const void *biases, *position, *teacher, *layer, *cross_tokens, *gamma, *beta;  // codes that are not given are null
  void* packed;  // the weights as slivers, group by group
  Elements out;  // [tokens, d]

  // The backward.
  Elements grad;  // [tokens, d]
  void* grad_tokens;  // [tokens, padded d] before LayerNorm
  // Gradients before the activation: panels of kDepth units [slivers][units][width of the sliver].
  void* grad_sums;
  void* sums;  // [slots, kSums, padded d]
  void* grad_position;  // [positions, padded d]
  void* grad_cross;  // [sequences, cross, padded d]
  const EmbeddingPanel* chunks;  // of kDepth units, group by group of layers
  void* partial_weights;  // [rows, padded d]
  Elements grad_rows, grad_base;
  double* column_sums;  // [slots of input items, 2, kBlockColumns]: gradients of shift and scale, negated
};

struct EmbeddingKernels {
  void (*pack)(const EmbeddingProblem&, const EmbeddingStretch&);
  void (*forward)(const EmbeddingProblem&, const EmbeddingPanel&, void* scratch);
  void (*forward_cross)(const EmbeddingProblem&, int64_t layer, void* scratch);
  void (*backward)(const EmbeddingProblem&, const EmbeddingPanel&, void* scratch);
  void (*backward_cross)(const EmbeddingProblem&, int64_t layer, int64_t slot, void* scratch);
  void (*positions)(const EmbeddingProblem&, int64_t block);
  void (*weights)(const EmbeddingProblem&, const EmbeddingWeightItem&, void* scratch);
  void (*fold_weights)(const EmbeddingProblem&, const EmbeddingStretch&, int64_t partial, int64_t count, void* scratch);
  void (*inputs)(const EmbeddingProblem&, const EmbeddingInputItem&, void* scratch);
};

// What a slot sums up: gradients before LayerNorm, before the activation, of gamma, of beta.
constexpr int64_t kSums = 4;
constexpr int64_t kPositionRows = 16;

}  // namespace wfkernels
