// rows_pack on the CPU: a table of where every parameter of every teacher lies, then one pass over the output.

#include "rows.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace wfkernels {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAlignment = 8;  // ALIGNMENT of wfkernels/layout.py
constexpr int64_t kGrain = 32768;  // elements a thread takes at least, as in aten's own copies

struct Dimension {
  int64_t size;
  int64_t stride;
};

struct Source;
using Copy = void (*)(const Source&, int64_t row, char* out);

// One parameter of one teacher, read as [rows, width] in its logical order.
struct Source {
  const void* data;
  std::vector<Dimension> dimensions;  // innermost first, neighbours merged where the strides allow
  int64_t width;
  Copy copy;
};

struct Layer {
  int64_t begin;  // first element in the output
  int64_t rows;
  int64_t stride;
  int64_t width;
  size_t first;  // its first parameter
  size_t count;
};

std::vector<Dimension> merged_dimensions(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  std::vector<Dimension> result;
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (!result.empty() && strides[d] == result.back().stride * result.back().size) {
      result.back().size *= sizes[d];
    } else {
      result.push_back({sizes[d], strides[d]});
    }
  }
  if (result.empty()) result.push_back({1, 1});
  return result;
}

template <typename In, typename Out>
void convert(const In* in, int64_t stride, int64_t count, Out* out) {
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(in[i * stride]);
  } else if constexpr (std::is_same_v<In, Out>) {
    std::memcpy(out, in, count * sizeof(Out));
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(in[i]);
  }
}

template <typename In, typename Out>
void copy_row(const Source& source, int64_t row, char* bytes) {
  const In* in = static_cast<const In*>(source.data);
  Out* out = reinterpret_cast<Out*>(bytes);
  const Dimension inner = source.dimensions.front();
  // The row is a stretch of the logical order; it may cross several runs of the innermost dimension.
  for (int64_t done = 0; done < source.width;) {
    int64_t index = row * source.width + done;
    const int64_t within = index % inner.size;
    const int64_t run = std::min(source.width - done, inner.size - within);
    int64_t offset = 0;
    for (const Dimension& dimension : source.dimensions) {
      offset += index % dimension.size * dimension.stride;
      index /= dimension.size;
    }
    convert(in + offset, inner.stride, run, out + done);
    done += run;
  }
}

template <typename Out>
Copy copy_from(ScalarType in) {
  switch (in) {
    case ScalarType::Float:
      return copy_row<float, Out>;
    case ScalarType::Double:
      return copy_row<double, Out>;
    case ScalarType::Half:
      return copy_row<Half, Out>;
    case ScalarType::BFloat16:
      return copy_row<BFloat16, Out>;
    default:
      STD_TORCH_CHECK(false, "rows_pack: cannot read ", torch::headeronly::toString(in));
  }
}

Copy copy_between(ScalarType in, ScalarType out) {
  switch (out) {
    case ScalarType::Float:
      return copy_from<float>(in);
    case ScalarType::Double:
      return copy_from<double>(in);
    case ScalarType::Half:
      return copy_from<Half>(in);
    case ScalarType::BFloat16:
      return copy_from<BFloat16>(in);
    default:
      STD_TORCH_CHECK(false, "rows_pack: cannot write ", torch::headeronly::toString(out));
  }
}

}  // namespace

