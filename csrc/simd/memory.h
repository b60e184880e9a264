#pragma once

// Fresh memory in large pages, where the system has them: writing to 4 KiB pages for the first time costs as much as the
// kernels that fill them.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace wfkernels {

// Returns a tensor just made that nobody has written to.
inline torch::stable::Tensor in_large_pages(torch::stable::Tensor fresh) {
#ifdef __linux__
  constexpr uintptr_t kPage = 4096, kLarge = uintptr_t(1) << 21;
  const uintptr_t bytes = static_cast<uintptr_t>(fresh.numel()) * fresh.element_size();
  if (bytes >= 2 * kLarge) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(fresh.const_data_ptr()), first = (begin + kPage - 1) / kPage * kPage;
    // Only advice: a system that cannot follow it loses nothing.
    madvise(reinterpret_cast<void*>(first), (begin + bytes) / kPage * kPage - first, MADV_HUGEPAGE);
  }
#endif
  return fresh;
}

}  // namespace wfkernels
