#pragma once

#include "attention/problem.h"
#include "embedding/problem.h"
#include "linear/problem.h"
#include "projection/problem.h"
#include "residual_norm/problem.h"
#include "simd/isa.h"

namespace wfkernels {

// Blocks of the products of embedding, projection and linear: so many rows or columns of the result at a time, so deep.
constexpr int64_t kPanelRows = 128;
constexpr int64_t kBlockColumns = 128;
constexpr int64_t kDepth = 256;

// The kernels of one instruction set, for float and double.
struct Kernels {
  using Pack = void (*)(const Problem&, int64_t sequence, int64_t key_head);
  using Attention = void (*)(const Problem&, const Item&, void* scratch);
  using Finish = void (*)(const Problem&, int64_t sequence, int64_t key_head, int64_t first_key, void* scratch);
  Pack attention_pack[2];
  Attention attention_look[2];
  Attention attention_forward[2];
  Attention attention_backward[2];
  Finish attention_finish[2];
  NormKernels residual_norm[2];
  EmbeddingKernels embedding[2];
  LinearKernels linear[2];
  ProjectionKernels projection[2];
};

namespace portable {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

// Returns the kernels of an instruction set that this machine runs.
const Kernels& kernels_of(Isa isa);

}  // namespace wfkernels
