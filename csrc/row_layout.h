// Which dimensions of a strided tensor merge into one, for the CPU and for CUDA. Host code only.
#pragma once
#include <algorithm>
#include <cstdint>
#include <torch/csrc/stable/tensor.h>
#include <vector>

namespace mmix {

// A dimension, or several merged ones, of a tensor and maybe of one or two more of the same sizes.
struct Dim {
  int64_t size, stride;
  // In the other tensors; 0, which never forbids a merge, if there are none.
  int64_t out_stride = 0, other_stride = 0;
};

// Adds a dimension to `dims`, which come from the fastest to the slowest, as the slowest. Merges it
// with the last one if in all tensors one stride serves the two.
inline void add_dim(std::vector<Dim> &dims, const Dim &next) {
  if (!dims.empty()) {
    Dim &last = dims.back();
    if (next.stride == last.stride * last.size && next.out_stride == last.out_stride * last.size &&
        next.other_stride == last.other_stride * last.size) {
      last.size *= next.size;
      return;
    }
  }
  dims.push_back(next);
}

// The dimensions of a sample that have more than one element, smallest stride first. The columns of
// a sample are counted in this order. launch.py of the Triton backend sorts alike.
inline std::vector<int64_t> sorted_dims(const torch::stable::Tensor &x,
                                        const torch::stable::Tensor &out, int64_t batch_dim) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != batch_dim && x.size(d) != 1) dims.push_back(d);
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) {
    const int64_t step = x.stride(a), next = x.stride(b);
    return step != next ? step < next : out.stride(a) < out.stride(b);
  });
  return dims;
}

// The samples of x, of out and maybe of `other`, as runs of contiguous elements.
struct SampleLayout {
  SampleLayout(const torch::stable::Tensor &x, const torch::stable::Tensor &out, int64_t batch_dim,
               const torch::stable::Tensor *other = nullptr) {
    for (int64_t d : sorted_dims(x, out, batch_dim))
      add_dim(dims, {x.size(d), x.stride(d), out.stride(d), other ? other->stride(d) : 0});
    if (!dims.empty() && dims[0].stride == 1 && dims[0].out_stride == 1 &&
        (!other || dims[0].other_stride == 1)) {
      run = dims[0].size;
      dims.erase(dims.begin());
    }
    for (const Dim &d : dims) runs *= d.size;
  }
  int64_t run = 1, runs = 1; // elements of a run; runs of a sample
  std::vector<Dim> dims;     // where the runs begin, smallest stride first
};

// The rows of a (B, C, d1, ...) tensor, each of C classes: one for each sample and position.
struct ClassRows {
  explicit ClassRows(const torch::stable::Tensor &t)
      : class_stride(t.size(1) == 1 ? 1 : t.stride(1)) {
    for (int64_t d = t.dim() - 1; d >= 0; --d)
      if (d != 1 && t.size(d) != 1) add_dim(dims, {t.size(d), t.stride(d)});
  }
  int64_t class_stride;
  std::vector<Dim> dims; // where the rows begin, innermost first; empty: there is one row
};

} // namespace mmix
