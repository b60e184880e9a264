#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

namespace wfkernels {

// Calls work(i, scratch) for every i below count, whichever thread is free taking the next; scratch is `bytes` of memory
// of that thread. What work does must not depend on the order.
template <typename Work>
void for_each_free(int64_t count, int64_t bytes, const Work& work) {
  if (count == 0) return;
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, (bytes + 64) / 64 * 64), &std::free);
    if (!scratch) throw std::bad_alloc();
    for (int64_t i = next++; i < count; i = next++) work(i, scratch.get());
  });
}

}  // namespace wfkernels
