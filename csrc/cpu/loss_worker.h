// Shared by the workers of both losses: the destination of the gradient, copies between memory of
// any dtype and stride and scratch of type A, and the division of the rows among threads.
#pragma once
#include "cpu/paired_rows.h"
#include <algorithm>
#include <numeric>

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
  visit_target(type, [&](auto *t) {
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

// A thread gets at least kLogitsPerThread of work. A row costs as much as kRowCost more classes.
constexpr int64_t kLogitsPerThread = 65536, kRowCost = 256;

// Calls body(worker, first row, number of rows) for all rows, with a worker for each thread.
// Returns the sum of the results. The order of the sum does not depend on the number of threads.
template <class Worker, class Rows, class Body>
double share_out(const Rows &rows, const GradientRows *out, const Body &body) {
  const int64_t several = Worker::rows_at_a_time(rows);
  const int64_t grain =
      std::max<int64_t>(1, kLogitsPerThread / (rows.classes + kRowCost) / several);
  const int64_t units = (rows.count + several - 1) / several;
  std::vector<double> sums(units);
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    Worker worker(rows, out);
    for (int64_t unit = begin; unit < end; ++unit)
      sums[unit] = body(worker, unit * several, std::min(several, rows.count - unit * several));
    if (out && out->stream) publish_streamed();
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

template <class F> decltype(auto) with_arithmetic(const Tensor &logits, const F &f) {
  return arithmetic_of(logits.scalar_type()) == ScalarType::Double ? f(double{}) : f(float{});
}

} // namespace mmix
