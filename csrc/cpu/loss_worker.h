// Shared by loss_along.h and loss_across.h: the destination of the gradient, and copies between
// memory of any dtype and stride and scratch of type A.
#pragma once
#include "cpu/loss_rows.h"

namespace mmix {

// The tensor to which the gradient is written. It may be the logits.
struct GradientRows {
  explicit GradientRows(const Tensor &out, bool past_cache)
      : data(static_cast<char *>(out.mutable_data_ptr())), view(out), stream(past_cache) {}
  char *at(int64_t offset) const { return data + offset * element_size(view.type); }
  char *data;
  RowView view;
  bool stream;
};

template <class A> constexpr DType kArithmetic = sizeof(A) == 8 ? kDouble : kFloat;

// dst[0..n) = n elements from src on, `stride` elements apart.
template <class A>
void gather(const LossKernels<A> &kernels, A *dst, const char *src, DType type, int64_t stride,
            int64_t n) {
  if (stride == 1) return kernels.widen[type](dst, src, n);
  visit(type, [&](auto *t) {
    const auto *from = static_cast<decltype(t)>(static_cast<void *>(const_cast<char *>(src)));
    for (int64_t c = 0; c < n; ++c) dst[c] = static_cast<A>(from[c * stride]);
  });
}

// The inverse of gather. Each element is rounded once.
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