Tensor rows_pack(
    const std::vector<Tensor>& tensors,
    const std::vector<int64_t>& rows,
    const std::vector<int64_t>& parameters,
    const std::vector<int64_t>& widths,
    ScalarType dtype) {
  const int64_t teachers = static_cast<int64_t>(tensors.size() / widths.size());

  std::vector<Source> sources;
  sources.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    sources.push_back(
        {tensor.const_data_ptr(),
         merged_dimensions(tensor),
         widths[i % widths.size()],
         copy_between(tensor.scalar_type(), dtype)});
  }

  std::vector<Layer> layers;
  int64_t total = 0;
  size_t parameter = 0;
  for (size_t l = 0; l < rows.size(); ++l) {
    const size_t count = static_cast<size_t>(parameters[l]);
    int64_t width = 0;
    for (size_t i = 0; i < count; ++i) width += widths[parameter + i];
    const int64_t stride = (width + kAlignment - 1) / kAlignment * kAlignment;
    if (width > 0) layers.push_back({total, rows[l], stride, width, parameter, count});
    total += teachers * rows[l] * stride;
    parameter += count;
  }

  Tensor out = torch::stable::new_empty(tensors[0], {total}, dtype);
  char* bytes = static_cast<char*>(out.mutable_data_ptr());
  const int64_t item = static_cast<int64_t>(out.element_size());

  // Threads share the elements evenly; a row belongs to the thread in whose range it begins.
  torch::stable::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
    auto layer = std::partition_point(layers.begin(), layers.end(), [&](const Layer& l) {
      return l.begin + teachers * l.rows * l.stride <= begin;
    });
    for (; layer != layers.end() && layer->begin < end; ++layer) {
      const int64_t first = (std::max<int64_t>(begin - layer->begin, 0) + layer->stride - 1) / layer->stride;
      const int64_t last =
          std::min(teachers * layer->rows, (end - layer->begin + layer->stride - 1) / layer->stride);
      for (int64_t k = first; k < last; ++k) {
        const int64_t teacher = k / layer->rows;
        const int64_t row = k % layer->rows;
        char* target = bytes + (layer->begin + k * layer->stride) * item;
        const Source* source = sources.data() + teacher * widths.size() + layer->first;
        for (size_t i = 0; i < layer->count; ++i, ++source) {
          source->copy(*source, row, target);
          target += source->width * item;
        }
        std::memset(target, 0, (layer->stride - layer->width) * item);
      }
    }
  });
  return out;
}

std::vector<Tensor> rows_pack_backward(
    Tensor grad,
    int64_t teachers,
    const std::vector<int64_t>& rows,
    const std::vector<int64_t>& parameters,
    const std::vector<int64_t>& widths,
    const std::vector<int64_t>& needed) {
  // One parameter of one teacher, [rows, width], in bytes.
  struct Target {
    const char* from;
    char* to;
    int64_t rows, stride, width;
  };
  const int64_t item = static_cast<int64_t>(grad.element_size());
  const char* bytes = static_cast<const char*>(grad.const_data_ptr());
  std::vector<Tensor> result(needed.size(), grad);
  std::vector<Target> targets;
  int64_t begin = 0;
  size_t first = 0;
  for (size_t l = 0; l < rows.size(); ++l) {
    int64_t width = 0, column = 0;
    const size_t count = static_cast<size_t>(parameters[l]);
    for (size_t i = 0; i < count; ++i) width += widths[first + i];
    const int64_t stride = (width + kAlignment - 1) / kAlignment * kAlignment;
    for (size_t i = first; i < first + count; column += widths[i++]) {
      for (int64_t t = 0; t < teachers; ++t) {
        const size_t place = static_cast<size_t>(t) * widths.size() + i;
        if (!needed[place]) {
          result[place] = torch::stable::new_empty(grad, {0});
          continue;
        }
        result[place] = torch::stable::new_empty(grad, {rows[l], widths[i]});
        if (widths[i] == 0) continue;
        targets.push_back(
            {bytes + (begin + t * rows[l] * stride + column) * item, static_cast<char*>(result[place].mutable_data_ptr()),
             rows[l], stride * item, widths[i] * item});
      }
    }
    begin += teachers * rows[l] * stride;
    first += count;
  }

  // Rows of all targets in turn.
  std::vector<int64_t> ends;
  int64_t total = 0, size = 0;
  for (const Target& target : targets) {
    ends.push_back(total += target.rows);
    size += target.rows * target.width;
  }
  const int64_t grain = std::max<int64_t>(1, total * kGrain / std::max<int64_t>(1, size / item));
  torch::stable::parallel_for(0, total, grain, [&](int64_t from, int64_t end) {
    size_t number = std::upper_bound(ends.begin(), ends.end(), from) - ends.begin();
    for (int64_t row = from; row < end; ++number) {
      const Target& target = targets[number];
      const int64_t start = ends[number] - target.rows, stop = std::min(end, ends[number]);
      for (; row < stop; ++row)
        std::memcpy(
            target.to + (row - start) * target.width, target.from + (row - start) * target.stride, target.width);
    }
  });
  return result;
}

}  // namespace wfkernels
