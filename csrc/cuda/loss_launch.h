// What the launches of both losses share: from their arguments to numbers and device pointers.
#pragma once
#include "cuda/kernels/cross_entropy_problem.cuh"
#include "cuda/launch.h"
#include "cuda/tickets.h"
#include "loss_args.h"
#include "row_layout.h"
#include "shapes.h"
#include "smoothing.h"
#include <tuple>

namespace mmix {

inline RowLayout row_layout(const Tensor &t) {
  const ClassRows rows(t);
  STD_TORCH_CHECK(rows.dims.size() <= RowLayout::kMaxDims, "logits have too many dimensions");
  RowLayout at{};
  at.class_stride = rows.class_stride;
  for (const Dim &d : rows.dims) {
    at.size[at.dims] = divisor(d.size);
    at.stride[at.dims++] = d.stride;
  }
  if (at.dims == 0) { // one row
    at.dims = 1;
    at.stride[0] = t.size(1);
  }
  return at;
}

inline Values values(const Tensor &t, const RowLayout &at) {
  return {input<char>(t), target_dtype_of(t.scalar_type()), at};
}
// Numbers of classes, the same for every row.
inline Values class_values(const Tensor &t) {
  RowLayout at{};
  at.class_stride = at.dims = 1;
  return values(t, at);
}

// All that the arguments of both losses have.
template <class Args> LossProblem loss_problem(const Args &args, const Smoothing &smoothing) {
  LossProblem a{};
  const Tensor &z = args.logits;
  STD_TORCH_CHECK(z.size(1) <= INT32_MAX / 2, "logits have too many classes");
  a.batch = z.size(0);
  a.inner = positions(z);
  a.by_inner = divisor(a.inner);
  a.rows = a.batch * a.inner;
  a.classes = a.all_classes = static_cast<int>(z.size(1));
  a.keep = smoothing.keep;
  a.base = smoothing.base;
  a.logits = input<char>(z);
  a.logits_at = row_layout(z);
  a.gradient_at = a.logits_at;
  if (args.perm) a.perm = input<int64_t>(*args.perm);
  if (are_labels(args.target)) {
    a.labels = input<int64_t>(args.target);
    if (args.target_b) a.labels_b = input<int64_t>(*args.target_b);
  } else {
    const Tensor &b = args.target_b ? *args.target_b : args.target;
    a.terms[kTarget] = values(args.target, row_layout(args.target));
    a.terms[kTargetB] = values(b, row_layout(b));
  }
  if (args.weight) a.terms[kWeight] = class_values(*args.weight);
  a.lam = input<char>(args.lam);
  a.lam_stride = args.lam.dim() == 1 ? args.lam.stride(0) : 0;
  a.lam_per_sample = args.lam.dim() == 1;
  return a;
}

// Device memory of a launch: `numbers`, and the counter of its blocks if it has no ticket.
struct Workspace {
  Workspace(const OnDevice &device, const Tensor &like, int64_t numbers)
      : tensor(torch::stable::new_empty(like, {numbers + 1}, ScalarType::Double)),
        at(output<double>(tensor)), last{ticket_of(device), nullptr} {
    if (last.ticket >= 0) return;
    torch::stable::zero_(tensor);
    last.finished = reinterpret_cast<unsigned *>(at + numbers);
  }
  Tensor tensor;
  double *at;
  LastBlock last;
};

} // namespace mmix
