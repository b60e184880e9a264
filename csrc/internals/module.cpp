// wfkernels._internals: facts of the build, and the inner pieces of the kernels, one by one, for their own unit tests. It
// knows no tensors, only numpy arrays, and nothing at run time depends on it.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "internals/pieces.h"
#include "simd/isa.h"

namespace wfkernels {

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T>;

struct Variant {
  const char* name;  // as CPU_ISA in wfkernels/env.py has it
  Isa isa;
  const Pieces& pieces;
};

const Variant kVariants[] = {
    {"portable", Isa::kPortable, portable::pieces},
#if defined(__x86_64__)
    {"avx2", Isa::kAvx2, avx2::pieces},
    {"avx512", Isa::kAvx512, avx512::pieces},
#endif
};

const Pieces& pieces_of(const std::string& isa) {
  for (const Variant& variant : kVariants) {
    if (isa != variant.name) continue;
    if (!runs(variant.isa)) throw py::value_error("isa: this processor does not run " + isa + " code");
    return variant.pieces;
  }
  throw py::value_error("isa: nothing is compiled for " + isa);
}

template <typename T>
const FloatPieces<T>& float_pieces_of(const std::string& isa) {
  if constexpr (sizeof(T) == sizeof(float))
    return pieces_of(isa).of_float;
  else
    return pieces_of(isa).of_double;
}

void require(bool holds, const char* what) {
  if (!holds) throw py::value_error(what);
}

template <typename T>
Array<T> exponential(const std::string& isa, const Array<T>& x) {
  require(x.ndim() == 1, "x: expected one dimension");
  const int64_t count = x.shape(0), lanes = pieces_of(isa).vector_bytes / int64_t(sizeof(T));
  std::vector<T> padded((count + lanes - 1) / lanes * lanes);
  for (int64_t i = 0; i < count; ++i) padded[i] = x.at(i);
  float_pieces_of<T>(isa).exponential(static_cast<int64_t>(padded.size()), padded.data(), padded.data());
  return Array<T>(count, padded.data());
}

template <typename T>
void product(const std::string& isa, const Array<T>& a, const Array<T>& b, Array<T>& c, bool add) {
  require(a.ndim() == 2 && b.ndim() == 2 && c.ndim() == 2, "a, b, c: expected two dimensions");
  const int64_t rows = c.shape(0), columns = c.shape(1), depth = b.shape(0);
  require(a.shape(0) == rows && a.shape(1) == depth && b.shape(1) == columns, "a, b, c: shapes do not fit a @ b");
  require(columns % (pieces_of(isa).vector_bytes / int64_t(sizeof(T))) == 0, "c: expected whole vectors of columns");
  const auto stride = [](const Array<T>& array, int d) { return array.strides(d) / int64_t(sizeof(T)); };
  const auto has_rows = [&](const Array<T>& array) { return array.size() == 0 || stride(array, 1) == 1; };
  require(has_rows(b) && has_rows(c), "b, c: expected contiguous rows");
  float_pieces_of<T>(isa).product[add](
      rows, columns, depth, a.data(), stride(a, 0), stride(a, 1), b.data(), stride(b, 0), c.mutable_data(),
      stride(c, 0));
}

Array<uint8_t> keep_row(
    const std::string& isa, int64_t seed, int64_t site, uint32_t sequence, uint32_t head, uint32_t row, int64_t column,
    int64_t count, uint64_t threshold) {
  const Pieces& pieces = pieces_of(isa);
  Array<uint8_t> keep(count);
  pieces.keep_row(
      static_cast<uint64_t>(seed), site, sequence, head, row, column, count, threshold, keep.mutable_data());
  return keep;
}

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#else
  return std::string("GCC ") + __VERSION__;
#endif
}

py::dict build() {
  py::dict sets;
  for (const Variant& variant : kVariants) sets[variant.name] = runs(variant.isa);
  const py::str architectures(WFKERNELS_CUDA_ARCHITECTURES);  // as in TORCH_CUDA_ARCH_LIST
  return py::dict(
      py::arg("compiler") = compiler(), py::arg("instruction_sets") = sets,
      py::arg("cuda_architectures") = architectures.attr("replace")(";", " ").attr("split")());
}

template <typename T>
void define(py::module_& module) {
  module.def("exponential", &exponential<T>, py::arg("isa"), py::arg("x").noconvert(), "exp of every x [n].");
  module.def(
      "product", &product<T>, py::arg("isa"), py::arg("a").noconvert(), py::arg("b").noconvert(),
      py::arg("c").noconvert(), py::arg("add"),
      "Write a [m, k] @ b [k, n] to c [m, n], or add it. a may have any strides, n is whole vectors.");
}

}  // namespace

PYBIND11_MODULE(_internals, module) {
  module.doc() = "Facts of the build, and the inner pieces of the kernels of every instruction set.";
  module.def("build", &build, "Return the compiler, which instruction sets run here, and what CUDA code was built for.");
  module.def(
      "vector_bytes", [](const std::string& isa) { return pieces_of(isa).vector_bytes; }, py::arg("isa"),
      "Return how wide the vectors of an instruction set are.");
  module.def(
      "keep_row", &keep_row, py::arg("isa"), py::arg("seed"), py::arg("site"), py::arg("sequence"), py::arg("head"),
      py::arg("row"), py::arg("column"), py::arg("count"), py::arg("threshold"),
      "Return uint8 [count]: 1 where dropout keeps the element of this and the following columns.");
  define<float>(module);
  define<double>(module);
}

}  // namespace wfkernels
