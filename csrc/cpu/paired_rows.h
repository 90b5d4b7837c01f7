// The rows of a (B*d1*..., C) matrix of logits, and for each the targets of its sample and of its
// partner. Both losses use it.
#pragma once
#include "checks.h"
#include "cpu/tensors.h"
#include "row_layout.h"
#include "shapes.h"
#include "smoothing.h"

namespace mmix {

// A (B, C, d1, ...) tensor as rows of classes. Copies sizes and strides once, because each query to
// a stable Tensor is a call through the ABI.
struct RowView : ClassRows {
  explicit RowView(const Tensor &t)
      : ClassRows(t), data(t.const_data_ptr()), type(target_dtype_of(t.scalar_type())) {}
  // Offset of the first class of row r.
  int64_t offset(int64_t r) const {
    if (dims.size() == 1) return r * dims[0].stride;
    int64_t at = 0;
    for (const Dim &d : dims) {
      at += r % d.size * d.stride;
      r /= d.size;
    }
    return at;
  }
  // The stride from row to row within the innermost dimension.
  int64_t step() const { return dims.empty() ? 0 : dims[0].stride; }
  // Whether the stride is 1 along rows but not along classes.
  bool rows_adjacent() const { return step() == 1 && class_stride != 1; }
  const char *at(int64_t offset) const {
    return static_cast<const char *>(data) + offset * element_size(type);
  }
  const void *data;
  DType type;
};

// What the rows of one sample share.
struct LossSample {
  double own, other;            // the coefficients of its two terms, λ and 1-λ
  int64_t first, partner;       // its first row, and its partner's first row
  const int64_t *mine, *theirs; // labels; null where targets are of the logits' shape
};

// Args: LossArgs or BinaryLossArgs. Checks the labels and perm. all_classes: of which the logits
// may be a shard.
struct PairedRows {
  template <class Args>
  PairedRows(const Args &a, std::optional<int64_t> ignore_index, int64_t all_classes)
      : batch(a.logits.size(0)), classes(a.logits.size(1)), label_classes(all_classes),
        inner(positions(a.logits)), count(batch * inner),
        smoothing(a.label_smoothing, label_classes), logits(a.logits), labels(are_labels(a.target)),
        lam(a.lam, logits.type == kDouble) {
    if (a.perm) {
      perm = static_cast<const int64_t *>(a.perm->const_data_ptr());
      check_permutation(perm, batch);
    }
    if (labels) {
      y = static_cast<const int64_t *>(a.target.const_data_ptr());
      if (a.target_b) y_b = static_cast<const int64_t *>(a.target_b->const_data_ptr());
      check_labels("target", y, ignore_index);
      if (y_b) check_labels("target_b", y_b, ignore_index);
    } else {
      target.emplace(a.target);
      target_b.emplace(a.target_b ? *a.target_b : a.target);
    }
  }

  LossSample sample(int64_t b) const {
    LossSample s{lam.own(b), lam.other(b), b * inner, (perm ? perm[b] : b) * inner,
                 nullptr,    nullptr};
    if (labels) {
      s.mine = y + s.first;
      s.theirs = y_b ? y_b + s.first : y + s.partner;
    }
    return s;
  }

  int64_t batch, classes, label_classes, inner, count; // label_classes: those that labels name
  Smoothing smoothing;
  RowView logits;
  std::optional<RowView> target, target_b; // of the logits' shape
  bool labels;
  const int64_t *y = nullptr, *y_b = nullptr, *perm = nullptr;
  Lam lam;

private:
  void check_labels(const char *name, const int64_t *label,
                    std::optional<int64_t> ignore_index) const {
    const auto n = static_cast<uint64_t>(label_classes);
    const bool all_count = !ignore_index;
    const int64_t ignored = ignore_index.value_or(0);
    bool bad = false; // no branch, so that the compiler vectorises the loop
    for (int64_t r = 0; r < count; ++r)
      bad |= (all_count || label[r] != ignored) && static_cast<uint64_t>(label[r]) >= n;
    for (int64_t r = 0; bad && r < count; ++r)
      check_label(name, label[r], label_classes, ignore_index);
  }
};

// The weights of the classes in the type of the arithmetic, and a 0 after them. Empty: none.
template <class A> std::vector<A> class_weights(const std::optional<Tensor> &weight, int64_t n) {
  if (!weight) return {};
  std::vector<A> wide(n + 1);
  row_kernels().loss<A>().widen[dtype_of(weight->scalar_type())](wide.data(),
                                                                 weight->const_data_ptr(), n);
  return wide;
}

} // namespace mmix
