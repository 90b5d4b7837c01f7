// What the two ways through a loss share: where a gradient goes, and the moves between memory, of
// any dtype and strides, and scratch in the arithmetic A.
#pragma once
#include "cpu/loss_rows.h"

namespace mmix {

// Where the rows of a gradient go; it may be the logits themselves.
struct GradientRows {
  explicit GradientRows(const Tensor &out, bool past_cache)
      : data(static_cast<char *>(out.mutable_data_ptr())), view(out), stream(past_cache) {}
  char *at(int64_t offset) const { return data + offset * element_size(view.type); }
  char *data;
  RowView view;
  bool stream;
};

template <class A> constexpr DType kArithmetic = sizeof(A) == 8 ? kDouble : kFloat;

// dst[0..n) = the n elements at src that are `stride` apart.
template <class A>
void gather(const LossKernels<A> &kernels, A *dst, const char *src, DType type, int64_t stride,
            int64_t n) {
  if (stride == 1) return kernels.widen[type](dst, src, n);
  visit(type, [&](auto *t) {
    const auto *from = static_cast<decltype(t)>(static_cast<void *>(const_cast<char *>(src)));
    for (int64_t c = 0; c < n; ++c) dst[c] = static_cast<A>(from[c * stride]);
  });
}

// The way back, each element rounded once.
template <class A>
void scatter(const LossKernels<A> &kernels, char *dst, DType type, int64_t stride, const A *src,
             int64_t n) {
  if (stride == 1) return kernels.narrow[type](dst, src, n);
  visit(type, [&](auto *t) {
    using T = std::remove_pointer_t<decltype(t)>;
    T *to = static_cast<T *>(static_cast<void *>(dst));
    for (int64_t c = 0; c < n; ++c) to[c * stride] = static_cast<T>(src[c]);
  });
}

} // namespace mmix
